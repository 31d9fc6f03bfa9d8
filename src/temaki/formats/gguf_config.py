"""GGUF's metadata <-> our configuration. What llama.cpp has no architecture for is refused, naming the part.

An architecture is a reader and a writer; what was written is read again and compared, so that nothing is said there
with another meaning. Source: llama.cpp's `llama-model.cpp` (which keys and arrays an architecture reads).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.formats.gguf_file import Value
from temaki.formats.gguf_keys import Keys, shortest
from temaki.formats.gguf_names import HEAD, NORMS, gated
from temaki.formats.gguf_rope import factors, read_scaling, write_scaling
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
    NoNormConfig,
    NoPositionConfig,
    RmsNormConfig,
    RopeConfig,
    SoftmaxConfig,
    SwigluConfig,
    ffn_width,
)

ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "qwen3moe", "gemma2")
FUSED = ("gpt2",)
"""Architectures with queries, keys and values in one array."""
MOST_EXPERTS = 1024
"""More than any model has; the tables of weights have an entry for each."""
GEMMA_LARGEST = 46
"""Layers of the one Gemma 2 whose scores are scaled otherwise."""
Shapes = Mapping[str, tuple[int, ...]]
"""The arrays of a file by name."""
ACCEPTED = (
    "llama (RoPE, RMS norm, SwiGLU, experts), qwen2 (and biases of q, k, v), qwen3 and qwen3moe (and q/k norm), gpt2 "
    "(learned positions, layer norm, GELU, biases), gemma2 (sandwich norm, GeGLU, soft caps, a window in every other "
    "layer)"
)


def architecture(metadata: Mapping[str, Value]) -> str:
    """The architecture of a file. Raises FormatError for one that is not known here."""
    found = metadata.get("general.architecture")
    if found not in ARCHITECTURES or not isinstance(found, str):
        raise FormatError("this architecture is not known", found=f"{found!r:.40}", allowed=", ".join(ARCHITECTURES))
    return found


def read(metadata: Mapping[str, Value], shapes: Shapes, rope_factors: ndarray | None) -> DecoderConfig:
    """The configuration of a file. Raises FormatError for what is missing, impossible or means something unknown."""
    files = metadata.get("split.count", 1)
    if type(files) is not int or files not in (0, 1):
        raise FormatError("this is one file of several", found=f"split.count = {files!r:.40}", do="join them first")
    keys = Keys(metadata, architecture(metadata))
    depth = keys.whole("block_count")
    if depth > len(shapes) or "token_embd.weight" not in shapes:
        raise FormatError("the arrays are not those of a model", found=f"{len(shapes)} for {depth} layers")
    if metadata.get(keys.key("attention.causal"), True) is not True:
        raise FormatError("attention in both directions is not read from this format")
    rows = shapes["token_embd.weight"]
    try:
        built = {"gpt2": _gpt2, "gemma2": _gemma2}.get(keys.architecture, _llama)(keys, shapes, rope_factors)
        return DecoderConfig(
            vocabulary=rows[0],
            width=keys.whole("embedding_length"),
            depth=depth,
            tied=HEAD not in shapes,
            context=keys.whole("context_length"),
            **built,
        )
    except ValueError as error:
        raise FormatError(f"its keys do not fit together: {error}") from None


def _llama(keys: Keys, shapes: Shapes, rope_factors: ndarray | None) -> dict[str, Any]:
    """Llama, Mistral, Mixtral and the Qwens."""
    size = _head_size(keys)
    if keys.whole("rope.dimension_count", size) != size:
        raise FormatError("only a part of each head is turned", found=keys.key("rope.dimension_count"))
    biases = [f"blk.0.attn_{name}.bias" in shapes for name in ("q", "output")]
    window = keys.whole("attention.sliding_window", 1) if keys.has("attention.sliding_window") else None
    context = keys.whole("context_length")
    mixer = AttentionConfig(
        heads=keys.whole("attention.head_count"),
        kv_heads=keys.whole("attention.head_count_kv", keys.whole("attention.head_count")),
        size=size,
        position=RopeConfig(
            theta=keys.number("rope.freq_base", 10_000.0),
            pairs="interleaved" if keys.architecture == "llama" else "half",
            scaling=read_scaling(keys, rope_factors, size),
        ),
        window=window if window is not None and window < context else None,
        bias="all" if all(biases) else "qkv" if biases[0] else "none",
        qk_norm=keys.architecture.startswith("qwen3"),
    )
    norm = RmsNormConfig(eps=keys.number("attention.layer_norm_rms_epsilon"))
    return {"pattern": (BlockConfig(mixer=mixer, ffn=_feed_forward(keys, shapes), norm=norm),)}


def _feed_forward(keys: Keys, shapes: Shapes) -> FfnConfig:
    if not keys.has("expert_count"):
        return SwigluConfig(width=keys.whole("feed_forward_length"), bias="blk.0.ffn_up.bias" in shapes)
    count = keys.whole("expert_count")
    if count > MOST_EXPERTS:
        raise FormatError("too many experts", found=str(count), allowed=f"up to {MOST_EXPERTS}")
    name = "blk.0.ffn_gate_exps.weight"
    if shapes.get(name, ())[:1] != (count,):
        raise FormatError(f"{name} is not there for each expert", found=str(shapes.get(name)), allowed=f"{count} first")
    hidden = keys.whole("expert_feed_forward_length", None if keys.architecture == "qwen3moe" else _hidden(keys))
    return ExpertsConfig(experts=count, top=keys.whole("expert_used_count"), expert=SwigluConfig(width=hidden))


def _hidden(keys: Keys) -> int:
    return keys.whole("feed_forward_length")


def _gpt2(keys: Keys, shapes: Shapes, rope_factors: ndarray | None) -> dict[str, Any]:
    del rope_factors
    mixer = AttentionConfig(
        heads=keys.whole("attention.head_count"), size=_head_size(keys), position=NoPositionConfig(), bias="all"
    )
    norm = LayerNormConfig(eps=keys.number("attention.layer_norm_epsilon"))
    ffn = GeluConfig(width=_hidden(keys), bias=True)
    room = shapes.get("position_embd.weight", (keys.whole("context_length"),))[0]
    return {
        "pattern": (BlockConfig(mixer=mixer, ffn=ffn, norm=norm),),
        "input_position": LearnedConfig(room=room),
    }


def _gemma2(keys: Keys, shapes: Shapes, rope_factors: ndarray | None) -> dict[str, Any]:
    """Every second layer, from the first on, sees a window."""
    del shapes
    size, depth = _head_size(keys), keys.whole("block_count")
    if depth == GEMMA_LARGEST:
        raise FormatError("the 27B model of Gemma 2 scales its scores otherwise, which is not read here")
    if depth % 2:
        raise FormatError("windows in every other layer need an even number of layers", found=str(depth))
    local = AttentionConfig(
        heads=keys.whole("attention.head_count"),
        kv_heads=keys.whole("attention.head_count_kv", keys.whole("attention.head_count")),
        size=size,
        position=RopeConfig(
            theta=keys.number("rope.freq_base", 10_000.0), scaling=read_scaling(keys, rope_factors, size)
        ),
        map=SoftmaxConfig(cap=keys.number("attn_logit_softcapping", 50.0)),
        window=keys.whole("attention.sliding_window", 4096),
    )
    norm = RmsNormConfig(eps=keys.number("attention.layer_norm_rms_epsilon"))
    ffn = GegluConfig(width=_hidden(keys))
    blocks = tuple(
        BlockConfig(mixer=mixer, ffn=ffn, norm=norm, order="sandwich") for mixer in (local, replace(local, window=None))
    )
    return {
        "pattern": blocks,
        "embedding_scale": math.sqrt(keys.whole("embedding_length")),
        "cap": keys.number("final_logit_softcapping", 30.0),
    }


def _head_size(keys: Keys) -> int:
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    size = keys.whole("attention.key_length", max(width // heads, 1))
    if keys.whole("attention.value_length", size) != size:
        raise FormatError("keys and values of different sizes are not read", found=keys.key("attention.value_length"))
    return size


def write(config: DecoderConfig, context: int) -> tuple[str, dict[str, Value], ndarray | None]:
    """The architecture, its keys and RoPE's factors. Raises FormatError for what no architecture of llama.cpp does.

    `context`: ids a row, which the format demands.
    """
    name = _chosen(config)
    first = config.blocks[0]
    mixer = first.mixer
    others = [block.mixer.kind for block in config.pattern if not isinstance(block.mixer, AttentionConfig)]
    if others or not isinstance(mixer, AttentionConfig):
        raise _refused("the mixer", others[0])
    if first.order not in NORMS:
        raise _refused("the order of its norms", first.order)
    if isinstance(first.ffn, ExpertsConfig) and not gated(first.ffn.expert):
        raise _refused("experts without a gate", first.ffn.expert.kind)
    size = mixer.head_size(config.width)
    hidden = ffn_width(first.ffn.expert if isinstance(first.ffn, ExpertsConfig) else first.ffn, config.width)
    found: dict[str, Value] = {
        "block_count": config.depth,
        "context_length": context,
        "embedding_length": config.width,
        "feed_forward_length": hidden,
        "attention.head_count": mixer.heads,
        "attention.head_count_kv": mixer.groups,
        "attention.key_length": size,
        "attention.value_length": size,
        "vocab_size": config.vocabulary,
    }
    eps = "layer_norm_epsilon" if name == "gpt2" else "layer_norm_rms_epsilon"
    found[f"attention.{eps}"] = first.eps
    rope_factors = None
    if isinstance(mixer.position, RopeConfig):
        found |= {"rope.dimension_count": size, "rope.freq_base": mixer.position.theta}
        found |= write_scaling(mixer.position.scaling)
        rope_factors = factors(mixer.position, size)
    if isinstance(first.ffn, ExpertsConfig):
        found |= {"expert_count": first.ffn.experts, "expert_used_count": first.ffn.top}
        found["expert_feed_forward_length"] = hidden
    if name == "gemma2":
        found |= _gemma_keys(config, mixer)
    keyed: dict[str, Value] = {"general.architecture": name}
    keyed |= {f"{name}.{key}": value for key, value in found.items()}
    return name, keyed, rope_factors


def _chosen(config: DecoderConfig) -> str:
    """The architecture that may say a configuration."""
    first = config.blocks[0]
    if isinstance(config.input_position, LearnedConfig):
        return "gpt2"
    if first.order == "sandwich":
        return "gemma2"
    if not isinstance(first.mixer, AttentionConfig):
        raise _refused("the mixer", first.mixer.kind)
    if first.mixer.qk_norm:
        return "qwen3moe" if isinstance(first.ffn, ExpertsConfig) else "qwen3"
    return "qwen2" if first.mixer.bias == "qkv" and not isinstance(first.ffn, ExpertsConfig) else "llama"


def _gemma_keys(config: DecoderConfig, mixer: AttentionConfig) -> dict[str, Value]:
    if mixer.window is None or mixer.cap is None or config.cap is None:
        raise _refused("gemma2 without a window in its first layer or without soft caps", "none")
    return {
        "attention.sliding_window": mixer.window,
        "attn_logit_softcapping": mixer.cap,
        "final_logit_softcapping": config.cap,
    }


def check(config: DecoderConfig, metadata: Mapping[str, Value], shapes: Shapes, rope_factors: ndarray | None) -> None:
    """Refuse a configuration that the written keys do not say. Raises FormatError naming what differs."""
    name = architecture(metadata)
    wanted, found = _flat(canonical(config, name)), _flat(canonical(read(metadata, shapes, rope_factors), name))
    wrong = [
        f"{key} = {wanted.get(key)!r} (read there as {found.get(key)!r})"
        for key in [*wanted, *(found.keys() - wanted.keys())]
        if wanted.get(key) != found.get(key)
    ]
    if wrong:
        raise _refused(f"the architecture {name} does not say this model", some(wrong))


def canonical(config: DecoderConfig, name: str) -> DecoderConfig:
    """The configuration with everything written out that its parts leave to a default, in float32."""
    return replace(
        config.learned,
        depth=config.depth,
        pattern=tuple(_written_out(block, config, name) for block in config.blocks),
        context=None,
        embedding_scale=shortest(config.embedding_scale),
        cap=None if config.cap is None else shortest(config.cap),
    )


def _written_out(block: BlockConfig, config: DecoderConfig, name: str) -> BlockConfig:
    mixer, ffn = block.mixer, block.ffn
    if isinstance(mixer, AttentionConfig):
        size = mixer.head_size(config.width)
        position = mixer.position
        if isinstance(position, RopeConfig):
            pairs = "interleaved" if name == "llama" else "half"  # rows are turned as they are written
            position = replace(position, pairs=pairs, theta=shortest(position.theta))
        beyond = mixer.window is not None and config.context is not None and mixer.window >= config.context
        mixer = replace(
            mixer,
            kv_heads=mixer.groups,
            size=size,
            position=position,
            window=None if beyond and name != "gemma2" else mixer.window,
            scale=shortest(1 / math.sqrt(size) if mixer.scale is None else mixer.scale),
            map=mixer.map if mixer.cap is None else SoftmaxConfig(cap=shortest(mixer.cap)),
        )
    if isinstance(ffn, ExpertsConfig):
        expert = replace(ffn.expert, width=ffn_width(ffn.expert, config.width))
        ffn = replace(ffn, expert=expert, balance=0.0)
    else:
        ffn = replace(ffn, width=ffn_width(ffn, config.width))
    norm = block.norm if isinstance(block.norm, NoNormConfig) else replace(block.norm, eps=shortest(block.eps))
    return replace(block, mixer=mixer, ffn=ffn, norm=norm)


def _flat(value: object, name: str = "") -> dict[str, object]:
    """The fields of a configuration by their paths; floats as float32."""
    if isinstance(value, DecoderConfig):
        return _flat(asdict(value))
    if isinstance(value, dict):
        parts = ((f"{name}.{key}" if name else str(key), inner) for key, inner in value.items())
    elif isinstance(value, tuple):
        parts = ((f"{name}[{place}]", inner) for place, inner in enumerate(value))
    else:
        return {name: float(np.float32(value)) if isinstance(value, float) else value}
    return {key: leaf for part, inner in parts for key, leaf in _flat(inner, part).items()}


def _refused(what: str, found: str) -> FormatError:
    return FormatError(f"{what}: llama.cpp has no such model", found=found, allowed=ACCEPTED)
