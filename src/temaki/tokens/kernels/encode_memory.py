"""The memory of the BPE encoder: pre-token -> ids, one table for all threads, in lines of the processor's cache.

A slot is 32 bytes, two a line: 16 bytes of key, 16 of value. The key of a pre-token of up to 15 bytes is those bytes
and the length; of a longer one it is a hash, and the bytes are compared as well. The value is up to four ids; more of
them, and the bytes of a long pre-token, lie in the arena. A slot is claimed, filled, and then published by the half of
its key that is never 0, so that readers need no lock: they see a slot whole or not at all, and what they miss they work
out.
"""
# pyright: basic, reportCallIssue=false

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from temaki.base.compile import _pointer, bare_kernel, fold, load64, store64

LINE = 64
SLOT = 32
SHORT = 15
"""Bytes of a pre-token that is its own key."""
LONGEST = 255
"""Bytes of a pre-token that is remembered."""
INLINE = 4
"""Ids that a slot holds."""
PROBES = 8
"""Lines that are looked at before a pre-token counts as unknown."""

ZERO = np.uint64(0)
TOP = np.uint64(56)
COUNT_AT = np.uint64(60)
COUNT = np.uint64(7)
LENGTH = np.uint64(15)
ELSEWHERE = np.uint64(7)
"""The count of a slot whose ids lie in the arena."""
SAME = np.uint64(0x8FFF_FFFF_FFFF_FFFF)
"""The bits of a key that are compared: all but the count."""
SEGMENT = np.uint64(1 << 63)
"""The bit of a piece of a pre-token that must not be taken for a whole one."""
BUSY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""The mark of a claimed slot; no UTF-8 text has this key."""
LONG = np.uint64(2)
"""A bit that each key of a long pre-token has, so that none is 0."""
MIX_A, MIX_B, MIX_C = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F)
LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(16)], np.uint64)
HIGH = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], np.uint64)

USED, ARENA = 0, 1
"""Places of `Memory.state`: slots in use, and items of the arena in use."""


class Memory(NamedTuple):
    """One table. `slots` begins at a line; the number of lines is a power of 2."""

    slots: Any
    """uint8 [lines * 64]."""
    arena: Any
    """uint32: what does not fit into slots."""
    state: Any
    """int64 [2]: see USED and ARENA."""
    limit: int
    """Slots that may be in use."""


@intrinsic
def seen64(_context, array, at):
    """`seen64(bytes, i)`: an aligned uint64; what is read after it is not older than it."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load_atomic(builder.bitcast(pointer, ir.IntType(64).as_pointer()), "acquire", 8)

    return types.uint64(array, types.intp), generate


@intrinsic
def publish64(_context, array, at, value):
    """`publish64(bytes, i, value)`: write an aligned uint64 after all that was written before."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store_atomic(args[2], builder.bitcast(pointer, ir.IntType(64).as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), generate


@intrinsic
def claim64(_context, array, at, value):
    """`claim64(bytes, i, value)`: write an aligned uint64 if it is 0; whether it was."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        word = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        pair = builder.cmpxchg(word, ir.Constant(ir.IntType(64), 0), args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(array, types.intp, types.uint64), generate


@intrinsic
def add64(_context, array, at, value):
    """`add64(state, i, value)`: add to an int64 that other threads change too; what it was."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), generate


@bare_kernel
def short_key(text, at, n):
    """The key of the n <= 15 bytes from `at` on."""
    return load64(text, at) & LOW[np.uint64(n)], load64(text, at + 8) & HIGH[np.uint64(n)] | np.uint64(n) << TOP


@bare_kernel
def long_key(text, at, n):
    """The key of n > 15 bytes: a hash."""
    low = MIX_A ^ np.uint64(n)
    for i in range(0, n - 8, 8):
        low = fold(low ^ load64(text, at + i), MIX_B)
    low = fold(low ^ load64(text, at + n - 8), MIX_C)
    return low, low * MIX_A >> np.uint64(8) | LONG


@bare_kernel
def line_of(slots, low, high):
    """The place of the line where a key belongs."""
    return np.int64(fold(low ^ MIX_A, high ^ MIX_B) & np.uint64(slots.size - 1)) & ~np.int64(LINE - 1)


@bare_kernel
def find(slots, low, high, line):
    """The slot of a key, -1 if it is not there."""
    for _ in range(PROBES):
        for slot in (line, line + SLOT):
            stored = seen64(slots, slot + 8)
            if stored == ZERO:
                return -1
            if (stored ^ high) & SAME == ZERO and load64(slots, slot) == low:
                return slot
        line = (line + LINE) & (slots.size - 1)
    return -1


@bare_kernel
def count_of(slots, slot):
    """How many ids a slot holds; ELSEWHERE if they lie in the arena."""
    return np.int64(seen64(slots, slot + 8) >> COUNT_AT & COUNT)


@bare_kernel
def same_bytes(memory, slot, text, at, n):
    """Whether the long pre-token of a slot is text[at:at+n]."""
    if np.int64(load64(memory.slots, slot + 24)) >> 32 != n:
        return False
    place = np.int64(load64(memory.slots, slot + 16))
    for i in range(0, n - 8, 8):
        if load64(memory.arena, place + (i >> 2)) != load64(text, at + i):
            return False
    return load64(memory.arena, place + ((n + 3) >> 2)) == load64(text, at + n - 8)


@bare_kernel
def recall(memory, slot, n, out, o):
    """Copy the ids of a slot whose ids lie in the arena to out[o:]; how many. `n`: bytes kept before the ids."""
    place = np.int64(load64(memory.slots, slot + 16))
    count = np.int64(load64(memory.slots, slot + 24)) & 0xFFFFFFFF
    if n > 0:
        place += ((n + 3) >> 2) + 2
    for i in range(count):
        out[o + i] = memory.arena[place + i]
    return count


@bare_kernel
def remember(memory, low, high, line, text, at, n, ids, first, count):
    """Keep ids[first:first+count] under a key. `n`: bytes of a long pre-token, text[at:at+n]; 0 for a short one.

    Does nothing where the table or the arena is full.
    """
    slots = memory.slots
    if memory.state[USED] >= memory.limit:
        return
    place = np.int64(0)
    inline = n == 0 and count <= INLINE
    if not inline:
        room = count + (((n + 3) >> 2) + 2 if n > 0 else 0)
        if memory.state[ARENA] + room > memory.arena.size:
            return
        place = add64(memory.state, ARENA, room)
        if place + room > memory.arena.size:
            return
        _keep(memory.arena, place, text, at, n, ids, first, count)
    for _ in range(PROBES):
        for slot in (line, line + SLOT):
            if seen64(slots, slot + 8) == ZERO and claim64(slots, slot + 8, BUSY):
                store64(slots, slot, low)
                if inline:
                    store64(slots, slot + 16, load64(ids, first))
                    store64(slots, slot + 24, load64(ids, first + 2))
                    publish64(slots, slot + 8, high | np.uint64(count) << COUNT_AT)
                else:
                    store64(slots, slot + 16, np.uint64(place))
                    store64(slots, slot + 24, np.uint64(n << 32 | count))
                    publish64(slots, slot + 8, high | ELSEWHERE << COUNT_AT)
                add64(memory.state, USED, 1)
                return
        line = (line + LINE) & (slots.size - 1)


@bare_kernel
def _keep(arena, place, text, at, n, ids, first, count):
    """Write the bytes text[at:at+n] (the last 8 of them again, for the comparison) and the ids to the arena."""
    if n > 0:
        for i in range(0, n, 4):
            arena[place + (i >> 2)] = np.uint32(load64(text, at + i) & np.uint64(0xFFFFFFFF))
        place += (n + 3) >> 2
        last = load64(text, at + n - 8)
        arena[place] = np.uint32(last & np.uint64(0xFFFFFFFF))
        arena[place + 1] = np.uint32(last >> np.uint64(32))
        place += 2
    for i in range(count):
        arena[place + i] = ids[first + i]


@bare_kernel
def move(memory, larger):
    """Put what `memory` knows into an empty, larger table, while other threads may still add to `memory`."""
    slots, new = memory.slots, larger.slots
    for slot in range(0, slots.size, SLOT):
        high = seen64(slots, slot + 8)
        if high in (ZERO, BUSY):
            continue
        low = load64(slots, slot)
        _place(new, low, high, load64(slots, slot + 16), load64(slots, slot + 24))
        larger.state[USED] += 1
    used = min(memory.state[ARENA], memory.arena.size)
    for i in range(used):
        larger.arena[i] = memory.arena[i]
    larger.state[ARENA] = used


@bare_kernel
def _place(slots, low, high, third, fourth):
    line = line_of(slots, low, high & SAME)
    while True:
        for slot in (line, line + SLOT):
            if load64(slots, slot + 8) == ZERO:
                store64(slots, slot, low)
                store64(slots, slot + 8, high)
                store64(slots, slot + 16, third)
                store64(slots, slot + 24, fourth)
                return
        line = (line + LINE) & (slots.size - 1)
