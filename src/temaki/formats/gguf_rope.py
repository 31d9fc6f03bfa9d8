"""How GGUF says longer contexts: keys for linear scaling and YaRN, an array of factors for Llama 3's.

The array divides each pair's speed; it is what Llama 3's rule gives, and is read back to that rule or refused.
Source: llama.cpp's `convert_hf_to_gguf.py` (the factors) and `ggml`'s `rope_yarn` (whose magnitude is
(1 + 0.1 ln factor) times the key `attn_factor`).
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.formats.gguf_file import Value
from temaki.formats.gguf_keys import Keys, shortest
from temaki.model.config import (
    LinearScalingConfig,
    Llama3ScalingConfig,
    NtkScalingConfig,
    RopeConfig,
    ScalingConfig,
    YarnScalingConfig,
)

KINDS = ("none", "linear", "yarn")
CLOSE = 1e-5
"""Relative difference up to which factors are those of a rule."""


def read_scaling(keys: Keys, rope_factors: ndarray | None, size: int) -> ScalingConfig | None:
    """How positions are scaled. Raises FormatError for a way that is not known here."""
    kind = keys.text("rope.scaling.type", "none")
    if rope_factors is not None:
        if kind not in ("none", "llama3"):
            raise FormatError("factors of RoPE beside another scaling", found=kind, allowed="one of them")
        return _recovered(keys, rope_factors, size)
    if keys.has("rope.scale_linear") and not keys.has("rope.scaling.type"):  # as older files say it
        factor = keys.number("rope.scale_linear")
        return None if factor == 1 else _linear(factor)
    if kind == "none":
        return None
    if kind not in KINDS:
        raise FormatError(
            "this scaling of RoPE is not known", found=kind, allowed=f"{', '.join(KINDS)}, Llama 3's factors"
        )
    factor = keys.number("rope.scaling.factor")
    return _linear(factor) if kind == "linear" else _yarn(keys, factor)


def _linear(factor: float) -> LinearScalingConfig:
    if factor < 1:
        raise FormatError("a scaling that makes contexts shorter", found=str(factor), allowed="1 or more")
    return LinearScalingConfig(factor=factor)


def _yarn(keys: Keys, factor: float) -> YarnScalingConfig:
    if keys.has("rope.scaling.yarn_log_multiplier") or factor < 1:
        raise FormatError("this kind of YaRN is not known", found=f"factor {factor}, or yarn_log_multiplier")
    share = keys.number("rope.scaling.attn_factor", 1.0)
    return YarnScalingConfig(
        factor=factor,
        context=keys.whole("rope.scaling.original_context_length", keys.whole("context_length")),
        fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        magnitude=None if share == 1 else shortest(share * (1 + 0.1 * math.log(factor))),
    )


def write_scaling(scaling: ScalingConfig | None) -> dict[str, Value]:
    """The keys of a scaling, without the architecture's name. Raises FormatError for one that has none."""
    if scaling is None or isinstance(scaling, Llama3ScalingConfig):
        return {}
    if isinstance(scaling, NtkScalingConfig):
        raise FormatError(
            "GGUF has no NTK scaling of RoPE", allowed="linear, yarn, llama3", do="write the larger theta itself"
        )
    found: dict[str, Value] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YarnScalingConfig):
        found["rope.scaling.original_context_length"] = scaling.context
        found["rope.scaling.yarn_beta_fast"] = scaling.fast
        found["rope.scaling.yarn_beta_slow"] = scaling.slow
        if scaling.magnitude is not None:
            found["rope.scaling.attn_factor"] = scaling.magnitude / (1 + 0.1 * math.log(scaling.factor))
    return found


def factors(position: RopeConfig, size: int) -> ndarray | None:
    """What each pair's speed is divided by, float32 [K/2], where the scaling is Llama 3's; else None."""
    if not isinstance(position.scaling, Llama3ScalingConfig):
        return None
    return _llama3(position.scaling, position.theta, size)


def _llama3(scaling: Llama3ScalingConfig, theta: float, size: int) -> ndarray:
    """1 for fast pairs, the factor for slow ones, between them 1 / ((1 - s) / factor + s), s the share of turns."""
    turns = scaling.context * theta ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (1 / ((1 - kept) / scaling.factor + kept)).astype(np.float32)


def _recovered(keys: Keys, found: ndarray, size: int) -> ScalingConfig | None:
    """The rule that gives these factors. Raises FormatError where none is known."""
    if found.shape != (size // 2,) or not np.isfinite(found).all() or (found <= 0).any():
        raise FormatError(
            "the factors of RoPE are not one for each pair", found=str(found.shape), allowed=f"{size // 2}"
        )
    if (found == 1).all():
        return None
    theta = keys.number("rope.freq_base", 10_000.0)
    for candidate in _candidates(shortest(float(found.max())), keys.whole("context_length")):
        if np.allclose(_llama3(candidate, theta, size), found, rtol=CLOSE, atol=0):
            return candidate
    raise FormatError(
        "the factors of RoPE follow no rule that is known here", found=f"1 to {found.max():g}", allowed="Llama 3's"
    )


def _candidates(factor: float, context: int) -> Iterator[Llama3ScalingConfig]:
    if factor < 1:
        return
    for before in (*(1 << power for power in range(13, 18)), *(1 << power for power in range(5, 13)), context):
        yield Llama3ScalingConfig(factor=factor, context=before)
