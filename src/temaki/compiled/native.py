"""Loops that are compiled once and called by their address.

A kernel that calls another one holds a copy of it, and so does whoever calls the two: large loops would be compiled
again at every level. A native takes eight int64 numbers and gives nothing back; kernels find its address in a table
that they are given. It is compiled, or read from the disk, when its address is first asked for.
"""
# pyright: basic

from collections.abc import Callable
from threading import Lock
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic as _intrinsic

from temaki.base.compile import kept

intrinsic: Any = _intrinsic

ARGUMENTS = 8
"""What is not needed is 0."""
_COMPILING = Lock()


class Native:
    """A function of eight int64 numbers, compiled on first use and kept on disk."""

    def __init__(self, function: Callable[..., None]):
        self.function = function
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Where the compiled function begins in memory."""
        with _COMPILING:
            if self._compiled is None:
                signature = ((types.int64,) * ARGUMENTS, types.void)
                options = {"error_model": "numpy", "nogil": True}
                compiled = kept(self.function, CFunc(self.function, signature, locals={}, options=options))
                compiled.compile()
                self._compiled = compiled
            return self._compiled.address


def native(function: Callable[..., None]) -> Native:
    """Make a function of eight int64 numbers a `Native`; nothing is compiled yet."""
    return Native(function)


@intrinsic
def call_native(_context, address, a, b, c, d, e, f, g, h):
    """Call the native at an address."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * ARGUMENTS)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (ARGUMENTS + 1)), generate
