"""config.json -> `DecoderConfig`, for every family of `hf_keys`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from temaki.base import config as config_door
from temaki.base.errors import ConfigError, FormatError
from temaki.formats import hf_rope
from temaki.formats.hf_keys import FAMILIES, FREE, NEUTRAL, ROPE, Family, Gpt2Keys, StackKeys
from temaki.formats.weights import some
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    FfnConfig,
    GegluConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    NoPositionConfig,
    PlainFfnConfig,
    ReluConfig,
    RmsNormConfig,
    RopeConfig,
    SiluConfig,
    SoftmaxConfig,
    SwigluConfig,
)

Keys = TypeVar("Keys", StackKeys, Gpt2Keys)
SILU = ("silu", "swish")
TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


@dataclass(frozen=True)
class Read:
    """What a config.json says."""

    config: DecoderConfig
    family: Family
    warnings: tuple[str, ...]


def read(found: Mapping[str, Any], where: str) -> Read:
    """The configuration that a config.json describes. Raises FormatError naming the key that is not understood."""
    name = found.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise FormatError(
            f"{where}: this family of models is not known here",
            found=f"model_type = {name!r:.60}",
            allowed=", ".join(FAMILIES),
        )
    renamed = _renamed(found, family, where)
    warnings = _strangers(renamed, family, where)
    try:
        config = _gpt2(_keys(Gpt2Keys, renamed, family)) if family.name == "gpt2" else _stack(renamed, family, where)
    except (ConfigError, ValueError) as error:  # ValueError: of our own configuration classes, built here directly
        raise FormatError(f"{where} is not understood: {error}") from None
    return Read(config, family, warnings)


def shortest(blocks: Sequence[BlockConfig]) -> tuple[BlockConfig, ...]:
    """The shortest pattern that gives these blocks when it is repeated."""
    for size in range(1, len(blocks)):
        if len(blocks) % size == 0 and all(block == blocks[place % size] for place, block in enumerate(blocks)):
            return tuple(blocks[:size])
    return tuple(blocks)


def _renamed(found: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The keys by one name each. Raises FormatError for two names that say different things."""
    renamed = dict(found)
    if "num_experts" in renamed and family.experts == "some":
        renamed["num_local_experts"] = renamed.pop("num_experts")
    if family.name == "gemma2":  # Gemma 2 reads this name alone, whatever the other says
        renamed.pop("hidden_act", None)
    activation = renamed.pop("hidden_activation", None) if family.gemma else None
    if activation is None:
        return renamed
    other = renamed.get("hidden_act", family.defaults["hidden_act"])
    alike = activation == other or all(each in ("gelu", "gelu_pytorch_tanh") for each in (activation, other))
    if family.name == "gemma" and not alike:
        raise FormatError(
            f"{where}: hidden_act and hidden_activation differ, and versions of transformers read one or the other",
            found=f"{other!r:.40}, {activation!r:.40}",
            do="write the one that is meant for both",
        )
    return {**renamed, "hidden_act": activation}


def _keys(kind: type[Keys], found: Mapping[str, Any], family: Family) -> Keys:
    """The keys that a family reads, checked; null where nothing need be said. Raises ConfigError."""
    told = {**family.defaults, **{key: value for key, value in found.items() if key in family.reads}}
    silent = {field.name for field in fields(kind) if field.default in (None, ())}
    return config_door.read(kind, {key: v for key, v in told.items() if v is not None or key not in silent})


def _strangers(found: Mapping[str, Any], family: Family, where: str) -> tuple[str, ...]:
    """Warnings about keys that nobody knows. Raises FormatError for one that is known to change the logits."""
    unknown: list[str] = []
    for key, value in found.items():
        if key in NEUTRAL:
            if value not in NEUTRAL[key]:
                raise FormatError(
                    f"{where}: a model with {key} is not known here",
                    found=f"{value!r:.60}",
                    allowed=" or ".join(map(repr, NEUTRAL[key])),
                )
        elif key not in family.reads | FREE | ROPE:
            unknown.append(key)
    code = ["it names code of its own (auto_map), which is never run"] if "auto_map" in unknown else []
    unknown = [key for key in unknown if key != "auto_map"]
    passed = [f"keys that are not known here were passed over: {some(unknown)}"] if unknown else []
    return tuple(f"{where}: {each}" for each in (*code, *passed))


# ---- Llama and its relatives ----------------------------------------------------------------------------------------


def _stack(found: Mapping[str, Any], family: Family, where: str) -> DecoderConfig:
    keys = _keys(StackKeys, found, family)
    rope = hf_rope.read(found, family.theta, keys.max_position_embeddings, where)
    depth = keys.num_hidden_layers
    windows, turned, sparse = _windows(keys, family, where), _turned(keys, family), _sparse(keys, family)
    blocks = [_block(keys, family, rope if turned[i] else None, windows[i], sparse[i]) for i in range(depth)]
    return DecoderConfig(
        vocabulary=keys.vocab_size,
        width=keys.hidden_size,
        depth=depth,
        pattern=shortest(blocks),
        tied=keys.tie_word_embeddings,
        embedding_scale=keys.hidden_size**0.5 if family.gemma else 1.0,
        cap=keys.final_logit_softcapping,
        context=keys.max_position_embeddings,
    )


def _block(keys: StackKeys, family: Family, rope: RopeConfig | None, window: int | None, sparse: bool) -> BlockConfig:
    size = keys.head_dim or keys.hidden_size // keys.num_attention_heads
    scale = None if keys.query_pre_attn_scalar is None else keys.query_pre_attn_scalar**-0.5
    bias = {"given": "all" if keys.attention_bias else "none", "qkv": "qkv", "none": "none"}[family.bias]
    mixer = config_door.read(
        AttentionConfig,
        {
            "heads": keys.num_attention_heads,
            "bias": bias,
            "qk_norm": family.qk_norm,
            "position": config_door.mapping(rope or NoPositionConfig()),
            "map": config_door.mapping(SoftmaxConfig(cap=keys.attn_logit_softcapping)),
            **(
                {}
                if keys.num_key_value_heads in (None, keys.num_attention_heads)
                else {"kv_heads": keys.num_key_value_heads}
            ),
            **({} if size * keys.num_attention_heads == keys.hidden_size else {"size": size}),
            **({} if window is None else {"window": window}),
            **({} if scale is None or keys.query_pre_attn_scalar == size else {"scale": scale}),
        },
    )
    order = "sandwich" if "final_logit_softcapping" in family.reads else "pre"
    return BlockConfig(
        mixer=mixer, ffn=_ffn(keys, family, sparse), norm=RmsNormConfig(eps=keys.rms_norm_eps), order=order
    )


def _ffn(keys: StackKeys, family: Family, sparse: bool) -> FfnConfig:
    if not sparse:
        return _gated(keys, family, keys.intermediate_size)
    return config_door.read(
        ExpertsConfig,
        {
            "experts": keys.num_local_experts,
            "top": keys.num_experts_per_tok,
            "expert": config_door.mapping(_gated(keys, family, keys.moe_intermediate_size or keys.intermediate_size)),
            "renormalise": keys.norm_topk_prob,
            "balance": 0.0,  # these families have no bias on the choice
        },
    )


def _gated(keys: StackKeys, family: Family, width: int) -> PlainFfnConfig:
    if keys.hidden_act in SILU:
        return SwigluConfig(width=width, bias=keys.mlp_bias)
    if keys.hidden_act in TANH or (family.name == "gemma" and keys.hidden_act == "gelu"):
        return GegluConfig(width=width, bias=keys.mlp_bias, form="tanh")
    if keys.hidden_act == "gelu":
        return GegluConfig(width=width, bias=keys.mlp_bias, form="erf")
    allowed = ", ".join((*SILU, *TANH, "gelu"))
    raise ConfigError(f"hidden_act: unknown activation {keys.hidden_act!r:.40}; allowed: {allowed}")


def _windows(keys: StackKeys, family: Family, where: str) -> list[int | None]:
    """The window of every layer."""
    depth = keys.num_hidden_layers
    window = keys.sliding_window if keys.use_sliding_window else None
    if "layer_types" not in family.reads:
        return [window] * depth
    if keys.layer_types is not None:
        if len(keys.layer_types) != depth:
            raise FormatError(
                f"{where}: layer_types must name every layer", found=str(len(keys.layer_types)), allowed=str(depth)
            )
        sliding = [kind == "sliding_attention" for kind in keys.layer_types]
    elif family.gemma:
        sliding = [i % 2 == 0 for i in range(depth)]
    elif family.name == "smollm3":
        sliding = [window is not None and not turned for turned in _turned(keys, family)]
    else:
        sliding = [window is not None and i >= keys.max_window_layers for i in range(depth)]
    if any(sliding) and window is None:
        raise FormatError(f"{where}: layer_types names sliding_attention, but there is no sliding_window")
    return [window if each else None for each in sliding]


def _turned(keys: StackKeys, family: Family) -> list[bool]:
    """Which layers have rotary positions."""
    depth = keys.num_hidden_layers
    if "no_rope_layers" not in family.reads:
        return [True] * depth
    if keys.no_rope_layers is None:
        return [(i + 1) % keys.no_rope_layer_interval != 0 for i in range(depth)]
    if len(keys.no_rope_layers) != depth:
        raise ConfigError(f"no_rope_layers must name every layer ({depth}), found {len(keys.no_rope_layers)}")
    return [bool(each) for each in keys.no_rope_layers]


def _sparse(keys: StackKeys, family: Family) -> list[bool]:
    """Which layers are mixtures of experts."""
    depth = keys.num_hidden_layers
    if family.experts != "some":
        return [family.experts == "all"] * depth
    dense = set(keys.mlp_only_layers)
    return [i not in dense and (i + 1) % keys.decoder_sparse_step == 0 for i in range(depth)]


# ---- GPT-2 ----------------------------------------------------------------------------------------------------------


def _gpt2(keys: Gpt2Keys) -> DecoderConfig:
    mixer = AttentionConfig(
        heads=keys.n_head,
        position=NoPositionConfig(),
        bias="all",
        scale=None if keys.scale_attn_weights else 1.0,
    )
    block = BlockConfig(mixer=mixer, ffn=_plain(keys), norm=LayerNormConfig(eps=keys.layer_norm_epsilon))
    return DecoderConfig(
        vocabulary=keys.vocab_size,
        width=keys.n_embd,
        depth=keys.n_layer,
        pattern=(block,),
        tied=keys.tie_word_embeddings,
        input_position=LearnedConfig(room=keys.n_positions),
        context=keys.n_positions,
    )


def _plain(keys: Gpt2Keys) -> PlainFfnConfig:
    width = keys.n_inner or 4 * keys.n_embd
    name = keys.activation_function
    if name in TANH:
        return GeluConfig(width=width, bias=True, form="tanh")
    if name == "gelu":
        return GeluConfig(width=width, bias=True, form="erf")
    if name in SILU:
        return SiluConfig(width=width, bias=True)
    if name in ("relu", "relu2"):
        return ReluConfig(width=width, bias=True, power=2 if name == "relu2" else 1)
    allowed = ", ".join((*TANH, "gelu", *SILU, "relu", "relu2"))
    raise ConfigError(f"activation_function: unknown activation {name!r:.40}; allowed: {allowed}")
