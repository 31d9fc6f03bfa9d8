"""The root-mean-square norm and its gradient as one loop each, for float32 in the processor's memory.

The twin stands in `model/norm`. Letters: N places, D width.
"""
# pyright: basic

import math

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.team import floats, given, real, span

_ONE = np.float32(1)


@team.loop
def shrink(x, eps):
    """1 / sqrt(mean(x^2) + eps)."""
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return _ONE / np.float32(math.sqrt(total / np.float32(x.shape[0]) + eps))


@team.loop
def norm_row(x, gain, s, y):
    for i in range(x.shape[0]):
        y[i] = x[i] * s * gain[i]


@team.loop
def norm_back_row(x, gain, g, s, dx, into):
    """dx = s g gain - x s^3 (g x . gain) / D, and s g x is added to the gain's gradient; g may be dx."""
    pull = np.float32(0)
    for i in range(x.shape[0]):
        pull += g[i] * x[i] * gain[i]
    pull *= s * s * s / np.float32(x.shape[0])
    for i in range(x.shape[0]):
        into[i] += s * g[i] * x[i]
        dx[i] = s * g[i] * gain[i] - x[i] * pull


@team.task
def _norm_task(data):
    told = given(data)
    width, eps = told[4], real(told[5])
    gain = floats(told[1], width)
    part, low, high = span(data)
    while part >= 0:
        x, y, shrinks = floats(told[0], high * width), floats(told[2], high * width), floats(told[3], high)
        for i in range(low, high):
            row = x[i * width : (i + 1) * width]
            s = shrink(row, eps)
            shrinks[i] = s
            norm_row(row, gain, s, y[i * width : (i + 1) * width])
        part, low, high = span(data)


@team.task
def _norm_back_task(data):
    told = given(data)
    width = told[6]
    gain = floats(told[1], width)
    part, low, high = span(data)
    while part >= 0:
        x, g, dx = floats(told[0], high * width), floats(told[3], high * width), floats(told[4], high * width)
        shrinks = floats(told[2], high)
        into = floats(told[5], (part + 1) * width)[part * width :]
        for i in range(width):
            into[i] = 0
        for i in range(low, high):
            at = slice(i * width, (i + 1) * width)
            norm_back_row(x[at], gain, g[at], shrinks[i], dx[at], into)
        part, low, high = span(data)


class RmsNormLoop(torch.autograd.Function):
    """`rms_norm` of float32 x [.., D] and gain [D], both dense."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # type: ignore[no-untyped-def, override]
        width = x.shape[-1]
        rows = x.numel() // width
        y, shrinks = torch.empty_like(x), x.new_empty(rows)
        _norm_task(rows, team.parts(rows, 2 * width), x, gain, y, shrinks, width, float(eps))
        ctx.save_for_backward(x, gain, shrinks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        x, gain, shrinks = ctx.saved_tensors
        width, rows = x.shape[-1], len(shrinks)
        parts = team.parts(rows, 4 * width)
        dx, into = torch.empty_like(x), x.new_empty(parts, width)
        _norm_back_task(rows, parts, x, gain, shrinks, grad.contiguous(), dx, into, width)
        return dx, into.sum(0), None
