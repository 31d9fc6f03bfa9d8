"""Rotary positions in config.json, old style (`rope_theta`, `rope_scaling`) and new (`rope_parameters`), both ways."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from temaki.base import config as config_door
from temaki.base.config import settings
from temaki.base.errors import ConfigError, FormatError
from temaki.model.config import (
    LinearScalingConfig,
    Llama3ScalingConfig,
    NtkScalingConfig,
    RopeConfig,
    ScalingConfig,
    YarnScalingConfig,
)

Above = Annotated[float, Field(gt=0)]
TYPES = "default, linear, llama3, yarn"
SILENT = ("type", "finetuned")
"""Keys without effect beside `rope_type`."""


@settings
class RopeKeys:
    """What `rope_parameters` and `rope_scaling` may say."""

    rope_type: str = "default"
    rope_theta: Above
    factor: Above | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1)] | None = None
    attention_factor: Above | None = None
    beta_fast: Above | None = None
    beta_slow: Above | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: Above | None = None
    high_freq_factor: Above | None = None
    partial_rotary_factor: float = 1.0


def read(found: Mapping[str, Any], theta: float, context: int | None, where: str) -> RopeConfig:
    """The rotary positions of a config.json; `theta` where it says none. Raises FormatError."""
    told = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(told, dict):
        raise FormatError(f"{where}: rope_parameters is no table", found=f"{told!r:.60}")
    keys = {key: value for key, value in told.items() if key not in SILENT and value is not None}
    keys.setdefault("rope_type", told.get("type") or "default")
    keys.setdefault("rope_theta", found.get("rope_theta") or theta)
    try:
        rope = config_door.read(RopeKeys, keys)
        return RopeConfig(theta=rope.rope_theta, scaling=_scaling(rope, context, where))
    except ConfigError as error:
        raise FormatError(f"{where}: the rotary positions are not understood: {error.what}") from None


def write(rope: RopeConfig) -> dict[str, Any]:
    """Both styles at once; NTK, which they cannot say, is a larger theta and never comes here."""
    match rope.scaling:
        case LinearScalingConfig() as linear:
            told: dict[str, Any] = {"rope_type": "linear", "factor": linear.factor}
        case Llama3ScalingConfig() as llama:
            told = {
                "rope_type": "llama3",
                "factor": llama.factor,
                "low_freq_factor": llama.low,
                "high_freq_factor": llama.high,
                "original_max_position_embeddings": llama.context,
            }
        case YarnScalingConfig() as yarn:
            told = {
                "rope_type": "yarn",
                "factor": yarn.factor,
                "beta_fast": yarn.fast,
                "beta_slow": yarn.slow,
                "original_max_position_embeddings": yarn.context,
                **({} if yarn.magnitude is None else {"attention_factor": yarn.magnitude}),
            }
        case _:
            return {"rope_theta": rope.theta, "rope_parameters": {"rope_type": "default", "rope_theta": rope.theta}}
    return {"rope_theta": rope.theta, "rope_scaling": told, "rope_parameters": {**told, "rope_theta": rope.theta}}


def stretched(rope: RopeConfig, size: int) -> RopeConfig:
    """NTK scaling as the theta that it amounts to: theta * factor^(K / (K - 2)); others as they are."""
    if not isinstance(rope.scaling, NtkScalingConfig) or size < 3:
        return rope
    return RopeConfig(theta=rope.theta * rope.scaling.factor ** (size / (size - 2)), pairs=rope.pairs)


def _scaling(rope: RopeKeys, context: int | None, where: str) -> ScalingConfig | None:
    if rope.partial_rotary_factor != 1:
        raise FormatError(
            f"{where}: only part of each head is turned", found=f"partial_rotary_factor = {rope.partial_rotary_factor}"
        )
    trained = rope.original_max_position_embeddings or context
    match rope.rope_type:
        case "default":
            return None
        case "linear":
            return config_door.read(LinearScalingConfig, _given(factor=_factor(rope, where)))
        case "llama3":
            given = _given(factor=_factor(rope, where), context=trained)
            return config_door.read(
                Llama3ScalingConfig,
                given
                | _given(low=_wanted(rope, "low_freq_factor", where), high=_wanted(rope, "high_freq_factor", where)),
            )
        case "yarn":
            return _yarn(rope, trained, context, where)
        case "dynamic":
            raise FormatError(
                f"{where}: dynamic rotary scaling changes the keys of all earlier places as the text grows, so that "
                "decoding with kept keys and without would differ",
                found="rope_type = dynamic",
                allowed=TYPES,
            )
        case other:
            raise FormatError(f"{where}: unknown rotary scaling", found=f"rope_type = {other:.40}", allowed=TYPES)


def _yarn(rope: RopeKeys, trained: int | None, context: int | None, where: str) -> YarnScalingConfig:
    if not rope.truncate:
        raise FormatError(f"{where}: YaRN with a ramp that is not rounded to whole pairs", found="truncate = false")
    factor = rope.factor
    if factor is None and context is not None and trained is not None:
        factor = context / trained
    if factor is None:
        factor = _factor(rope, where)
    magnitude = rope.attention_factor
    if magnitude is None and rope.mscale and rope.mscale_all_dim:
        magnitude = _magnitude(factor, rope.mscale) / _magnitude(factor, rope.mscale_all_dim)
    return config_door.read(
        YarnScalingConfig,
        _given(factor=factor, context=trained, fast=rope.beta_fast, slow=rope.beta_slow, magnitude=magnitude),
    )


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _factor(rope: RopeKeys, where: str) -> float:
    return _wanted(rope, "factor", where)


def _wanted(rope: RopeKeys, key: str, where: str) -> float:
    value = vars(rope)[key]
    if value is None:
        raise FormatError(f"{where}: rotary scaling {rope.rope_type} needs {key}")
    return value


def _given(**values: float | None) -> dict[str, float]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}
