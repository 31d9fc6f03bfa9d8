"""Norms and activations of rows, sixteen numbers at a time. Letters: D width, F hidden width.

x and out are float32 arenas. A sum is that of sixteen lanes, each in the order of the row, joined in a tree; so it does
not depend on who else is there.
"""
# pyright: basic

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as _intrinsic

from temaki.base.compile import bare_kernel
from temaki.compiled import vectors as v
from temaki.compiled.plan import EPS, GAIN, GELU, GELU_ERF, LAYER, NORM_KIND, RELU, SILU
from temaki.compiled.softmax import _add, _joined, exponential, tanh

intrinsic: Any = _intrinsic


@intrinsic
def powers(_context, x, at, count, shift, square):
    """`powers(x, i, count, shift, square)`: the sum of (x - shift) over a row, or of its squares."""

    def generate(context, builder, signature, args):
        base = builder.gep(v.data(context, builder, signature, args, 0), [args[1]])
        shift, square = args[3], builder.icmp_signed("!=", args[4], v.whole(0))
        whole, rest = builder.sdiv(args[2], v.whole(v.LANES)), builder.srem(args[2], v.whole(v.LANES))
        total = cgutils.alloca_once_value(builder, v.filled(v.FLOATS, 0.0))
        builder.store(v.filled(v.FLOATS, 0.0), total)
        tail = cgutils.alloca_once_value(builder, ir.Constant(v.F32, 0.0))
        builder.store(ir.Constant(v.F32, 0.0), tail)
        with cgutils.for_range(builder, whole, intp=v.I64) as loop:
            pointer = builder.gep(base, [builder.mul(loop.index, v.whole(v.LANES))])
            moved = builder.fsub(v.load(builder, pointer, v.FLOATS, 4), v.splat(builder, shift))
            times = builder.select(square, moved, v.filled(v.FLOATS, 1.0))
            builder.store(v.multiply_add(builder, moved, times, builder.load(total)), total)
        start = builder.mul(whole, v.whole(v.LANES))
        with cgutils.for_range(builder, rest, intp=v.I64) as loop:
            moved = builder.fsub(builder.load(builder.gep(base, [builder.add(start, loop.index)])), shift)
            times = builder.select(square, moved, ir.Constant(v.F32, 1.0))
            builder.store(builder.fadd(builder.load(tail), builder.fmul(moved, times)), tail)
        return builder.fadd(_joined(builder, builder.load(total), _add), builder.load(tail))

    n = types.int64
    return types.float32(x, n, n, types.float32, n), generate


def _number(value: float) -> Any:
    return v.filled(v.FLOATS, float(np.float32(value)))


def _size(builder: Any, x: Any) -> Any:
    return v.call(builder, f"llvm.fabs.v{v.LANES}f32", v.FLOATS, [x])


def _silu(builder: Any, x: Any, _scale: Any) -> Any:
    """x / (1 + e^-x), by e^-|x|."""
    e = exponential(builder, builder.fneg(_size(builder, x)))
    below = builder.fcmp_ordered("<", x, _number(0.0))
    return builder.fdiv(builder.fmul(x, builder.select(below, e, _number(1.0))), builder.fadd(_number(1.0), e))


def _gelu(builder: Any, x: Any, _scale: Any) -> Any:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    cube = builder.fmul(builder.fmul(x, x), x)
    inner = v.multiply_add(builder, cube, _number(0.044715), x)
    t = tanh(builder, builder.fmul(inner, _number(math.sqrt(2 / math.pi))))
    return builder.fmul(builder.fmul(x, _number(0.5)), builder.fadd(t, _number(1.0)))


def _gelu_erf(builder: Any, x: Any, _scale: Any) -> Any:
    """0.5 x (1 + erf(x / sqrt 2)); erf to 1.5e-7. Abramowitz and Stegun 1964, 7.1.26."""
    z = builder.fmul(_size(builder, x), _number(math.sqrt(0.5)))
    t = builder.fdiv(_number(1.0), v.multiply_add(builder, z, _number(0.3275911), _number(1.0)))
    p = _number(1.061405429)
    for each in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = v.multiply_add(builder, p, t, _number(each))
    e = exponential(builder, builder.fneg(builder.fmul(z, z)))
    beyond = builder.fmul(_number(0.5), builder.fmul(builder.fmul(p, t), e))  # P(Z > |x|)
    share = builder.select(builder.fcmp_ordered("<", x, _number(0.0)), beyond, builder.fsub(_number(1.0), beyond))
    return builder.fmul(x, share)


def _relu(builder: Any, x: Any, _scale: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", x, _number(0.0)), _number(0.0), x)


def _squared(builder: Any, x: Any, scale: Any) -> Any:
    above = _relu(builder, x, scale)
    return builder.fmul(above, above)


def _capped(builder: Any, x: Any, scale: Any) -> Any:
    return builder.fmul(scale, tanh(builder, builder.fdiv(x, scale)))


def _each(formula: Any) -> Any:
    """An intrinsic (x, i, other, count, scale, out, o): out[o..] = formula(x[i..]), times x[other..] unless other = i.

    The numbers beyond the last whole sixteen go through a buffer, so that none beyond the row is touched.
    """

    def write(context, builder, signature, args):
        _, at, other, count, scale, _, to = args
        x, out = (v.data(context, builder, signature, args, which) for which in (0, 5))
        source, factor, target = (builder.gep(*pair) for pair in ((x, [at]), (x, [other]), (out, [to])))
        gated = builder.icmp_signed("!=", at, other)
        scales = v.splat(builder, scale)

        def made(value, times):
            times = builder.select(gated, times, _number(1.0))
            return builder.fmul(formula(builder, value, scales), times)

        start = builder.and_(count, v.whole(-v.LANES))
        with cgutils.for_range(builder, builder.sdiv(count, v.whole(v.LANES)), intp=v.I64) as loop:
            place = [builder.mul(loop.index, v.whole(v.LANES))]
            value, times = (v.load(builder, builder.gep(each, place), v.FLOATS, 4) for each in (source, factor))
            v.store(builder, made(value, times), builder.gep(target, place), 4)
        rest = builder.sub(count, start)
        with builder.if_then(builder.icmp_signed(">", rest, v.whole(0)), likely=False):
            held = [cgutils.alloca_once(builder, v.FLOATS) for _ in range(3)]
            numbers = [builder.bitcast(each, v.F32.as_pointer()) for each in held]
            for each in held[:2]:
                builder.store(_number(0.0), each)
            with cgutils.for_range(builder, rest, intp=v.I64) as loop:
                place = [builder.add(start, loop.index)]
                for each, into in zip((source, factor), numbers, strict=False):
                    builder.store(builder.load(builder.gep(each, place)), builder.gep(into, [loop.index]))
            builder.store(made(builder.load(held[0]), builder.load(held[1])), held[2])
            with cgutils.for_range(builder, rest, intp=v.I64) as loop:
                found = builder.load(builder.gep(numbers[2], [loop.index]))
                builder.store(found, builder.gep(target, [builder.add(start, loop.index)]))
        return context.get_dummy_value()

    @intrinsic
    def apply(_context, x, at, other, count, scale, out, to):
        n = types.int64
        return types.void(x, n, n, n, types.float32, out, n), write

    return apply


_silus, _gelus, _erfs, _relus, _squares, _caps = (
    _each(formula) for formula in (_silu, _gelu, _gelu_erf, _relu, _squared, _capped)
)  # fmt: skip


@bare_kernel
def normalise(x, at, width, stride, numbers, norm, out, out_at):
    """The norm of one row, see `plan` for how it lies among the numbers; stride: its gain's length. out may be x."""
    mean = np.float32(0)
    if numbers[norm + NORM_KIND] == LAYER:
        mean = powers(x, at, width, np.float32(0), 0) / np.float32(width)
    spread = powers(x, at, width, mean, 1) / np.float32(width) + numbers[norm + EPS]
    shrink = np.float32(1) / np.float32(math.sqrt(spread))
    gain = norm + GAIN
    if numbers[norm + NORM_KIND] == LAYER:
        for k in range(width):
            out[out_at + k] = (x[at + k] - mean) * shrink * numbers[gain + k] + numbers[gain + stride + k]
    else:
        for k in range(width):
            out[out_at + k] = x[at + k] * shrink * numbers[gain + k]


@bare_kernel
def activate(kind, x, at, other, count, out, to):
    """out[to..] = activation(x[at..]) * x[other..], `count` numbers; without a gate other = at."""
    none = np.float32(1)
    if kind == SILU:
        _silus(x, at, other, count, none, out, to)
    elif kind == GELU:
        _gelus(x, at, other, count, none, out, to)
    elif kind == GELU_ERF:
        _erfs(x, at, other, count, none, out, to)
    elif kind == RELU:
        _relus(x, at, other, count, none, out, to)
    else:
        _squares(x, at, other, count, none, out, to)


@bare_kernel
def cap_numbers(x, at, count, cap):
    """x = cap tanh(x / cap), in place."""
    _caps(x, at, at, count, cap, x, at)
