"""Positions as NumPy tables, without torch: cosine and sine of rotary positions, sines of input ones, slopes of heads.

What torch computes with (`model/positions.py`) and what kernels read. Letters: C places, K head size, D width.
"""

import math

import numpy as np
from numpy import ndarray

from temaki.base.errors import ConfigError
from temaki.model.config import (
    LinearScalingConfig,
    Llama3ScalingConfig,
    NtkScalingConfig,
    RopeConfig,
    ScalingConfig,
    YarnScalingConfig,
)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what a damaged file says is no number of ours
def rope_speeds(size: int, theta: float, scaling: ScalingConfig | None = None) -> tuple[ndarray, float]:
    """Radians a place of every pair, float64 [K/2], and what multiplies cosine and sine.

    Sources: see the scalings in `config.py`.

    >>> rope_speeds(4, 10_000.0)
    (array([1.  , 0.01]), 1.0)
    """
    twice = np.arange(0, size, 2, dtype=np.float64)
    speeds = theta ** (-twice / size)
    match scaling:
        case NtkScalingConfig(factor=factor):
            return speeds * factor ** (-twice / max(1, size - 2)), 1.0
        case LinearScalingConfig(factor=factor):
            return speeds / factor, 1.0
        case YarnScalingConfig():
            slowed = _yarn_share(size, theta, scaling)
            magnitude = 0.1 * math.log(scaling.factor) + 1 if scaling.magnitude is None else scaling.magnitude
            return speeds * (slowed / scaling.factor + 1 - slowed), magnitude
        case Llama3ScalingConfig():
            turns = float(scaling.context) * speeds / (2 * math.pi)
            kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
            return speeds * ((1 - kept) / scaling.factor + kept), 1.0
        case _:
            return speeds, 1.0


def _yarn_share(size: int, theta: float, scaling: YarnScalingConfig) -> ndarray:
    """How far each pair is slowed, 0 to 1: a ramp between the pairs that turn `fast` and `slow` times a context.

    Raises ConfigError for theta = 1, where all pairs turn alike.
    """
    if theta == 1:
        raise ConfigError("YaRN tells slow pairs from fast ones", found="theta = 1: all are alike", allowed="theta > 1")

    def pair(turns: float) -> float:
        at = size * (math.log(scaling.context / (2 * math.pi)) - math.log(turns)) / (2 * math.log(theta))
        return min(max(at, -size), size)

    low = max(math.floor(pair(scaling.fast)), 0)
    high = min(math.ceil(pair(scaling.slow)), size - 1)
    width = high - low if high != low else 0.001
    return np.clip((np.arange(size // 2, dtype=np.float64) - low) / width, 0, 1)


def rope_table(config: RopeConfig, size: int, places: int) -> tuple[ndarray, ndarray]:
    """Cosine and sine of m * theta^(-2t/K) for the places m: two float32 arrays [C, K/2].

    >>> rope_table(RopeConfig(), 4, 2)[0].astype(float).round(3).tolist()
    [[1.0, 1.0], [0.54, 1.0]]
    """
    speeds, magnitude = rope_speeds(size, config.theta, config.scaling)
    angles = np.arange(places, dtype=np.float64)[:, None] * speeds
    return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)


def sinusoidal_table(width: int, base: float, places: int) -> ndarray:
    """sin(m / base^(2t/D)) in column 2t and its cosine in column 2t + 1: float32 [C, D].

    >>> sinusoidal_table(2, 10_000.0, 2).astype(float).round(3).tolist()
    [[0.0, 1.0], [0.841, 0.54]]
    """
    speeds = base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.arange(places, dtype=np.float64)[:, None] * speeds
    both = np.stack([np.sin(angles), np.cos(angles)], -1)  # [C, D/2, 2]
    return both.reshape(places, -1)[:, :width].astype(np.float32)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """2^(-8h/H) for h = 1..H; where H is no power of two, those of the power below, then every second of its double.

    Press et al. 2021, "Train short, test long", section 3 and its published code.

    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    """
    lower = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * h / lower) for h in range(1, lower + 1)]
    between = [2.0 ** (-8 * h / (2 * lower)) for h in range(1, 2 * lower + 1, 2)]
    return (*slopes, *between[: heads - lower])
