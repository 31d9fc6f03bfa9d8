"""The best rate at one batch and length from few runs: three rates, more where the best lies at an edge, a parabola."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from temaki.study.proxies import rounded

SPACING = 2.0
"""Of the rates that are tried, as a factor."""
MORE = 5
"""Rates tried beyond the first three at most."""

Loss = Callable[[float], float | None]
"""The loss at the end of a run at this rate; None where it diverged."""


@dataclass(frozen=True)
class Vertex:
    """The best rate and what it ends at."""

    rate: float
    loss: float
    """What the parabola says, or the least measured where there is none."""
    tried: Mapping[float, float | None]
    """Rate -> loss; None: diverged."""

    @property
    def measured(self) -> float:
        """The tried rate that ended lowest."""
        return min(self.tried, key=lambda rate: height(self.tried[rate]))


def best_rate(loss: Loss, centre: float, spacing: float = SPACING, more: int = MORE) -> Vertex | None:
    """Try `centre` and a rate on each side, go on where the best lies at an edge, and lay a parabola through the
    best three in log loss over log rate. None where every rate diverged.

    >>> found = best_rate(lambda rate: 2 + math.log(rate / 0.01) ** 2, 0.002)
    >>> 0.008 < found.rate < 0.0125, len(found.tried)
    (True, 5)
    """
    tried: dict[float, float | None] = {}
    for power in (0, -1, 1):
        rate = rounded(centre * spacing**power)
        tried[rate] = loss(rate)
    for _ in range(more):
        rates = sorted(tried)
        place = rates.index(min(rates, key=lambda rate: height(tried[rate])))
        if tried[rates[place]] is None or place == 0:
            rate = rounded(rates[0] / spacing)
        elif place == len(rates) - 1:
            rate = rounded(rates[-1] * spacing)
        else:
            break
        tried[rate] = loss(rate)
    return vertex(tried)


def vertex(tried: Mapping[float, float | None]) -> Vertex | None:
    """The parabola's lowest place through the least loss and its neighbours, never beyond those.

    Where a neighbour diverged or is missing it is the rate that was measured least.

    >>> vertex({1.0: None}) is None, vertex({1.0: 2.0, 2.0: None}).rate
    (True, 1.0)
    """
    rates = sorted(tried)
    best = min(rates, key=lambda rate: height(tried[rate]))
    lowest = tried[best]
    if lowest is None:
        return None
    place = rates.index(best)
    near = [(math.log(rate), math.log(loss)) for rate in rates[max(0, place - 1) : place + 2] if (loss := tried[rate])]
    if len(near) < 3:
        return Vertex(best, lowest, tried)
    x, y = _parabola(near)
    return Vertex(rounded(math.exp(x)), math.exp(y), tried)


def _parabola(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The lowest place of the parabola through three points whose middle one is not above the others."""
    (xa, ya), (xb, yb), (xc, yc) = points
    left, right = (yb - ya) / (xb - xa), (yc - yb) / (xc - xb)
    bend = (right - left) / (xc - xa)
    if bend <= 0:  # all three are equal
        return xb, yb
    x = 0.5 * (xa + xb) - left / (2 * bend)
    x = min(max(x, xa), xc)
    return x, ya + left * (x - xa) + bend * (x - xa) * (x - xb)


def height(loss: float | None) -> float:
    """A loss to compare by: one that diverged is above all.

    >>> height(2.5), height(None)
    (2.5, inf)
    """
    return math.inf if loss is None else loss


def extrapolated(lengths: Sequence[float], rates: Sequence[float], length: float) -> float:
    """The best rate of a longer run: a straight line in log-log through what shorter ones had, its slope held between
    -1/2 and 0; the last rate where there is one length only.

    >>> extrapolated([1, 4], [0.02, 0.01], 16), extrapolated([1, 4], [0.01, 0.02], 16), extrapolated([4], [0.1], 16)
    (0.005, 0.02, 0.1)
    """
    x, y = [math.log(each) for each in lengths], [math.log(each) for each in rates]
    if len(x) < 2:
        return rates[-1]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    slope = min(0.0, max(-0.5, slope))
    return rounded(rates[-1] * math.exp(slope * (math.log(length) - x[-1])))
