"""Coefficients of Muon's Newton-Schulz polynomial, fitted to the singular values of random matrices.

Su 2024, "Appreciating the Muon optimizer" (kexue.fm, archive 10592), its recipe: all of `steps` steps are
    g(x) = x + k x (x^2 - x1^2) (x^2 - x2^2),   so a = 1 + k x1^2 x2^2, b = -k (x1^2 + x2^2), c = k,
and (k, x1, x2) minimise the mean of (g(g(..g(x))) - 1)^2 over the singular values x of Gaussian matrices of Frobenius
norm 1, by gradient descent with momentum 0.9 at rate 0.01. NumPy only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from temaki.base.errors import RunError

Vector = NDArray[np.float64]
Triple = tuple[float, float, float]

OFFICIAL: Triple = (3.4445, -4.7750, 2.0315)
"""Jordan's."""
BEGIN = (1.0, 0.9, 1.1)
"""(k, x1, x2) at the start."""
GROUPS = 256
"""Neighbouring singular values are fitted as their mean, so many means at most; errors are those of all values."""


@dataclass(frozen=True)
class Fitted:
    """What a fit gives."""

    coefficients: Triple
    error: float
    """Mean squared distance of the mapped singular values from 1."""
    official: float
    """That of the official coefficients."""
    updates: int
    """Of gradient descent."""


def spectrum(rows: int, cols: int, least: int = 4096, seed: int = 0) -> Vector:
    """The singular values of Gaussian matrices [rows, cols] of Frobenius norm 1, sorted: about `least` or more.

    >>> s = spectrum(3, 5, least=6)
    >>> s.shape, round(float((s**2).sum()), 12)
    ((6,), 2.0)
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(max(1, least // min(rows, cols))):
        x = generator.standard_normal((min(rows, cols), max(rows, cols)))
        squares = np.linalg.eigvalsh(x @ x.T).clip(0)
        found.append(np.sqrt(squares / squares.sum()))
    return np.sort(np.concatenate(found))


def mapped(x: Vector, coefficients: Triple, steps: int) -> Vector:
    """Singular values after `steps` Newton-Schulz steps: x <- a x + b x^3 + c x^5.

    >>> mapped(np.array([0.1, 1.0]), OFFICIAL, 5).round(6)
    array([0.71212 , 0.696436])
    """
    a, b, c = coefficients
    for _ in range(steps):
        square = x * x
        x = x * (a + square * (b + c * square))
    return x


def error(x: Vector, coefficients: Triple, steps: int) -> float:
    """The mean squared distance from 1 of singular values after `steps` steps."""
    return float(np.square(mapped(x, coefficients, steps) - 1).mean())


def triple(k: float, x1: float, x2: float) -> Triple:
    """(a, b, c) of the polynomial whose fixed points are x1, x2, 0.

    >>> triple(2.0, 1.0, 1.0)
    (3.0, -4.0, 2.0)
    """
    p, q = x1 * x1, x2 * x2
    return float(1 + k * p * q), float(-k * (p + q)), float(k)


def gradient(w: Vector, x: Vector, steps: int) -> Vector:
    """The derivative of `error` by w = (k, x1, x2), carried forward through the steps: [3]."""
    k, x1, x2 = (float(each) for each in w)
    d = np.zeros((3, len(x)))  # of x by w
    for _ in range(steps):
        square = x * x
        u, v = square - x1 * x1, square - x2 * x2
        d *= 1 + k * (u * v + 2 * square * (u + v))
        d += x * np.stack((u * v, -2 * k * x1 * v, -2 * k * x2 * u))
        x = x + k * x * u * v
    return 2 * (d @ (x - 1)) / len(x)


def fit(x: Vector, steps: int = 5, updates: int = 100_000, tolerance: float = 1e-8) -> Fitted:
    """The coefficients for sorted singular values x, by at most so many updates; fewer if the gradient vanishes.

    Raises RunError where the fit runs away.

    >>> found = fit(np.array([0.2, 0.5, 0.8]), steps=2)
    >>> found.error < found.official
    True
    """
    groups = np.array([group.mean() for group in np.array_split(x, min(GROUPS, len(x)))])
    w, momentum, done = np.array(BEGIN), np.zeros(3), 0
    while done < updates:
        g = gradient(w, groups, steps)
        if not np.isfinite(g).all():
            raise RunError(f"the fit ran away after {done} updates", do="ask for fewer steps")
        momentum = 0.9 * momentum + g
        w = w - 0.01 * momentum
        done += 1
        if float(np.abs(g).max()) < tolerance:
            break
    found = triple(*w)
    return Fitted(found, error(x, found, steps), error(x, OFFICIAL, steps), done)
