"""What happens to one id's queries, keys and values before attention: norm, rotation, the way into the cache.

Letters: H heads, G groups, K head size. x is a float32 arena; a row of it holds heads one after the other.
"""
# pyright: basic

import math
from typing import Any, Literal

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic

from temaki.base.compile import bare_kernel
from temaki.compiled import vectors as v
from temaki.compiled.table import (
    AT,
    BLOCK,
    FLOAT16,
    FLOAT32,
    GROUP,
    GROUPS,
    KEY_SCALES,
    KIND,
    PADDED,
    SIZE,
    SLOT,
    SPAN,
    STEP,
    VALUE_SCALES,
    VALUES,
)

intrinsic: Any = _intrinsic

HALF, INTERLEAVED = 0, 1
"""Which coordinates make a pair: (t, t + K/2), or (2t, 2t + 1)."""
_ROUNDER = np.float32(12582912)
Pairs = Literal["half", "interleaved"]
PAIRS: dict[Pairs, int] = {"half": HALF, "interleaved": INTERLEAVED}


def narrow(builder, floats):
    """Float32 numbers as halves, to nearest and even, as the processor does it; where it cannot, with integers.

    Below 2^-14 a sum with 1/2, whose last bit is worth 2^-24, rounds; above, half of the last bit is added.
    """
    lanes = floats.type.count
    halves = ir.VectorType(v.F16, lanes)
    if v.features() & {"f16c", "avx512f", "neon"}:
        return builder.fptrunc(floats, halves)
    words = ir.VectorType(v.I32, lanes)

    def const(value):
        return v.filled(words, value)

    bits = builder.bitcast(floats, words)
    size = builder.and_(bits, const(0x7FFFFFFF))
    sign = builder.lshr(builder.and_(bits, const(0x80000000)), const(16))
    even = builder.and_(builder.lshr(size, const(13)), const(1))
    usual = builder.lshr(builder.add(builder.add(size, even), const(0xFFF - (112 << 23))), const(13))
    summed = builder.fadd(builder.bitcast(size, floats.type), v.filled(floats.type, 0.5))
    small = builder.sub(builder.bitcast(summed, words), const(0x3F000000))
    found = builder.select(builder.icmp_unsigned("<", size, const(0x38800000)), small, usual)
    found = builder.select(builder.icmp_unsigned(">=", size, const(0x477FF000)), const(0x7C00), found)
    found = builder.select(builder.icmp_unsigned(">", size, const(0x7F800000)), const(0x7E00), found)
    return builder.bitcast(builder.trunc(builder.or_(found, sign), ir.VectorType(v.I16, lanes)), halves)


def _writer(bits):
    @intrinsic
    def write(_context, data, at, x):
        def generate(context, builder, signature, args):
            pointer = builder.gep(v.data(context, builder, signature, args, 0), [args[1]])
            v.store(builder, bits(builder, args[2]), pointer)
            return context.get_dummy_value()

        return types.void(data, types.int64, types.float32), generate

    return write


write_float = _writer(lambda builder, x: x)
write_half = _writer(lambda builder, x: narrow(builder, v.splat(builder, x, 1)))
write_byte = _writer(lambda builder, x: builder.fptosi(x, v.I8))


@bare_kernel
def norm_heads(x, at, heads, size, gains, gain_at, eps):
    """x / sqrt(mean(x^2) + eps) * gain for each of `heads` heads, in place; gain [K] at gains[gain_at]."""
    for head in range(heads):
        row = at + head * size
        a = b = c = d = np.float32(0)
        for k in range(row, row + size // 4 * 4, 4):
            a += x[k] * x[k]
            b += x[k + 1] * x[k + 1]
            c += x[k + 2] * x[k + 2]
            d += x[k + 3] * x[k + 3]
        for k in range(row + size // 4 * 4, row + size):
            a += x[k] * x[k]
        mean = ((a + b) + (c + d)) / np.float32(size)
        shrink = np.float32(1) / np.float32(math.sqrt(mean + np.float32(eps)))
        for k in range(size):
            x[row + k] = x[row + k] * shrink * gains[gain_at + k]


@bare_kernel
def rotate(x, at, heads, size, pairs, tables, cos_at, sin_at):
    """Turn each pair (a, b) of `heads` heads to (a cos - b sin, b cos + a sin), in place.

    pairs: HALF or INTERLEAVED; cos [K/2] of the id's position at tables[cos_at], sin at tables[sin_at].
    """
    half = size // 2
    for row in range(at, at + heads * size, size):
        if pairs == HALF:
            for t in range(half):
                a, b, cos, sin = x[row + t], x[row + half + t], tables[cos_at + t], tables[sin_at + t]
                x[row + t] = a * cos - b * sin
                x[row + half + t] = b * cos + a * sin
        else:
            for t in range(half):
                a, b, cos, sin = x[row + 2 * t], x[row + 2 * t + 1], tables[cos_at + t], tables[sin_at + t]
                x[row + 2 * t] = a * cos - b * sin
                x[row + 2 * t + 1] = b * cos + a * sin


@bare_kernel
def store_row(data, table, layer, slot, place, x, k_at, v_at):
    """Write one id's keys x[k_at: k_at + G K] and values x[v_at: v_at + G K] to a place of a slot."""
    told = table[layer]
    size, kind = told[SIZE], told[KIND]
    item, within = 4 >> kind, place % SPAN
    for group in range(told[GROUPS]):
        base = told[AT] + slot * told[SLOT] + place // SPAN * told[STEP] + group * told[GROUP]
        key = base + (within // BLOCK * size * BLOCK + within % BLOCK) * item
        value = base + told[VALUES] + within * told[PADDED] * item
        if kind == FLOAT32:
            for k in range(size):
                write_float(data, key + 4 * BLOCK * k, x[k_at + group * size + k])
                write_float(data, value + 4 * k, x[v_at + group * size + k])
        elif kind == FLOAT16:
            for k in range(size):
                write_half(data, key + 2 * BLOCK * k, x[k_at + group * size + k])
                write_half(data, value + 2 * k, x[v_at + group * size + k])
        else:
            scale = _store_bytes(data, key, BLOCK, x, k_at + group * size, size)
            write_float(data, base + told[KEY_SCALES] + 4 * within, scale)
            scale = _store_bytes(data, value, 1, x, v_at + group * size, size)
            write_float(data, base + told[VALUE_SCALES] + 4 * within, scale)


@bare_kernel
def _largest(x, first, last):
    """The largest |x| of x[first: last]; NaN where a number is not finite."""
    a = b = none = np.float32(0)
    for k in range(first, last - 1, 2):
        one, two = abs(x[k]), abs(x[k + 1])
        a, b = one if one > a else a, two if two > b else b
        none += one * np.float32(0) + two * np.float32(0)  # NaN once a number is not finite
    end = abs(x[last - 1])
    return max(max(a, b), end) + (none + end * np.float32(0))


@bare_kernel
def _store_bytes(data, to, step, x, at, size):
    """Write x / scale as int8 every `step` bytes; returns scale = largest / 127, NaN where a number is not finite."""
    most = _largest(x, at, at + size)
    factor = np.float32(127) / most if most > 0 else np.float32(0)
    if most >= 0:
        for k in range(size):  # to nearest and even: a sum with 1.5 * 2^23 has no bits left for less than 1
            write_byte(data, to + step * k, (x[at + k] * factor + _ROUNDER) - _ROUNDER)
    return most / np.float32(127)
