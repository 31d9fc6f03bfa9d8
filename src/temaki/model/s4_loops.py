"""S4 in compiled loops: the Cauchy sums of its kernel with their gradient, and the recurrence id by id.

Sums: q_mj = sum_s a_sj / d_ms with d = c_m^2 k_s - x_m^2 - 2 i x_m c_m r_s, where r, k are a pole's real part and
squared size, and a_sj eight real numbers. Nothing of size S x M is kept. Sixteen frequencies are one vector in the
sums, sixteen channels in the recurrence (`base/lanes`). Letters: N ids, D channels, S poles a channel, M frequencies.
"""
# pyright: basic

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.lanes import LANES, fma, load, settled, spread, store, total
from temaki.base.team import floats, given, span

_SUMS = 16
"""Eight sums, each real and imaginary."""


@team.task
def _cauchy_task(data):
    """given: r, k, a, x, c, q, S, M (a multiple of 16); r, k [D, S]; a [D, S, 8]; x, c [D, M]; q [D, 16, M]."""
    told = given(data)
    states, places = told[6], told[7]
    part, first, last = span(data)
    while part >= 0:
        for d in range(first, last):
            r, k = floats(told[0] + 4 * d * states, states), floats(told[1] + 4 * d * states, states)
            a = floats(told[2] + 32 * d * states, 8 * states)
            x, c = floats(told[3] + 4 * d * places, places), floats(told[4] + 4 * d * places, places)
            q = floats(told[5] + 64 * d * places, 16 * places)
            for low in range(0, places, LANES):
                xs, cs = load(x, low), load(c, low)
                cc, less_xx, cross = cs * cs, -(xs * xs), -(xs * cs)
                cross = cross + cross
                for half in range(2):
                    re0 = im0 = re1 = im1 = re2 = im2 = re3 = im3 = spread(np.float32(0))
                    for s in range(states):
                        dr, di = fma(cc, spread(k[s]), less_xx), cross * spread(r[s])
                        m = spread(np.float32(1)) / fma(dr, dr, di * di)
                        ir, ii = dr * m, -(di * m)
                        at = 8 * s + 4 * half
                        a0, a1, a2, a3 = spread(a[at]), spread(a[at + 1]), spread(a[at + 2]), spread(a[at + 3])
                        re0, im0 = fma(a0, ir, re0), fma(a0, ii, im0)
                        re1, im1 = fma(a1, ir, re1), fma(a1, ii, im1)
                        re2, im2 = fma(a2, ir, re2), fma(a2, ii, im2)
                        re3, im3 = fma(a3, ir, re3), fma(a3, ii, im3)
                    at = 8 * half * places + low
                    store(q, at, re0)
                    store(q, at + places, im0)
                    store(q, at + 2 * places, re1)
                    store(q, at + 3 * places, im1)
                    store(q, at + 4 * places, re2)
                    store(q, at + 5 * places, im2)
                    store(q, at + 6 * places, re3)
                    store(q, at + 7 * places, im3)
        part, first, last = span(data)


@team.loop
def _weighed(g, a, at, row, places, low):
    """sum_j a_j g_j of one pole, where row 0 are real and row 1 imaginary parts."""
    found = spread(np.float32(0))
    for j in range(8):
        found = fma(spread(a[at + j]), load(g, (2 * j + row) * places + low), found)
    return found


@team.task
def _cauchy_back_task(data):
    """As `_cauchy_task` with the gradient of q for q, then: gradients of r, k, a, x."""
    told = given(data)
    states, places = told[6], told[7]
    part, first, last = span(data)
    while part >= 0:
        for d in range(first, last):
            r, k = floats(told[0] + 4 * d * states, states), floats(told[1] + 4 * d * states, states)
            a = floats(told[2] + 32 * d * states, 8 * states)
            x, c = floats(told[3] + 4 * d * places, places), floats(told[4] + 4 * d * places, places)
            g = floats(told[5] + 64 * d * places, 16 * places)
            of_r, of_k = floats(told[8] + 4 * d * states, states), floats(told[9] + 4 * d * states, states)
            of_a, of_x = floats(told[10] + 32 * d * states, 8 * states), floats(told[11] + 4 * d * places, places)
            for low in range(0, places, LANES):
                store(of_x, low, spread(np.float32(0)))
            for s in range(states):
                sum_r = sum_k = spread(np.float32(0))
                b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = spread(np.float32(0))
                ks, rs = spread(k[s]), spread(r[s])
                for low in range(0, places, LANES):
                    xs, cs = load(x, low), load(c, low)
                    cc, cross = cs * cs, -(xs * cs)
                    cross = cross + cross
                    dr, di = fma(cc, ks, -(xs * xs)), cross * rs
                    m = spread(np.float32(1)) / fma(dr, dr, di * di)
                    ir, ii = dr * m, -(di * m)
                    b0 = b0 + fma(load(g, low), ir, load(g, places + low) * ii)
                    b1 = b1 + fma(load(g, 2 * places + low), ir, load(g, 3 * places + low) * ii)
                    b2 = b2 + fma(load(g, 4 * places + low), ir, load(g, 5 * places + low) * ii)
                    b3 = b3 + fma(load(g, 6 * places + low), ir, load(g, 7 * places + low) * ii)
                    b4 = b4 + fma(load(g, 8 * places + low), ir, load(g, 9 * places + low) * ii)
                    b5 = b5 + fma(load(g, 10 * places + low), ir, load(g, 11 * places + low) * ii)
                    b6 = b6 + fma(load(g, 12 * places + low), ir, load(g, 13 * places + low) * ii)
                    b7 = b7 + fma(load(g, 14 * places + low), ir, load(g, 15 * places + low) * ii)
                    wr, wi = _weighed(g, a, 8 * s, 0, places, low), _weighed(g, a, 8 * s, 1, places, low)
                    e, f = fma(ii, ii, -(ir * ir)), ir * ii
                    f = f + f
                    to_dr, to_di = fma(wr, e, -(wi * f)), fma(wr, f, wi * e)  # of dr and di
                    sum_k, sum_r = fma(to_dr, cc, sum_k), fma(to_di, cross, sum_r)
                    to_x = fma(xs, to_dr, cs * rs * to_di)
                    store(of_x, low, load(of_x, low) - (to_x + to_x))
                of_r[s], of_k[s] = total(sum_r), total(sum_k)
                of_a[8 * s], of_a[8 * s + 1], of_a[8 * s + 2], of_a[8 * s + 3] = (
                    total(b0),
                    total(b1),
                    total(b2),
                    total(b3),
                )
                of_a[8 * s + 4], of_a[8 * s + 5] = total(b4), total(b5)
                of_a[8 * s + 6], of_a[8 * s + 7] = total(b6), total(b7)
        part, first, last = span(data)


class _Cauchy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r: Tensor, k: Tensor, a: Tensor, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        short = -x.shape[1] % LANES
        tensors = [each.contiguous() for each in (r, k, a, F.pad(x, (0, short), value=1.0), F.pad(c, (0, short)))]
        ctx.save_for_backward(*tensors)
        ctx.places = x.shape[1]
        (channels, states), places = r.shape, x.shape[1] + short
        q = x.new_empty(channels, 8, 2, places)
        _cauchy_task(channels, min(32, channels), *tensors, q, states, places)
        return torch.view_as_complex(q.permute(0, 3, 1, 2)[:, : x.shape[1]].contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def, override]
        r, k, a, x, c = ctx.saved_tensors
        (channels, states), places = r.shape, x.shape[1]
        rows = torch.view_as_real(g).permute(0, 2, 3, 1)
        rows = F.pad(rows, (0, places - ctx.places)).contiguous()
        found = [torch.empty_like(each) for each in (r, k, a, x)]
        _cauchy_back_task(channels, min(32, channels), r, k, a, x, c, rows, states, places, *found)
        return *found[:3], found[3][:, : ctx.places], None


def cauchy(r: Tensor, k: Tensor, a: Tensor, x: Tensor, c: Tensor) -> Tensor:
    """q: complex [D, M, 8] of r, k [D, S], a [D, S, 8], x, c [D, M], float32; no gradient for c."""
    return _Cauchy.apply(r, k, a, x, c)


@team.loop
def _read(system, x, u, y, width, column, low, high, states):
    """Ids low .. high - 1 of 16 channels from x [S, 2, 16] on; system [S, (E, g, h, bbar, c), (re, im), 16]."""
    w = spread(np.float32(0))
    for s in range(states):
        at, of = s * 10 * LANES, s * 2 * LANES
        w = fma(load(system, at + 4 * LANES), load(x, of), w)
        w = w - load(system, at + 5 * LANES) * load(x, of + LANES)
    for t in range(low, high):
        v, less_w = load(u, t * width + column), -w
        out = w = spread(np.float32(0))
        for s in range(states):
            at, of = s * 10 * LANES, s * 2 * LANES
            er, ei, xr, xi = load(system, at), load(system, at + LANES), load(x, of), load(x, of + LANES)
            r = fma(load(system, at + 2 * LANES), less_w, fma(load(system, at + 6 * LANES), v, er * xr)) - ei * xi
            i = fma(load(system, at + 3 * LANES), less_w, fma(load(system, at + 7 * LANES), v, er * xi))
            i = settled(fma(ei, xr, i))
            r = settled(r)
            w = fma(load(system, at + 4 * LANES), r, w) - load(system, at + 5 * LANES) * i
            out = fma(load(system, at + 8 * LANES), r, out) - load(system, at + 9 * LANES) * i
            store(x, of, r)
            store(x, of + LANES, i)
        store(y, t * width + column, out)


@team.task
def _read_task(data):
    """given: u, y, system, states, D, S, N."""
    told = given(data)
    width, states, ids = told[4], told[5], told[6]
    u, y = floats(told[0], ids * width), floats(told[1], ids * width)
    part, first, last = span(data)
    while part >= 0:
        for block in range(first, last):
            system = floats(told[2] + 4 * block * 10 * states * LANES, 10 * states * LANES)
            x = floats(told[3] + 4 * block * 2 * states * LANES, 2 * states * LANES)
            _read(system, x, u, y, width, block * LANES, 0, ids, states)
        part, first, last = span(data)


def read_on(u: Tensor, e: Tensor, g: Tensor, h: Tensor, bbar: Tensor, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """x <- e x - g Re(h . x) + bbar u, y = Re(c . x): u [N, D], others complex64 [D, S] -> (y [N, D], the state after).

    No gradient.
    """
    channels, states = x.shape
    short = -channels % LANES
    wide = F.pad(u, (0, short)) if short else u
    y = torch.empty_like(wide)
    system, carried = _in_blocks(torch.stack((e, g, h, bbar, c), -1), short), _in_blocks(x[..., None], short)
    blocks = wide.shape[1] // LANES
    _read_task(blocks, min(32, blocks), wide, y, system, carried, wide.shape[1], states, len(u))
    after = carried.permute(0, 4, 1, 2, 3).flatten(0, 1)[:channels, :, 0]
    return y[:, :channels], torch.view_as_complex(after.contiguous())


def _in_blocks(x: Tensor, short: int) -> Tensor:
    """Complex [D, S, n] -> real [D/16, S, n, 2, 16], channels filled up with zeros."""
    parts = F.pad(torch.view_as_real(x), (0, 0) * 3 + (0, short))
    return parts.reshape(-1, LANES, *parts.shape[1:]).permute(0, 2, 3, 4, 1).contiguous()
