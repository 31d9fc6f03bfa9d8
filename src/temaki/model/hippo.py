"""HiPPO: matrices of x' = A x + B u whose state holds the coefficients of a signal's past, and steps of time for them.

The measure says which past: "legs" all of it, evenly (x' = (A x + B u) / t); "legt" a window, by Legendre polynomials;
"fourier-window" a window, by waves; "fourier" all of it, by waves. Everything is float64. Gu, Dao, Ermon, Rudra and Re
2020, "HiPPO: recurrent memory with optimal polynomial projections", appendix D. Letters: N order, w window.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["forward", "backward", "bilinear", "exact"]
"""How a step is taken: Euler forward and backward (order 1), bilinear (order 2), exact for an input held constant."""
ORDERS: dict[Rule, float] = {"forward": 1, "backward": 1, "bilinear": 2, "exact": math.inf}
"""The power of the step by which the error of each rule falls where the input is held."""


def _places(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows [N, 1], columns [1, N], 2n + 1 [N])."""
    k = torch.arange(n, dtype=torch.float64)
    return k[:, None], k[None], 2 * k + 1


def legs(n: int) -> tuple[Tensor, Tensor]:
    """(A [N, N], B [N]) of the scaled Legendre measure: A = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it.

    >>> legs(2)[0].round(decimals=4)
    tensor([[-1.0000,  0.0000],
            [-1.7321, -2.0000]], dtype=torch.float64)
    """
    rows, columns, odd = _places(n)
    root = odd.sqrt()
    below = torch.where(columns < rows, root[:, None] * root, 0.0)
    return torch.diag(-torch.arange(1, n + 1, dtype=torch.float64)) - below, root


def legt(n: int, window: float = 1.0, scaling: Literal["original", "lmu"] = "original") -> tuple[Tensor, Tensor]:
    """(A, B) of the sliding Legendre measure: x is of the basis sqrt(2n+1) P_n, or of P_n ("lmu"; Voelker et al. 2019).

    >>> legt(2)[0].round(decimals=4)
    tensor([[-1.0000,  1.7321],
            [-1.7321, -3.0000]], dtype=torch.float64)
    """
    rows, columns, odd = _places(n)
    sign = torch.where(columns < rows, 1.0, (-1.0) ** (rows - columns))
    if scaling == "lmu":
        return -odd[:, None] * sign / window, odd / window
    root = odd.sqrt()
    return -root[:, None] * root * sign / window, root / window


def fourier_window(most: int, window: float = 1.0) -> tuple[Tensor, Tensor]:
    """(A, B), complex, of the last w by waves of frequencies n = -most .. most: A_nk = (2 pi i n [n = k] - 1) / w.

    x_n is the mean over the window of u(s) e^(-2 pi i n s), s from 0 (oldest) to 1.

    >>> fourier_window(1)[0].imag.diag().round(decimals=4)
    tensor([-6.2832,  0.0000,  6.2832], dtype=torch.float64)
    """
    n = torch.arange(-most, most + 1, dtype=torch.float64)
    a = (torch.diag(2j * math.pi * n) - 1.0) / window
    return a, torch.ones(len(n), dtype=a.dtype) / window


def fourier(most: int) -> tuple[Tensor, Tensor]:
    """(A, B), complex, of all the past by waves, x' = (A x + B u) / t: A_nn = i pi n - 1, A_nk = -n / (n - k), B = 1.

    x_n is the mean of u(s) e^(-2 pi i n s), the past stretched to [0, 1]; n and k = -most .. most.

    >>> fourier(1)[0].imag.diag().round(decimals=4)
    tensor([-3.1416,  0.0000,  3.1416], dtype=torch.float64)
    """
    n = torch.arange(-most, most + 1, dtype=torch.float64)
    apart = n[:, None] - n
    across = torch.where(apart == 0, 0.0, -n[:, None] / torch.where(apart == 0, 1.0, apart))
    a = across + torch.diag(1j * math.pi * n - 1.0)
    return a, torch.ones(len(n), dtype=a.dtype)


def discretised(a: Tensor, b: Tensor, step: float, rule: Rule) -> tuple[Tensor, Tensor]:
    """(Abar, Bbar) of x' = A x + B u over a step with the input held: x <- Abar x + Bbar u.

    forward: I + e A, e B; backward: (I - e A)^-1 and that times e B; bilinear: (I - e A/2)^-1 (I + e A/2) and
    (I - e A/2)^-1 e B; exact: e^(e A) and the integral of e^(s A) B over 0 .. e, from one exponential (A may be
    singular).

    >>> a, b = -torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    >>> [round(float(discretised(a, b, 0.5, rule)[0]), 4) for rule in ORDERS]
    [0.5, 0.6667, 0.6, 0.6065]
    """
    eye = torch.eye(len(a), dtype=a.dtype)
    if rule == "forward":
        return eye + step * a, step * b
    if rule == "backward":
        return torch.linalg.inv(eye - step * a), torch.linalg.solve(eye - step * a, step * b)
    if rule == "bilinear":
        left = eye - step / 2 * a
        return torch.linalg.solve(left, eye + step / 2 * a), torch.linalg.solve(left, step * b)
    both = torch.zeros(len(a) + 1, len(a) + 1, dtype=a.dtype)
    both[:-1, :-1], both[:-1, -1] = step * a, step * b
    both = exponential(both)
    return both[:-1, :-1], both[:-1, -1]


def exponential(a: Tensor) -> Tensor:
    """e^A of [N, N]: the series of A / 2^j, squared j times. torch's own errs by 1e-10 for some small matrices.

    >>> exponential(torch.zeros(1, 1, dtype=torch.float64))
    tensor([[1.]], dtype=torch.float64)
    """
    halvings = max(0, math.frexp(float(torch.linalg.matrix_norm(a, 1)))[1] + 1)
    small = a / 2**halvings  # of norm below 1/2
    term = total = torch.eye(len(a), dtype=a.dtype)
    for k in range(1, 19):
        term = term @ small / k
        total = total + term
    return torch.linalg.matrix_power(total, 2**halvings)


def legs_product(v: Tensor) -> Tensor:
    """A v of LegS in O(N): (A v)_n = n v_n - sqrt(2n+1) cumsum(sqrt(2k+1) v)_n, along the last axis.

    >>> legs_product(torch.tensor([1.0, 1.0], dtype=torch.float64)).round(decimals=4)
    tensor([-1.0000, -3.7321], dtype=torch.float64)
    """
    k = torch.arange(v.shape[-1], dtype=torch.float64)
    root = (2 * k + 1).sqrt()
    return k * v - root * (root * v).cumsum(-1)


def legs_solve(v: Tensor, step: float) -> Tensor:
    """z of (I - step A) z = v for LegS in O(N), along the last axis.

    S_n = ((1 - e n) S_{n-1} + sqrt(2n+1) v_n) / (1 + e n + e) are the running sums of sqrt(2k+1) z_k.

    >>> legs_solve(torch.tensor([2.0, 0.0], dtype=torch.float64), 1.0).round(decimals=4)
    tensor([ 1.0000, -0.5774], dtype=torch.float64)
    """
    sums, z = torch.zeros_like(v[..., 0]), torch.empty_like(v)
    for n in range(v.shape[-1]):
        root = math.sqrt(2 * n + 1)
        after = ((1 - step * n) * sums + root * v[..., n]) / (1 + step * n + step)
        z[..., n] = (after - sums) / root
        sums = after
    return z
