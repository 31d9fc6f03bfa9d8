"""Diagonal state spaces, one a channel, run id by id as compiled loops: outputs, states, and their gradient.

x_t = A x_{t-1} + u_t, y_t = Re sum_s W_s x_{t,s}, complex A and W a channel. No state is kept for the gradient. With
m_t = g_t + conj(A) m_{t+1}, g the gradient of y, and its own derivative n_t = m_{t+1} + conj(A) n_{t+1} by conj(A):
du_t = Re sum conj(W) m_t, dW = sum_t u_t m_t, dA = conj(W) sum_t u_t n_t; so one pass backwards over g and u is all.
Real and imaginary parts lie apart, 16 channels are one vector (`base/lanes`). Work is cut into items: 16 channels of a
group of pieces. Letters: N ids, D channels, a multiple of 16, S states a channel.
"""
# pyright: basic

import numpy as np
import torch
from torch import Tensor

from temaki.base import team
from temaki.base.lanes import LANES, fma, load, settled, spread, store
from temaki.base.team import floats, given, integers, span

BLOCK = 16
"""Ids that are done state by state, so that a state stays in registers."""
_TILE = BLOCK * LANES


@team.loop
def fetch(source, width, column, low, count, tile):
    """Rows low .. low + count - 1 of 16 columns, beside each other."""
    for t in range(count):
        store(tile, t * LANES, load(source, (low + t) * width + column))


@team.loop
def put(tile, target, width, column, low, count):
    """The inverse of `fetch`."""
    for t in range(count):
        store(target, (low + t) * width + column, load(tile, t * LANES))


@team.loop
def clear(array, count):
    zero = spread(np.float32(0))
    for i in range(0, count, LANES):
        store(array, i, zero)


@team.loop
def _ahead(system, x, u, y, states, count):
    """Up to BLOCK ids on from x [S, 2, 16]: u, y [count, 16]; system [S, (A, W), (re, im), 16]."""
    clear(y, count * LANES)
    for s in range(states):
        at = s * 4 * LANES
        ar, ai = load(system, at), load(system, at + LANES)
        wr, wi = load(system, at + 2 * LANES), load(system, at + 3 * LANES)
        less_ai, less_wi = -ai, -wi
        xr, xi = load(x, s * 2 * LANES), load(x, s * 2 * LANES + LANES)
        for t in range(count):
            r = fma(ar, xr, fma(less_ai, xi, load(u, t * LANES)))
            xi = fma(ar, xi, ai * xr)
            xr = r
            store(y, t * LANES, load(y, t * LANES) + fma(wr, xr, less_wi * xi))
        store(x, s * 2 * LANES, settled(xr))
        store(x, s * 2 * LANES + LANES, settled(xi))


@team.loop
def _back(system, run, into, u, g, du, states, count):
    """Up to BLOCK ids backwards: run [S, (m, n), (re, im), 16] on; into, alike: sum u n and sum u m grow."""
    clear(du, count * LANES)
    for s in range(states):
        at = s * 4 * LANES
        ar, ai = load(system, at), load(system, at + LANES)
        wr, wi = load(system, at + 2 * LANES), load(system, at + 3 * LANES)
        less_ai = -ai
        mr, mi = load(run, at), load(run, at + LANES)
        nr, ni = load(run, at + 2 * LANES), load(run, at + 3 * LANES)
        ar_sum, ai_sum = load(into, at), load(into, at + LANES)
        wr_sum, wi_sum = load(into, at + 2 * LANES), load(into, at + 3 * LANES)
        for back in range(count):
            t = count - 1 - back
            r = fma(ar, nr, fma(ai, ni, mr))
            ni = fma(ar, ni, fma(less_ai, nr, mi))
            nr = r
            r = fma(ar, mr, fma(ai, mi, load(g, t * LANES)))
            mi = fma(ar, mi, less_ai * mr)
            mr = r
            v = load(u, t * LANES)
            ar_sum, ai_sum = fma(v, nr, ar_sum), fma(v, ni, ai_sum)
            wr_sum, wi_sum = fma(v, mr, wr_sum), fma(v, mi, wi_sum)
            store(du, t * LANES, load(du, t * LANES) + fma(wr, mr, wi * mi))
        store(run, at, settled(mr))
        store(run, at + LANES, settled(mi))
        store(run, at + 2 * LANES, settled(nr))
        store(run, at + 3 * LANES, settled(ni))
        store(into, at, ar_sum)
        store(into, at + LANES, ai_sum)
        store(into, at + 2 * LANES, wr_sum)
        store(into, at + 3 * LANES, wi_sum)


@team.task
def _ahead_task(data):
    """given: u, y, system, states of all pieces or 0, cuts, groups, scratch, D, S, pieces."""
    told = given(data)
    width, states, pieces = told[7], told[8], told[9]
    blocks, size = width // LANES, 2 * states * LANES
    part, first, last = span(data)
    while part >= 0:
        scratch = floats(told[6] + 4 * part * (size + 2 * _TILE), size + 2 * _TILE)
        x, u, y = scratch[:size], scratch[size : size + _TILE], scratch[size + _TILE :]
        for item in range(first, last):
            group, block = item // blocks, item % blocks
            bounds, cuts = integers(told[5], group + 2), integers(told[4], pieces + 1)
            system = floats(told[2] + 8 * block * size, 2 * size)
            for piece in range(bounds[group], bounds[group + 1]):
                begin, end = cuts[piece], cuts[piece + 1]
                every_u, every_y = floats(told[0], end * width), floats(told[1], end * width)
                clear(x, size)
                if told[3] != 0:
                    carried = floats(told[3] + 4 * (piece * blocks + block) * size, size)
                    for i in range(size):
                        x[i] = carried[i]
                for low in range(begin, end, BLOCK):
                    count = min(BLOCK, end - low)
                    fetch(every_u, width, block * LANES, low, count, u)
                    _ahead(system, x, u, y, states, count)
                    put(y, every_y, width, block * LANES, low, count)
                if told[3] != 0:
                    carried = floats(told[3] + 4 * (piece * blocks + block) * size, size)
                    for i in range(size):
                        carried[i] = x[i]
        part, first, last = span(data)


@team.task
def _back_task(data):
    """given: u, g, system, du, gradients of the system for each group, cuts, groups, scratch, D, S, pieces."""
    told = given(data)
    width, states, pieces = told[8], told[9], told[10]
    blocks, size = width // LANES, 4 * states * LANES
    part, first, last = span(data)
    while part >= 0:
        scratch = floats(told[7] + 4 * part * (size + 3 * _TILE), size + 3 * _TILE)
        run, u = scratch[:size], scratch[size : size + _TILE]
        g, du = scratch[size + _TILE : size + 2 * _TILE], scratch[size + 2 * _TILE :]
        for item in range(first, last):
            group, block = item // blocks, item % blocks
            bounds, cuts = integers(told[6], group + 2), integers(told[5], pieces + 1)
            system = floats(told[2] + 4 * block * size, size)
            into = floats(told[4] + 4 * item * size, size)
            clear(into, size)
            for piece in range(bounds[group], bounds[group + 1]):
                begin, end = cuts[piece], cuts[piece + 1]
                every_u, every_g = floats(told[0], end * width), floats(told[1], end * width)
                every_du = floats(told[3], end * width)
                clear(run, size)
                for back in range((end - begin + BLOCK - 1) // BLOCK):
                    count = min(BLOCK, end - begin - back * BLOCK)
                    low = end - back * BLOCK - count
                    fetch(every_u, width, block * LANES, low, count, u)
                    fetch(every_g, width, block * LANES, low, count, g)
                    _back(system, run, into, u, g, du, states, count)
                    put(du, every_du, width, block * LANES, low, count)
        part, first, last = span(data)


def scan_ahead(u: Tensor, system: Tensor, cuts: Tensor, groups: Tensor, carried: Tensor | None) -> Tensor:
    """y [N, D] of u [N, D]; system [D/16, S, (A, W), (re, im), 16]; cuts [n+1]: where pieces begin and end.

    groups [G+1]: the first piece of each group. carried [n, D/16, S, (re, im), 16]: each piece goes on from its state,
    and leaves there the one after it; None: from zero.
    """
    width, states, items = u.shape[1], system.shape[1], (len(groups) - 1) * len(system)
    parts, y = min(32, items), torch.empty_like(u)
    scratch = u.new_empty(parts, 2 * states * LANES + 2 * _TILE)
    _ahead_task(items, parts, u, y, system, carried, cuts, groups, scratch, width, states, len(cuts) - 1)
    return y


def scan_back(u: Tensor, g: Tensor, system: Tensor, cuts: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(du [N, D], (sum u n, sum u m) as the system lies) from the gradient g [N, D] of y."""
    width, states, items = u.shape[1], system.shape[1], (len(groups) - 1) * len(system)
    parts, du = min(32, items), torch.empty_like(u)
    scratch = u.new_empty(parts, 4 * states * LANES + 3 * _TILE)
    into = u.new_empty(len(groups) - 1, *system.shape)
    _back_task(items, parts, u, g, system, du, into, cuts, groups, scratch, width, states, len(cuts) - 1)
    return du, into.sum(0)
