"""The line that pairs are merged in: all words in one row of places, and the pairs of neighbours in it worth a look.

Words lie one after another with an edge between two. A place holds a symbol and the weight of its word, side by side,
so that one cache line says both. A symbol of several places keeps its number in the first; the second and the last hold
INNER + its width, so that both neighbours are found without links; others hold INNER.

Only pairs whose weight is at least `least` are kept: a merge makes pairs with the new symbol alone and the weights of
all others can but fall, so a pair below `least` cannot come up before all above are gone. Then the line is packed, and
its pairs are gathered anew with a smaller `least`.

Letters: P places, V symbols (0..255 are the bytes, in the order given), K pairs kept.
"""
# pyright: basic, reportCallIssue=false

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from temaki.base.compile import kernel, prefetch

EDGE = 0x7FFFFFFF
"""The symbol between two words."""
INNER = 0x80000000
"""Marks a place that begins no symbol."""
WIDTH = 0x7FFFFFFF
LOW = 0xFFFFFFFF

HEAVIEST = 0xFFFFFFFF
"""The largest weight that a place can hold."""

AHEAD = 12
"""Places that are asked for before they are looked at."""

SLICE, GROW, OVER = 0, 1, 2
"""Why `learn` came back: its time is up; a table is too small; no pair weighs `least` any more (or all are learned)."""

# Places in `state`, int64 [11].
USED, KEPT, QUEUED, SYMBOLS, CURRENT, CURSOR, UNDONE, LOGGED, KINDS = 0, 1, 2, 3, 4, 5, 6, 7, 9


class Pairs(NamedTuple):
    """The pairs kept, in no order."""

    both: ndarray
    """int64 [K]: left << 32 | right."""
    weight: ndarray
    """int64 [K]: how often it occurs now."""
    start: ndarray
    """int64 [K]: where its places begin in the arena."""
    length: ndarray
    """int64 [K]: how many places; some may no longer hold it."""


class Spelling(NamedTuple):
    """The bytes of each symbol."""

    text: ndarray
    """uint8."""
    offset: ndarray
    """int64 [V+1]."""
    head: ndarray
    """uint64 [V]: the first 8 bytes, most significant first, then zeros."""


class Logs(NamedTuple):
    """What one merge meets on its left and right."""

    symbol: ndarray
    """uint32 [2, n]."""
    place: ndarray
    """uint32 [2, n]."""
    near: ndarray
    """int64 [2, V, 2]: for each neighbour its weight, and how often it was met (then: where its places go)."""
    met: ndarray
    """uint32 [2, V]: the neighbours met."""


# ---- from words to the line ------------------------------------------------------------------------------------------


@kernel
def measure(table, prune, found):
    """Add up, int64 [5]: places that the line needs; words and how often they occur; the same of words left out."""
    for at in range(3, len(table.short), 4):
        if table.short[at]:
            _measure(table.short[at], np.int64(table.short[at - 1] >> np.uint64(56)), prune, found)
    for at in range(3, len(table.long), 4):
        if table.long[at]:
            _measure(table.long[at], np.int64(table.long[at - 1]), prune, found)


@kernel
def _measure(times, length, prune, found):
    count = np.int64(times)
    found[1] += 1
    found[2] += count
    if count < prune:
        found[3] += 1
        found[4] += count
    elif length > 1:
        found[0] += (count + HEAVIEST - 1) // HEAVIEST * (length + 1)


@kernel
def lay_out(table, prune, number, line, pairs):
    """Write the words that have a pair and occur `prune` times to the line, each with an edge after it.

    `number` (uint8 [256]): each byte's symbol. `pairs` (int64 [65536]): the weights of left * 256 + right are added.
    A word too heavy for a place stands there several times.
    """
    write = 0
    word = np.zeros(24, np.uint8)
    for at in range(0, len(table.short), 4):
        count = np.int64(table.short[at + 3])
        length = np.int64(table.short[at + 2] >> np.uint64(56))
        if count < prune or length < 2:
            continue
        for i in range(length):
            word[i] = table.short[at + i // 8] >> np.uint64(8 * (i % 8)) & np.uint64(255)
        write = _lay(word, 0, length, count, number, line, write, pairs)
    for at in range(0, len(table.long), 4):
        count = np.int64(table.long[at + 3])
        if count and count >= prune:
            begin, length = np.int64(table.long[at + 1]), np.int64(table.long[at + 2])
            write = _lay(table.arena, begin, length, count, number, line, write, pairs)


@kernel
def _lay(text, begin, length, count, number, line, write, pairs):
    while count > 0:
        weight = min(count, HEAVIEST)
        count -= weight
        before = np.int64(-1)
        for i in range(begin, begin + length):
            symbol = np.int64(number[text[i]])
            line[2 * write], line[2 * write + 1] = symbol, weight
            write += 1
            if before >= 0:
                pairs[before * 256 + symbol] += weight
            before = symbol
        line[2 * write] = EDGE
        write += 1
    return write


# ---- gathering the pairs of the line ---------------------------------------------------------------------------------


@kernel
def pack(line, stop, state, lefts):
    """Give each symbol before `stop` one place again, and leave out words of one symbol.

    state, int64 [3]: the place to read, the place to write, where the word being written begins; 1, 1, 1 at first.
    lefts, int64 [V+1]: how many pairs begin with each symbol s is added to lefts[s + 1].
    """
    read, write, first = state[0], state[1], state[2]
    while read < stop:
        symbol = line[2 * read]
        if symbol == EDGE:
            if write - first < 2:
                write = first
            else:
                line[2 * write] = EDGE
                write += 1
            first = write
            read += 1
            continue
        following = line[2 * read + 2]
        line[2 * write], line[2 * write + 1] = symbol, line[2 * read + 1]
        if write > first:
            lefts[line[2 * write - 2] + 1] += 1
        write += 1
        read += following & WIDTH if following & INNER else 1
    state[0], state[1], state[2] = read, write, first


@kernel
def sort_places(line, place, stop, ends, arena):
    """The places from `place` to `stop` where pairs begin, by their left symbol; ends[s] moves along."""
    for at in range(place, stop):
        symbol = line[2 * at]
        if symbol != EDGE and line[2 * at + 2] != EDGE:
            arena[ends[symbol]] = at
            ends[symbol] += 1


@kernel
def gather(line, symbol, stop, ends, arena, pairs, logs, least, budget, reach, state):
    """Keep the pairs of left symbols `symbol`..`stop` that weigh `least`, their places packed to the arena's front.

    `ends[s]`: where symbol s ends in the arena. The logs must hold the places of any one symbol. Gives the symbol it
    got to, with GROW if the pairs need more room, or SLICE when all are done or `budget` places were looked at; a place
    costs as much as it lies behind the one before, up to `reach`.
    """
    near, met, rights, places = logs.near[1], logs.met[1], logs.symbol[1], logs.place[1]
    keys, weights, starts, lengths = pairs.both, pairs.weight, pairs.start, pairs.length
    while symbol < stop and budget > 0:
        begin, end = ends[symbol - 1] if symbol else 0, ends[symbol]
        kept, used, kinds = state[KEPT], state[USED], state[KINDS]
        until, before = begin + state[CURSOR], np.int64(-reach)
        seen = until == end
        while until < end and budget > 0:
            i = until
            until += 1
            prefetch(line, 2 * np.int64(arena[min(i + AHEAD, end - 1)]))
            place = np.int64(arena[i])
            budget -= min(place - before, reach)
            before = place
            right = np.int64(line[2 * place + 2])
            places[i - begin], rights[i - begin] = place, right
            if near[right, 1] == 0:
                met[kinds] = right
                kinds += 1
            near[right, 0] += line[2 * place + 1]
            near[right, 1] += 1
        state[CURSOR], state[KINDS] = until - begin, kinds
        if until < end or not (seen or budget > 2 * (end - begin)):
            break  # the rest of this symbol's work is a slice of its own
        wanted = 0
        for i in range(kinds):
            wanted += near[met[i], 0] >= least
        if kept + wanted > len(keys):
            return symbol, GROW
        state[CURSOR], state[KINDS] = 0, 0
        for i in range(kinds):
            right = np.int64(met[i])
            if near[right, 0] < least:
                near[right, 1] = -1
            else:
                keys[kept], weights[kept] = symbol << 32 | right, near[right, 0]
                starts[kept], lengths[kept] = used, near[right, 1]
                near[right, 1] = used
                used += lengths[kept]
                kept += 1
        for i in range(end - begin):
            right = np.int64(rights[i])
            if near[right, 1] >= 0:
                arena[near[right, 1]] = places[i]
                near[right, 1] += 1
        for i in range(kinds):
            right = np.int64(met[i])
            near[right, 0], near[right, 1] = 0, 0
        state[KEPT], state[USED] = kept, used
        symbol += 1
    return symbol, SLICE
