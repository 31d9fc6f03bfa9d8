"""S4: its values, its kernel against powers, and one recurrence in three forms; compiled loops beside their twins."""

import doctest
import itertools

import pytest
import torch
from torch import Tensor

from temaki.base.rows import Rows
from temaki.model import rtf, s4, siso
from temaki.model.config import RtfConfig, S4Config
from temaki.model.hippo import discretised, legs
from temaki.model.layout import Layout
from temaki.model.recurrent import Recurrent
from temaki.model.s4 import Dynamics, S4System, dplr_advance, normal_legs, s4_kernel
from temaki.model.siso import Convolved

KINDS = {
    "s4": lambda: s4.S4(S4Config(states=8, length=24), 20),
    "rtf": lambda: rtf.Rtf(RtfConfig(states=7, length=24), 20),
}
DTYPES = [torch.float64, torch.float32]
CUTS = [0, 60, 60, 70, 94, 95]
"""Pieces longer than the kernel, empty, shorter, as long, and of one id."""


def mixer(kind: str, dtype: torch.dtype) -> Convolved:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = KINDS[kind]()
        if isinstance(made, rtf.Rtf):
            torch.nn.init.normal_(made.a, std=0.1)
    return made.to(dtype)


def inputs(dtype: torch.dtype, ids: int = CUTS[-1]) -> tuple[Tensor, ...]:
    return (torch.randn(ids, 20, dtype=dtype, generator=torch.Generator().manual_seed(1)),)


def layout(cuts: list[int]) -> Layout:
    return Layout(Rows(torch.zeros(cuts[-1], dtype=torch.int64), torch.tensor(cuts), torch.arange(cuts[-1])))


def close(found: Tensor, wanted: Tensor) -> None:
    found, wanted = found.detach(), wanted.detach()
    bound = 1e-10 if wanted.dtype == torch.float64 else 1e-5
    assert float((found - wanted).abs().max()) <= bound * max(1.0, float(wanted.abs().max()))


def legs_system(states: int, length: int, c: Tensor) -> tuple[Dynamics, Tensor, Tensor]:
    """S4's own form of LegS at step 0.1 with output C, its numerator, and the kernel by powers of dense matrices."""
    a, b = discretised(*legs(states), 0.1, "bilinear")
    poles, p, rank_one, basis = (each[None] for each in normal_legs(states))
    truncated = c - c @ torch.linalg.matrix_power(a, length)
    wanted = torch.stack([c @ torch.linalg.matrix_power(a, k) @ b for k in range(length)])
    of = Dynamics(poles, p, rank_one, torch.tensor([0.1], dtype=torch.float64))
    return of, truncated.to(p.dtype) @ basis.mH, wanted


@pytest.mark.parametrize("module", [s4, siso])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_basis_makes_legs_normal_plus_rank_one():
    a, b = legs(8)
    poles, p, rank_one, basis = normal_legs(8)
    x = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    half = basis @ x.to(basis.dtype)
    torch.testing.assert_close(poles * half - p * 2 * (p.conj() * half).real.sum(), basis @ (a @ x).to(basis.dtype))
    torch.testing.assert_close(rank_one, basis @ b.to(basis.dtype))
    assert float(p.imag.abs().max()) < 1e-12
    assert bool((p.real > 0).all())


def test_kernel_of_the_worked_example():
    of, numerator, _ = legs_system(4, 16, torch.ones(4, dtype=torch.float64))
    wanted = torch.tensor([0.547052, 0.223439, 0.063994, -0.004599, -0.025622, -0.023929], dtype=torch.float64)
    torch.testing.assert_close(s4_kernel(of, numerator, 16)[0, :6], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 63, 64])
def test_kernel_is_the_recurrence_at_even_and_odd_lengths(length):
    of, numerator, wanted = legs_system(8, length, torch.linspace(-1, 1, 8, dtype=torch.float64))
    found = s4_kernel(of, numerator, length)[0]
    assert float((found - wanted).abs().max()) < 1e-14
    stepped, x = S4System(of, numerator, length).stepped, torch.zeros_like(of.p)
    for k in range(length):
        y, x = dplr_advance(x, torch.tensor([float(k == 0)], dtype=torch.float64), stepped)
        assert abs(float(y[0]) - float(wanted[k])) < 1e-13


@pytest.mark.parametrize("length", [6, 7])
def test_gradient_of_the_kernel(length):
    parameters = [
        torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4)
    ]

    def kernel(poles: Tensor, p: Tensor, b: Tensor, c: Tensor, step: Tensor) -> Tensor:
        real, imaginary = poles.unbind(-1)
        dynamics = torch.complex(-real.exp(), imaginary), *map(torch.view_as_complex, (p, b))
        return s4_kernel(Dynamics(*dynamics, step.exp()), torch.view_as_complex(c), length)

    step = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(kernel, [each.requires_grad_() for each in (*parameters, step)])


@pytest.mark.parametrize(("kind", "dtype"), list(itertools.product(KINDS, DTYPES)))
def test_parallel_is_recurrent_is_chunked(kind, dtype):
    """With a gradient (torch, step by step), without (float32: the compiled loop), in chunks, by steps of two slots."""
    of, given, where = mixer(kind, dtype), inputs(dtype), layout(CUTS)
    wanted = of.whole(of.system(), given, where)
    close(Recurrent.whole(of, of.system(), given, where), wanted)
    with torch.no_grad():
        close(Recurrent.whole(of, of.system(), given, where), wanted)
        first, past = of.run(of.system(), tuple(each[0] for each in of.begin(1)), (given[0][:17],))
        second, _ = of.run(of.system(), past, (given[0][17:60],))
        close(torch.cat((first, second)), wanted[:60])
        both, found = of.begin(2), []
        for t in range(10):
            y, both = of.step(of.system(), both, (torch.stack((given[0][t], given[0][60 + t])),))
            found.append(y)
        close(torch.stack(found).transpose(0, 1), torch.stack((wanted[:10], wanted[60:70])))


@pytest.mark.parametrize(("kind", "dtype"), list(itertools.product(KINDS, DTYPES)))
def test_gradients_of_both_forms_agree(kind, dtype):
    of, given, where = mixer(kind, dtype), inputs(dtype), layout(CUTS)
    own = [of.get_parameter(name) for name, role in of.own_roles.items() if role.kind != "matrix" and name != "skip"]
    g = torch.randn(CUTS[-1], 20, dtype=dtype, generator=torch.Generator().manual_seed(2))
    fast, slow = (
        torch.autograd.grad((form(of.system(), given, where) * g).sum(), own)
        for form in (of.whole, lambda *each: Recurrent.whole(of, *each))
    )
    for found, wanted in zip(fast, slow, strict=True):
        close(found, wanted)


def test_sums_in_parts_are_the_sums_at_once(monkeypatch):
    of, numerator, _ = legs_system(8, 64, torch.ones(8, dtype=torch.float64))
    wanted = s4_kernel(of, numerator, 64)
    monkeypatch.setattr(s4, "_AT_ONCE", 20)
    close(s4_kernel(of, numerator, 64), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_threads(kind):
    of, given, where = mixer(kind, torch.float32), inputs(torch.float32), layout(CUTS)
    own = [of.get_parameter("b")]

    def all_of_it() -> list[Tensor]:
        y = of.whole(of.system(), given, where)
        with torch.no_grad():
            read = Recurrent.whole(of, of.system(), given, where)
        return [y, read, *torch.autograd.grad(y.square().sum(), own)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = all_of_it()
        torch.set_num_threads(2)
        assert all(map(torch.equal, alone, all_of_it()))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_system_follows_its_parameters(kind):
    of, given = mixer(kind, torch.float32), inputs(torch.float32)
    with torch.no_grad():
        assert of.system() is of.system()
        of.b.data.view(-1).numpy()[:] *= 2  # as a compiled optimizer writes: torch counts no version
        found = Recurrent.whole(of, of.system(), given, layout([0, CUTS[-1]]))
    close(found, of.whole(of.made(), given, layout([0, CUTS[-1]])))
