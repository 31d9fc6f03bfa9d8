"""Learning-rate schedules as functions of the step, and the choice among them."""

import math

from temaki.base.errors import ConfigError
from temaki.optim.config import CosineConfig, GeometricConfig, LinearConfig, NoamConfig, ScheduleConfig, WsdConfig


def cosine(t: float, warmup: int, total: int, top: float = 1.0, floor: float = 0.1) -> float:
    """Warmup t / warmup top; floor + (1 + cos(pi (t - warmup) / (total - warmup))) (top - floor) / 2; then floor.

    >>> cosine(1, 7, 21), cosine(7, 7, 21), cosine(14, 7, 21), cosine(21, 7, 21)
    (0.14285714285714285, 1.0, 0.55, 0.1)
    """
    if t < warmup:
        return t / warmup * top
    if t > total or total == warmup:
        return floor if t > warmup else top
    return floor + 0.5 * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) * (top - floor)


def wsd(t: float, warmup: int, start: int, total: int, top: float = 1.0, floor: float = 0.0) -> float:
    """Warmup t / warmup * top, stable at top until step `start`, then a straight line down to floor at `total`.

    With start = warmup it is the linear schedule.

    >>> [wsd(t, 2, 4, 8) for t in (1, 2, 4, 6, 8, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if t < warmup:
        return t / warmup * top
    if t <= start:
        return top
    if t >= total:
        return floor
    return top + (floor - top) * (t - start) / (total - start)


def noam(t: float, warmup: int, top: float = 1.0) -> float:
    """min(t / warmup, sqrt(warmup / t)) top: Vaswani et al. 2017, equation 3, with its peak at `top`.

    >>> [noam(t, 4) for t in (1, 4, 16, 64)]
    [0.25, 1.0, 0.5, 0.25]
    """
    return t / warmup * top if t < warmup else math.sqrt(warmup / t) * top


def geometric(t: float, total: int, first: float) -> float:
    """first^((total - t) / (total - 1)): from `first` at t = 1 to 1 at `total`, by the same factor every step.

    >>> [round(geometric(t, 3, 0.01), 12) for t in (1, 2, 3)]
    [0.01, 0.1, 1.0]
    """
    return first ** ((total - t) / max(1, total - 1))


def decay_start(config: ScheduleConfig, total: int) -> int:
    """The step at which the rate begins to fall, for a run of `total` steps.

    >>> decay_start(WsdConfig(warmup=2, decay=0.5), 10), decay_start(CosineConfig(warmup=2), 10)
    (5, 2)
    """
    match config:
        case WsdConfig():
            return max(config.warmup, total - round(config.decay * total))
        case GeometricConfig():
            return total
        case CosineConfig() | LinearConfig() | NoamConfig():
            return config.warmup


def factor(config: ScheduleConfig, step: float, total: int, start: int | None = None) -> float:
    """The rate's factor in 0..1 for the update number `step` (0 is the first) of `total`.

    The first update takes 1 / warmup, not 0, and the last takes the floor. `start`: where the decay begins if it was
    decided by another plan (see `train/plan.py`); the others begin to fall after the warmup.

    >>> [round(factor(WsdConfig(warmup=2, decay=0.5, floor=0.0), step, 6), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.667, 0.333, 0.0]
    """
    t = step + 1
    match config:
        case CosineConfig():
            return cosine(t, config.warmup, total, 1.0, config.floor)
        case LinearConfig():
            return wsd(t, config.warmup, config.warmup, total, 1.0, config.floor)
        case NoamConfig():
            return noam(t, config.warmup)
        case GeometricConfig():
            return geometric(t, total, config.first)
        case WsdConfig():
            start = decay_start(config, total) if start is None else start
            return wsd(t, config.warmup, start, total, 1.0, config.floor)


def check(config: ScheduleConfig, total: int) -> None:
    """Raise ConfigError if the warmup does not fit the run.

    >>> check(CosineConfig(warmup=2), 3)
    """
    if config.warmup >= total:
        raise ConfigError(
            "optim.schedule.warmup is not shorter than the run",
            found=f"warmup {config.warmup}, steps {total}",
            do=f"lower the warmup (optim.schedule.warmup={min(total - 1, max(1, total // 10))}) or raise stop.steps",
        )
