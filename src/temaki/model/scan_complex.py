"""A linear recurrence with a complex diagonal, states as outputs: a compiled loop for float32, else a parallel scan.

h_t = a h_{t-1} + v_t. Of an id the real parts come first, then the imaginary ones. Letters: N ids, P states.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base.lanes import LANES
from temaki.model.scan import grouped, looped, parallel_scan
from temaki.model.scan_complex_loops import complex_ahead, complex_back


def complex_scan(v: Tensor, a: Tensor, cuts: Tensor) -> Tensor:
    """h [N, 2 P] of v [N, 2 P], every piece from zero: a complex [P]; cuts int64 [n+1] on the host.

    >>> complex_scan(torch.ones(3, 2), torch.tensor([0.5j]), torch.tensor([0, 2, 3]))
    tensor([[1.0000, 1.0000],
            [0.5000, 1.5000],
            [1.0000, 1.0000]])
    """
    v = v.contiguous()
    if looped(v):
        return _Looped.apply(v, torch.view_as_real(a).mT, cuts)
    goes_on = v.new_ones(len(v), dtype=a.dtype)
    goes_on[cuts[:-1][cuts.diff() > 0].to(v.device)] = 0.0
    real, imaginary = v.chunk(2, -1)
    h = parallel_scan(goes_on[:, None] * a, torch.complex(real, imaginary))
    return torch.cat((h.real, h.imag), -1)


def complex_on(v: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """L ids on from the state h [2 P]: (the states after each [L, 2 P], the last). Compiled, it has no gradient.

    >>> complex_on(torch.zeros(1, 2), torch.tensor([0.5j]), torch.tensor([1.0, 0.0]))[1]
    tensor([0.0000, 0.5000])
    """
    v = v.contiguous()
    if looped(v):
        cuts = torch.tensor([0, len(v)])
        found = complex_ahead(*_told(v, torch.view_as_real(a).mT), _filled(h.reshape(1, 2, -1)), cuts, grouped(cuts))
        found = _plain(found, len(a))
        return found, found[-1]
    first = complex_step(h, v[0], a)
    real, imaginary = torch.cat((first[None], v[1:])).chunk(2, -1)
    states = parallel_scan(a.expand(len(v), -1), torch.complex(real, imaginary))
    found = torch.cat((states.real, states.imag), -1)
    return found, found[-1]


def complex_step(h: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """One id: states and inputs [.., 2 P] -> states.

    >>> complex_step(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5j]))
    tensor([0.0000, 1.5000])
    """
    real, imaginary = h.chunk(2, -1)
    return v + torch.cat((a.real * real - a.imag * imaginary, a.real * imaginary + a.imag * real), -1)


class _Looped(torch.autograd.Function):
    """`complex_scan` in float32 of v [N, 2 P] and a [2, P]."""

    @staticmethod
    def forward(ctx, v: Tensor, a: Tensor, cuts: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        (inputs, system), groups = _told(v, a), grouped(cuts)
        h = complex_ahead(inputs, system, inputs.new_zeros(len(cuts) - 1, *system.shape), cuts, groups)
        ctx.save_for_backward(h, system, cuts, groups)
        ctx.states = a.shape[1]
        return _plain(h, a.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        h, a, cuts, groups = ctx.saved_tensors
        dv, da = complex_back(h, _filled(g.unflatten(1, (2, -1))), a, cuts, groups)
        return _plain(dv, ctx.states), da[:, : ctx.states], None


def _told(v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return _filled(v.unflatten(1, (2, -1))), _filled(a)


def _filled(x: Tensor) -> Tensor:
    """[.., P] filled up with zeros to a multiple of 16 states, dense."""
    return F.pad(x, (0, -x.shape[-1] % LANES)).contiguous()


def _plain(x: Tensor, states: int) -> Tensor:
    """[N, 2, filled up] -> [N, 2 P]."""
    return x[..., :states].flatten(1)
