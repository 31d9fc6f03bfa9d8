"""HiPPO: matrices and values, products and solves, steps and their orders, memory that reads back a signal."""

import doctest
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from temaki.model import hippo, hippo_memory
from temaki.model.hippo import ORDERS, discretised, fourier, fourier_window, legs, legs_product, legs_solve, legt
from temaki.model.hippo_memory import fourier_curve, legendre_curve, legs_memory, stretched_memory, window_memory


@pytest.mark.parametrize("module", [hippo, hippo_memory])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def signal(s: Tensor) -> Tensor:
    return (6 * s).sin() + 0.5 * s


def samples(count: int) -> Tensor:
    return signal(torch.arange(count, dtype=torch.float64) / count)


def rmse(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt())


def projected(u: Tensor, n: int) -> Tensor:
    """Integrals of the held samples times sqrt(2n+1) P_n(2s-1): exact by the antiderivatives of NumPy's polynomials."""
    edges = np.linspace(-1, 1, len(u) + 1)
    found = []
    for k in range(n):
        whole = np.polynomial.legendre.Legendre.basis(k).integ()
        found.append(math.sqrt(2 * k + 1) / 2 * float((u.numpy() * np.diff(whole(edges))).sum()))
    return torch.tensor(found, dtype=torch.float64)


def test_matrices_are_those_of_the_paper():
    wanted = [
        [-1, 0, 0, 0], [-1.732051, -2, 0, 0], [-2.236068, -3.872983, -3, 0], [-2.645751, -4.582576, -5.916080, -4],
    ]  # fmt: skip
    torch.testing.assert_close(legs(4)[0], torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)
    row = torch.tensor([-1, 1.732051, -2.236068, 2.645751], dtype=torch.float64)
    torch.testing.assert_close(legt(4)[0][0], row, atol=1e-6, rtol=0)


def test_legs_has_eigenvalues_minus_one_to_minus_n():
    values = np.sort(np.linalg.eigvals(legs(9)[0].numpy()))[::-1]
    np.testing.assert_allclose(values, -np.arange(1, 10), atol=1e-8)


def test_legt_scalings_are_similar():
    (a, b), (lmu, b_lmu) = legt(6, 0.7), legt(6, 0.7, "lmu")
    scale = (2 * torch.arange(6) + 1).double().sqrt()
    torch.testing.assert_close(scale[:, None] * a / scale, lmu)
    torch.testing.assert_close(scale * b, b_lmu)


def test_product_and_solve_of_order_n():
    v = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = legs(64)[0]
    torch.testing.assert_close(legs_product(v), v @ a.T, atol=1e-11, rtol=1e-11)
    for step in (0.01, 0.5, 3.0):
        wanted = torch.linalg.solve(torch.eye(64, dtype=torch.float64) - step * a, v.T).T
        torch.testing.assert_close(legs_solve(v, step), wanted, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("rule", list(ORDERS))
def test_orders_of_convergence(rule):
    """Of x' = A x + B u with u held on eighths: the step divides the piece, so the exact rule makes no error at all."""
    a, b = legs(4)
    held = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    wanted = window_memory(a, b, held, 1 / 8, "exact")
    errors = [
        float((window_memory(a, b, held.repeat_interleave(n), 1 / (8 * n), rule) - wanted).norm()) for n in (16, 32)
    ]
    if rule == "exact":
        assert max(errors) < 1e-12
    else:
        assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[rule], abs=0.1)


def test_exact_step_against_the_series():
    a, b = legt(3, 0.5)
    abar, bbar = discretised(a, b, 0.01, "exact")
    terms = [torch.linalg.matrix_power(a * 0.01, k) / float(math.factorial(k)) for k in range(25)]
    torch.testing.assert_close(abar, sum(terms), atol=1e-14, rtol=1e-13)
    later = [term / (k + 1) for k, term in enumerate(terms)]
    torch.testing.assert_close(bbar, 0.01 * sum(later) @ b, atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize(("form", "wanted", "bound"), [("exact", 1, 1e-12), ("bilinear", 1, 1e-12), ("mean", 1, 1e-12)])
def test_constants_are_kept(form, wanted, bound):
    x = legs_memory(torch.ones(50, dtype=torch.float64), 8, form)
    assert abs(float(x[0]) - wanted) < bound
    assert float(x[1:].abs().max()) < bound


def test_the_form_of_the_article_is_biased():
    found = [float(legs_memory(torch.ones(n, dtype=torch.float64), 4, "article")[0]) for n in (51, 1001)]
    assert found == pytest.approx([1.0399, 1.0035], abs=1.5e-3)


def test_memory_is_the_projection():
    x = legs_memory(samples(1000), 16)
    torch.testing.assert_close(x, projected(samples(1000), 16), atol=1e-12, rtol=0)
    wanted = torch.tensor([0.256638, -0.448403, -0.094236, 0.398262], dtype=torch.float64)
    torch.testing.assert_close(x[:4], wanted, atol=2e-3, rtol=0)


def test_memory_reads_back_the_signal():
    u, s = samples(1000), (torch.arange(1000) + 0.5).double() / 1000
    exact, article = (rmse(legendre_curve(legs_memory(u, 16, form), s), u) for form in ("exact", "article"))
    assert exact < 5e-5
    assert 1e-3 < article < 3e-3


def test_time_scale_does_not_matter():
    """Every sample said three times: the same past, three times as slow."""
    u = samples(200)
    torch.testing.assert_close(legs_memory(u, 8), legs_memory(u.repeat_interleave(3), 8), atol=1e-12, rtol=0)


def test_forgetting_is_polynomial():
    """What one sample at time 1 leaves behind in x_0 falls like 1/t, not like e^(-t)."""

    def left(count: int) -> float:
        return float(legs_memory(torch.eye(count, dtype=torch.float64)[0], 1)[0])

    assert [left(10) * 10, left(100) * 100] == pytest.approx([1.0, 1.0])


def test_windows_read_back_the_window():
    count, window = 3000, 0.25
    u = signal(3 * torch.arange(count, dtype=torch.float64) / count)
    last, s = u[-750:], (torch.arange(750) + 0.5).double() / 750
    x = window_memory(*legt(16, window), u, 1 / count)
    assert rmse(legendre_curve(x, s), last) < 0.01
    lmu = window_memory(*legt(16, window, "lmu"), u, 1 / count) / (2 * torch.arange(16) + 1).double().sqrt()
    torch.testing.assert_close(lmu, x, atol=1e-9, rtol=0)


def test_waves_read_back_a_periodic_signal():
    """A wave of the window's own length, which is zero where the window began: the basis holds it."""
    count = 4000
    time = torch.arange(count, dtype=torch.float64) / 1000
    u = (2 * math.pi * time).sin() + 0.3 * (4 * math.pi * time).cos()
    x = window_memory(*fourier_window(8), u, 1 / 1000)
    s = (torch.arange(1000) + 0.5).double() / 1000
    assert rmse(fourier_curve(x, s), u[-1000:]) < 0.02


def test_waves_of_all_the_past():
    """The mean is exact: row 0 is coupled to no other; and a constant stays one."""
    most = 4
    start = torch.eye(2 * most + 1, dtype=torch.float64)[most]
    u = samples(300)
    x = stretched_memory(*fourier(most), u, start)
    assert float((x[most] - u.mean()).abs()) < 1e-12
    torch.testing.assert_close(x.flip(0).conj(), x, atol=1e-10, rtol=0)
    constant = stretched_memory(*fourier(most), torch.ones(50, dtype=torch.float64), start)
    assert float(constant[most].real) == pytest.approx(1.0)
