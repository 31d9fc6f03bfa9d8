"""Sparsemax and entmax (alpha up to 2) row by row as one loop each way, for float32 in the processor's memory.

The twin stands in `model/sparse_maps`, with the letters b = alpha - 1, c, y, e. Nothing is sorted: with w = 1 + b y and
q = 1/b, sum p = 1 says that the q-norm of max(0, w) is 1, and a norm is convex in c; so Newton's steps on it from c = 0
never go beyond c. They are (s - s^(1-b)) / (b sum p^(1-b)), s = sum p, and exact where all that is left is equal.
A row is worked on from its first entry that is not hidden to its last, padded to whole blocks: its bits depend on
nothing else. Letters: R rows, S scores a row.
"""
# pyright: basic

import math

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.team import exp32, floats, given, larger, span

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_HIDDEN, _NONE = np.float32(-np.inf), np.float32(np.nan)
_TINY = np.float32(1e-30)
_NEAR = np.float32(4 * np.finfo(np.float32).eps)
_BLOCK = 64
_STEPS = 40
_LEAST = 1e-6
"""Below this b, e(y) is exp(y) to all digits."""


@team.intrinsic
def log1p32(_context, u):
    """log(1 + u) in float32 to 2 units in the last place or so, for u > -1; -88 for u = -1.

    1 + u = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt 2), and f = u where n = 0, so that small u keep their digits.
    log(1 + f) by a polynomial of degree 8 (Cephes' coefficients).
    """
    single, word = ir.FloatType(), ir.IntType(32)

    def generate(_context, builder, _signature, args):
        def const(value):
            return ir.Constant(single, float(np.float32(value)))

        def fma(a, b, c):
            kind = ir.FunctionType(single, [single] * 3)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32"), (a, b, c))

        u = args[0]
        bits = builder.bitcast(builder.fadd(u, const(1.0)), word)
        root = ir.Constant(word, 0x3F3504F3)
        n = builder.ashr(builder.sub(bits, root), ir.Constant(word, 23))
        scaled = builder.sub(bits, builder.shl(n, ir.Constant(word, 23)))
        f = builder.fsub(builder.bitcast(scaled, single), const(1.0))
        f = builder.select(builder.icmp_signed("==", n, ir.Constant(word, 0)), u, f)
        n = builder.sitofp(n, single)
        p = const(7.0376836292e-2)
        for each in (
            -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1,
            -2.4999993993e-1, 3.3333331174e-1,
        ):  # fmt: skip
            p = fma(p, f, const(each))
        square = builder.fmul(f, f)
        tail = fma(n, const(-2.12194440e-4), builder.fmul(builder.fmul(p, f), square))
        tail = fma(const(-0.5), square, tail)
        return fma(n, const(0.693359375), builder.fadd(f, tail))

    return types.float32(types.float32), generate


@team.loop
def _peak(x):
    top = _HIDDEN
    for i in range(x.shape[0]):
        top = larger(top, x[i])
    return top


@team.loop
def _seen(x):
    """(first, last + 1) of what is not hidden; a NaN is not."""
    low, high = 0, x.shape[0]
    while high >= _BLOCK and _all_hidden(x[high - _BLOCK : high]):
        high -= _BLOCK
    while high > 0 and x[high - 1] == _HIDDEN:
        high -= 1
    while low + _BLOCK <= high and _all_hidden(x[low : low + _BLOCK]):
        low += _BLOCK
    while low < high and x[low] == _HIDDEN:
        low += 1
    return low, high


@team.loop
def _all_hidden(x):
    other = 0
    for i in range(x.shape[0]):
        other += x[i] != _HIDDEN
    return other == 0


@team.loop
def _shift(x, top, b, z):
    """z = b (x - top), padded with minus infinity; whether all are numbers."""
    strange = 0
    for i in range(x.shape[0]):
        z[i] = (x[i] - top) * b
        strange += x[i] != x[i]
    for i in range(x.shape[0], z.shape[0]):
        z[i] = _HIDDEN
    return strange == 0


@team.loop
def _sums_2(z, t):
    total, count = _ZERO, _ZERO
    for i in range(z.shape[0]):
        d = larger(z[i] - t, _ZERO)
        total += d
        count += _ONE if d > _ZERO else _ZERO
    return total, count


@team.loop
def _sums_15(z, t):
    total, slope = _ZERO, _ZERO
    for i in range(z.shape[0]):
        d = larger(z[i] - t, _ZERO)
        total += d * d
        slope += d
    return total, slope


@team.loop
def _sums(z, shift, q):
    """(sum p, sum p^(1 - b)); where w is 0 log1p32 is -88, which exp32 makes 0 since q >= 1."""
    total, slope = _ZERO, _ZERO
    for i in range(z.shape[0]):
        u = larger(z[i] - shift, -_ONE)
        p = exp32(log1p32(u) * q)
        total += p
        slope += p / larger(_ONE + u, _TINY)
    return total, slope


@team.loop
def _sum_exp(z, shift):
    total = _ZERO
    for i in range(z.shape[0]):
        total += exp32(larger(z[i] - shift, np.float32(-100)))
    return total


@team.loop
def _solve(z, b):
    """The shift of z, b c (c at b = 0): c makes the sum 1."""
    shift = _ZERO
    if b < _LEAST:
        return np.float32(math.log(_sum_exp(z, _ZERO)))
    q = _ONE / b
    for _ in range(_STEPS):
        if b == _ONE:
            total, slope = _sums_2(z, shift - _ONE)
            step = (total - _ONE) / slope
        elif b == _HALF:
            total, slope = _sums_15(z, shift - _ONE)
            step = (total - np.float32(math.sqrt(total))) / slope
        else:
            total, slope = _sums(z, shift, q)
            s = np.float64(total)
            step = np.float32(s * (1.0 - math.exp(-np.float64(b) * math.log(s))) / np.float64(slope))
        if not step > _NEAR * larger(b, shift):
            break
        shift += step
    return shift


@team.loop
def _fill(z, shift, b, p):
    """p of shifted z, rounding divided out."""
    n, q = p.shape[0], _ONE / b
    total = _ZERO
    if b < _LEAST:
        for i in range(z.shape[0]):
            z[i] = exp32(larger(z[i] - shift, np.float32(-100)))
    elif b == _ONE:
        for i in range(z.shape[0]):
            z[i] = larger(z[i] - (shift - _ONE), _ZERO)
    elif b == _HALF:
        for i in range(z.shape[0]):
            d = larger(z[i] - (shift - _ONE), _ZERO)
            z[i] = d * d
    else:
        sum_p, slope = _sums(z, shift, q)
        rest = (sum_p - _ONE) / slope  # one step more, in p: a digit of the shift is many digits of small p
        for i in range(z.shape[0]):
            u = larger(z[i] - shift, -_ONE)
            e = exp32(log1p32(u) * q)
            z[i] = larger(e - e / larger(_ONE + u, _TINY) * rest, _ZERO)
    for i in range(z.shape[0]):
        total += z[i]
    total = _ONE / total
    for i in range(n):
        p[i] = z[i] * total


@team.loop
def _row(x, b, p, scratch):
    low, high = _seen(x)
    p[:low] = _ZERO
    p[high:] = _ZERO
    if low == high:
        return
    x = x[low:high]
    z = scratch[: (high - low + _BLOCK - 1) // _BLOCK * _BLOCK]
    top = _peak(x)
    if not _shift(x, top, _ONE if b < _LEAST else b, z) or top == -_HIDDEN:
        p[:] = _NONE
        return
    _fill(z, _solve(z, b), b, p[low:high])


@team.task
def _forward_task(data):
    told = given(data)
    size, room = told[4], told[5]
    part, low, high = span(data)
    while part >= 0:
        x, p, bs = floats(told[0], high * size), floats(told[2], high * size), floats(told[1], high)
        scratch = floats(told[3], (part + 1) * room)[part * room :]
        for i in range(low, high):
            at = slice(i * size, (i + 1) * size)
            _row(x[at], bs[i], p[at], scratch)
        part, low, high = span(data)


@team.loop
def _slopes(p, b, s):
    """s = p^(1 - b) on the support."""
    if b == _ONE:
        for i in range(p.shape[0]):
            s[i] = _ZERO if p[i] == _ZERO else _ONE
    elif b == _HALF:
        for i in range(p.shape[0]):
            s[i] = np.float32(math.sqrt(p[i]))
    else:
        for i in range(p.shape[0]):
            e = exp32(log1p32(p[i] - _ONE) * (_ONE - b))
            s[i] = _ZERO if p[i] == _ZERO else e


@team.loop
def _centre(s, g):
    """sum(s g) / sum(s)."""
    pull, total = _ZERO, _ZERO
    for i in range(s.shape[0]):
        pull += s[i] * g[i]
        total += s[i]
    return _ZERO if total == _ZERO else pull / total


@team.loop
def _by_alpha(p, b, g, centre):
    """sum of the derivative of e(y) by alpha times the centred gradient; the formulas are the twin's."""
    found = _ZERO
    over = _ONE / (b * b)
    for i in range(p.shape[0]):
        logs = log1p32((p[i] if p[i] > _ZERO else _ONE) - _ONE)
        w = b * logs
        tail = np.float32(-1 / 720) + w * (np.float32(1 / 5040) - w * np.float32(1 / 40320))
        tail = np.float32(-1 / 24) + w * (np.float32(1 / 120) + w * tail)
        near = logs * logs * (-_HALF + w * (np.float32(1 / 6) + w * tail))
        far = (_ONE - exp32(-w) - w) * over
        small = larger(w, -w) < np.float32(0.3)
        found += p[i] * (near if small else far) * (g[i] - centre)
    return found


@team.task
def _backward_task(data):
    told = given(data)
    size = told[5]
    part, low, high = span(data)
    while part >= 0:
        p, g, dx = floats(told[0], high * size), floats(told[2], high * size), floats(told[3], high * size)
        bs = floats(told[1], high)
        for i in range(low, high):
            first, last = i * size, (i + 1) * size
            centre = _back_row(p[first:last], bs[i], g[first:last], dx[first:last])
            if told[4] != 0:
                floats(told[4], high)[i] = _by_alpha(p[first:last], bs[i], g[first:last], centre)
        part, low, high = span(data)


@team.loop
def _support(p):
    """(first, last + 1) of what is not 0."""
    low, high = 0, p.shape[0]
    while high >= _BLOCK and _all_zero(p[high - _BLOCK : high]):
        high -= _BLOCK
    while high > 0 and p[high - 1] == _ZERO:
        high -= 1
    while low + _BLOCK <= high and _all_zero(p[low : low + _BLOCK]):
        low += _BLOCK
    while low < high and p[low] == _ZERO:
        low += 1
    return low, high


@team.loop
def _all_zero(p):
    other = 0
    for i in range(p.shape[0]):
        other += p[i] != _ZERO
    return other == 0


@team.loop
def _back_row(p, b, g, dx):
    """dx, and what the gradient was centred by."""
    low, high = _support(p)
    dx[:low] = _ZERO
    dx[high:] = _ZERO
    s, g = dx[low:high], g[low:high]
    _slopes(p[low:high], b, s)
    centre = _centre(s, g)
    for i in range(s.shape[0]):
        s[i] *= g[i] - centre
    return centre


class EntmaxLoop(torch.autograd.Function):
    """`entmax` of dense float32 scores [.., S] for alpha - 1 = b of each row, [.., 1]; b gets its gradient."""

    @staticmethod
    def forward(ctx, scores: Tensor, b: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        size = scores.shape[-1]
        rows = scores.numel() // max(size, 1)
        p = torch.empty_like(scores)
        count, room = team.parts(rows, 8 * size), -(-size // _BLOCK) * _BLOCK
        if rows:
            _forward_task(rows, count, scores, b, p, scores.new_empty(count, room), size, room)
        ctx.save_for_backward(p, b)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        p, b = ctx.saved_tensors
        size, rows = p.shape[-1], b.numel()
        dx, by_b = torch.empty_like(p), torch.empty_like(b) if ctx.needs_input_grad[1] else None
        if rows:
            _backward_task(rows, team.parts(rows, 8 * size), p, b, grad.contiguous(), dx, by_b, size)
        return dx, by_b
