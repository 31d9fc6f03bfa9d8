"""Maps to probabilities: laws of the table over random and hard rows, oracles, gradients, exact zeros."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from temaki.model import maps, perturb, sparse_maps
from temaki.model.map_properties import TABLE, Kept

NOTHING = maps.HIDDEN
X = torch.tensor([1.0, 0.8, 0.1, -0.5], dtype=torch.float64)
PUBLISHED: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "softmax": (maps.plain_softmax, [0.408425, 0.334390, 0.166053, 0.091132]),
    "sparsemax": (sparse_maps.sparsemax, [0.6, 0.4, 0.0, 0.0]),
    "entmax 1.5": (sparse_maps.entmax15, [0.529248, 0.393749, 0.077003, 0.0]),
    "entmax 1.25": (lambda x: sparse_maps.entmax(x, 1.25), [0.465520, 0.362632, 0.130474, 0.041375]),
    "taylor": (maps.taylor_softmax, [0.393701, 0.333858, 0.174016, 0.098425]),
    "perturb": (perturb.perturb_max, [0.456646, 0.358222, 0.135585, 0.049548]),
    "quantiles": (perturb.perturb_max_by_quantiles, [0.456646, 0.358222, 0.135585, 0.049548]),
}
kinds = pytest.mark.parametrize("kept", TABLE, ids=lambda kept: kept.name)


def rows(size: int = 9, count: int = 60) -> Tensor:
    """Random rows, a third rounded to halves, and rows of ties, of one large score, of steps of exactly 1."""
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(count, size, dtype=torch.float64, generator=generator)
    x[: count // 3] = (2 * x[: count // 3]).round() / 2
    hard = torch.zeros(6, size, dtype=torch.float64)
    hard[1, 3], hard[2, 0], hard[3, 1:] = 1e4, -1e4, -1.0
    hard[4] = torch.arange(size) / 1.0
    hard[5] = 1e4 * (torch.arange(size) % 3 - 1)
    return torch.cat((x, hard))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    turned, expected = PUBLISHED[name]
    assert turned(X).tolist() == pytest.approx(expected, abs=1e-5 if name == "quantiles" else 2e-6)


def test_further_published_values() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert sparse_maps.sparsemax(x).tolist() == [0.0, 0.0, 1.0]
    assert sparse_maps.entmax15(x).tolist() == pytest.approx([0.0, 0.169281, 0.830719], abs=1e-6)
    found = sparse_maps.top_k_softmax(torch.tensor([3.0, 2.5, 0.5, 0.3, 0.1]), 3)
    assert found.tolist() == pytest.approx([0.592201, 0.359188, 0.048611, 0.0, 0.0], abs=1e-6)
    assert maps.taylor_softmax(torch.tensor([-4.0, 0.0])).tolist() == pytest.approx([5 / 6, 1 / 6])


# ---- the table ------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table(kept: Kept, dtype: torch.dtype) -> None:
    """Each line of it is true, and where it says no there is a row that shows it."""
    x = rows().to(dtype)
    p = kept.turned(x)
    near = 1e-5 if dtype == torch.float32 else 1e-9
    assert p.dtype == dtype
    assert (p >= 0).all()
    assert (p <= 1 + near).all()
    assert bool(((p.sum(-1) - 1).abs() < near).all()) == kept.sums
    larger, gets_less = x[:, :, None] > x[:, None, :], p[:, :, None] < p[:, None, :] - near
    assert bool((larger & gets_less).any()) != kept.orders
    equal, differ = x[:, :, None] == x[:, None, :], (p[:, :, None] - p[:, None, :]).abs() > near
    assert bool((equal & differ).any()) != kept.ties
    ordinary = x[x.abs().amax(-1) < 100]  # a large row loses its last digits when shifted
    moved = kept.turned(ordinary + 0.75) - kept.turned(ordinary)
    assert bool((moved.abs() < 1e-5 if dtype == torch.float32 else moved.abs() < 1e-8).all()) == kept.shifts
    assert bool((kept.turned(ordinary) == 0).any()) == kept.sparse


@kinds
def test_what_is_hidden_gets_nothing(kept: Kept) -> None:
    """Hidden entries are exactly 0 and the others as if those were not there; a row of nothing is zeros; no NaN."""
    x = rows()
    wide = torch.full((len(x), 14), NOTHING, dtype=x.dtype)
    places = torch.tensor([0, 2, 3, 5, 6, 8, 9, 11, 12])
    wide[:, places] = x
    wide.requires_grad_()
    p = kept.turned(wide)
    hidden = torch.ones(14, dtype=torch.bool).index_fill(0, places, value=False)
    assert (p[:, hidden] == 0).all()
    torch.testing.assert_close(p[:, places], kept.turned(x), atol=1e-9, rtol=1e-9)
    (p * torch.arange(14)).sum().backward()
    assert wide.grad is not None
    assert wide.grad.isfinite().all()
    assert (wide.grad[:, hidden] == 0).all()
    nothing = torch.full((2, 5), NOTHING, requires_grad=True)
    found = kept.turned(nothing)
    found.sum().backward()
    assert (found == 0).all()
    assert nothing.grad is not None
    assert (nothing.grad == 0).all()


@kinds
def test_alone_is_whole(kept: Kept) -> None:
    found = kept.turned(torch.tensor([[-1e4], [0.0], [3.0]], dtype=torch.float64))
    if kept.sums:
        assert found.tolist() == [[1.0], [1.0], [1.0]]
    half = kept.turned(torch.tensor([1.0, 0.0], dtype=torch.bfloat16))
    assert half.dtype == torch.float32


@kinds
def test_gradients(kept: Kept) -> None:
    x = rows(size=5, count=9)[3:9].clone().requires_grad_()  # none of them at a boundary; boundaries follow below
    x.data += 0.01 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(kept.turned, (x,))


def _jacobian(turned: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found = torch.autograd.functional.jacobian(turned, x)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("x", [[2.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, -0.5], [0.0, -1.0, -1.0, -1.0]])
def test_at_a_boundary(x: list[float], alpha: float) -> None:
    """At the edge of the support the sum is 1 and the derivative is one of the one-sided ones."""
    turned = sparse_maps.sparsemax if alpha == 2 else sparse_maps.entmax15
    at = torch.tensor(x, dtype=torch.float64)
    p = turned(at)
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(sparse_maps.entmax(at, alpha), p, atol=1e-9, rtol=0)
    found, step = _jacobian(turned, at), 1e-7
    for j in range(len(x)):
        moved = step * torch.eye(len(x), dtype=at.dtype)[j]
        sides = torch.stack(((turned(at + moved) - p) / step, (p - turned(at - moved)) / step))
        assert (found[:, j] >= sides.amin(0) - 1e-5).all()
        assert (found[:, j] <= sides.amax(0) + 1e-5).all()


# ---- sparsemax and entmax -------------------------------------------------------------------------------------------


def bisected(x: np.ndarray, alpha: float) -> np.ndarray:
    """Entmax of one row in plain NumPy: halve the interval of the threshold of (alpha - 1) x."""
    z = (alpha - 1) * x
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (np.maximum(z - middle, 0) ** (1 / (alpha - 1))).sum() >= 1 else (low, middle)
    return np.maximum(z - low, 0) ** (1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.7, 2.0, 3.0, 4.0])
def test_entmax_is_the_plain_loop(alpha: float) -> None:
    x = rows()
    expected = np.stack([bisected(row, alpha) for row in x.numpy()])
    np.testing.assert_allclose(sparse_maps.entmax(x, alpha).numpy(), expected, atol=1e-9 if alpha <= 2 else 1e-4)
    exact = {1.5: sparse_maps.entmax15, 2.0: sparse_maps.sparsemax}.get(alpha)
    if exact is not None:
        np.testing.assert_allclose(exact(x).numpy(), expected, atol=1e-9)


def test_twenty_thousand_rows_have_a_threshold() -> None:
    """A quarter of them rounded to halves: strict inequalities lose the threshold of hundreds of such rows."""
    generator = np.random.default_rng(0)
    x = 2 * generator.standard_normal((20_000, 6))
    x[::4] = (2 * x[::4]).round() / 2
    given = torch.from_numpy(x)
    for turned, alpha in ((sparse_maps.entmax15, 1.5), (sparse_maps.sparsemax, 2.0)):
        p = turned(given)
        assert float((p.sum(-1) - 1).abs().max()) < 1e-12
        torch.testing.assert_close(p, sparse_maps.entmax(given, alpha), atol=1e-9, rtol=0)


def test_sparsemax_is_the_nearest_point() -> None:
    """No point of the simplex is nearer: the variational inequality (x - p) . (e_j - p) <= 0 at every corner."""
    x = rows()
    p = sparse_maps.sparsemax(x)
    gap = (x - p) - ((x - p) * p).sum(-1, keepdim=True)
    assert (gap <= 1e-9 * (1 + x.abs().amax(-1, keepdim=True))).all()


def test_entmax15_by_symbols() -> None:
    """x = (1, 0): with t the threshold, (1/2 - t)^2 + t^2 = 1."""
    t = sympy.symbols("t", real=True)
    root = min(sympy.solve((sympy.Rational(1, 2) - t) ** 2 + t**2 - 1, t))
    expected = [float((sympy.Rational(1, 2) - root) ** 2), float(root**2)]
    assert sparse_maps.entmax15(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist() == pytest.approx(expected)


def test_entmax_meets_softmax() -> None:
    """No digits are lost as alpha nears 1, nor at 1, in value and in the derivative by alpha."""
    x = rows()[:60]
    torch.testing.assert_close(sparse_maps.entmax(x, 1.0), x.softmax(-1), atol=1e-12, rtol=0)
    for beyond in (1e-3, 1e-5, 1e-7, 1e-9):
        apart = (sparse_maps.entmax(x, 1 + beyond) - x.softmax(-1)).abs().max()
        assert 0 < float(apart) < 10 * beyond
    at = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (1.0, 1.0 + 1e-7)]
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    slopes = [torch.autograd.grad((sparse_maps.entmax(x, a) * weights).sum(), a)[0] for a in at]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0001, 1.02, 1.5, 2.0])
def test_the_gradient_of_alpha(alpha: float) -> None:
    """One alpha a head, [H, 1, 1] against [n, H, T, S]."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 2, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    own = torch.full((2, 1, 1), alpha, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparse_maps.entmax, (x, own))


def test_the_gradient_stays_right_above_two() -> None:
    """Slopes p^(2 - alpha), two of them large, cancel against each other: what is left is right."""
    for low in (-0.3, -0.33):
        x, step = torch.tensor([0.0, low, low], dtype=torch.float64), 1e-6
        moved = torch.tensor([step, 0.0, 0.0], dtype=torch.float64)
        slope = (sparse_maps.entmax(x + moved, 4.0) - sparse_maps.entmax(x - moved, 4.0)) / (2 * step)
        found = _jacobian(lambda x: sparse_maps.entmax(x, 4.0), x)
        torch.testing.assert_close(found[:, 0].sum(), torch.zeros((), dtype=x.dtype), atol=1e-4, rtol=0)
        torch.testing.assert_close(found, found.mT, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[:, 0], slope, rtol=1e-4, atol=1e-4)


def test_large_slopes_leave_the_small_ones_their_digits() -> None:
    """In float32 a slope of 3e10 beside one of 1: the derivative is their harmonic mean, about 1."""
    found = _jacobian(lambda x: sparse_maps.entmax(x, 4.0), torch.tensor([0.0, -0.333333]))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), rtol=1e-3, atol=0)


def test_the_gradient_of_alpha_in_few_digits() -> None:
    """Where its closed form loses digits a series stands in: float32 is float64 on both sides of the seam."""
    alphas = 1 + torch.tensor([0.001, 0.02, 0.04, 0.05, 0.1])[:, None, None]
    found = []
    for dtype in (torch.float32, torch.float64):
        own = alphas.to(dtype).expand(-1, 4, 1).clone().requires_grad_()
        p = sparse_maps.entmax(X.to(dtype).expand(5, 4, 4), own)
        (grad,) = torch.autograd.grad((p * torch.eye(4, dtype=dtype)).sum(), own)
        found.append(grad.double())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=3e-6)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_rows_do_not_feel_each_other(alpha: float) -> None:
    """The bits of a row are the same alone and beside others, that take more or fewer steps."""
    x = rows().float()
    together = sparse_maps.entmax(x, alpha)
    assert all(torch.equal(sparse_maps.entmax(row[None], alpha)[0], p) for row, p in zip(x, together, strict=True))


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_top_k_keeps_the_earliest(k: int) -> None:
    x = rows()
    order = np.argsort(-x.numpy(), axis=-1, kind="stable")[:, :k]
    kept = np.zeros(x.shape, bool)
    np.put_along_axis(kept, order, values=True, axis=-1)
    assert sparse_maps.largest(x, k).numpy().tolist() == kept.tolist()


# ---- noise ----------------------------------------------------------------------------------------------------------


def test_gumbel_max_draws_from_softmax() -> None:
    uniform = torch.rand(400_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.bincount(maps.gumbel_max(X, maps.gumbel(uniform)), minlength=4) / 400_000
    assert float((drawn - X.softmax(-1)).abs().max()) < 2e-3
    relaxed = maps.gumbel_softmax(X, maps.gumbel(uniform[:100]), temperature=1e-3)
    assert relaxed.argmax(-1).tolist() == maps.gumbel_max(X, maps.gumbel(uniform[:100])).tolist()


def test_gaussian_noise_draws_perturb_max() -> None:
    noise = torch.randn(400_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.bincount((X + noise).argmax(-1), minlength=4) / 400_000
    assert float((drawn - perturb.perturb_max(X)).abs().max()) < 2e-3


@pytest.mark.parametrize("size", [2, 40, 1000])
def test_few_points_are_enough(size: int) -> None:
    x = 2 * torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fine = perturb.perturb_max(x, 200)
    torch.testing.assert_close(perturb.perturb_max(x, 32), fine, atol=3e-6, rtol=0)
    if size == 2:  # P[x_0 + e_0 > x_1 + e_1] = Phi((x_0 - x_1) / sqrt(2))
        exact = torch.special.ndtr((x[:, 0] - x[:, 1]) / math.sqrt(2))
        torch.testing.assert_close(fine[:, 0], exact, atol=1e-9, rtol=0)
    equal = perturb.perturb_max(torch.zeros(size, dtype=torch.float64))
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / size), atol=1e-12, rtol=0)


# ---- what attention gives beside the scores -------------------------------------------------------------------------


def test_extras_get_their_gradients() -> None:
    generator = torch.Generator().manual_seed(4)
    x: Any = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    own: Any = torch.randn(3, 1, 1, dtype=torch.float64, generator=generator, requires_grad=True)
    seen = torch.tensor([5, 3, 2, 1])[:, None]
    assert torch.autograd.gradcheck(maps.softmax_with_sink, (x, own))
    assert torch.autograd.gradcheck(lambda x, own: maps.scalable_softmax(x, own, seen), (x, own))
    assert torch.autograd.gradcheck(lambda x: maps.counted_sigmoid(x, seen), (x,))
    with_nothing = maps.softmax_with_sink(x, torch.full((3, 1, 1), NOTHING))
    torch.testing.assert_close(with_nothing, x.softmax(-1))
    torch.testing.assert_close(maps.scalable_softmax(x, own, seen), (own * seen.log() * x).softmax(-1))
    torch.testing.assert_close(maps.scalable_softmax(x, own), (own * math.log(5) * x).softmax(-1))


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_taylor_is_its_series(order: int) -> None:
    x = rows()[:60]
    series = sum(x**m / math.factorial(m) for m in range(order + 1))
    assert isinstance(series, Tensor)
    torch.testing.assert_close(maps.taylor_softmax(x, order), series / series.sum(-1, keepdim=True))
    assert maps.taylor_softmax(torch.tensor([1e5, 0.0]), order).tolist() == pytest.approx([1.0, 0.0], abs=1e-7)


# ---- the compiled loops ---------------------------------------------------------------------------------------------


def _mixed(size: int) -> Tensor:
    """Random, half-rounded, hard and partly hidden rows of float32, each with something to see."""
    x = rows(max(size, 4), 12)[:, :size].float()
    x[1, size // 2 + 1 :] = NOTHING
    x[2, : size // 2] = NOTHING
    return x


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 1.25, 1.5, 1.9, 2.0])
def test_the_loops_are_their_twin(alpha: float) -> None:
    turned = {1.5: sparse_maps.entmax15, 2.0: sparse_maps.sparsemax}
    for size in (*range(1, 71, 3), 513):
        x = _mixed(size).requires_grad_()
        exact = x.detach().double().requires_grad_()
        own, theirs = (torch.full((len(x), 1), alpha, dtype=y.dtype, requires_grad=True) for y in (x, exact))
        p, expected = sparse_maps.entmax(x, own), sparse_maps.entmax(exact, theirs)
        assert p.grad_fn is not None
        assert "EntmaxLoop" in type(p.grad_fn).__name__
        torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-6)
        if alpha in turned:
            assert torch.equal(turned[alpha](x), p)
        weights = torch.linspace(-1, 1, size)
        found = torch.autograd.grad((p * weights).sum(), (x, own))
        wanted = torch.autograd.grad((expected * weights.double()).sum(), (exact, theirs))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_the_loops_have_the_same_bits_anywhere(alpha: float) -> None:
    """On any number of threads, whatever stands beside a row, and however many hidden entries follow it."""
    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    x[5] = NOTHING
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = x.clone().requires_grad_()
            p = sparse_maps.entmax(y, alpha)
            found.append((p.detach(), torch.autograd.grad(p[:, ::2].sum(), y)[0]))
    finally:
        torch.set_num_threads(before)
    p, grad = found[0]
    assert all(torch.equal(p, a) and torch.equal(grad, b) for a, b in found)
    assert not p[5].any()
    assert not grad[5].any()
    assert torch.equal(sparse_maps.entmax(x[7:8], alpha), p[7:8])
    beyond = sparse_maps.entmax(torch.cat((x, torch.full((64, 37), NOTHING)), -1), alpha)
    assert torch.equal(beyond[:, :300], p)
    assert not beyond[:, 300:].any()
    strange = x[:2].clone()
    strange[0, 3] = torch.nan
    assert sparse_maps.entmax(strange, alpha)[0].isnan().all()
