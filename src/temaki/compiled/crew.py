"""Threads for the step: they wait inside compiled code for the next call, and meet at barriers that spin.

A helper is a Python thread that sits in `serve`, outside of the interpreter's lock. Its desk says how it is: away (it
waits for an event), waiting (it watches its desk) or called. Who calls takes the helpers that are there and does the
work with them; as no result depends on how many work, one that is late is simply left out. A helper that was not
called for some milliseconds goes away. Waiting means to look again and again, then to give the processor to others.
"""
# pyright: basic

import os
import queue
import sys
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic

from temaki.base.compile import bare_kernel, threads
from temaki.compiled.vectors import call

intrinsic: Any = _intrinsic

AWAY, WAITING, CLAIMED, CALLED = 0, 1, 2, 3
LINE = 16
"""int64 numbers from one word to the next, so that none share a cache line."""
ARRIVED, PHASE, CREW, DESKS = 0, LINE, 2 * LINE, 3 * LINE
"""Where the board keeps: who came to the barrier, how often it opened, how many work; each helper's desk and number."""
SPINS = 2000
"""Looks before the processor is given away between looks."""
PATIENCE = 3000
"""Looks after that before a helper goes away: some milliseconds on a free processor."""
LATE = 20_000
"""Looks that a caller grants helpers that were just woken: about as long as a thread takes to wake."""

_WORD = ir.IntType(64)


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def look(_context, board, at):
    """The word at board[at], and all that was written before it."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(_place(context, builder, signature, args), "acquire", 8)

    return types.int64(board, types.int64), generate


@intrinsic
def tell(_context, board, at, value):
    """Write a word that others look at, after all that was written before."""

    def generate(context, builder, signature, args):
        builder.store_atomic(args[2], _place(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(board, types.int64, types.int64), generate


@intrinsic
def add(_context, board, at, value):
    """Add to a word; what it was."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _place(context, builder, signature, args), args[2], "acq_rel")

    return types.int64(board, types.int64, types.int64), generate


@intrinsic
def swap(_context, board, at, old, new):
    """Write `new` where `old` stands; whether it stood there."""

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature, args)
        found = builder.cmpxchg(place, args[2], args[3], "acq_rel", "acquire")
        return builder.zext(builder.extract_value(found, 1), _WORD)

    return types.int64(board, types.int64, types.int64, types.int64), generate


@intrinsic
def breathe(_context, looks):
    """Between two looks: a short pause, after `SPINS` looks the processor for somebody else."""

    def generate(context, builder, _signature, args):
        if sys.platform != "win32":
            with builder.if_then(builder.icmp_signed(">", args[0], ir.Constant(_WORD, SPINS)), likely=False):
                kind = ir.FunctionType(ir.IntType(32), [])
                found = builder.module.globals.get("sched_yield") or ir.Function(builder.module, kind, "sched_yield")
                builder.call(found, [])
        if builder.module.triple.startswith(("x86_64", "i686")):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@bare_kernel
def meet(board, crew):
    """Wait until all of the crew came here; what each wrote before, all see after."""
    if crew == 1:
        return
    phase = look(board, PHASE)
    if add(board, ARRIVED, 1) == crew - 1:
        tell(board, ARRIVED, 0)
        tell(board, PHASE, phase + 1)
        return
    looks = 0
    while look(board, PHASE) == phase:
        looks += 1
        breathe(looks)


@bare_kernel
def gather(board, helpers):
    """Call the helpers that are there, or come soon; how many work, the caller included. `start` lets them begin."""
    crew = 1
    looks = 0
    for helper in range(helpers):
        desk = DESKS + LINE * helper
        while look(board, desk) != WAITING and looks < LATE:
            looks += 1
            breathe(0)
        if swap(board, desk, WAITING, CLAIMED):
            board[desk + 1] = crew
            crew += 1
    board[CREW] = crew
    for helper in range(helpers):
        swap(board, DESKS + LINE * helper, CLAIMED, CALLED)
    return crew


@bare_kernel
def called(board, helper):
    """Wait at a helper's desk: its number in the crew, or 0 where nobody called and it is away now."""
    desk = DESKS + LINE * helper
    if not swap(board, desk, AWAY, WAITING):
        swap(board, desk, CALLED, WAITING)  # a call ended: its last barrier is behind
    looks = 0
    while look(board, desk) != CALLED:
        looks += 1
        breathe(looks)
        if looks > SPINS + PATIENCE and swap(board, desk, WAITING, AWAY):
            return 0
    return board[desk + 1]


class Crew:
    """Helpers for one kernel and its arguments, made when they are first needed and again in a forked child.

    serve: a kernel (board, helper, *arguments) that works whenever `called` says so, until it is away.
    """

    def __init__(self, serve: Any, size: int | None = None):
        self.size = threads() if size is None else size
        self.board = np.zeros(DESKS + LINE * max(1, self.size), np.int64)
        self._serve = serve
        self._process = 0
        self._desks: list[_Desk] = []

    @property
    def helpers(self) -> int:
        """Threads beside the caller."""
        return self.size - 1

    def wake(self, arguments: tuple[Any, ...]) -> None:
        """Before a call: let the helpers that went away come back."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.board[:] = 0
            self._desks = [_Desk(self._serve, self.board, i) for i in range(self.helpers)]
        for i, desk in enumerate(self._desks):
            if self.board[DESKS + LINE * i] == AWAY:
                desk.wake(arguments)

    def close(self) -> None:
        """Send the helpers home."""
        for desk in self._desks:
            desk.close()


class _Desk:
    """One helper."""

    def __init__(self, serve: Any, board: Any, number: int):
        self._given: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._inside = threading.Event()
        arguments = (serve, board, number, self._given, self._inside)
        threading.Thread(target=_stay, args=arguments, daemon=True, name=f"temaki {number + 1}").start()

    def wake(self, arguments: tuple[Any, ...]) -> None:
        if not self._inside.is_set():
            self._inside.set()
            self._given.put(arguments)

    def close(self) -> None:
        self._given.put(None)


def _stay(serve: Any, board: Any, number: int, given: Any, inside: threading.Event) -> None:
    while (arguments := given.get()) is not None:
        serve(board, number, *arguments)
        del arguments
        inside.clear()
