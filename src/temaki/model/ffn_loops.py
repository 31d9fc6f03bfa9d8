"""The activations of feed-forward layers and their gradients as one loop each, for float32 in the processor's memory.

torch's own are the twins (`model/ffn`). What they cost there is mostly tanh and exp, and passes over memory: a plain
GELU of 3 million numbers takes a third of torch's time, a gated one with its gradient a fifth of the seven passes.
Letters: N places, F hidden width.
"""
# pyright: basic

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.team import exp32, floats, given, span

_ONE, _HALF = np.float32(1), np.float32(0.5)
_TWICE, _CUBE = np.float32(1.5957691216057308), np.float32(0.044715)
"""2 sqrt(2/pi), and the cube's share in the tanh form of GELU."""


@team.loop
def _sigmoid(x):
    return _ONE / (_ONE + exp32(-x))


@team.loop
def _gelu(x):
    return x * _sigmoid(_TWICE * (x + _CUBE * x * x * x))


@team.loop
def _gelu_slope(x):
    s = _sigmoid(_TWICE * (x + _CUBE * x * x * x))
    return s + x * s * (_ONE - s) * _TWICE * (_ONE + np.float32(3) * _CUBE * x * x)


@team.loop
def _gelu_run(x, y):
    for i in range(x.shape[0]):
        y[i] = _gelu(x[i])


@team.loop
def _gelu_back_run(x, g, dx):
    for i in range(x.shape[0]):
        dx[i] = g[i] * _gelu_slope(x[i])


@team.loop
def _square_run(x, y):
    for i in range(x.shape[0]):
        v = max(x[i], np.float32(0))
        y[i] = v * v


@team.loop
def _square_back_run(x, g, dx):
    for i in range(x.shape[0]):
        v = max(x[i], np.float32(0))
        dx[i] = g[i] * (v + v)


@team.loop
def _silu_gate_run(a, b, y):
    for i in range(a.shape[0]):
        y[i] = a[i] * _sigmoid(a[i]) * b[i]


@team.loop
def _silu_gate_back_run(a, b, g, da, db):
    for i in range(a.shape[0]):
        s = _sigmoid(a[i])
        db[i] = g[i] * a[i] * s
        da[i] = g[i] * b[i] * s * (_ONE + a[i] * (_ONE - s))


@team.loop
def _gelu_gate_run(a, b, y):
    for i in range(a.shape[0]):
        y[i] = _gelu(a[i]) * b[i]


@team.loop
def _gelu_gate_back_run(a, b, g, da, db):
    for i in range(a.shape[0]):
        db[i] = g[i] * _gelu(a[i])
        da[i] = g[i] * b[i] * _gelu_slope(a[i])


@team.task
def _gelu_task(data):
    told = given(data)
    part, low, high = span(data)
    while part >= 0:
        x, y = floats(told[0], high), floats(told[1], high)
        _gelu_run(x[low:], y[low:])
        part, low, high = span(data)


@team.task
def _gelu_back_task(data):
    told = given(data)
    part, low, high = span(data)
    while part >= 0:
        x, g, dx = floats(told[0], high), floats(told[1], high), floats(told[2], high)
        _gelu_back_run(x[low:], g[low:], dx[low:])
        part, low, high = span(data)


@team.task
def _square_task(data):
    told = given(data)
    part, low, high = span(data)
    while part >= 0:
        x, y = floats(told[0], high), floats(told[1], high)
        _square_run(x[low:], y[low:])
        part, low, high = span(data)


@team.task
def _square_back_task(data):
    told = given(data)
    part, low, high = span(data)
    while part >= 0:
        x, g, dx = floats(told[0], high), floats(told[1], high), floats(told[2], high)
        _square_back_run(x[low:], g[low:], dx[low:])
        part, low, high = span(data)


@team.task
def _gate_task(data):
    told = given(data)
    width, silu = told[2], told[3] == 1
    part, low, high = span(data)
    while part >= 0:
        x, y = floats(told[0], 2 * high * width), floats(told[1], high * width)
        for i in range(low, high):
            at = 2 * i * width
            a, b, out = x[at : at + width], x[at + width : at + 2 * width], y[i * width : (i + 1) * width]
            if silu:
                _silu_gate_run(a, b, out)
            else:
                _gelu_gate_run(a, b, out)
        part, low, high = span(data)


@team.task
def _gate_back_task(data):
    told = given(data)
    width, silu = told[3], told[4] == 1
    part, low, high = span(data)
    while part >= 0:
        x, dx = floats(told[0], 2 * high * width), floats(told[2], 2 * high * width)
        grads = floats(told[1], high * width)
        for i in range(low, high):
            at = 2 * i * width
            a, b, g = x[at : at + width], x[at + width : at + 2 * width], grads[i * width : (i + 1) * width]
            da, db = dx[at : at + width], dx[at + width : at + 2 * width]
            if silu:
                _silu_gate_back_run(a, b, g, da, db)
            else:
                _gelu_gate_back_run(a, b, g, da, db)
        part, low, high = span(data)


class Pointwise(torch.autograd.Function):
    """GELU (tanh form) or the square of ReLU, and its gradient from x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, square: bool) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        ctx.square = square
        y = torch.empty_like(x)
        (_square_task if square else _gelu_task)(x.numel(), team.parts(x.numel(), 1), x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        run = _square_back_task if ctx.square else _gelu_back_task
        run(x.numel(), team.parts(x.numel(), 1), x, grad.contiguous(), dx)
        return dx, None


class Gate(torch.autograd.Function):
    """activation(a) * b of x = [a; b] [.., 2F] -> [.., F], SiLU or GELU (tanh form), and its gradient from x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, silu: bool) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        ctx.silu = silu
        width = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        rows = x.numel() // x.shape[-1]
        _gate_task(rows, team.parts(rows, 2 * width), x, y, width, int(silu))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        rows, width = x.numel() // x.shape[-1], x.shape[-1] // 2
        _gate_back_task(rows, team.parts(rows, 2 * width), x, grad.contiguous(), dx, width, int(ctx.silu))
        return dx, None
