"""Linear recurrences with a diagonal, over pieces: the doors to their compiled loops, and torch twins in parallel form.

Letters: N ids, D channels, S states a channel, L ids of a row.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.lanes import LANES
from temaki.model.scan_loops import scan_ahead, scan_back

_GROUP_IDS = 512
"""Ids below which a group of pieces is not cut further: each group has gradients of its own for the system."""
_GROUPS = 16
_POWERS = 64
"""Powers of a diagonal that are held at a time."""


def grouped(cuts: Tensor) -> Tensor:
    """Neighbouring pieces in at most 16 groups of about as many ids: the first piece of each, and the end, int64 [G+1].

    It follows from the cuts alone, so sums that are made group by group do not depend on threads.

    >>> grouped(torch.tensor([0, 700, 900, 1600]))
    tensor([0, 1, 3])
    """
    ids = int(cuts[-1])
    count = max(1, min(_GROUPS, len(cuts) - 1, ids // _GROUP_IDS))
    goals = torch.arange(1, count) * ids // count
    inner = torch.searchsorted(cuts, goals).clamp(max=len(cuts) - 1)
    return torch.cat((inner.new_zeros(1), inner, inner.new_tensor([len(cuts) - 1]))).unique_consecutive()


def looped(*tensors: Tensor) -> bool:
    """Whether the compiled loops serve: dense float32 on the host, outside torch's compiler."""
    return team.serves(*tensors) and not torch.compiler.is_compiling()


def diagonal_scan(u: Tensor, a: Tensor, w: Tensor, cuts: Tensor) -> Tensor:
    """y_t = Re sum_s w_s x_{t,s} of x_t = a x_{t-1} + u_t, every piece from zero: u [N, D], a, w complex [D, S].

    cuts: int64 [n+1] on the host, where pieces begin and end. A compiled loop for float32; else id by id, slowly.

    >>> u, half, one = torch.ones(3, 1), torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1) + 0j
    >>> diagonal_scan(u, half, one, torch.tensor([0, 2, 3])).T
    tensor([[1.0000, 1.5000, 1.0000]])
    """
    u = u.contiguous()
    if looped(u):
        return _Diagonal.apply(u, a, w, cuts)
    found = [u.new_zeros(0, u.shape[1])]
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        x = torch.zeros_like(a)
        for t in range(start, stop):
            x = a * x + u[t, :, None]
            found.append((w * x).sum(-1).real[None])
    return torch.cat(found)


def scan_on(u: Tensor, a: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`diagonal_scan` of n pieces of the same length on from states x [n, D, S]: (y, the states after); float32 only.

    No gradient.

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1) + 0j
    >>> scan_on(torch.tensor([[3.0], [0.0]]), half, one, one[None])
    (tensor([[3.5000],
            [1.7500]]), tensor([[[1.7500+0.j]]]))
    """
    u, (pieces, channels, states) = u.contiguous(), x.shape
    system, cuts = _packed(a, w), torch.arange(pieces + 1) * (len(u) // pieces)
    parts = F.pad(torch.view_as_real(x), (0, 0, 0, 0, 0, -channels % LANES)).reshape(pieces, -1, LANES, states, 2)
    carried = parts.permute(0, 1, 3, 4, 2).contiguous()  # [n, D/16, S, 2, 16]
    y = scan_ahead(columns(u), system, cuts, grouped(cuts), carried)[:, :channels]
    after = carried.permute(0, 1, 4, 2, 3).reshape(pieces, -1, states, 2)[:, :channels]
    return y, torch.view_as_complex(after.contiguous())


def parallel_scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along the first axis, from zero, in about log2 L sweeps: [L, ..] both, real or complex.

    Hillis and Steele 1986, "Data parallel algorithms", on pairs (a, b). A piece begins anew where a is 0.

    >>> parallel_scan(torch.full((3,), 0.5), torch.ones(3))
    tensor([1.0000, 1.5000, 1.7500])
    """
    return _Parallel.apply(a, b)


class _Parallel(torch.autograd.Function):
    """With g the gradient of h: m_t = g_t + conj(a_{t+1}) m_{t+1}, db = m, da_t = m_t conj(h_{t-1})."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        h = _doubled(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        a, h = ctx.saved_tensors
        later = torch.cat((a[1:], torch.zeros_like(a[:1]))).conj()
        m = _doubled(later.flip(0), g.flip(0)).flip(0)
        return m * torch.cat((torch.zeros_like(h[:1]), h[:-1])).conj(), m


def _doubled(a: Tensor, b: Tensor) -> Tensor:
    reach = 1
    while reach < len(b):
        b = torch.cat((b[:reach], b[reach:] + a[reach:] * b[:-reach]))
        a = torch.cat((a[:reach], a[reach:] * a[:-reach]))
        reach *= 2
    return b


def vandermonde(a: Tensor, w: Tensor, length: int) -> Tensor:
    """K_k = Re sum_s w_s a_s^k for k < L: complex [D, S] both -> real [D, L]; memory for no more than L D numbers.

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1) + 0j
    >>> vandermonde(half, one, 3)
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    if a.dtype == torch.complex64 and looped(impulse := a.real.new_zeros(length, len(a))):
        impulse[:1] = 1.0
        return diagonal_scan(impulse, a, w, torch.tensor([0, length])).T
    return _Vandermonde.apply(a, w, length)


class _Vandermonde(torch.autograd.Function):
    """`vandermonde` and its gradient by 64 powers at a time: a^(64 i + j) = (a^64)^i a^j."""

    @staticmethod
    def forward(ctx, a: Tensor, w: Tensor, length: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(a, w)
        found = [torch.einsum("kds,ds->dk", p, w).real for _, p in _powers(a, length)]
        return torch.cat((w.real[:, :0], *found), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        a, w = ctx.saved_tensors
        of_w, of_log = torch.zeros_like(a), torch.zeros_like(a)
        for low, p in _powers(a, g.shape[1]):
            part = g[:, low : low + len(p)].to(a.dtype)
            k = torch.arange(low, low + len(p), device=a.device)
            of_w += torch.einsum("dk,kds->ds", part, p.conj())
            of_log += torch.einsum("dk,kds->ds", part * k, p.conj())  # dK_k / da = k w a^k / a
        return of_log * w.conj() / floored(a).conj(), of_w, None


def _powers(a: Tensor, length: int) -> Iterator[tuple[int, Tensor]]:
    """(k, a^k .. a^(k+63)) for k = 0, 64, ..: [64, D, S], fewer at the end."""
    steps = torch.arange(_POWERS, device=a.device, dtype=a.real.dtype).reshape(-1, 1, 1)
    log = floored(a).log()
    for low in range(0, length, _POWERS):
        yield low, (log * (steps[: length - low] + low)).exp()


def floored(a: Tensor) -> Tensor:
    """A pole that has underflowed to 0 as the smallest number, so that its logarithm is finite.

    >>> floored(torch.zeros(1, dtype=torch.complex64)).abs().log().isfinite().tolist()
    [True]
    """
    return torch.where(a == 0, torch.finfo(a.dtype).tiny, a)


class _Diagonal(torch.autograd.Function):
    """`diagonal_scan` in float32; u alone is kept."""

    @staticmethod
    def forward(ctx, u: Tensor, a: Tensor, w: Tensor, cuts: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        system, groups = _packed(a, w), grouped(cuts)
        ctx.save_for_backward(u, system, cuts, groups)
        return scan_ahead(columns(u), system, cuts, groups, None)[:, : len(a)]

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        u, system, cuts, groups = ctx.saved_tensors
        du, sums = scan_back(columns(u), columns(g.contiguous()), system, cuts, groups)
        channels = u.shape[1]
        (_, w), (of_a, of_w) = (_unpacked(each, channels).unbind(-1) for each in (system, sums))
        return du[:, :channels], w.conj() * of_a, of_w, None


def _packed(a: Tensor, w: Tensor) -> Tensor:
    """[D/16, S, (a, w), (re, im), 16] of complex a, w [D, S]; channels are filled up with zeros."""
    parts = torch.view_as_real(torch.stack((a, w), -1))  # [D, S, 2, 2]
    parts = F.pad(parts, (0, 0) * 3 + (0, -len(parts) % LANES))
    return parts.reshape(-1, LANES, *parts.shape[1:]).permute(0, 2, 3, 4, 1).contiguous()


def _unpacked(packed: Tensor, channels: int) -> Tensor:
    """The inverse: complex [D, S, (a, w)]."""
    parts = packed.permute(0, 4, 1, 2, 3).flatten(0, 1)[:channels]
    return torch.view_as_complex(parts.contiguous())


def columns(x: Tensor) -> Tensor:
    """[N, E] filled up with zeros to a multiple of 16 columns.

    >>> columns(torch.ones(2, 17)).shape
    torch.Size([2, 32])
    """
    return F.pad(x, (0, -x.shape[1] % LANES)) if x.shape[1] % LANES else x
