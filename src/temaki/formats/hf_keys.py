"""The keys of config.json as `transformers` reads them: what each family knows, and what stands where one is left out.

Source: the configuration classes of transformers 4 and 5, by their documentation and their effect on the logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from temaki.base.config import settings

Size = Annotated[int, Field(ge=1, le=1 << 31)]
Layers = Annotated[int, Field(ge=1, le=1 << 12)]
Above = Annotated[float, Field(gt=0)]
LayerType = Literal["full_attention", "sliding_attention"]


@settings
class StackKeys:
    """Llama's keys and those of its relatives. Null stands for None, also where a family's default is another."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Size | None = None
    rms_norm_eps: Above = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Size | None = None
    use_sliding_window: bool = True
    max_window_layers: int = 0
    layer_types: tuple[LayerType, ...] | None = None
    no_rope_layers: tuple[int, ...] | None = None
    """1: this layer turns its pairs; 0: it does not."""
    no_rope_layer_interval: Layers = 4
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2
    norm_topk_prob: bool = True
    moe_intermediate_size: Size | None = None
    decoder_sparse_step: Layers = 1
    mlp_only_layers: tuple[int, ...] = ()
    query_pre_attn_scalar: Above | None = None
    attn_logit_softcapping: Above | None = None
    final_logit_softcapping: Above | None = None


@settings
class Gpt2Keys:
    """GPT-2's keys."""

    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_embd: Size = 768
    n_layer: Layers = 12
    n_head: Size = 12
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Above = 1e-5
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = True


@dataclass(frozen=True)
class Family:
    """One `model_type`."""

    name: str
    architecture: str
    reads: frozenset[str]
    """Fields of its keys that it reads; others have no effect there."""
    defaults: Mapping[str, Any]
    """For keys that a file leaves out."""
    theta: float = 10_000.0
    bias: Literal["given", "qkv", "none"] = "none"
    """given: by `attention_bias`."""
    qk_norm: bool = False
    gemma: bool = False
    """Embeddings times sqrt(width), gains kept as their difference from one."""
    experts: Literal["none", "all", "some"] = "none"
    """all: every layer; some: by `decoder_sparse_step` and `mlp_only_layers`."""


PLAIN = frozenset(
    {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    }
)
WINDOWS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
EXPERTS = frozenset({"num_local_experts", "num_experts_per_tok"})
SPARSE = EXPERTS | {"norm_topk_prob", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers"}
CAPS = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"})
NO_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("gpt2", "GPT2LMHeadModel", frozenset(field.name for field in fields(Gpt2Keys)), {}),
        Family(
            "llama",
            "LlamaForCausalLM",
            PLAIN | {"head_dim", "attention_bias", "mlp_bias"},
            {"max_position_embeddings": 2048},
            bias="given",
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            PLAIN | {"head_dim", "sliding_window", "layer_types"},
            {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            PLAIN | {"head_dim"} | WINDOWS,
            {"num_key_value_heads": 32, "max_position_embeddings": 32768, **NO_WINDOW},
            bias="qkv",
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            PLAIN | {"head_dim", "attention_bias"} | WINDOWS,
            {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, **NO_WINDOW},
            bias="given",
            qk_norm=True,
        ),
        Family(
            "smollm3",
            "SmolLM3ForCausalLM",
            (PLAIN | {"head_dim", "attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"} | WINDOWS)
            - {"max_window_layers"},
            {
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": True,
                "use_sliding_window": False,
            },
            theta=2_000_000.0,
            bias="given",
        ),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            PLAIN | {"head_dim", "sliding_window"} | EXPERTS,
            {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
            theta=1_000_000.0,
            experts="all",
        ),
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            PLAIN | {"head_dim", "attention_bias", "sliding_window", "use_sliding_window"} | SPARSE,
            {
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "moe_intermediate_size": 768,
                "num_experts_per_tok": 8,
                "num_local_experts": 128,
                "norm_topk_prob": False,
                "use_sliding_window": False,
                "sliding_window": 4096,
            },
            bias="given",
            qk_norm=True,
            experts="some",
        ),
        Family(
            "gemma",
            "GemmaForCausalLM",
            PLAIN | {"head_dim", "attention_bias"},
            {
                "num_key_value_heads": 16,
                "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh",
                "tie_word_embeddings": True,
                "max_position_embeddings": 8192,
            },
            bias="given",
            gemma=True,
        ),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            (PLAIN | {"head_dim", "attention_bias", "sliding_window", "layer_types"} | CAPS),
            {
                "num_key_value_heads": 4,
                "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh",
                "tie_word_embeddings": True,
                "max_position_embeddings": 8192,
                "sliding_window": 4096,
                "query_pre_attn_scalar": 256.0,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
            bias="given",
            gemma=True,
        ),
    )
}
"""Every family that is read and written."""

ROPE = frozenset({"rope_parameters", "rope_scaling", "rope_theta"})
WITHOUT_EFFECT = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _name_or_path architectures
attention_dropout attention_probs_dropout_prob attn_implementation attn_pdrop bad_words_ids begin_suppress_tokens
bos_token_id cache_implementation chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dropout
dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label
initializer_range is_decoder is_llama_config keys_to_ignore_at_inference label2id length_penalty license max_length
min_length model_type n_ctx name no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
output_attentions output_hidden_states output_past output_router_logits output_scores pad_token_id
predict_special_tokens prefix pretraining_tp problem_type remove_invalid_values reorder_and_upcast_attn
repetition_penalty resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise
sep_token_id summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
transformers.js_config transformers_version typical_p unk_token_id use_bfloat16 use_cache
"""
FREE = frozenset(WITHOUT_EFFECT.split())
"""Keys that change no logits of a model that is not in training."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (None, False),
    "alibi": (None, False),
    "attention_multiplier": (None,),
    "cross_attention_hidden_size": (None,),
    "embedding_multiplier": (None, 1),
    "is_encoder_decoder": (None, False),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "partial_rotary_factor": (None, 1),
    "pruned_heads": (None, {}, []),
    "quantization_config": (None,),
    "residual_multiplier": (None, 1),
    "rope_interleaved": (None, False),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "tie_encoder_decoder": (None, False),
    "use_bidirectional_attention": (None, False),
}
"""Keys that are understood only where they say that nothing is special."""
