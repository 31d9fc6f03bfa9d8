"""Compiled joining of characters into pieces with scores, the best first, leftmost on ties (SentencePiece's BPE).

A symbol is a piece's id, or a number from V on for a character that is no piece but stands in some; -1 is any other
character. Text is cut where no piece holds its two neighbours, so that what is joined at a time is short; a long
stretch keeps a heap, so that n characters cost O(n log n) however they look.
"""
# pyright: basic, reportCallIssue=false

from typing import Any, NamedTuple

import numpy as np

from temaki.base.compile import bare_kernel, kernel
from temaki.tokens.kernels.viterbi import width
from temaki.tokens.kernels.wide import uniform

EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
SHORT = 32
"""Characters up to which the next pair is looked for by a scan."""
_OFFSET, _BYTE = np.uint64(0xFFFFFF), np.uint64(0xFF)


class Rules(NamedTuple):
    """What may be joined. Never changes once it is built."""

    pages: Any
    """int32 [2^13]: code point / 256 -> place in `cells`."""
    cells: Any
    """int32: a symbol for each code point of the pages that hold some."""
    neighbours: Any
    """uint64 [power of 2]: left symbol, right symbol of characters that stand side by side in a piece; EMPTY."""
    pairs: Any
    """uint64 [power of 2]: left symbol, right symbol of what joins to a piece; EMPTY."""
    ranks: Any
    """int32, beside `pairs`: the order of the piece's score among all scores."""
    joined: Any
    """int32, beside `pairs`: the piece."""
    units: Any
    """uint64: a `trie` of what stays one symbol and is never joined; empty: there is none."""
    first: Any
    """uint64 [256]: its first bytes' slots."""
    unused: Any
    """bool [V]: pieces that are taken apart again; empty: there are none."""
    size: int
    """V."""
    unknown: int
    """The id of what is no piece."""


class Desk(NamedTuple):
    """Room to work in, for one call of a kernel."""

    symbols: Any
    """int32 [bytes of the text]."""
    slots: Any
    """int64 [SHORT]."""
    split: Any
    """int32 [2 S]: the two symbols that each unused one was last joined of, -1 for none; empty without these."""


@bare_kernel
def add(keys, left, right):
    """The place of a pair in a table of keys, which is made if need be."""
    mask = np.uint64(keys.size - 1)
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    at = (key * GOLDEN >> np.uint64(32)) & mask
    while keys[at] != EMPTY and keys[at] != key:
        at = (at + np.uint64(1)) & mask
    keys[at] = key
    return np.int64(at)


@bare_kernel
def add_all(keys, lefts, rights, places):
    """Put pairs into a table of keys; int64 `places` gets where each lies."""
    for i in range(lefts.size):
        places[i] = add(keys, lefts[i], rights[i])


@bare_kernel
def find(keys, left, right):
    """The place of a pair in a table of keys, -1 if it is not there."""
    if left < 0 or right < 0:
        return -1
    mask = np.uint64(keys.size - 1)
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    at = (key * GOLDEN >> np.uint64(32)) & mask
    while True:
        found = keys[at]
        if found == key:
            return np.int64(at)
        if found == EMPTY:
            return -1
        at = (at + np.uint64(1)) & mask


@kernel
def encode(text, begin, stop, whole, rules, drop, key, desk, out):
    """Write the path's ids through text[begin:stop] to `out`, uint32 [stop - begin]: (ids written, place reached).

    If not `whole`, it stops where what follows the text could change what comes. drop: each join is left out with this
    probability, by draws from `key`.
    """
    symbols = desk.symbols
    written, at, start, count, draws = 0, begin, begin, 0, 0
    while at < stop:
        symbol, size, is_literal, is_open = _next(text, at, stop, rules)
        if is_open and not whole:
            return written, start
        ends = False
        if rules.unused.size == 0:
            ends = count > 0 and (is_literal or find(rules.neighbours, symbols[count - 1], symbol) < 0)
        if ends:
            written, draws = _segment(count, rules, drop, key, draws, desk, out, written)
            start, count = at, 0
        symbols[count] = symbol
        count += 1
        at += size
    if not whole:
        return written, start
    if count > 0:
        written, draws = _segment(count, rules, drop, key, draws, desk, out, written)
    return written, stop


@kernel
def encode_each(text, bounds, rules, desk, out, stops):
    """The same of whole texts text[bounds[i]:bounds[i+1]]; int64 `stops` gets where each one's ids end."""
    done = 0
    for i in range(bounds.size - 1):
        if rules.unused.size:
            desk.split[:] = -1
        written, _ = encode(text, bounds[i], bounds[i + 1], True, rules, 0.0, np.uint64(0), desk, out[done:])
        done += written
        stops[i] = done


@bare_kernel
def _next(text, at, stop, rules):
    """What begins at `at`: (its symbol, bytes, is it never joined?, does the text's end leave that open?)."""
    symbol, size, is_open = -1, 0, False
    if rules.units.size > 0:
        unit = rules.first[text[at]]
        j = at
        while unit != 0:
            j += 1
            if unit >> np.uint64(32) != 0:
                symbol, size = np.int64(unit >> np.uint64(32)) - 1, j - at
            offset = (unit >> np.uint64(8)) & _OFFSET
            if j >= stop:
                is_open = offset != 0
                break
            unit = rules.units[np.int64(offset) ^ np.int64(text[j])]
            if np.uint8(unit & _BYTE) != text[j]:
                break
    if size > 0:
        return symbol, size, True, is_open
    size = min(width(text[at]), stop - at)
    code = np.int64(text[at])
    if size > 1:
        code &= 0xFF >> (size + 1)
        for k in range(1, size):
            code = code << 6 | np.int64(text[at + k]) & 0x3F
    return np.int64(rules.cells[rules.pages[code >> 8] + (code & 0xFF)]), size, False, is_open


@bare_kernel
def _pair(rules, desk, left, right):
    """The place in the rules of the pair of two symbols, -1 if it may not be joined; it is noted how an unused piece
    can be taken apart."""
    slot = find(rules.pairs, left, right)
    if slot >= 0 and rules.unused.size > 0:
        joined = rules.joined[slot]
        if rules.unused[joined]:
            desk.split[2 * joined] = left
            desk.split[2 * joined + 1] = right
    return slot


@kernel
def _segment(count, rules, drop, key, draws, desk, out, written):
    """Join the first `count` symbols and write their ids: (ids written in all, draws made in all)."""
    if count > SHORT:
        count, draws = _long(count, rules, drop, key, draws, desk)
    elif count > 1:
        count, draws = _short(count, rules, drop, key, draws, desk)
    for i in range(count):
        written = _say(desk.symbols[i], rules, desk, out, written)
    return written, draws


@bare_kernel
def _short(count, rules, drop, key, draws, desk):
    symbols, slots, ranks = desk.symbols, desk.slots, rules.ranks
    for i in range(count - 1):
        slots[i] = _pair(rules, desk, symbols[i], symbols[i + 1])
    while True:
        best, least = -1, 0
        for i in range(count - 1):
            if slots[i] >= 0 and (best < 0 or ranks[slots[i]] < least):
                best, least = i, ranks[slots[i]]
        if best < 0:
            return count, draws
        if drop > 0.0:
            draws += 1
            if uniform(key, draws) < drop:
                slots[best] = -1
                continue
        symbols[best] = rules.joined[slots[best]]
        count -= 1
        for i in range(best + 1, count):
            symbols[i] = symbols[i + 1]
            slots[i - 1] = slots[i]
        if best > 0:
            slots[best - 1] = _pair(rules, desk, symbols[best - 1], symbols[best])
        if best < count - 1:
            slots[best] = _pair(rules, desk, symbols[best], symbols[best + 1])


@kernel
def _long(count, rules, drop, key, draws, desk):
    symbols, ranks = desk.symbols, rules.ranks
    slots = np.full(count, -1, np.int64)
    before, after = np.empty(count, np.int64), np.empty(count, np.int64)
    heap = np.empty(3 * count, np.int64)  # rank and place: the least is the next to be joined
    held = 0
    for i in range(count):
        before[i], after[i] = i - 1, i + 1
    for i in range(count - 1):
        slots[i] = _pair(rules, desk, symbols[i], symbols[i + 1])
        if slots[i] >= 0:
            held = _put(heap, held, np.int64(ranks[slots[i]]) << 32 | i)
    while held > 0:
        top = heap[0]
        held = _drop_first(heap, held)
        place = top & 0xFFFFFFFF
        slot = slots[place]
        if slot < 0 or ranks[slot] != top >> 32:  # something else was joined here since
            continue
        if drop > 0.0:
            draws += 1
            if uniform(key, draws) < drop:
                slots[place] = -1
                continue
        gone = after[place]
        symbols[place] = rules.joined[slot]
        slots[gone] = -1
        slots[place] = -1
        after[place] = after[gone]
        left = before[place]
        if left >= 0:
            slots[left] = _pair(rules, desk, symbols[left], symbols[place])
            if slots[left] >= 0:
                held = _put(heap, held, np.int64(ranks[slots[left]]) << 32 | left)
        right = after[place]
        if right < count:
            before[right] = place
            slots[place] = _pair(rules, desk, symbols[place], symbols[right])
            if slots[place] >= 0:
                held = _put(heap, held, np.int64(ranks[slots[place]]) << 32 | place)
    kept, at = 0, 0
    while at < count:
        symbols[kept] = symbols[at]
        kept += 1
        at = after[at]
    return kept, draws


@bare_kernel
def _put(heap, held, item):
    at = held
    while at > 0 and heap[(at - 1) >> 1] > item:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = item
    return held + 1


@bare_kernel
def _drop_first(heap, held):
    held -= 1
    item = heap[held]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= held:
            break
        if child + 1 < held and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item
    return held


@bare_kernel
def _say(symbol, rules, desk, out, written):
    """Write a symbol's ids: its own, those of its parts if it is unused, the unknown one where it has none."""
    if symbol < 0 or symbol >= rules.size:
        out[written] = rules.unknown
        return written + 1
    if rules.unused.size == 0 or not rules.unused[symbol]:
        out[written] = symbol
        return written + 1
    if desk.split[2 * symbol] < 0:
        out[written] = rules.unknown
        return written + 1
    for side in range(2):  # no deeper than a piece has characters
        written = _say(desk.split[2 * symbol + side], rules, desk, out, written)
    return written
