"""Rows of activations as integers: in groups of 32 columns, q = x / s with s = max |x| / 127, ties to even.

Written in LLVM's words, as each layer reads its rows four times.
"""
# pyright: basic

import math
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from temaki.compiled.products import GROUP, LESS, SCALE, SCALED
from temaki.compiled.vectors import F32, FLOATS, I8, I32, LANES, WORDS, call, data, filled, load, splat, store, whole

LEAST = 2.0**-119
"""Groups whose numbers are all smaller count as zeros: 127 / max |x| must be a number."""
ROUND = 1.5 * 2.0**23
"""Added to a small number, it leaves the nearest integer in the low bits, an even one where two are as near."""
NONE = 0x7F800000
"""The least bits of a float32 that is no finite number, but for its sign."""


def _filled_up(builder: Any, pointer: Any, count: Any) -> Any:
    """The first `count` numbers and zeros after them: where 32 numbers can be read."""
    place = cgutils.alloca_once(builder, ir.ArrayType(F32, GROUP))
    builder.store(ir.Constant(ir.ArrayType(F32, GROUP), None), place)
    copied = builder.bitcast(place, F32.as_pointer())
    with cgutils.for_range(builder, count) as loop:
        at = [loop.index]
        builder.store(builder.load(builder.gep(pointer, at)), builder.gep(copied, at))
    return copied


def _group(builder: Any, pointer: Any, record: Any) -> None:
    """32 numbers at `pointer` -> a record of activations."""
    halves = [load(builder, builder.gep(pointer, [whole(at)]), FLOATS, 4) for at in (0, LANES)]
    sizes = [builder.and_(builder.bitcast(x, WORDS), filled(WORDS, 0x7FFFFFFF)) for x in halves]
    larger = builder.select(builder.icmp_unsigned(">", *sizes), *sizes)
    most = call(builder, f"llvm.vector.reduce.umax.v{LANES}i32", I32, [larger])  # as integers: a NaN is the largest
    none = builder.icmp_unsigned(">=", most, ir.Constant(I32, NONE))
    size = builder.bitcast(most, F32)
    used = builder.and_(builder.not_(none), builder.fcmp_ordered(">", size, ir.Constant(F32, LEAST)))
    zero, one = ir.Constant(F32, 0.0), ir.Constant(F32, 1.0)
    inverse = builder.select(used, builder.fdiv(ir.Constant(F32, 127.0), builder.select(used, size, one)), zero)
    total = ir.Constant(WORDS, None)
    for number, x in enumerate(halves):
        known = builder.select(splat(builder, used), x, ir.Constant(FLOATS, None))
        moved = builder.fadd(builder.fmul(known, splat(builder, inverse)), filled(FLOATS, ROUND))
        bits = builder.shl(builder.bitcast(moved, WORDS), filled(WORDS, 16))  # of the low 16, with their sign
        q = builder.ashr(bits, filled(WORDS, 16))
        total = builder.add(total, q)
        store(builder, builder.trunc(q, ir.VectorType(I8, LANES)), builder.gep(record, [whole(LANES * number)]), 1)
    sum_ = call(builder, f"llvm.vector.reduce.add.v{LANES}i32", I32, [total])
    scale = builder.fmul(size, ir.Constant(F32, 1 / 127))
    scale = builder.select(used, scale, builder.select(none, ir.Constant(F32, math.nan), zero))
    store(builder, scale, builder.gep(record, [whole(SCALE)]), 4)
    store(builder, builder.fmul(scale, builder.sitofp(sum_, F32)), builder.gep(record, [whole(SCALED)]), 4)
    for at, times in ((LESS[3], -8), (LESS[1], -128)):
        store(builder, builder.mul(sum_, ir.Constant(I32, times)), builder.gep(record, [whole(at)]), 4)


@intrinsic
def read_group(_context, x, x_at, count, acts, acts_at):
    """`read_group(x, i, count, acts, byte)`: 32 numbers from place i on, of which `count` are there -> their record."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(data(context, builder, signature, args, 0), [args[1]])
        record = builder.gep(data(context, builder, signature, args, 3), [args[4]])
        with builder.if_else(builder.icmp_signed(">=", args[2], whole(GROUP)), likely=True) as (all_, some):
            with all_:
                _group(builder, pointer, record)
            with some:
                _group(builder, _filled_up(builder, pointer, args[2]), record)
        return context.get_dummy_value()

    n = types.int64
    return types.void(x, n, n, acts, n), generate
