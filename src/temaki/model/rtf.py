"""RTF: state spaces as rational transfer functions, whose kernel costs O(L log L) whatever the order.

Sum over k < L of K_k z^k = (b_1 + b_2 z + .. + b_d z^(d-1)) / (1 + a_1 z + .. + a_d z^d) at the L-th roots of unity, so
K is the inverse transform of a ratio of two transforms. The same system is the companion recurrence
v_t = u_t - sum_i a_i v_(t-i), y_t = sum_i c_i v_(t-i+1), whose state is a shift register; its output is not b but
c = b (I - Abar^L)^-1. Parnichkun et al. 2024, "State-free inference of state-space models: the transfer function
approach", section 3. Letters: N ids, D width, d order, L length.
"""

import torch
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config import RtfConfig
from temaki.model.recurrent import Carried, Given
from temaki.model.rtf_loops import filtered
from temaki.model.scan import looped
from temaki.model.siso import Convolved, Truncated


def rtf_kernel(a: Tensor, b: Tensor, length: int) -> Tensor:
    """K = IDFT(DFT(b) / DFT([1, a])): a, b [D, d], d < L -> [D, L].

    >>> rtf_kernel(torch.tensor([[-0.5]]), torch.tensor([[1.0]]), 4)
    tensor([[1.0667, 0.5333, 0.2667, 0.1333]])
    """
    below = torch.fft.rfft(torch.cat((torch.ones_like(a[:, :1]), a), 1), length)
    return torch.fft.irfft(torch.fft.rfft(b, length) / below, length)


def companion(a: Tensor) -> Tensor:
    """Abar [.., d, d] of a [.., d]: its first row is -a, below it the register shifts.

    >>> companion(torch.tensor([0.5, 0.25]))
    tensor([[-0.5000, -0.2500],
            [ 1.0000,  0.0000]])
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)[:-1]
    return torch.cat((-a[..., None, :], eye.expand(*a.shape[:-1], *eye.shape)), -2)


def transfer(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(a [d], numerator [d]) of x <- A x + B u, y = C x: A [d, d], B, C [d].

    a is the characteristic polynomial of A without its leading 1, the numerator that of A - B C less that of A. With C
    the numerator is of the endless response, with C (I - A^L) of the truncated one.

    >>> half = torch.tensor([[0.5]], dtype=torch.float64)
    >>> transfer(half, torch.ones_like(half[0]), 3 * torch.ones_like(half[0]))
    (tensor([-0.5000], dtype=torch.float64), tensor([3.], dtype=torch.float64))
    """
    first = characteristic(a)
    return first[1:], (characteristic(a - b[:, None] * c) - first)[1:]


def characteristic(a: Tensor) -> Tensor:
    """det(lambda I - A) from the highest power down, [d + 1], by Faddeev and Le Verrier.

    >>> characteristic(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([ 1., -3.,  2.])
    """
    eye, found = torch.eye(len(a), dtype=a.dtype), [torch.ones((), dtype=a.dtype)]
    m = torch.zeros_like(a)
    for k in range(1, len(a) + 1):
        m = a @ m + found[-1] * eye
        found.append(-(a @ m).trace() / k)
    return torch.stack(found)


def stable(a: Tensor) -> Tensor:
    """Whether all roots of lambda^d + a_1 lambda^(d-1) + .. + a_d lie inside the unit circle: a [.., d] -> bool [..].

    Necessary and sufficient: every reflection coefficient of the polynomial, lowered degree by degree, is below 1 in
    size (Schur 1917, Cohn 1922; as a table, Jury 1964).

    >>> stable(torch.tensor([[-0.5, 0.1], [-2.0, 0.5]]))
    tensor([ True, False])
    """
    a = a.double()
    held = torch.ones(a.shape[:-1], dtype=torch.bool, device=a.device)
    while a.shape[-1]:
        k = a[..., -1:]
        held = held & (k[..., 0].abs() < 1)
        k = torch.where(k.abs() < 1, k, 0.0)  # what has failed stays so
        a = (a[..., :-1] - k * a[..., :-1].flip(-1)) / (1 - k * k)
    return held


def surely_stable(a: Tensor) -> Tensor:
    """Whether sum |a_i| < 1, which is enough for `stable` and not needed: a [.., d] -> bool [..].

    >>> surely_stable(torch.tensor([[-0.5, 0.1], [-1.2, 0.5]])), stable(torch.tensor([[-0.5, 0.1], [-1.2, 0.5]]))
    (tensor([ True, False]), tensor([True, True]))
    """
    return a.abs().sum(-1) < 1


class RtfSystem(Truncated):
    """A denominator a [D, d] and the numerator b."""

    def __init__(self, a: Tensor, b: Tensor, length: int):
        super().__init__(b, length)
        self.a = a

    def truncated(self, numerator: Tensor) -> Tensor:
        return rtf_kernel(self.a, numerator, self.length)

    def matrix(self) -> Tensor:
        return companion(self.a.double())


class Rtf(Convolved):
    """One rational transfer function a channel, inside the shell of `Siso`; a begins at 0, a kernel of d places."""

    def __init__(self, config: RtfConfig, width: int):
        super().__init__(width)
        self.config = config
        shape = width, config.states
        self.a = self.add("a", *shape, role=Role("dynamics"), filling="zeros")
        start = torch.randn(shape) * config.states**-0.5
        self.b = self.add("b", *shape, role=Role("vector"), filling="given", value=start)

    def made(self) -> RtfSystem:
        return RtfSystem(self.a.to(self.wide()), self.b.to(self.wide()), self.config.length)

    def begin(self, slots: int) -> Carried:
        return (self.a.new_zeros(slots, *self.a.shape, dtype=self.wide()),)

    def run(self, system: RtfSystem, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        if not looped(given[0]) or torch.is_grad_enabled():
            return super().run(system, past, given)
        y, after = filtered(given[0], system.a, system.output.to(system.a.dtype), past[0])
        return y, (after,)

    def chunk(self, system: RtfSystem, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        found: list[Tensor] = []
        for i in range(len(given[0])):
            y, past = self.step(system, past, (given[0][i],))
            found.append(y)
        return torch.stack(found), past

    def step(self, system: RtfSystem, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        v = given[0] - (system.a * past[0]).sum(-1)
        x = torch.cat((v[..., None], past[0][..., :-1]), -1)
        return (system.output.to(x.dtype) * x).sum(-1), (x,)
