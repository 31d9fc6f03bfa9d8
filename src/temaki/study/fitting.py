"""The laws of `laws.py` fitted to measured pairs: least squares in the log of the rate, with the residual said."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from temaki.study.laws import LAWS, Diagonal, Guess, Law, Linear, Sgd, Sign, SquareRoot, Tradeoff

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A law and how well it says what was measured."""

    law: Law
    residual: float
    """Root of the weighted mean square of log(measured rate / law's rate)."""
    pairs: int
    score: float
    """Chi^2 + 2 per parameter, lower is better: a further parameter must pay for itself."""


@dataclass(frozen=True)
class Fits:
    """All laws, the best first, and those for which there were too few pairs."""

    fitted: tuple[Fitted, ...]
    unfitted: tuple[str, ...]
    """One line each."""


def fit_all(
    batches: Sequence[float], rates: Sequence[float], weights: Sequence[float] | None = None, error: float = 0.15
) -> Fits:
    """Fit every law by least squares in the log of the rate and rank them.

    `weights`: of the pairs, 1 each by default. `error`: what a pair's log rate is believed to be off by, one deviation
    at weight 1. A law of k parameters needs k + 1 different batches: with k it would go through any points.
    """
    assert len(batches) == len(rates), "pairs have two sides"
    fitted, unfitted = [], []
    different = len(set(batches))
    for law in LAWS:
        wanted = len(_ranges(law, batches)) + 2
        if different < wanted:
            unfitted.append(f"{law.kind}: needs {wanted} batch sizes, there are {different}")
        else:
            fitted.append(fit(law, batches, rates, weights, error))
    return Fits(tuple(sorted(fitted, key=lambda each: each.score)), tuple(unfitted))


def fit(
    law: type[Any],
    batches: Sequence[float],
    rates: Sequence[float],
    weights: Sequence[float] | None = None,
    error: float = 0.15,
) -> Fitted:
    """The member of a law's family nearest to the pairs, least squares in log rate.

    The scale has a closed form given the shape; the shape is found on a grid that closes in on the best place.

    >>> found = fit(Sgd, [10, 100, 1000], [0.0909, 0.5, 0.9091])
    >>> round(found.law.noise), round(found.law.top, 3), found.residual < 1e-4
    (100, 1.0, True)
    """
    b, eta = np.asarray(batches, np.float64), np.log(np.asarray(rates, np.float64))
    w = np.ones(len(b)) if weights is None else np.asarray(weights, np.float64)
    ranges = _ranges(law, batches)

    def left(shape: Sequence[float]) -> Array:
        """Weighted log residuals at a shape, with the scale that is best for it."""
        residual = eta - np.log(_rates(law, shape, b))
        return np.sqrt(w) * (residual - (w * residual).sum() / w.sum())

    shape = _least_squares(left, ranges)
    squares = float((left(shape) ** 2).sum())
    scale = float((w * (eta - np.log(_rates(law, shape, b)))).sum() / w.sum())
    score = squares / error**2 + 2 * (len(shape) + 1)
    return Fitted(law(math.exp(scale), *shape), math.sqrt(squares / float(w.sum())), len(b), score)


def _rates(law: type[Any], shape: Sequence[float], batches: Array) -> Array:
    made = law(1.0, *shape)
    return np.array([made.rate(each) for each in batches.tolist()])


def _ranges(law: type[Any], batches: Sequence[float]) -> list[tuple[float, float, bool]]:
    """(low, high, whether in equal ratios) of each shape parameter; beyond them the law looks the same over these."""
    low, high = min(batches), max(batches)
    noise = (low / 1e3, high * 1e3, True)
    return {
        SquareRoot: [], Linear: [], Sgd: [noise], Diagonal: [noise], Guess: [noise, (0.5, 1.0, False)],
        Sign: [noise, (0.02, 50.0, True)],
    }[law]  # fmt: skip


def _least_squares(
    left: Callable[[Sequence[float]], Array], ranges: Sequence[tuple[float, float, bool]], places: int = 25
) -> tuple[float, ...]:
    """The least sum of squares of a few parameters: the best place of a grid, polished by damped Gauss-Newton steps
    (Levenberg-Marquardt), which follow a curved valley where a grid cannot.
    """
    if not ranges:
        return ()
    low, high = np.array([[math.log(r[i]) if r[2] else r[i] for r in ranges] for i in (0, 1)])

    def plain(x: Array) -> tuple[float, ...]:
        return tuple(math.exp(v) if r[2] else float(v) for v, r in zip(x.tolist(), ranges, strict=True))

    def cost(x: Array) -> float:
        return float((left(plain(x)) ** 2).sum())

    axes = [np.linspace(a, b, places) for a, b in zip(low, high, strict=True)]
    grid = np.stack([each.ravel() for each in np.meshgrid(*axes, indexing="ij")], -1)
    starts = sorted(grid, key=cost)[:4]
    return plain(min((_polished(lambda x: left(plain(x)), x, low, high) for x in starts), key=cost))


def _polished(left: Callable[[Array], Array], x: Array, low: Array, high: Array, rounds: int = 200) -> Array:
    """Damped Gauss-Newton steps from x, inside the bounds."""
    damping, now = 1e-3, left(x)
    for _ in range(rounds):
        slopes = np.stack([(left(x + d) - left(x - d)) / 2e-5 for d in 1e-5 * np.eye(len(x))], -1)
        bend = slopes.T @ slopes
        step = np.linalg.lstsq(bend + damping * np.eye(len(x)), -slopes.T @ now, rcond=None)[0]
        new = np.clip(x + step, low, high)
        then = left(new)
        if then @ then < now @ now:
            x, now, damping = new, then, max(damping / 4, 1e-14)
        elif damping > 1e8:
            break
        else:
            damping *= 6
    return x


def fit_tradeoff(batches: Sequence[float], steps: Sequence[float]) -> Tradeoff | None:
    """Least squares of the relative error of S over measured (batch, steps to one loss); None where the best fit has
    no positive S_min and E_min, so that nothing can be said.

    >>> fit_tradeoff([10, 50, 250], [600, 200, 120])
    Tradeoff(steps_min=100.0, examples_min=5000.0)
    """
    b, s = np.asarray(batches, np.float64), np.asarray(steps, np.float64)
    if len(set(batches)) < 2:
        return None
    table = np.stack([1 / s, 1 / (b * s)], 1)
    (least, examples), *_ = np.linalg.lstsq(table, np.ones(len(b)), rcond=None)
    if least <= 0 or examples <= 0:
        return None
    return Tradeoff(round(float(least), 9), round(float(examples), 9))
