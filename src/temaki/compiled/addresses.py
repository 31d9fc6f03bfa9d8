"""Memory by int64 addresses: what natives read and write vectors with, and how their loops are cut into runs."""
# pyright: basic

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as _intrinsic

from temaki.compiled import vectors as v
from temaki.compiled.native import ARGUMENTS
from temaki.compiled.table import FLOAT16, FLOAT32

intrinsic: Any = _intrinsic

BYTES = 4 * v.LANES
"""Bytes of a vector of float32 numbers."""


def pointer(builder: Any, address: Any) -> Any:
    """An address as a pointer to bytes."""
    return builder.inttoptr(address, v.I8.as_pointer())


def floats(builder: Any, address: Any) -> Any:
    """16 float32 numbers."""
    return v.load(builder, pointer(builder, address), v.FLOATS)


def one(builder: Any, address: Any) -> Any:
    """A float32 number."""
    return v.load(builder, pointer(builder, address), v.F32)


def keep(builder: Any, value: Any, address: Any) -> None:
    """Write a vector or a number."""
    v.store(builder, value, pointer(builder, address))


def stored(builder: Any, kind: int, address: Any) -> Any:
    """16 numbers of a kind of the cache, as float32."""
    if kind == FLOAT32:
        return floats(builder, address)
    if kind == FLOAT16:
        return v.widen(builder, v.load(builder, pointer(builder, address), v.HALVES))
    return builder.sitofp(v.load(builder, pointer(builder, address), ir.VectorType(v.I8, v.LANES)), v.FLOATS)


def soon(builder: Any, address: Any) -> None:
    """Ask for what will be read soon."""
    how = (ir.Constant(v.I32, n) for n in (0, 3, 1))
    v.call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [pointer(builder, address), *how])


def along(builder: Any, first: Any, *steps: tuple[Any, Any]) -> Any:
    """first + number * size + .., int64; each number an LLVM value, each size one too or an int."""
    for number, size in steps:
        many = size if isinstance(size, ir.Value) else v.whole(size)
        first = builder.add(first, builder.mul(number, many))
    return first


def runs(builder: Any, count: Any, sizes: tuple[int, ...], body: Callable[[int, Any], None]) -> None:
    """body(size, first) over 0..count-1, in runs of the first size while they fit, then of the next; the last is 1."""
    done: Any = v.whole(0)
    for size in sizes:
        many = builder.sdiv(builder.sub(count, done), v.whole(size))
        with cgutils.for_range(builder, many, intp=v.I64) as loop:
            body(size, along(builder, done, (loop.index, size)))
        done = along(builder, done, (many, size))


def accumulators(builder: Any, many: int) -> list[Any]:
    """Places for vectors, which LLVM keeps in registers."""
    return [cgutils.alloca_once(builder, v.FLOATS) for _ in range(many)]


def written(write: Callable[[Any, Any], None]) -> Any:
    """What an intrinsic of a native's arguments gives back: its signature, and `write(builder, args)` as its code."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        write(builder, args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * ARGUMENTS), generate


@intrinsic
def address_of(_context, array, at):
    """The address of item `at` of a one-dimensional array."""

    def generate(context, builder, signature, args):
        return builder.ptrtoint(builder.gep(v.data(context, builder, signature, args, 0), [args[1]]), v.I64)

    return types.int64(array, types.int64), generate


@intrinsic
def clear(_context, address, many):
    """Write `many` vectors of 16 float32 zeros to an address."""

    def generate(context, builder, _signature, args):
        with cgutils.for_range(builder, args[1], intp=v.I64) as loop:
            keep(builder, v.filled(v.FLOATS, 0.0), along(builder, args[0], (loop.index, BYTES)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
