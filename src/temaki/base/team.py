"""torch's own threads for our compiled loops, so that a fused loop costs no thread of its own and no hand-over.

A task is a Python function of one address, compiled on first use as a C callback (kept on disk, see `base/compile`).
The numbers it works on lie there as int64: a counter, how many parts there are, how many items, then what the caller
gave: addresses of tensors, sizes, floats by their bits. The threads of torch's OpenMP pool take part after part until
none is left. How items are cut into parts never depends on the number of threads, so sums made part by part have the
same bits on any number of them. Where torch brings no GNU OpenMP of its own the door is shut, and callers run their
torch twins.
"""
# pyright: basic

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic as _intrinsic

from temaki.base.compile import kept

carray: Any = numba.carray  # type: ignore[attr-defined]
intrinsic: Any = _intrinsic
_inside: Any = njit(error_model="numpy", nogil=True)

_GIVEN = 3
"""Where the caller's own numbers begin."""
_KNOWN = (torch.float32, torch.int64)
_COMPILING = Lock()
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Sums may be regrouped, so that they fill whole vectors; NaN and infinity keep their meaning."""


@cache
def _parallel() -> Any:
    """`GOMP_parallel` of the OpenMP library that torch itself runs on; None where it brings none."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found or not torch.backends.openmp.is_available():
        return None
    start = ctypes.CDLL(str(found[0])).GOMP_parallel
    start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


def open() -> bool:
    """Whether there are threads of torch's to run on."""
    return _parallel() is not None


def serves(*tensors: torch.Tensor) -> bool:
    """Whether tasks can work on these tensors: dense float32 in the processor's memory, and the door is open.

    Tensors of another class (spread over processes, traced) are left to torch.
    """
    return open() and all(
        type(x) in _PLAIN and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in tensors
    )


class Task:
    """A compiled loop that all of torch's threads run together."""

    def __init__(self, function: Callable[[Any], None]):
        self.function = function
        self._callback: Any = None

    def __call__(self, items: int, parts: int, *given: int | float | torch.Tensor | None) -> None:
        """Do all items, cut into so many parts; a tensor is given by its address (None: 0), a float by its bits.

        Tensors are held for as long as the call takes; what they point to is not checked.
        """
        callback = self._callback or self._compiled()
        numbers = [0, parts, items]
        for each in given:
            if isinstance(each, torch.Tensor):
                assert each.dtype in _KNOWN, f"no task for {each.dtype}"
                assert each.is_contiguous(), f"no task for strides {each.stride()}"
                numbers.append(each.data_ptr())
            elif isinstance(each, float):
                numbers.append(int(np.float64(each).view(np.int64)))
            else:
                numbers.append(each or 0)
        told = np.array(numbers, np.int64)
        threads = min(parts, torch.get_num_threads())
        _parallel()(callback.address, told.ctypes.data, threads, 0)

    def _compiled(self) -> Any:
        options, signature = {"fastmath": _FAST, "error_model": "numpy"}, ((types.voidptr,), types.void)
        with _COMPILING:  # of threads that come together one compiles, and none calls what is not ready
            if self._callback is None:
                callback = kept(self.function, CFunc(self.function, signature, locals={}, options=options))
                callback.compile()
                self._callback = callback
            return self._callback


def task(function: Callable[[Any], None]) -> Task:
    """Make a function of an address a `Task`; nothing is compiled before it is called."""
    return Task(function)


def loop(function: Callable[..., Any]) -> Any:
    """A part of a task, compiled into it: sums may be regrouped, division by zero gives what the processor gives."""
    return njit(fastmath=_FAST, error_model="numpy", nogil=True)(function)


def parts(items: int, cost: int) -> int:
    """How many parts to cut items into, each costing about so many numbers: 1 for small work, at most 32.

    >>> parts(8, 8), parts(2048, 1536)
    (1, 32)
    """
    return max(1, min(32, items, items * cost >> 14))


# ---- for use inside tasks only --------------------------------------------------------------------------------------


@intrinsic
def _take(_context, data):
    """The next part that no thread has taken yet."""

    def generate(_context, builder, _signature, args):
        counter = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr), generate


@intrinsic
def _pointer(_context, address):
    def generate(_context, builder, _signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def real(_context, bits):
    """`real(given[i])`: the float32 that was given as a float."""

    def generate(_context, builder, _signature, args):
        return builder.fptrunc(builder.bitcast(args[0], ir.DoubleType()), ir.FloatType())

    return types.float32(types.int64), generate


@_inside
def given(data):
    """The caller's own numbers: int64 [..]."""
    return carray(data, (64,), np.int64)[_GIVEN:]


@_inside
def span(data):
    """(part, first, last): a part that nobody has taken, items first..last-1; part is -1 when none is left."""
    told = carray(data, (_GIVEN,), np.int64)
    part = _take(data)
    if part >= told[1]:
        return -1, 0, 0
    return part, told[2] * part // told[1], told[2] * (part + 1) // told[1]


@_inside
def floats(address, size):
    """The float32 numbers at an address: float32 [size]."""
    return carray(_pointer(address), (size,), np.float32)


@_inside
def integers(address, size):
    """The int64 numbers at an address: int64 [size]."""
    return carray(_pointer(address), (size,), np.int64)


@intrinsic
def larger(_context, a, b):
    """The larger of two float32 numbers; with a NaN, either."""

    def generate(_context, builder, _signature, args):
        single = ir.FloatType()
        kind = ir.FunctionType(single, [single, single])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.maxnum.f32")
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


@intrinsic
def exp32(_context, x):
    """e^x in float32 to 1 unit in the last place or so, 0 below -60, that of 88 above 88; NaN stays NaN.

    What is below e^-60 counts nothing beside 1, and would become denormal numbers, a hundred times slower in products.
    Cody and Waite 1980: x = n ln 2 + r, e^r by a polynomial of degree 6 (Cephes' coefficients), n into the exponent.
    """
    single, word = ir.FloatType(), ir.IntType(32)

    def generate(_context, builder, _signature, args):
        def const(value):
            return ir.Constant(single, float(np.float32(value)))

        def call(name, *values):
            kind = ir.FunctionType(single, [single] * len(values))
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

        def fma(a, b, c):
            return call("llvm.fma.f32", a, b, c)

        x = args[0]
        x = builder.select(builder.fcmp_unordered("<", x, const(88.0)), x, const(88.0))
        n = call("llvm.rint.f32", builder.fmul(x, const(1.4426950408889634)))
        r = fma(n, const(2.12194440e-4), fma(n, const(-0.693359375), x))
        p = const(1.9875691500e-4)
        for each in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = fma(p, r, const(each))
        p = fma(fma(p, r, const(1.0)), r, const(1.0))
        exponent = builder.shl(builder.add(builder.fptosi(n, word), ir.Constant(word, 127)), ir.Constant(word, 23))
        found = builder.fmul(p, builder.bitcast(exponent, single))
        return builder.select(builder.fcmp_ordered("<", x, const(-60.0)), const(0.0), found)

    return types.float32(types.float32), generate
