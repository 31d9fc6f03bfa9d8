"""The set bits of a mask, written out as places: sixteen of them in about as many instructions where AVX-512 helps."""
# pyright: basic, reportCallIssue=false

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from temaki.base.compile import bare_kernel, ones, trailing

ROOM = 64
"""Items behind the first that `write` may touch, however few it is to write."""
SOON = 40
"""Places that are written without a look at their number: seldom more are found in 64 bytes."""

ZERO, ONE = np.uint64(0), np.uint64(1)


@intrinsic
def _compresses(_context):
    """`_compresses()`: whether the code is for a processor that packs bytes by a mask (AVX-512 VBMI2), a constant."""

    def generate(context, _builder, _signature, _args):
        _, _, features = context.codegen().magic_tuple()
        return ir.Constant(ir.IntType(1), "+avx512vbmi2" in features)

    return types.boolean(), generate


@intrinsic
def _write_packed(_context, out, place, base, mask):
    """`write`, with the places 0..63 packed by the mask."""

    def generate(context, builder, signature, args):
        array, place, base, mask = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        small, wide = ir.IntType(8), ir.IntType(64)
        bytes_, bits = ir.VectorType(small, 64), ir.VectorType(ir.IntType(1), 64)
        kind = ir.FunctionType(bytes_, [bytes_, bits, bytes_])
        pack = cgutils.get_or_insert_function(builder.module, kind, "llvm.experimental.vector.compress.v64i8")
        steps = ir.Constant(bytes_, list(range(64)))
        packed = builder.call(pack, [steps, builder.bitcast(mask, bits), ir.Constant(bytes_, ir.Undefined)])
        eight = ir.VectorType(wide, 8)
        one = builder.insert_element(ir.Constant(eight, ir.Undefined), base, ir.Constant(ir.IntType(32), 0))
        bases = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))

        def store(first, stop):
            for group in range(first, stop, 8):
                chosen = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(group, group + 8)))
                part = builder.zext(builder.shuffle_vector(packed, packed, chosen), eight)
                pointer = builder.gep(data, [builder.add(place, ir.Constant(wide, group))])
                builder.store(builder.add(part, bases), builder.bitcast(pointer, eight.as_pointer()), align=8)

        store(0, SOON)
        many = builder.icmp_unsigned(">", builder.ctpop(mask), ir.Constant(wide, SOON))
        with builder.if_then(many, likely=False):
            store(SOON, 64)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp, types.uint64), generate


@bare_kernel
def write_plain(out, place, base, mask):
    """`write` for any processor."""
    while mask != ZERO:
        for step in range(8):
            out[place + step] = base + trailing(mask)
            mask &= mask - ONE
        place += 8


@bare_kernel
def write(out, place, base, mask):
    """Write base + k for each set bit k of a mask, in order, into an int64 array from `place` on; gives their number.

    Items up to ROOM behind `place` must be there and may be overwritten.
    """
    if _compresses():
        _write_packed(out, place, base, mask)
    else:
        write_plain(out, place, base, mask)
    return ones(mask)
