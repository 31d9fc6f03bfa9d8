"""Memory of a signal as it comes: its past as N coefficients, updated sample by sample, and read back as a function.

All the past (`legs_memory`, `stretched_memory`): the time t enters as ln t, so no step has to be chosen. A window
(`window_memory`): the step is the samples' distance. Gu et al. 2020, "HiPPO", sections 2 and 3. Everything is float64.
Letters: T samples, N coefficients, k samples read so far.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from temaki.model.hippo import Rule, discretised, legs, legs_product, legs_solve

Form = Literal["exact", "bilinear", "mean", "article"]
"""exact: for a held input, the projection itself. bilinear: A/(2(k+1)) on both sides and B/(k+1), exact for constants.
mean: A/(2k) and A/(2(k+1)), the input weighed by the mean of 1/k and 1/(k+1), exact for constants. article: the same
with 1/k, which does not keep a constant (1 reads as 1.04 after 50 samples): for comparison alone."""


def legs_memory(u: Tensor, n: int, form: Form = "exact") -> Tensor:
    """Coefficients x [N] of a signal u [T] in the basis sqrt(2n+1) P_n(2s-1) of its whole past, s from 0 to 1 (newest).

    All forms but the exact cost O(N) a sample.

    >>> legs_memory(torch.ones(50, dtype=torch.float64), 3).round(decimals=6).abs()
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    a, b = legs(n)
    start = torch.eye(n, dtype=torch.float64)[0]
    if form == "exact":
        return stretched_memory(a, b, u, start)
    x = u[0] * start
    for k in range(1, len(u)):
        near = 1 / (k + 1)
        far = near if form == "bilinear" else 1 / k
        weight = {"bilinear": near, "mean": (far + near) / 2, "article": far}[form]
        x = legs_solve(x + far / 2 * legs_product(x) + weight * u[k] * b, near / 2)
    return x


def stretched_memory(a: Tensor, b: Tensor, u: Tensor, start: Tensor) -> Tensor:
    """x [N] of x' = (A x + B u) / t after u [T], each sample held: exact steps of ln((k+1)/k) from u_0 times `start`.

    start: the coefficients of the constant 1.

    >>> x = stretched_memory(*legs(1), torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64), torch.ones(1))
    >>> float(x.round(decimals=6))
    3.0
    """
    x = u[0] * start.to(a.dtype)
    for k in range(1, len(u)):
        abar, bbar = discretised(a, b, math.log1p(1 / k), "exact")
        x = abar @ x + bbar * u[k]
    return x


def window_memory(a: Tensor, b: Tensor, u: Tensor, step: float, rule: Rule = "exact") -> Tensor:
    """x [N] of x' = A x + B u from zero after u [T], samples `step` apart.

    >>> decay = -torch.ones(1, 1, dtype=torch.float64)
    >>> window_memory(decay, torch.ones(1, dtype=torch.float64), torch.ones(9), 100.0).round()
    tensor([1.], dtype=torch.float64)
    """
    abar, bbar = discretised(a, b, step, rule)
    x = torch.zeros_like(b)
    for each in u:
        x = abar @ x + bbar * each
    return x


def legendre_curve(x: Tensor, s: Tensor) -> Tensor:
    """sum_n x_n sqrt(2n+1) P_n(2s-1) at s in [0, 1]: LegS and LegT, x [N], s [M] -> [M]. Newest at s = 1.

    >>> legendre_curve(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.0]))
    tensor([1.0000, 2.7321], dtype=torch.float64)
    """
    z = 2 * s.double() - 1
    before, now, found = torch.zeros_like(z), torch.ones_like(z), torch.zeros_like(z)
    for n, each in enumerate(x.double()):
        found = found + each * math.sqrt(2 * n + 1) * now
        before, now = now, ((2 * n + 1) * z * now - n * before) / (n + 1)
    return found


def fourier_curve(x: Tensor, s: Tensor) -> Tensor:
    """Re sum_n x_n e^(2 pi i n s), n = -most .. most: complex x [2 most + 1], s [M] -> [M]. Newest at s = 1.

    >>> fourier_curve(torch.tensor([0.5 + 0j, 1.0, 0.5]), torch.tensor([0.0, 0.5])).round(decimals=6)
    tensor([2., 0.], dtype=torch.float64)
    """
    most = len(x) // 2
    n = torch.arange(-most, most + 1, dtype=torch.float64)
    return (torch.exp(2j * math.pi * s.double()[:, None] * n) @ x.to(torch.complex128)).real
