"""`DecoderConfig` -> config.json of the first family that can say it.

Each family writes what it can; what is read from that again must be the model. So nothing is ever said that would be
understood otherwise, and a refusal names the parts that differ.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import FormatError
from temaki.formats import hf_config, hf_rope
from temaki.formats.hf_keys import FAMILIES, Family
from temaki.formats.weights import some
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    FfnConfig,
    GegluConfig,
    GeluConfig,
    LearnedConfig,
    ReluConfig,
    RmsNormConfig,
    RopeConfig,
    YarnScalingConfig,
    ffn_width,
)

CLOSE = 1e-9
"""Numbers that differ by less, relatively, are one number written twice."""


def said(config: DecoderConfig, first: str | None = None) -> tuple[dict[str, Any], Family]:
    """The config.json of a model and its family; `first` is tried before the others.

    Raises FormatError naming the parts that no family can say.
    """
    families = sorted(FAMILIES.values(), key=lambda family: family.name != first)
    nearest: tuple[list[str], Family] | None = None
    for family in families:
        written = _keys(config, family)
        parts = different(config, _read(written)) if written else None
        if parts == []:
            return written, family
        if parts is not None and (nearest is None or len(parts) < len(nearest[0])):
            nearest = parts, family
    found, near = nearest if nearest is not None else ([_other_mixer(config)], None)
    raise FormatError(
        "no family of `transformers` that is known here can say this model",
        found=some(found) + (f" (the nearest is {near.name})" if near is not None else ""),
        allowed="the shapes of " + ", ".join(FAMILIES),
    )


def _other_mixer(config: DecoderConfig) -> str:
    kinds = [block.mixer.kind for block in config.blocks if not isinstance(block.mixer, AttentionConfig)]
    return f"a mixer other than attention: {kinds[0]}"


# ---- what a family says ---------------------------------------------------------------------------------------------


def _keys(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """config.json of a model as far as a family can say it; {} where it has no attention."""
    mixers = [block.mixer for block in config.blocks]
    if not all(isinstance(mixer, AttentionConfig) for mixer in mixers):
        return {}
    told = {"architectures": [family.architecture], "model_type": family.name}
    found = _gpt2(config) if family.name == "gpt2" else _stack(config, family)
    return {**told, **found, "tie_word_embeddings": config.tied}


def _stack(config: DecoderConfig, family: Family) -> dict[str, Any]:
    mixer, norm = config.blocks[0].mixer, config.blocks[0].norm
    assert isinstance(mixer, AttentionConfig)
    size = mixer.head_size(config.width)
    found: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.groups,
        "head_dim": size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": norm.eps if isinstance(norm, RmsNormConfig) else 1e-6,
        "attention_bias": mixer.bias == "all",
        "attn_logit_softcapping": mixer.cap,
        "final_logit_softcapping": config.cap,
        "query_pre_attn_scalar": round((mixer.scale or size**-0.5) ** -2) or 1,
        **_ffn(config),
        **_windows(config),
    }
    positions = [block.mixer.position for block in config.blocks if isinstance(block.mixer, AttentionConfig)]
    ropes = [position for position in positions if isinstance(position, RopeConfig)]
    found["no_rope_layers"] = [int(isinstance(position, RopeConfig)) for position in positions]
    rope = hf_rope.write(hf_rope.stretched(ropes[0], size)) if ropes else {}
    kept = {key: value for key, value in found.items() if key in family.reads}
    if config.context is None:
        del kept["max_position_embeddings"]
    if family.name == "mistral":  # read where it is said, but `transformers` takes such a file for another family
        del kept["layer_types"]
    if family.name == "gemma2":  # the only one with another name for it
        kept["hidden_activation"] = kept.pop("hidden_act")
    if family.name == "qwen3_moe" and "num_local_experts" in kept:
        kept["num_experts"] = kept.pop("num_local_experts")
    return {**kept, **rope}


def _ffn(config: DecoderConfig) -> dict[str, Any]:
    ffns = [block.ffn for block in config.blocks]
    sparse = [ffn for ffn in ffns if isinstance(ffn, ExpertsConfig)]
    dense = [ffn for ffn in ffns if not isinstance(ffn, ExpertsConfig)]
    plain = dense[0] if dense else sparse[0].expert
    found: dict[str, Any] = {
        "intermediate_size": ffn_width(plain, config.width),
        "hidden_act": "silu",
        "mlp_bias": not isinstance(plain, ExpertsConfig) and plain.bias,
    }
    if isinstance(plain, GegluConfig):
        found["hidden_act"] = "gelu" if plain.form == "erf" else "gelu_pytorch_tanh"
    if sparse:
        found |= {
            "num_local_experts": sparse[0].experts,
            "num_experts_per_tok": sparse[0].top,
            "norm_topk_prob": sparse[0].renormalise,
            "moe_intermediate_size": ffn_width(sparse[0].expert, config.width),
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, ffn in enumerate(ffns) if not isinstance(ffn, ExpertsConfig)],
        }
    return found


def _windows(config: DecoderConfig) -> dict[str, Any]:
    windows = [block.mixer.window for block in config.blocks if isinstance(block.mixer, AttentionConfig)]
    given = [window for window in windows if window is not None]
    return {
        "sliding_window": given[0] if given else None,
        "use_sliding_window": bool(given),
        "max_window_layers": config.depth if None in windows else 0,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }


def _gpt2(config: DecoderConfig) -> dict[str, Any]:
    block = config.blocks[0]
    mixer, ffn = block.mixer, block.ffn
    assert isinstance(mixer, AttentionConfig)
    room = config.input_position.room if isinstance(config.input_position, LearnedConfig) else config.context
    return {
        "vocab_size": config.vocabulary,
        "n_positions": room or 1024,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": mixer.heads,
        "n_inner": None if isinstance(ffn, ExpertsConfig) else ffn_width(ffn, config.width),
        "activation_function": _activation(ffn),
        "layer_norm_epsilon": block.eps,
        "scale_attn_weights": mixer.scale != 1.0,
    }


def _activation(ffn: FfnConfig) -> str:
    match ffn:
        case GeluConfig(form="erf"):
            return "gelu"
        case ReluConfig(power=power):
            return "relu2" if power == 2 else "relu"
        case GeluConfig():
            return "gelu_new"
        case _:
            return "silu"


# ---- whether it is the same model -----------------------------------------------------------------------------------


def _read(written: Mapping[str, Any]) -> DecoderConfig | FormatError:
    """What a config.json means, or why it means nothing."""
    try:
        return hf_config.read(written, "config.json").config
    except FormatError as error:
        return error


def different(config: DecoderConfig, other: DecoderConfig | FormatError) -> list[str]:
    """The parts in which two configurations mean different models, as `key = value`, of the first."""
    if isinstance(other, FormatError):
        return [other.what]
    ours, theirs = _leaves(config_door.mapping(_explicit(config))), _leaves(config_door.mapping(_explicit(other)))
    if config.context is None:
        theirs.pop("context", None)
    return [
        f"{key} = {_short(ours, key)} ({_short(theirs, key)} there)"
        for key in {**ours, **theirs}
        if not _same(ours.get(key), theirs.get(key))
    ]


def _explicit(config: DecoderConfig) -> DecoderConfig:
    """Everything written out that a default stands for, and left out what does not change logits."""
    blocks = tuple(_written_out(block, config.width) for block in config.blocks)
    room = config.input_position.room if isinstance(config.input_position, LearnedConfig) else None
    return replace(config.learned, pattern=hf_config.shortest(blocks), context=config.context or room)


def _written_out(block: BlockConfig, width: int) -> BlockConfig:
    mixer, ffn = block.mixer, block.ffn
    if isinstance(mixer, AttentionConfig):
        size = mixer.head_size(width)
        position = _plain_rope(mixer.position, size) if isinstance(mixer.position, RopeConfig) else mixer.position
        mixer = replace(mixer, kv_heads=mixer.groups, size=size, scale=mixer.scale or size**-0.5, position=position)
    if isinstance(ffn, ExpertsConfig):
        ffn = replace(ffn, expert=replace(ffn.expert, width=ffn_width(ffn.expert, width)), balance=0.0)
    else:
        ffn = replace(ffn, width=ffn_width(ffn, width))
    return replace(block, mixer=mixer, ffn=ffn)


def _plain_rope(rope: RopeConfig, size: int) -> RopeConfig:
    """The order of pairs is the weights' business; a magnitude is a number."""
    rope = replace(hf_rope.stretched(rope, size), pairs="half")
    if isinstance(rope.scaling, YarnScalingConfig) and rope.scaling.magnitude is None:
        magnitude = 0.1 * math.log(rope.scaling.factor) + 1
        rope = replace(rope, scaling=replace(rope.scaling, magnitude=magnitude))
    return rope


def _leaves(found: Any, path: str = "") -> dict[str, Any]:
    """Every value of nested tables and lists by its path."""
    if isinstance(found, Mapping):
        items = [(str(key), value) for key, value in found.items()]
    elif isinstance(found, list | tuple):
        items = [(str(place), value) for place, value in enumerate(found)]
    else:
        return {path: found}
    return {k: v for key, value in items for k, v in _leaves(value, f"{path}.{key}" if path else key).items()}


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=CLOSE)
    return ours == theirs


def _short(found: Mapping[str, Any], key: str) -> str:
    return f"{found[key]!r:.40}" if key in found else "none"
