"""Sixteen float32 numbers as one value inside compiled loops: one register with AVX-512, two with AVX2, four with NEON.

Plain loops over arrays become vectors only where the compiler can prove that no two arrays meet; a recurrence over many
small arrays is where it cannot. Here the vector is written down: `a = load(array, i)`, `+`, `-` and `*` lane by lane
(never regrouped, so bits do not depend on neighbours), `fma`, `exp`, `store(array, i, a)`.
"""
# pyright: basic

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic as _intrinsic
from numba.extending import overload, register_model

LANES = 16
"""Float32 numbers in a value."""

intrinsic: Any = _intrinsic
_FLOAT, _WORD = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_WORDS = ir.VectorType(_WORD, LANES)


class Lanes(types.Type):
    """The type of sixteen numbers, as Numba sees it."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


def _call(builder: Any, name: str, *values: Any) -> Any:
    """An operation of LLVM's by its name without the type."""
    kind = values[0].type
    bits = "v16f32" if isinstance(kind, ir.VectorType) else "f32"
    function = ir.FunctionType(kind, [kind] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.{bits}"), values)


def _filled(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _single(value: float) -> Any:
    return _filled(_VECTOR, float(np.float32(value)))


def _spread(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), _filled(_WORDS, 0))


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), _VECTOR.as_pointer())


@intrinsic
def load(_context, array, at):
    """`load(array, i)`: the numbers i .. i + 15 of a dense float32 array."""

    def generate(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args), align=4)

    return lanes(array, types.int64), generate


@intrinsic
def store(_context, array, at, value):
    """`store(array, i, value)`: the inverse of `load`."""

    def generate(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate


@intrinsic
def spread(_context, value):
    """`spread(number)`: one float32 in every lane."""

    def generate(_context, builder, _signature, args):
        return _spread(builder, args[0])

    return lanes(types.float32), generate


@intrinsic
def total(_context, value):
    """`total(value)`: the sum of all lanes, in pairs: float32."""

    def generate(_context, builder, _signature, args):
        found, count = args[0], LANES
        while count > 1:
            count //= 2
            where = ir.Constant(_WORDS, [(i + count) % LANES for i in range(LANES)])
            found = builder.fadd(found, builder.shuffle_vector(found, found, where))
        return builder.extract_element(found, ir.Constant(_WORD, 0))

    return types.float32(lanes), generate


@intrinsic
def fma(_context, a, b, c):
    """`fma(a, b, c)`: a b + c, rounded once."""

    def generate(_context, builder, _signature, args):
        return _call(builder, "fma", *args)

    return lanes(lanes, lanes, lanes), generate


@intrinsic
def larger(_context, a, b):
    """`larger(a, b)`: lane by lane; with a NaN, the other."""

    def generate(_context, builder, _signature, args):
        return _call(builder, "maxnum", *args)

    return lanes(lanes, lanes), generate


@intrinsic
def settled(_context, value):
    """`settled(value)`: 0 where a number is below 1e-30 in size.

    Now and then in a recurrence, so that what fades never becomes denormal, a hundred times slower in products.
    """

    def generate(_context, builder, _signature, args):
        small = builder.fcmp_ordered("<", _call(builder, "fabs", args[0]), _single(1e-30))
        return builder.select(small, _single(0.0), args[0])

    return lanes(lanes), generate


def _operation(name: str) -> Any:
    @intrinsic
    def operation(_context, a, b):
        def generate(_context, builder, _signature, args):
            return getattr(builder, name)(args[0], args[1])

        return lanes(lanes, lanes), generate

    return operation


_added, _taken, _times, _over = (_operation(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@overload(operator.add)
def _add(a, b):
    if a is lanes and b is lanes:
        return lambda a, b: _added(a, b)
    return None


@overload(operator.sub)
def _subtract(a, b):
    if a is lanes and b is lanes:
        return lambda a, b: _taken(a, b)
    return None


@overload(operator.mul)
def _multiply(a, b):
    if a is lanes and b is lanes:
        return lambda a, b: _times(a, b)
    return None


@overload(operator.truediv)
def _divide(a, b):
    if a is lanes and b is lanes:
        return lambda a, b: _over(a, b)
    return None


@intrinsic
def _negated(_context, value):
    def generate(_context, builder, _signature, args):
        return builder.fneg(args[0])

    return lanes(lanes), generate


@overload(operator.neg)
def _negative(value):
    if value is lanes:
        return lambda value: _negated(value)
    return None


@intrinsic
def exp(_context, value):
    """`exp(value)`: as `team.exp32`, to the bit, in every lane: 0 below -60, that of 88 above 88, NaN stays NaN."""

    def generate(_context, builder, _signature, args):
        x = args[0]
        x = builder.select(builder.fcmp_unordered("<", x, _single(88.0)), x, _single(88.0))
        n = _call(builder, "rint", builder.fmul(x, _single(1.4426950408889634)))
        r = _call(builder, "fma", n, _single(2.12194440e-4), _call(builder, "fma", n, _single(-0.693359375), x))
        p = _single(1.9875691500e-4)
        for each in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = _call(builder, "fma", p, r, _single(each))
        p = _call(builder, "fma", _call(builder, "fma", p, r, _single(1.0)), r, _single(1.0))
        whole = builder.add(builder.fptosi(n, _WORDS), _filled(_WORDS, 127))
        found = builder.fmul(p, builder.bitcast(builder.shl(whole, _filled(_WORDS, 23)), _VECTOR))
        return builder.select(builder.fcmp_ordered("<", x, _single(-60.0)), _single(0.0), found)

    return lanes(lanes), generate
