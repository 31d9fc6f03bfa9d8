"""A short causal convolution and its gradient as one loop each, for float32 in the processor's memory.

The twin stands in `model/short_conv`. Letters: N ids, E channels, a multiple of 16, W places.
"""
# pyright: basic

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.lanes import LANES, fma, load, spread, store
from temaki.base.team import floats, given, integers, span


@team.loop
def _row(x, weight, y, t, reach, width):
    """y_t = sum over j <= reach of weight_j x_{t-j}."""
    for i in range(0, width, LANES):
        found = load(weight, i) * load(x, t * width + i)
        for j in range(1, reach + 1):
            found = fma(load(weight, j * width + i), load(x, (t - j) * width + i), found)
        store(y, t * width + i, found)


@team.loop
def _back_row(weight, g, dx, ages, t, ids, width, places):
    """dx_t = sum over j of weight_j g_{t+j}, where t + j is at least j ids into its piece."""
    last = 0
    while last + 1 < places and t + last + 1 < ids and ages[t + last + 1] > last:
        last += 1
    for i in range(0, width, LANES):
        found = load(weight, i) * load(g, t * width + i)
        for j in range(1, last + 1):
            found = fma(load(weight, j * width + i), load(g, (t + j) * width + i), found)
        store(dx, t * width + i, found)


@team.loop
def _weigh_row(x, g, into, t, reach, width):
    for j in range(reach + 1):
        for i in range(0, width, LANES):
            at = j * width + i
            store(into, at, fma(load(g, t * width + i), load(x, (t - j) * width + i), load(into, at)))


@team.task
def _ahead_task(data):
    """given: x, weight [W, E], y, ages, E, W."""
    told = given(data)
    width, places = told[4], told[5]
    weight = floats(told[1], places * width)
    part, low, high = span(data)
    while part >= 0:
        x, y, ages = floats(told[0], high * width), floats(told[2], high * width), integers(told[3], high)
        for t in range(low, high):
            _row(x, weight, y, t, min(ages[t], places - 1), width)
        part, low, high = span(data)


@team.task
def _back_task(data):
    """given: x, weight [W, E], g, dx, gradient of the weight for each part, ages, E, W, N."""
    told = given(data)
    width, places, ids = told[6], told[7], told[8]
    weight, every = floats(told[1], places * width), integers(told[5], ids)
    part, low, high = span(data)
    while part >= 0:
        x, g, dx = floats(told[0], ids * width), floats(told[2], ids * width), floats(told[3], ids * width)
        into = floats(told[4] + 4 * part * places * width, places * width)
        for i in range(0, places * width, LANES):
            store(into, i, spread(np.float32(0)))
        for t in range(low, high):
            _weigh_row(x, g, into, t, min(every[t], places - 1), width)
            _back_row(weight, g, dx, every, t, ids, width, places)
        part, low, high = span(data)


class ShortConvolution(torch.autograd.Function):
    """`short_convolution` of float32 x [N, E], weight [E, W] and ages [N], x dense."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ages: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        (ids, width), filters, y = x.shape, weight.T.contiguous(), torch.empty_like(x)
        _ahead_task(ids, team.parts(ids, len(filters) * width), x, filters, y, ages, width, len(filters))
        ctx.save_for_backward(x, filters, ages)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        x, filters, ages = ctx.saved_tensors
        (ids, width), places, dx = x.shape, len(filters), torch.empty_like(x)
        parts = team.parts(ids, 2 * places * width)
        into = filters.new_empty(parts, places, width)
        _back_task(ids, parts, x, filters, grad.contiguous(), dx, into, ages, width, places, ids)
        return dx, into.sum(0).T, None
