"""RTF: its values, the output of its recurrence, conversion and stability. Forms of the recurrence: `test_s4`."""

import doctest

import numpy as np
import pytest
import torch

from temaki.model import rtf
from temaki.model.rtf import RtfSystem, characteristic, companion, rtf_kernel, stable, surely_stable, transfer

A, B = torch.tensor([[-0.5, 0.1]], dtype=torch.float64), torch.tensor([[1.0, 0.3]], dtype=torch.float64)
KERNEL = [0.999812, 0.799999, 0.300018, 0.070009, 0.005003, -0.0045, -0.00275, -0.000925]


def response(a, c, length):
    """C A^k e_1 by dense powers."""
    return torch.stack([c @ torch.linalg.matrix_power(a, k)[:, 0] for k in range(length)])


def test_doctests():
    assert doctest.testmod(rtf).failed == 0


def test_worked_example():
    wanted = torch.tensor(KERNEL, dtype=torch.float64)
    torch.testing.assert_close(rtf_kernel(A, B, 8)[0], wanted, atol=1e-6, rtol=0)
    output = RtfSystem(A, B, 8).output[0]
    torch.testing.assert_close(output, torch.tensor([0.999812, 0.300093], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(response(companion(A[0]), output, 8), rtf_kernel(A, B, 8)[0], atol=1e-14, rtol=0)


def test_the_numerator_is_not_the_output():
    """Read with b itself the recurrence is another system: 1, .8, .3, .07, .005, .."""
    other = response(companion(A[0]), B[0], 8)
    torch.testing.assert_close(other[:5], torch.tensor([1, 0.8, 0.3, 0.07, 0.005], dtype=torch.float64))
    assert float((other - rtf_kernel(A, B, 8)[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("length", [5, 8, 9])
def test_any_length_above_the_order(length):
    random = torch.Generator().manual_seed(length)
    a, b = (0.3 * torch.randn(3, 4, dtype=torch.float64, generator=random) for _ in range(2))
    system = RtfSystem(a, b, length)
    wanted = torch.stack([response(companion(x), c, 3 * length) for x, c in zip(a, system.output, strict=True)])
    torch.testing.assert_close(system.kernel(3 * length), wanted, atol=1e-11, rtol=1e-9)


def test_conversion_there_and_back():
    """Any A, B, C gives the polynomials of the same responses: endless with C, truncated with C (I - A^L)."""
    random, length = torch.Generator().manual_seed(0), 12
    a = 0.3 * torch.randn(5, 5, dtype=torch.float64, generator=random)
    b, c = (torch.randn(5, dtype=torch.float64, generator=random) for _ in range(2))
    wanted = torch.stack([c @ torch.linalg.matrix_power(a, k) @ b for k in range(length)])
    below, endless = transfer(a, b, c)
    torch.testing.assert_close(response(companion(below), endless, length), wanted)
    _, truncated = transfer(a, b, c - c @ torch.linalg.matrix_power(a, length))
    torch.testing.assert_close(rtf_kernel(below[None], truncated[None], length)[0], wanted)
    back, numerator = transfer(companion(below), torch.eye(5, dtype=torch.float64)[0], endless)
    torch.testing.assert_close(back, below)
    torch.testing.assert_close(numerator, endless)


def test_characteristic_polynomial_against_numpy():
    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(characteristic(a).numpy(), np.poly(a.numpy()), atol=1e-11)


def test_stability_is_that_of_the_roots():
    """Necessary and sufficient over random polynomials of each order, near the boundary and far from it."""
    random = np.random.default_rng(0)
    for order in (1, 2, 3, 6, 9):
        a = random.standard_normal((300, order)) * random.choice([0.05, 0.3, 1.0], (300, 1))
        largest = np.array([np.abs(np.roots([1.0, *each])).max() for each in a])
        told = stable(torch.from_numpy(a))
        assert 0 < int(told.sum()) < 300
        np.testing.assert_array_equal(told.numpy(), largest < 1)
        assert bool((told | ~surely_stable(torch.from_numpy(a))).all()), "enough, but not needed"


def test_gradient_of_the_kernel():
    random = torch.Generator().manual_seed(1)
    a, b = (0.2 * torch.randn(2, 3, dtype=torch.float64, generator=random) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *each: rtf_kernel(*each, 7), [a.requires_grad_(), b.requires_grad_()])
