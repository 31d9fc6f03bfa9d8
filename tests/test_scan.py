"""Scans with a diagonal: compiled loops = parallel twins = id by id, gradients too; bits do not depend on threads."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from temaki.base import team
from temaki.base.lanes import LANES, exp, fma, larger, load, settled, spread, store, total
from temaki.base.team import exp32, floats, given, span
from temaki.model.scan import columns, diagonal_scan, grouped, parallel_scan, scan_on, vandermonde
from temaki.model.scan_complex import complex_on, complex_scan, complex_step
from temaki.model.selective import selective_on, selective_scan, selective_step
from temaki.model.short_conv import short_convolution, short_convolution_on, short_convolution_step
from temaki.model.ssm import powers

CUTS = [0, 0, 1, 64, 127, 192, 600, 600]
"""Pieces of 0, 1, 63, 63, 65, 408 and 0 ids."""
N = CUTS[-1]
Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]
"""The fast form of (tensors, cuts), id by id the same of one piece (tensors), and tensors in float32."""

LOOPED = pytest.mark.skipif(not team.open(), reason="torch brings no OpenMP of GNU's here")


def pieces() -> Iterator[tuple[int, int]]:
    yield from itertools.pairwise(CUTS)


def plain_diagonal(u: Tensor, a: Tensor, w: Tensor) -> Tensor:
    x, found = torch.zeros_like(a), []
    for one in u:
        x = a * x + one[:, None]
        found.append((w * x).sum(-1).real)
    return torch.stack(found)


def plain_complex(v: Tensor, a: Tensor) -> Tensor:
    h, found = torch.zeros_like(v[0]), []
    for one in v:
        h = complex_step(h, one, a)
        found.append(h)
    return torch.stack(found)


def plain_selective(u: Tensor, d: Tensor, a: Tensor, bc: Tensor) -> Tensor:
    h, found = torch.zeros_like(a), []
    for t in range(len(u)):
        y, h = selective_step(h, u[t], d[t], a, bc[t, 0], bc[t, 1])
        found.append(y)
    return torch.stack(found)


def plain_convolution(x: Tensor, weight: Tensor) -> Tensor:
    past, found = x.new_zeros(1, weight.shape[1] - 1, x.shape[1]), []
    for one in x:
        y, past = short_convolution_step(past, one[None], weight)
        found.append(y[0])
    return torch.stack(found)


def convolved(x: Tensor, weight: Tensor, cuts: Tensor) -> Tensor:
    starts = cuts[:-1].repeat_interleave(cuts.diff())
    return short_convolution(x, weight, torch.arange(len(x)) - starts)


def inside(*shape: int) -> Tensor:
    """Complex numbers below 1 in size, some close to it."""
    return torch.polar(1 - torch.rand(shape) ** 2 * 0.3 - 1e-3, torch.rand(shape) * 6)


def case(name: str, channels: int) -> Case:
    torch.manual_seed(len(name) + channels)
    u = torch.randn(N, channels)
    match name:
        case "diagonal":
            return diagonal_scan, plain_diagonal, (u, inside(channels, 3), torch.randn(channels, 3) + 1j)
        case "complex":
            return complex_scan, plain_complex, (torch.randn(N, 2 * channels), inside(channels))
        case "selective":
            a, bc = -torch.rand(channels, 5) * 8, torch.randn(N, 2, 5)
            return selective_scan, plain_selective, (u, torch.rand(N, channels) * 0.2, a, bc)
        case _:
            return convolved, plain_convolution, (u, torch.randn(channels, 4))


CASES = pytest.mark.parametrize("name", ["diagonal", "complex", "selective", "convolution"])


def by_pieces(plain: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Each piece alone: tensors as long as the ids are cut, the others are parameters."""
    return torch.cat(
        [plain(*(x[i:j] if len(x) == N else x for x in tensors)) for i, j in pieces() if j > i]
    )  # fmt: skip


def wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def with_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """The output, and the gradient of one and the same weighted sum of it by every tensor."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@CASES
@pytest.mark.parametrize("channels", [16, 21, 80])
def test_loops_and_twins_are_the_recurrence_id_by_id(name: str, channels: int) -> None:
    fast, plain, tensors = case(name, channels)
    cuts, doubled = torch.tensor(CUTS), [wide(x) for x in tensors]
    wanted = with_gradients(lambda *x: by_pieces(plain, *x), *doubled)
    for found, right in zip(with_gradients(lambda *x: fast(*x, cuts), *doubled), wanted, strict=True):
        assert apart(found, right) < 1e-10
    for found, right in zip(with_gradients(lambda *x: fast(*x, cuts), *tensors), wanted, strict=True):
        assert apart(found, right) < 1e-5


@CASES
def test_bits_do_not_depend_on_threads(name: str) -> None:
    fast, _, tensors = case(name, 80)
    cuts, before, found = torch.tensor(CUTS), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(with_gradients(lambda *x: fast(*x, cuts), *tensors))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@CASES
def test_what_is_no_number_stays_none_and_in_its_piece(name: str) -> None:
    fast, _, tensors = case(name, 16)
    first = tensors[0].clone()
    first[130] = torch.nan
    y = fast(first, *tensors[1:], torch.tensor(CUTS))
    assert bool(y[130].isnan().all())
    assert not bool(y[:130].isnan().any())
    assert not bool(y[192:].isnan().any())


@CASES
def test_strided_and_empty_input(name: str) -> None:
    fast, _, (first, *rest) = case(name, 16)
    cuts = torch.tensor(CUTS)
    strided = torch.cat((first, first), -1)[:, : first.shape[1]]
    assert not strided.is_contiguous()
    assert torch.equal(fast(strided, *rest, cuts), fast(first, *rest, cuts))
    empty = [x[:0] if len(x) == N else x for x in (first, *rest)]
    for none in ([0], [0, 0]):
        found = with_gradients(lambda *x: fast(*x, torch.tensor(none)), *empty)  # noqa: B023
        assert found[0].shape == (0, first.shape[1])
        assert all(float(x.abs().sum()) == 0.0 for x in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", [1, 16, 37])
def test_scans_go_on_from_their_state(cut: int, dtype: torch.dtype) -> None:
    """A piece in two: the second part on from the state after the first; float32 in the order of ids, so to the bit."""
    tolerance = 0.0 if dtype == torch.float32 and team.open() else 1e-5 if dtype == torch.float32 else 1e-12
    _, _, (u, d, a, bc) = case("selective", 21)
    u, d, a, bc = (x.to(dtype) for x in (u[:60], d[:60], a, bc[:60]))
    h = torch.randn(21, 5, dtype=dtype)
    whole, after = selective_on(u, d, a, bc, h)
    first, h = selective_on(u[:cut], d[:cut], a, bc[:cut], h)
    second, h = selective_on(u[cut:], d[cut:], a, bc[cut:], h)
    assert (torch.cat((first, second)) - whole).abs().max() <= tolerance
    assert (h - after).abs().max() <= tolerance
    _, _, (v, rates) = case("complex", 21)
    v, rates = v[:60].to(dtype), rates.to(torch.complex64 if dtype == torch.float32 else torch.complex128)
    state = torch.randn(42, dtype=dtype)
    whole, after = complex_on(v, rates, state)
    first, state = complex_on(v[:cut], rates, state)
    second, state = complex_on(v[cut:], rates, state)
    assert (torch.cat((first, second)) - whole).abs().max() <= tolerance
    assert (state - after).abs().max() <= tolerance
    x, weight = torch.randn(60, 21, dtype=dtype), torch.randn(21, 4, dtype=dtype)
    past = torch.randn(3, 21, dtype=dtype)
    whole, after = short_convolution_on(past, x, weight)
    first, past = short_convolution_on(past, x[:cut], weight)
    second, past = short_convolution_on(past, x[cut:], weight)
    assert torch.equal(torch.cat((first, second)), whole)
    assert torch.equal(past, after)
    assert torch.equal(past, x[-3:])


@LOOPED
def test_diagonal_scans_of_many_slots_go_on() -> None:
    _, _, (u, a, w) = case("diagonal", 21)
    x = torch.randn(3, 21, 3, dtype=torch.complex64)
    whole, after = scan_on(u[:60], a, w, x)
    first, halfway = scan_on(torch.cat((u[:7], u[20:27], u[40:47])), a, w, x)
    second, last = scan_on(torch.cat((u[7:20], u[27:40], u[47:60])), a, w, halfway)
    assert torch.equal(last, after)
    for i in range(3):
        assert torch.equal(
            torch.cat((first[7 * i : 7 * i + 7], second[13 * i : 13 * i + 13])), whole[20 * i : 20 * i + 20]
        )
    alone = plain_diagonal(u[:20].double(), wide(a), wide(w))
    zero = scan_on(u[:20], a, w, torch.zeros(1, 21, 3, dtype=torch.complex64))[0]
    assert apart(zero, alone) < 1e-6


def test_gradients_by_differences() -> None:
    torch.manual_seed(4)
    a, b = (torch.randn(9, 2, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(parallel_scan, (a, b))
    poles = wide(inside(2, 3)).requires_grad_()
    weights = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: vandermonde(a, w, 70), (poles, weights))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 300])
def test_kernels_are_sums_of_powers(length: int) -> None:
    torch.manual_seed(length)
    a, w = inside(4, 3), torch.randn(4, 3, dtype=torch.complex64)
    powers = wide(a)[..., None] ** torch.arange(length)
    wanted = torch.einsum("ds,dsk->dk", wide(w), powers).real
    for x, tolerance in ((vandermonde(wide(a), wide(w), length), 1e-12), (vandermonde(a, w, length), 2e-5)):
        assert x.shape == wanted.shape
        assert not length or apart(x, wanted) < tolerance


def test_groups_cover_all_pieces_once() -> None:
    generator = torch.Generator().manual_seed(5)
    for count in (0, 1, 2, 40, 3000):
        for longest in (1, 30, 5000):
            cuts = torch.cat(
                (torch.zeros(1), torch.randint(0, longest, (count,), generator=generator).cumsum(0))
            ).long()
            bounds = grouped(cuts)
            assert bounds[0] == 0
            assert bounds[-1] == count
            assert bool((bounds.diff() > 0).all())
            assert len(bounds) <= 17
    assert [columns(torch.zeros(1, n)).shape[1] for n in (16, 17)] == [16, 32]


@team.task
def _every_operation(data):  # type: ignore[no-untyped-def]
    told = given(data)
    part, _, _ = span(data)
    while part >= 0:
        x, y = floats(told[0], 3 * LANES), floats(told[1], 10 * LANES)
        a, b, c = load(x, 0), load(x, LANES), load(x, 2 * LANES)
        store(y, 0, a + b)
        store(y, LANES, a - b)
        store(y, 2 * LANES, a * b)
        store(y, 3 * LANES, a / b)
        store(y, 4 * LANES, -a)
        store(y, 5 * LANES, fma(a, b, c))
        store(y, 6 * LANES, larger(a, b))
        store(y, 7 * LANES, exp(a))
        store(y, 8 * LANES, spread(total(a)))
        store(y, 9 * LANES, settled(c))
        for i in range(LANES):
            x[i] = exp32(x[i])
        part, _, _ = span(data)


@LOOPED
def test_lanes_compute_as_numbers_do() -> None:
    a = np.linspace(-70, 95, 16, dtype=np.float32)
    b = np.linspace(3, -7, 16, dtype=np.float32)
    c = np.array([1e-31, -1e-31, 1e-29, -1e-29, 0, np.nan, np.inf, -1, *range(8)], np.float32)
    x, y = torch.from_numpy(np.concatenate((a, b, c))), torch.empty(10, 16)
    _every_operation(1, 1, x, y)
    wanted = [a + b, a - b, a * b, a / b, -a, (a.astype(np.float64) * b + c).astype(np.float32), np.maximum(a, b)]
    for found, right in zip(y.numpy(), wanted, strict=False):
        np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(y[7].numpy(), x[:16].numpy())  # as the loop over single numbers
    inner = np.exp(a.astype(np.float64))
    inner[a < -60] = 0
    assert np.allclose(y[7].numpy()[a < 88], inner[a < 88], rtol=3e-7, atol=0)
    assert float(y[8, 0]) == pytest.approx(float(a.sum()), rel=1e-6)
    np.testing.assert_array_equal(y[9].numpy(), np.where(np.abs(c) < 1e-30, 0, c))


@LOOPED
def test_what_fades_never_becomes_denormal() -> None:
    """One input, then nothing for long: the state ends at 0, and no output is a denormal number."""
    u = torch.zeros(4000, 16)
    u[0] = 1.0
    cuts, small = torch.tensor([0, 4000]), torch.finfo(torch.float32).tiny
    y = diagonal_scan(u, torch.full((16, 1), 0.9 + 0j), torch.ones(16, 1) + 0j, cuts)
    h = complex_scan(u, torch.full((8,), 0.6 + 0.6j), cuts)
    for found in (y, h):
        assert float(found[-1].abs().max()) == 0.0
        assert not bool(((found != 0) & (found.abs() < small)).any())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_pole_that_underflows_forgets_at_once(dtype: torch.dtype) -> None:
    a, w = torch.zeros(1, 2, dtype=dtype, requires_grad=True), torch.ones(1, 2, dtype=dtype)
    kernel = vandermonde(a, w, 3)
    assert (kernel - torch.tensor([[2.0, 0.0, 0.0]])).abs().max() < 1e-30
    kernel.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert (powers(a.detach()[0], 3).real - torch.tensor([[1.0], [0.0], [0.0]])).abs().max() < 1e-30
