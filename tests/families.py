"""Tiny random models of `transformers`, one for each way in which its families differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 67
CONTEXT = 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
DEEP = {**GROUPED, "num_hidden_layers": 4}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 exact gelu, inner width, untied": (
        "GPT2",
        {**GPT2, "n_inner": 24, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "gpt2 relu, unscaled": ("GPT2", {**GPT2, "activation_function": "relu", "scale_attn_weights": False}),
    "llama": ("Llama", SHAPE),
    "llama grouped, tied": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "llama biases, head size": ("Llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 10}),
    "llama one head of keys, gelu": ("Llama", {**SHAPE, "num_key_value_heads": 1, "hidden_act": "gelu"}),
    "llama theta": ("Llama", {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama linear": (
        "Llama",
        {**GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama llama3": ("Llama", {**GROUPED, "head_dim": 16, "rope_parameters": LLAMA3}),
    "llama yarn": ("Llama", {**GROUPED, "head_dim": 16, "rope_parameters": YARN}),
    "llama yarn, all said": (
        "Llama",
        {**GROUPED, "rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.25}},
    ),
    "llama yarn, mscale": ("Llama", {**GROUPED, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1}}),
    "mistral, window": ("Mistral", {**GROUPED, "sliding_window": 7, "head_dim": 12}),
    "mistral, no window": ("Mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2 windows above layer 2": (
        "Qwen2",
        {**DEEP, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "qwen3 windows by layer, tied": (
        "Qwen3",
        DEEP
        | {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": True}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "smollm3": ("SmolLM3", DEEP),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral, window": (
        "Mixtral",
        {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 6},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {**GROUPED, "moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 3, "head_dim": 8},
    ),
    "qwen3_moe, some layers dense": (
        "Qwen3Moe",
        DEEP
        | {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
        | {"norm_topk_prob": True, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2", {**DEEP, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24}),
    "gemma2 without caps": (
        "Gemma2",
        GROUPED
        | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
}
"""Name -> (family in `transformers`, arguments of its configuration)."""


def made(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model with random weights of every kind, on the plain attention: the fused one leaves out Gemma's caps."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    family, arguments = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**arguments)
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, family + head)(config).to(dtype).eval()
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            centre = 1.0 if "norm" in place and "Gemma" not in family else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.3 + centre)
    return model


def keeper(root: Path) -> Callable[[str], tuple[Any, Path]]:
    """Models and their folders by name, each made once."""
    kept: dict[str, tuple[Any, Path]] = {}

    def find(name: str) -> tuple[Any, Path]:
        if name not in kept:
            model = made(name)
            folder = root / str(len(kept))
            model.save_pretrained(folder)
            kept[name] = model, folder
        return kept[name]

    return find
