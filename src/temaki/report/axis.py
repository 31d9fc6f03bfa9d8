"""Axes of charts: a range, the places on it that are named, and their names."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from temaki.report.figures import short

SAME, TINY = 1e-9, 1e-290
"""Values that differ by less, relatively or at all, are drawn as one."""
BEYOND = 307
"""No tick is above ten to this."""


@dataclass(frozen=True)
class Axis:
    """A range and the places on it that are named."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    """Equal distances are equal ratios."""

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def names(self) -> list[str]:
        """The ticks in words."""
        return [short(tick) for tick in self.ticks] if self.log else labels(self.ticks)


def step(span: float, most: int) -> float:
    """The least of 1, 2, 5 times a power of ten that cuts `span` into at most `most` steps.

    >>> step(10, 5), step(7.3, 5), step(0.9, 5)
    (2.0, 2.0, 0.2)
    """
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    factor = next(f for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    return _round(factor * power, power)


def axis(values: Iterable[float], most: int = 5, *, round_out: bool = True, zero: bool = False) -> Axis:
    """An axis over all values, with at most `most` steps between its ticks.

    `round_out` widens the range to whole steps; otherwise it ends at the values. `zero` takes 0 in. Without
    values, or with one value only, a range around it.

    >>> axis([0.3, 9.1]).ticks
    (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    >>> axis([0.3, 9.1], round_out=False).ticks
    (2.0, 4.0, 6.0, 8.0)
    """
    found = [*values, *([0.0] if zero else [])] or [0.0, 1.0]
    low, high = min(found), max(found)
    if high - low <= max(SAME * max(abs(low), abs(high)), TINY):
        pad = abs(high) / 10 if abs(high) > TINY / SAME else 1.0
        low, high = (low - pad if not zero else low), high + pad
    size = step(high - low, most)
    if round_out:
        first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    else:
        first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    ticks = tuple(_round(i * size, size) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks) if round_out else Axis(low, high, ticks)


def log_axis(values: Iterable[float], most: int = 6) -> Axis:
    """An axis of ratios over values above 0, from tick to tick: 1, 2, 5 times powers of ten, or fewer.

    >>> log_axis([0.3, 9.1]).ticks, log_axis([3e-5, 40]).ticks
    ((0.2, 0.5, 1.0, 2.0, 5.0, 10.0), (1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0))
    """
    found = [*values] or [1.0]
    low, high = max(min(found), TINY), max(max(found), TINY)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ticks = _between([f * 10.0**e for e in range(first, last + 1) for f in (1, 2, 5)], low, high)
    if len(ticks) > most + 1:
        ticks = _between([10.0**e for e in range(first, last + 1)], low, high)
    if len(ticks) > most + 2:
        first, last = (round(math.log10(tick)) for tick in (ticks[0], ticks[-1]))
        every = math.ceil((last - first) / (most + 1))
        ticks = [10.0 ** min(e, BEYOND) for e in range(first, last + every, every)]
    named = tuple(float(f"{tick:.6g}") for tick in ticks)
    return Axis(named[0], named[-1], named, log=True)


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks in words: one suffix and one number of decimals for all of them.

    >>> labels([0, 0.5, 1.0]), labels([0, 20_000, 40_000]), labels([0, 1e-4, 2e-4])
    (['0', '0.5', '1.0'], ['0', '20k', '40k'], ['0', '1e-4', '2e-4'])
    """
    if len(ticks) < 2:
        return [f"{tick:g}" for tick in ticks]
    size, top = ticks[1] - ticks[0], max(abs(tick) for tick in ticks)
    scale, suffix = next(((s, w) for s, w in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if top >= 10 * s), (1.0, ""))
    if top < 2e-3 or top >= 1e13:
        exponent = math.floor(math.log10(size) + 1e-9)
        scale, suffix = 10.0**exponent, f"e{exponent}"
    places = max(0, -math.floor(math.log10(size / scale) + 1e-9))
    return ["0" if tick == 0 else f"{tick / scale:,.{places}f}{suffix}" for tick in ticks]


def _round(value: float, size: float) -> float:
    """`value` without the noise of a float product, where it is a multiple of `size`."""
    return float(f"{value:.12g}") if abs(value) >= size / 2 else 0.0


def _between(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """The ticks from the last at or below `low` to the first at or above `high`, two at least."""
    start = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + SAME))
    end = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - SAME))
    return list(ticks[start : max(end, start + 1) + 1])
