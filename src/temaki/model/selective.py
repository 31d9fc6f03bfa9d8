"""The selective scan of Mamba as functions of tensors: id by id, in parallel, and compiled.

h_t = e^(d_t A) h_{t-1} + d_t u_t B_t, y_t = sum_s C_{t,s} h_{t,s} for each channel alone. Gu and Dao 2023, "Mamba",
equation 2 and algorithm 2; A is held exactly, B by Euler's rule, as their code does. Letters: N ids, n pieces, E
channels, S states a channel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base.lanes import LANES
from temaki.model.scan import columns, grouped, looped, parallel_scan
from temaki.model.selective_loops import selective_ahead, selective_back

_CHUNK = 64
"""Ids whose states the parallel form makes at a time."""


def selective_step(h: Tensor, u: Tensor, d: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One id: state h [.., E, S], input u and step d [.., E], a [E, S], b and c [.., S] -> (y [.., E], new state).

    >>> one = torch.ones(1)
    >>> selective_step(one[None], 3 * one, one / 2, -one[None], one, one)
    (tensor([2.1065]), tensor([[2.1065]]))
    """
    h = (d[..., None] * a).exp() * h + (d * u)[..., None] * b[..., None, :]
    return (h * c[..., None, :]).sum(-1), h


def selective_scan(u: Tensor, d: Tensor, a: Tensor, bc: Tensor, cuts: Tensor) -> Tensor:
    """y [N, E], every piece from zero: u, d [N, E], a [E, S], bc [N, 2, S] (B and C); d a <= 0.

    cuts: int64 [n+1] on the host, where pieces begin and end. Compiled for dense float32 on the host, with decays below
    e^-60 as 0; else in parallel, chunk by chunk.

    >>> ones = torch.ones(3, 1)
    >>> selective_scan(ones, ones, -ones[:1], torch.ones(3, 2, 1), torch.tensor([0, 2, 3])).T
    tensor([[1.0000, 1.3679, 1.0000]])
    """
    u, d, bc = u.contiguous(), d.contiguous(), bc.contiguous()
    if looped(u, d, bc):
        return _Selective.apply(u, d, a, bc, cuts)
    fresh = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    fresh[cuts[:-1][cuts.diff() > 0].to(u.device)] = True
    return parallel_selective(u, d, a, bc, torch.zeros_like(a), fresh)[0]


def selective_on(u: Tensor, d: Tensor, a: Tensor, bc: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """L ids of one piece on from its state h [E, S]: (y [L, E], the state after). The compiled form has no gradient.

    >>> ones = torch.ones(2, 1)
    >>> selective_on(ones, ones, -ones[:1], torch.ones(2, 2, 1), ones[:1])
    (tensor([[1.3679],
            [1.5032]]), tensor([[1.5032]]))
    """
    u, d, bc = u.contiguous(), d.contiguous(), bc.contiguous()
    if looped(u, d, bc):
        cuts, carried = torch.tensor([0, len(u)]), _packed(h)[None]
        y, _ = selective_ahead(columns(u), columns(d), _packed(a), bc, cuts, grouped(cuts), carried, False)
        return y[:, : u.shape[1]], _unpacked(carried[0], u.shape[1])
    return parallel_selective(u, d, a, bc, h, torch.zeros(len(u), dtype=torch.bool, device=u.device))


def parallel_selective(u: Tensor, d: Tensor, a: Tensor, bc: Tensor, h: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """`selective_scan` as a parallel scan, 64 ids at a time, from state h [E, S] on: (y, the last state).

    A piece begins where fresh, bool [N], says so.

    >>> ones = torch.ones(2, 1)
    >>> parallel_selective(ones, ones, -ones[:1], torch.ones(2, 2, 1), ones[:1], torch.tensor([False, True]))[0].T
    tensor([[1.3679, 1.0000]])
    """
    found = [u[:0]]
    for low in range(0, len(u), _CHUNK):
        at = slice(low, low + _CHUNK)
        decay = (d[at, :, None] * a).exp() * ~fresh[at, None, None]  # [L, E, S]
        added = (d[at] * u[at])[..., None] * bc[at, :1]
        states = parallel_scan(decay, torch.cat((added[:1] + decay[:1] * h, added[1:])))
        found.append((states * bc[at, 1:]).sum(-1))
        h = states[-1]
    return torch.cat(found), h


class _Selective(torch.autograd.Function):
    """`selective_scan` in float32."""

    @staticmethod
    def forward(ctx, u: Tensor, d: Tensor, a: Tensor, bc: Tensor, cuts: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        groups, packed, wide_u, wide_d = grouped(cuts), _packed(a), columns(u), columns(d)
        y, kept = selective_ahead(wide_u, wide_d, packed, bc, cuts, groups, None, any(ctx.needs_input_grad))
        ctx.save_for_backward(wide_u, wide_d, packed, bc, cuts, groups, kept)
        ctx.channels = u.shape[1]
        return y[:, : u.shape[1]]

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        u, d, a, bc, cuts, groups, kept = ctx.saved_tensors
        wide = columns(g.contiguous())
        du, dd, da, dbc = selective_back(u, d, wide, a, bc, kept, cuts, groups)
        return du[:, : ctx.channels], dd[:, : ctx.channels], _unpacked(da, ctx.channels), dbc, None


def _packed(a: Tensor) -> Tensor:
    """[E/16, S, 16] of [E, S], channels filled up with zeros."""
    return F.pad(a, (0, 0, 0, -len(a) % LANES)).reshape(-1, LANES, a.shape[1]).mT.contiguous()


def _unpacked(packed: Tensor, channels: int) -> Tensor:
    return packed.mT.flatten(0, 1)[:channels]
