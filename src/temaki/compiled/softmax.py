"""The softmax of a span, and how the partials of spans are folded; natives.

A span has its largest score and its sum by itself; lanes are summed apart and joined in a tree, so that the bits of a
sum do not depend on which of its places were hidden: those add exactly 0.
Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", section 3.1 (folding).
"""
# pyright: basic

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

from temaki.compiled import vectors as v
from temaki.compiled.addresses import BYTES, accumulators, along, floats, keep, one, pointer, written
from temaki.compiled.native import Native, native
from temaki.compiled.table import BLOCK

intrinsic: Any = _intrinsic

_LARGE = 12582912.0 + 127.0
"""1.5 * 2^23 + 127: a float32 plus this holds its nearest integer + 127 in its lowest bits."""
_NEAR = 0.625
"""Where tanh is better by its polynomial."""


def _const(value: float) -> Any:
    return v.filled(v.FLOATS, float(np.float32(value)))


def _horner(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    found = _const(coefficients[0])
    for each in coefficients[1:]:
        found = v.multiply_add(builder, found, x, _const(each))
    return found


def exponential(builder: Any, x: Any) -> Any:
    """e^x for a vector of x <= 0, to about 1 unit in the last place; 0 below -60, and NaN stays NaN.

    x = n ln 2 + r (Cody and Waite 1980); e^r by a polynomial of degree 7 (Cephes' coefficients); n + 127, the bits of
    the exponent, are the lowest bits of x / ln 2 + a large number.
    """
    large = v.multiply_add(builder, x, _const(1.4426950408889634), _const(_LARGE))
    n = builder.fsub(large, _const(_LARGE))
    r = v.multiply_add(builder, n, _const(-0.693359375), x)
    r = v.multiply_add(builder, n, _const(2.12194440e-4), r)
    small = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    power = builder.shl(builder.bitcast(large, v.WORDS), v.filled(v.WORDS, 23))
    found = builder.fmul(_horner(builder, r, (*small, 1.0, 1.0)), builder.bitcast(power, v.FLOATS))
    return builder.select(builder.fcmp_ordered("<", x, _const(-60.0)), _const(0.0), found)


def tanh(builder: Any, x: Any) -> Any:
    """tanh of a vector: near 0 by an odd polynomial (Cephes' coefficients), else by e^(-2|x|)."""
    square = builder.fmul(x, x)
    odd = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    near = v.multiply_add(builder, builder.fmul(_horner(builder, square, odd), square), x, x)
    size = v.call(builder, f"llvm.fabs.v{v.LANES}f32", v.FLOATS, [x])
    e = exponential(builder, builder.fmul(size, _const(-2.0)))
    far = builder.fdiv(builder.fsub(_const(1.0), e), builder.fadd(_const(1.0), e))
    far = v.call(builder, f"llvm.copysign.v{v.LANES}f32", v.FLOATS, [far, x])
    return builder.select(builder.fcmp_ordered("<", size, _const(_NEAR)), near, far)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _joined(builder: Any, vector: Any, join: Callable[[Any, Any, Any], Any]) -> Any:
    """All lanes joined in a tree: halves, quarters, ..; a scalar."""
    many = vector.type.count
    while many > 1:
        many //= 2
        kind = ir.VectorType(v.I32, many)
        low, high = (ir.Constant(kind, list(range(start, start + many))) for start in (0, many))
        none = ir.Constant(vector.type, ir.Undefined)
        vector = join(builder, builder.shuffle_vector(vector, none, low), builder.shuffle_vector(vector, none, high))
    return builder.extract_element(vector, ir.Constant(v.I32, 0))


def _result(builder: Any, at: Any, most: Any, total: Any) -> None:
    v.store(builder, most, pointer(builder, at))
    v.store(builder, total, builder.gep(pointer(builder, at), [v.whole(4)]))


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _shaped(builder: Any, x: Any, settings: Any, place: Any, back: Any) -> Any:
    """Scores with a cap, where it is above 0, and a slope."""
    cap, slope = (v.splat(builder, one(builder, along(builder, settings, (v.whole(n), 4)))) for n in (1, 2))
    capped = builder.fmul(tanh(builder, builder.fdiv(x, cap)), cap)
    x = builder.select(builder.fcmp_ordered(">", cap, _const(0.0)), capped, x)
    far = builder.sub(v.splat(builder, builder.trunc(back, v.I32)), place)
    return builder.fsub(x, builder.fmul(slope, builder.sitofp(far, v.FLOATS)))


def _softmax(shaped: bool, scaled: bool) -> Callable[[Any, Any], None]:
    """shaped: with a cap or slopes; scaled: keys and values have scales. Else with a scale of the layer alone."""

    def write(builder: Any, args: Any) -> None:
        scores, low, high, result, settings, back, key_scales, value_scales = args
        scale = v.splat(builder, one(builder, settings))
        least = v.splat(builder, builder.trunc(low, v.I32))
        width = v.splat(builder, builder.trunc(builder.sub(high, low), v.I32))
        start = builder.sdiv(low, v.whole(BLOCK))
        blocks = builder.sub(builder.sdiv(builder.add(high, v.whole(BLOCK - 1)), v.whole(BLOCK)), start)
        first = along(builder, scores, (start, BYTES))
        ramp, floor = ir.Constant(v.WORDS, list(range(v.LANES))), _const(float("-inf"))
        most, total = accumulators(builder, 2)
        builder.store(floor, most)
        builder.store(_const(0.0), total)

        def times(x: Any, scales: Any, block: Any) -> Any:
            return builder.fmul(x, floats(builder, along(builder, scales, (block, BYTES)))) if scaled else x

        with cgutils.for_range(builder, blocks, intp=v.I64) as loop:
            at = along(builder, first, (loop.index, BYTES))
            here = builder.mul(builder.add(start, loop.index), v.whole(BLOCK))
            place = builder.add(v.splat(builder, builder.trunc(here, v.I32)), ramp)
            x = builder.fmul(times(floats(builder, at), key_scales, loop.index), scale)
            x = _shaped(builder, x, settings, place, back) if shaped else x
            seen = builder.icmp_unsigned("<", builder.sub(place, least), width)
            x = builder.select(seen, x, floor)
            keep(builder, x, at)
            builder.store(_larger(builder, x, builder.load(most)), most)
        top = _joined(builder, builder.load(most), _larger)
        none = builder.fcmp_ordered("==", top, ir.Constant(v.F32, float("-inf")))
        base = v.splat(builder, builder.select(none, ir.Constant(v.F32, 0.0), top))
        with cgutils.for_range(builder, blocks, intp=v.I64) as loop:
            at = along(builder, first, (loop.index, BYTES))
            e = exponential(builder, builder.fsub(floats(builder, at), base))
            builder.store(builder.fadd(builder.load(total), e), total)
            keep(builder, times(e, value_scales, loop.index), at)
        _result(builder, result, top, _joined(builder, builder.load(total), _add))

    return write


def _fold(builder: Any, args: Any) -> None:
    into, new, columns = args[:3]
    end = builder.mul(columns, v.whole(BYTES))
    told, said = builder.add(into, end), builder.add(new, end)
    before, more = (one(builder, builder.add(each, v.whole(4))) for each in (told, said))
    empty, nothing = (builder.fcmp_ordered("==", each, ir.Constant(v.F32, 0.0)) for each in (before, more))
    with builder.if_then(builder.not_(nothing)):
        old, top = one(builder, told), one(builder, said)
        most = _larger(builder, old, top)
        a, b = (exponential(builder, v.splat(builder, builder.fsub(each, most))) for each in (old, top))

        def both(here: Any, there: Any) -> Any:
            summed = v.multiply_add(builder, here, a, builder.fmul(there, b))
            return builder.select(empty, there, summed)

        with cgutils.for_range(builder, columns, intp=v.I64) as loop:
            here, there = (along(builder, each, (loop.index, BYTES)) for each in (into, new))
            keep(builder, both(floats(builder, here), floats(builder, there)), here)
        whole = both(v.splat(builder, before), v.splat(builder, more))
        _result(builder, told, most, builder.extract_element(whole, ir.Constant(v.I32, 0)))


@intrinsic
def _softmax_plain(_context, a, b, c, d, e, f, g, h):
    return written(_softmax(shaped=False, scaled=False))


@intrinsic
def _softmax_shaped(_context, a, b, c, d, e, f, g, h):
    return written(_softmax(shaped=True, scaled=False))


@intrinsic
def _softmax_scaled(_context, a, b, c, d, e, f, g, h):
    return written(_softmax(shaped=False, scaled=True))


@intrinsic
def _softmax_both(_context, a, b, c, d, e, f, g, h):
    return written(_softmax(shaped=True, scaled=True))


@intrinsic
def _fold_partials(_context, a, b, c, d, e, f, g, h):
    return written(_fold)


@native
def softmax_plain(scores, low, high, result, settings, back, key_scales, value_scales):
    """A span's scores at low..high-1, times settings[0], to e^(score - largest) in place; both sums to `result`.

    What is hidden in the blocks around becomes 0. result: the largest score, the sum. What the other natives read:
    settings: scale, cap (0: none), slope; back: the query's place counted from the span's start; scales of keys and
    values: from the block that holds `low` on.
    """
    _softmax_plain(scores, low, high, result, settings, back, key_scales, value_scales)


@native
def softmax_shaped(scores, low, high, result, settings, back, key_scales, value_scales):
    """As `softmax_plain`, with a cap and a slope."""
    _softmax_shaped(scores, low, high, result, settings, back, key_scales, value_scales)


@native
def softmax_scaled(scores, low, high, result, settings, back, key_scales, value_scales):
    """As `softmax_plain`, with scales of keys, and of values: the weights are multiplied by them after the sum."""
    _softmax_scaled(scores, low, high, result, settings, back, key_scales, value_scales)


@native
def softmax_both(scores, low, high, result, settings, back, key_scales, value_scales):
    """As `softmax_shaped`, with scales."""
    _softmax_both(scores, low, high, result, settings, back, key_scales, value_scales)


@native
def fold(into, new, columns, d, e, f, g, h):
    """Join a row's partial of the next span to that of the spans before it.

    A partial: `columns` vectors of weighted values, the largest score, the sum; with a sum of 0 it is as if not there.
    """
    _fold_partials(into, new, columns, d, e, f, g, h)


def softmax_of(shaped: bool, scaled: bool) -> Native:
    """The native for scores with a cap or slopes, and for keys and values with scales."""
    return {
        (False, False): softmax_plain,
        (True, False): softmax_shaped,
        (False, True): softmax_scaled,
        (True, True): softmax_both,
    }[shaped, scaled]
