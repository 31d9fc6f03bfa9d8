"""The recurrence h_t = a h_{t-1} + v_t with a complex diagonal, and its gradient, as compiled loops.

Of an id the real parts of all states come first, then the imaginary ones: [N, 2, P]. With g the gradient of h,
m_t = g_t + conj(a) m_{t+1}, dv = m and da = sum_t m_t conj(h_{t-1}). 16 states are one vector (`base/lanes`). Letters:
N ids, P states, a multiple of 16.
"""
# pyright: basic

import numpy as np
import torch
from torch import Tensor

from temaki.base import team
from temaki.base.lanes import LANES, fma, load, settled, spread, store
from temaki.base.team import floats, given, integers, span


@team.loop
def _ahead(v, h, first, begin, end, states, column, ar, ai):
    """Ids begin .. end - 1 of 16 states from `first` [2, P] on."""
    hr, hi, less_ai = load(first, column), load(first, states + column), -ai
    for t in range(begin, end):
        at = 2 * t * states + column
        r = fma(ar, hr, fma(less_ai, hi, load(v, at)))
        hi = settled(fma(ar, hi, fma(ai, hr, load(v, at + states))))
        hr = settled(r)
        store(h, at, hr)
        store(h, at + states, hi)


@team.loop
def _back(h, g, dv, begin, end, states, column, ar, ai, into):
    zero = spread(np.float32(0))
    mr, mi, less_ai = zero, zero, -ai
    of_r, of_i = load(into, column), load(into, states + column)
    for back in range(end - begin):
        at = 2 * (end - 1 - back) * states + column
        r = fma(ar, mr, fma(ai, mi, load(g, at)))
        mi = settled(fma(ar, mi, fma(less_ai, mr, load(g, at + states))))
        mr = settled(r)
        store(dv, at, mr)
        store(dv, at + states, mi)
        if back < end - begin - 1:
            br, bi = load(h, at - 2 * states), load(h, at - states)
            of_r = fma(mr, br, fma(mi, bi, of_r))
            of_i = fma(mi, br, of_i) - mr * bi
    store(into, column, of_r)
    store(into, states + column, of_i)


@team.task
def _ahead_task(data):
    """given: v, h, a, the states that pieces begin with, cuts, groups, P, pieces."""
    told = given(data)
    states, pieces = told[6], told[7]
    blocks = states // LANES
    part, low, high = span(data)
    while part >= 0:
        for item in range(low, high):
            group, column = item // blocks, item % blocks * LANES
            bounds, cuts = integers(told[5], group + 2), integers(told[4], pieces + 1)
            a = floats(told[2], 2 * states)
            ar, ai = load(a, column), load(a, states + column)
            for piece in range(bounds[group], bounds[group + 1]):
                begin, end = cuts[piece], cuts[piece + 1]
                v, h = floats(told[0], 2 * end * states), floats(told[1], 2 * end * states)
                first = floats(told[3] + 8 * piece * states, 2 * states)
                _ahead(v, h, first, begin, end, states, column, ar, ai)
        part, low, high = span(data)


@team.task
def _back_task(data):
    """given: h, g, dv, a, gradient of a for each group, cuts, groups, P, pieces."""
    told = given(data)
    states, pieces = told[7], told[8]
    blocks = states // LANES
    part, low, high = span(data)
    while part >= 0:
        for item in range(low, high):
            group, column = item // blocks, item % blocks * LANES
            bounds, cuts = integers(told[6], group + 2), integers(told[5], pieces + 1)
            a, into = floats(told[3], 2 * states), floats(told[4] + 8 * group * states, 2 * states)
            ar, ai = load(a, column), load(a, states + column)
            store(into, column, spread(np.float32(0)))
            store(into, states + column, spread(np.float32(0)))
            for piece in range(bounds[group], bounds[group + 1]):
                begin, end = cuts[piece], cuts[piece + 1]
                h, g = floats(told[0], 2 * end * states), floats(told[1], 2 * end * states)
                _back(h, g, floats(told[2], 2 * end * states), begin, end, states, column, ar, ai, into)
        part, low, high = span(data)


def complex_ahead(v: Tensor, a: Tensor, first: Tensor, cuts: Tensor, groups: Tensor) -> Tensor:
    """h [N, 2, P] of v [N, 2, P], a [2, P]; piece i goes on from first[i], [n, 2, P]; cuts, groups as `scan_ahead`."""
    h, items = torch.empty_like(v), (len(groups) - 1) * v.shape[2] // LANES
    _ahead_task(items, min(32, items), v, h, a, first, cuts, groups, v.shape[2], len(cuts) - 1)
    return h


def complex_back(h: Tensor, g: Tensor, a: Tensor, cuts: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(dv, da) of pieces that begin at zero, from the gradient g [N, 2, P] of h."""
    dv, into, items = (
        torch.empty_like(h),
        h.new_empty(len(groups) - 1, *a.shape),
        (len(groups) - 1) * h.shape[2] // LANES,
    )
    _back_task(items, min(32, items), h, g, dv, a, into, cuts, groups, h.shape[2], len(cuts) - 1)
    return dv, into.sum(0)
