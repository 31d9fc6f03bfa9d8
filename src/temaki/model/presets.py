"""Known models by name, as configurations of the parts there are; a recipe says `preset = "gpt2"` under [model].

Shapes as published with the weights; parameter counts in `tests/test_presets.py`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from temaki.base.errors import ConfigError
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    GegluConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    Llama3ScalingConfig,
    NoPositionConfig,
    RmsNormConfig,
    RopeConfig,
    SoftmaxConfig,
    SwigluConfig,
)


@dataclass(frozen=True)
class Preset:
    """A known shape."""

    config: DecoderConfig
    note: str
    """Whose it is, and where ours differs."""


def _gpt2(width: int, depth: int, heads: int, note: str) -> Preset:
    """Radford et al. 2019: learned positions, LayerNorm before, GELU by tanh, biases everywhere, one matrix twice."""
    block = BlockConfig(
        mixer=AttentionConfig(heads=heads, position=NoPositionConfig(), bias="all"),
        ffn=GeluConfig(bias=True),
        norm=LayerNormConfig(),
    )
    return Preset(
        DecoderConfig(
            vocabulary=50_257, width=width, depth=depth, pattern=(block,), context=1024,
            input_position=LearnedConfig(room=1024),
        ),
        note,
    )  # fmt: skip


def _llama(
    *,
    vocabulary: int,
    width: int,
    depth: int,
    mixer: AttentionConfig,
    ffn: int,
    context: int,
    note: str,
    eps: float = 1e-5,
    tied: bool = False,
    experts: int | None = None,
) -> Preset:
    """Touvron et al. 2023 and its line: RoPE, RMSNorm before, SwiGLU of one width or experts of it, no biases."""
    one = SwigluConfig(width=ffn)
    many = one if experts is None else ExpertsConfig(experts=experts, top=2, expert=one)
    block = BlockConfig(mixer=mixer, ffn=many, norm=RmsNormConfig(eps=eps))
    return Preset(
        DecoderConfig(
            vocabulary=vocabulary, width=width, depth=depth, pattern=(block,), tied=tied, context=context
        ),
        note,
    )  # fmt: skip


def _smollm2(width: int, depth: int, heads: int, kv_heads: int, ffn: int, theta: float, note: str) -> Preset:
    """Allal et al. 2025."""
    mixer = AttentionConfig(heads=heads, kv_heads=kv_heads, position=RopeConfig(theta=theta))
    return _llama(
        vocabulary=49_152, width=width, depth=depth, mixer=mixer, ffn=ffn, context=8192, tied=True, note=note
    )  # fmt: skip


def _gemma2() -> Preset:
    """Gemma Team 2024: sandwich norms, GEGLU, caps on scores and logits, a window in every second layer."""

    def block(window: int | None) -> BlockConfig:
        mixer = AttentionConfig(
            heads=8, kv_heads=4, size=256, map=SoftmaxConfig(cap=50.0), window=window, scale=256**-0.5
        )
        return BlockConfig(mixer=mixer, ffn=GegluConfig(width=9216), norm=RmsNormConfig(eps=1e-6), order="sandwich")

    return Preset(
        DecoderConfig(
            vocabulary=256_000, width=2304, depth=26, pattern=(block(4096), block(None)), context=8192, cap=30.0,
            embedding_scale=48.0,
        ),
        "Google's Gemma 2, 2B",
    )  # fmt: skip


def _encoder() -> Preset:
    """Devlin et al. 2019, "BERT", section 3: LayerNorm after, exact GELU, learned positions, all ids see all."""
    block = BlockConfig(
        mixer=AttentionConfig(heads=12, position=NoPositionConfig(), mask="bidirectional", bias="all"),
        ffn=GeluConfig(bias=True, form="erf"),
        norm=LayerNormConfig(eps=1e-12),
        order="post",
    )
    return Preset(
        DecoderConfig(
            vocabulary=30_522, width=768, depth=12, pattern=(block,), context=512,
            input_position=LearnedConfig(room=512),
        ),
        "an encoder of BERT-base's shape, for the masked objective; without segments, without a norm of the embeddings "
        "or a layer before the head, with a final norm",
    )  # fmt: skip


def _cs336() -> Preset:
    block = BlockConfig(mixer=AttentionConfig(heads=16), ffn=SwigluConfig(width=1344))
    return Preset(
        DecoderConfig(
            vocabulary=10_000, width=512, depth=4, pattern=(block,), tied=False, context=256, init="cs336"
        ),
        "the model of Stanford's CS336, assignment 1",
    )  # fmt: skip


_GQA = AttentionConfig(heads=32, kv_heads=8)
"""What many models of 7 and 8 billion share."""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "gpt2": _gpt2(768, 12, 12, "OpenAI's GPT-2, 124M"),
        "gpt2-medium": _gpt2(1024, 24, 16, "OpenAI's GPT-2, 355M"),
        "gpt2-large": _gpt2(1280, 36, 20, "OpenAI's GPT-2, 774M"),
        "gpt2-xl": _gpt2(1600, 48, 25, "OpenAI's GPT-2, 1558M"),
        "llama2-7b": _llama(
            vocabulary=32_000, width=4096, depth=32, mixer=AttentionConfig(heads=32), ffn=11_008, context=4096,
            note="Meta's Llama 2, 7B",
        ),
        "llama3-8b": _llama(
            vocabulary=128_256, width=4096, depth=32, mixer=replace(_GQA, position=RopeConfig(theta=5e5)), ffn=14_336,
            context=8192, note="Meta's Llama 3, 8B",
        ),
        "llama3.2-1b": _llama(
            vocabulary=128_256, width=2048, depth=16, ffn=8192, context=131_072, tied=True,
            mixer=replace(
                _GQA, position=RopeConfig(theta=5e5, scaling=Llama3ScalingConfig(factor=32.0, context=8192))
            ),
            note="Meta's Llama 3.2, 1B",
        ),
        "mistral-7b": _llama(
            vocabulary=32_000, width=4096, depth=32, mixer=replace(_GQA, window=4096), ffn=14_336, context=32_768,
            note="Mistral 7B, version 0.1",
        ),
        "qwen2-0.5b": _llama(
            vocabulary=151_936, width=896, depth=24, ffn=4864, context=131_072, eps=1e-6, tied=True,
            mixer=AttentionConfig(heads=14, kv_heads=2, position=RopeConfig(theta=1e6), bias="qkv"),
            note="Alibaba's Qwen2, 0.5B",
        ),
        "qwen3-0.6b": _llama(
            vocabulary=151_936, width=1024, depth=28, ffn=3072, context=40_960, eps=1e-6, tied=True,
            mixer=AttentionConfig(heads=16, kv_heads=8, size=128, position=RopeConfig(theta=1e6), qk_norm=True),
            note="Alibaba's Qwen3, 0.6B",
        ),
        "smollm2-135m": _smollm2(576, 30, 9, 3, 1536, 1e5, "Hugging Face's SmolLM2, 135M"),
        "smollm2-360m": _smollm2(960, 32, 15, 5, 2560, 1e5, "Hugging Face's SmolLM2, 360M"),
        "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, 1.3e5, "Hugging Face's SmolLM2, 1.7B"),
        "gemma2-2b": _gemma2(),
        "mixtral-8x7b": _llama(
            vocabulary=32_000, width=4096, depth=32, mixer=replace(_GQA, position=RopeConfig(theta=1e6)), ffn=14_336,
            context=32_768, experts=8, note="Mistral's Mixtral 8x7B",
        ),
        "cs336": _cs336(),
        "encoder-base": _encoder(),
    }
)  # fmt: skip


def preset(name: str) -> Preset:
    """A preset by name. Raises ConfigError naming the nearest.

    >>> preset("gpt2").config.depth
    12
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
        raise ConfigError(
            f"no preset is called {name!r}", allowed=", ".join(PRESETS), do=f"did you mean {near[0]!r}?" if near else ""
        )
    return PRESETS[name]
