"""Counting pre-tokens: tables of words with their counts, filled straight from the text.

A word of up to 23 bytes is three uint64 with its length in the top byte, and shares a slot of 32 bytes with its count,
two slots to a cache line. Longer words lie in an arena; their slots hold hash, place, length and count. Words are cut,
packed and hashed a few hundred at a time, and their slots asked for, before the first of them is looked up.
"""
# pyright: basic, reportCallIssue=false

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from temaki.base.compile import fold, kernel, load64, prefetch
from temaki.tokens.kernels import split

PACKED = 23
"""Bytes up to which a word is packed into its slot."""
BATCH = 512
"""Words that are cut before they are counted."""
PADDING = 64
"""Bytes that must be readable after a text."""

DONE, SHORT_FULL, LONG_FULL, ARENA_FULL = range(4)
"""How a kernel ends: all counted, or a table that has to grow first."""

# Places in `state`, int64 [5]: the run and the place in the text that come next; slots and bytes taken.
RUN, AT, SHORTS, LONGS, BYTES = range(5)


class Table(NamedTuple):
    """Words and their counts; slots are empty (count 0) or taken, their number a power of two."""

    short: ndarray
    """uint64 [4 n]: a packed word (3), its count."""
    long: ndarray
    """uint64 [4 m]: hash, place in the arena, length, count."""
    arena: ndarray
    """uint8: the long words, PADDING bytes after the last."""


class Batch(NamedTuple):
    """Room for BATCH words."""

    end: ndarray
    """int64 [BATCH]."""
    begin: ndarray
    """int64 [BATCH]."""
    slot: ndarray
    """int64 [BATCH]: 4 times the slot where the look-up begins."""
    packed: ndarray
    """uint64 [3 BATCH]; of a long word the first is its hash."""
    mask: ndarray
    """uint64 [3 * (PACKED + 1)]: what belongs to a word of n bytes."""


def batch() -> Batch:
    """Room for one thread."""
    mask = np.zeros((PACKED + 1, 24), np.uint8)
    for length in range(PACKED + 1):
        mask[length, :length] = 255
    words = (np.zeros(BATCH, np.int64) for _ in range(3))
    return Batch(*words, np.zeros(3 * BATCH, np.uint64), mask.view(np.uint64).reshape(-1))


# ---- one word --------------------------------------------------------------------------------------------------------


@kernel
def _mixed(low, middle, high):
    """The hash of a packed word."""
    inner = fold(middle ^ np.uint64(0xA0761D6478BD642F), high ^ np.uint64(0xE7037ED1A0B428DB))
    return fold(low ^ np.uint64(0x8EBC6AF09C88C6E3), inner ^ np.uint64(0x589965CC75374CC3))


@kernel
def _hashed(text, begin, end):
    """The hash of a long word; never 0. Reads up to 7 bytes after it, which do not count."""
    value = np.uint64(end - begin)
    while begin < end:
        part = load64(text, begin)
        if end - begin < 8:
            part &= (np.uint64(1) << np.uint64(8 * (end - begin))) - np.uint64(1)
        value = fold(value ^ np.uint64(0xA0761D6478BD642F), part ^ np.uint64(0xE7037ED1A0B428DB))
        begin += 8
    return value | np.uint64(1)


@kernel
def _put_short(short, at, low, middle, high, count):
    """Add to a packed word's count, from 4 times slot `at` on; 1 if it is new, else 0."""
    while True:
        if short[at + 2] == high and short[at] == low and short[at + 1] == middle:
            short[at + 3] += count
            return 0
        if short[at + 3] == 0:
            short[at], short[at + 1], short[at + 2], short[at + 3] = low, middle, high, count
            return 1
        at = (at + 4) & (len(short) - 1)


@kernel
def _put_long(long, arena, used, text, begin, end, value, count):
    """Add to a long word's count; its bytes go to arena[used:] and 1 is given if it is new, else 0."""
    length = end - begin
    at = 4 * np.int64(value >> np.uint64(1) & np.uint64(len(long) // 4 - 1))
    while long[at + 3]:
        if (
            long[at] == value
            and long[at + 2] == np.uint64(length)
            and same(arena, np.int64(long[at + 1]), text, begin, end)
        ):
            long[at + 3] += count
            return 0
        at = (at + 4) & (len(long) - 1)
    for i in range(length):
        arena[used + i] = text[begin + i]
    long[at], long[at + 1], long[at + 2], long[at + 3] = value, np.uint64(used), np.uint64(length), count
    return 1


@kernel
def same(arena, place, text, begin, end):
    """Whether arena[place:] begins with text[begin:end]."""
    i = 0
    while i < end - begin and arena[place + i] == text[begin + i]:
        i += 1
    return i == end - begin


# ---- many words ------------------------------------------------------------------------------------------------------


@kernel
def count(rule, text, runs, table, batch, state):
    """Count the pre-tokens of each run, text[runs[i, 0]:runs[i, 1]], from `state` on; DONE or what has to grow.

    After a table has grown the call is repeated as it is.
    """
    while True:
        run, at, filled, long_bytes, longs = state[RUN], state[AT], 0, 0, 0
        while run < len(runs) and filled < BATCH:
            if at < runs[run, 0]:
                at = runs[run, 0]
            found, reached = split.ends(rule, text, at, runs[run, 1], batch.end[filled:])
            for i in range(filled, filled + found):
                batch.begin[i] = at
                length = batch.end[i] - at
                if length <= PACKED:
                    _pack(table.short, text, at, length, batch, i)
                else:
                    longs += 1
                    long_bytes += length
                at = batch.end[i]
            filled += found
            at = reached
            if at >= runs[run, 1]:
                run += 1
        if filled == 0:
            return DONE
        if state[SHORTS] + filled > len(table.short) // 8:
            return SHORT_FULL
        if longs and state[LONGS] + longs > len(table.long) // 8:
            return LONG_FULL
        if longs and state[BYTES] + long_bytes + PADDING > len(table.arena):
            return ARENA_FULL
        _count_batch(text, table, batch, filled, state)
        state[RUN], state[AT] = run, at


@kernel
def _pack(short, text, begin, length, batch, i):
    """Pack and hash word i of the batch, and ask for its slot."""
    low = load64(text, begin) & batch.mask[3 * length]
    middle = load64(text, begin + 8) & batch.mask[3 * length + 1]
    high = load64(text, begin + 16) & batch.mask[3 * length + 2] | np.uint64(length) << np.uint64(56)
    batch.packed[3 * i], batch.packed[3 * i + 1], batch.packed[3 * i + 2] = low, middle, high
    at = 4 * np.int64(_mixed(low, middle, high) & np.uint64(len(short) // 4 - 1))
    batch.slot[i] = at
    prefetch(short, at)


@kernel
def _count_batch(text, table, batch, filled, state):
    one = np.uint64(1)
    for i in range(filled):
        begin, end = batch.begin[i], batch.end[i]
        if end - begin <= PACKED:
            packed = batch.packed
            low, middle, high = packed[3 * i], packed[3 * i + 1], packed[3 * i + 2]
            state[SHORTS] += _put_short(table.short, batch.slot[i], low, middle, high, one)
        else:
            value = _hashed(text, begin, end)
            if _put_long(table.long, table.arena, state[BYTES], text, begin, end, value, one):
                state[LONGS] += 1
                state[BYTES] += end - begin


@kernel
def add(text, ends, counts, table, batch, state):
    """Add whole words, text[ends[i]:ends[i + 1]] counts[i] times (uint64), from state[RUN] on; as `count` ends."""
    for i in range(state[RUN], len(counts)):
        state[RUN] = i
        begin, end = ends[i], ends[i + 1]
        if end - begin <= PACKED:
            if state[SHORTS] + 1 > len(table.short) // 8:
                return SHORT_FULL
            _pack(table.short, text, begin, end - begin, batch, 0)
            packed = batch.packed
            state[SHORTS] += _put_short(table.short, batch.slot[0], packed[0], packed[1], packed[2], counts[i])
        else:
            if state[LONGS] + 1 > len(table.long) // 8:
                return LONG_FULL
            if state[BYTES] + end - begin + PADDING > len(table.arena):
                return ARENA_FULL
            value = _hashed(text, begin, end)
            if _put_long(table.long, table.arena, state[BYTES], text, begin, end, value, counts[i]):
                state[LONGS] += 1
                state[BYTES] += end - begin
    state[RUN] = len(counts)
    return DONE


# ---- whole tables ----------------------------------------------------------------------------------------------------


@kernel
def pour_short(source, target):
    """Add all packed words of one table's slots to another's, which must have room; how many were new."""
    new = 0
    for at in range(0, len(source), 4):
        if source[at + 3]:
            low, middle, high = source[at], source[at + 1], source[at + 2]
            to = 4 * np.int64(_mixed(low, middle, high) & np.uint64(len(target) // 4 - 1))
            new += _put_short(target, to, low, middle, high, source[at + 3])
    return new


@kernel
def move_long(source, target):
    """Enter all long words of one table's slots into larger, empty ones over the same arena."""
    for at in range(0, len(source), 4):
        if source[at + 3]:
            to = 4 * np.int64(source[at] >> np.uint64(1) & np.uint64(len(target) // 4 - 1))
            while target[to + 3]:
                to = (to + 4) & (len(target) - 1)
            for i in range(4):
                target[to + i] = source[at + i]


@kernel
def part_sizes(table, parts, sizes):
    """How many words and bytes belong to each part by hash, sizes int64 [parts, 2]; `parts` is a power of two."""
    for at in range(0, len(table.short), 4):
        if table.short[at + 3]:
            part = _part(_mixed(table.short[at], table.short[at + 1], table.short[at + 2]), parts)
            sizes[part, 0] += 1
            sizes[part, 1] += np.int64(table.short[at + 2] >> np.uint64(56))
    for at in range(0, len(table.long), 4):
        if table.long[at + 3]:
            part = _part(table.long[at], parts)
            sizes[part, 0] += 1
            sizes[part, 1] += np.int64(table.long[at + 2])


@kernel
def _part(value, parts):
    """The top bits of a hash."""
    return np.int64(value >> np.uint64(40)) & (parts - 1)


@kernel
def write_out(table, parts, word, place, text, lengths, counts):
    """Write every word to its part: text (uint8), lengths (int64), counts (uint64); word[part], place[part]: where."""
    for at in range(0, len(table.short), 4):
        if table.short[at + 3]:
            high = table.short[at + 2]
            part = _part(_mixed(table.short[at], table.short[at + 1], high), parts)
            length = np.int64(high >> np.uint64(56))
            for i in range(length):
                text[place[part] + i] = table.short[at + i // 8] >> np.uint64(8 * (i % 8)) & np.uint64(255)
            lengths[word[part]], counts[word[part]] = length, table.short[at + 3]
            word[part] += 1
            place[part] += length
    for at in range(0, len(table.long), 4):
        if table.long[at + 3]:
            part = _part(table.long[at], parts)
            begin, length = np.int64(table.long[at + 1]), np.int64(table.long[at + 2])
            for i in range(length):
                text[place[part] + i] = table.arena[begin + i]
            lengths[word[part]], counts[word[part]] = length, table.long[at + 3]
            word[part] += 1
            place[part] += length
