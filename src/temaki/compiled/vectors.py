"""LLVM vectors for kernels: what an `@intrinsic` of this folder is written with.

A vector is a value of LLVM's own; the processor's registers are LLVM's business, so 16 floats are one register with
AVX-512, two with AVX2, four with NEON. Only the integer products ask which processor it is.
"""
# pyright: basic

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

LANES = 16
"""Float32 numbers in a vector here: outputs of a tile, places of a block of keys."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
FLOATS = ir.VectorType(F32, LANES)
HALVES = ir.VectorType(F16, LANES)
WORDS = ir.VectorType(I32, LANES)
BYTES = ir.VectorType(I8, 4 * LANES)


def whole(value: int) -> Any:
    """An int64 constant."""
    return ir.Constant(I64, value)


def filled(kind: Any, value: float) -> Any:
    """A vector constant with the same number in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def splat(builder: Any, value: Any, count: int = LANES) -> Any:
    """A vector with a scalar in every lane."""
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), filled(ir.VectorType(I32, count), 0))


def data(context: Any, builder: Any, signature: Any, args: Any, which: int) -> Any:
    """Where the array given as argument `which` begins."""
    return context.make_array(signature.args[which])(context, builder, args[which]).data


def load(builder: Any, pointer: Any, kind: Any, align: int = 1) -> Any:
    """A value of a kind from an address of any kind."""
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=align)


def store(builder: Any, value: Any, pointer: Any, align: int = 1) -> None:
    """The inverse of `load`."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=align)


def call(builder: Any, name: str, result: Any, args: Any) -> Any:
    """Call an LLVM intrinsic by its whole name."""
    kind = ir.FunctionType(result, [each.type for each in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def want(builder: Any, pointer: Any) -> None:
    """Ask for the line at an address, which is read later: into the second cache."""
    call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [pointer, *(ir.Constant(I32, number) for number in (0, 2, 1))])


def multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, fused wherever the processor can: the same for every number of rows, as the laws ask."""
    return call(builder, f"llvm.fmuladd.v{x.type.count}f32", x.type, [x, y, z])


@cache
def features() -> frozenset[str]:
    """What the processor that Numba compiles for can do, by LLVM's names ("avx2", "f16c", ..).

    NUMBA_CPU_NAME=generic and NUMBA_CPU_FEATURES, which Numba reads, change it; a name alone does not.
    """
    compiling: Any = cpu_target.target_context
    said = compiling.codegen().magic_tuple()[-1]
    return frozenset(each[1:] for each in said.split(",") if each.startswith("+"))


def widen(builder: Any, halves: Any) -> Any:
    """Float16 numbers given as a vector of halves, as float32, exactly.

    Where the processor has no instruction for it LLVM would call a function that is not there; integers do it then: the
    bits moved into place are the number times 2^-112, but for those that are none.
    """
    lanes = halves.type.count
    floats = ir.VectorType(F32, lanes)
    if features() & {"f16c", "avx512f", "neon"}:
        return builder.fpext(halves, floats)
    words = ir.VectorType(I32, lanes)
    bits = builder.zext(builder.bitcast(halves, ir.VectorType(I16, lanes)), words)
    size = builder.shl(builder.and_(bits, filled(words, 0x7FFF)), filled(words, 13))
    sign = builder.shl(builder.and_(bits, filled(words, 0x8000)), filled(words, 16))
    number = builder.fmul(builder.bitcast(size, floats), filled(floats, 2.0**112))
    none = builder.icmp_unsigned(">=", size, filled(words, 0x7C00 << 13))
    beyond = builder.or_(size, filled(words, 0x7F800000))
    return builder.bitcast(builder.or_(builder.select(none, beyond, builder.bitcast(number, words)), sign), floats)


@intrinsic
def half_at(_context, array, at):
    """`half_at(bytes, i)`: the float16 at byte i as float32, exactly."""

    def generate(context, builder, signature, args):
        pointer = builder.gep(data(context, builder, signature, args, 0), [args[1]])
        one = widen(builder, load(builder, pointer, ir.VectorType(F16, 1)))
        return builder.extract_element(one, ir.Constant(I32, 0))

    return types.float32(array, types.int64), generate
