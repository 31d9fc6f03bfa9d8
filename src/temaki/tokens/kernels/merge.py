"""Learning merges: the queue of pairs, and the loop that joins the best of them in the line.

A merge walks the places of its pair once and adds up what it does to each neighbour; one look-up per neighbour then
brings the pairs up to date. Tables, letters and the line: `kernels.line`. Source: Sennrich et al. 2016, algorithm 1.
"""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import fold, kernel, prefetch
from temaki.tokens.kernels.line import (
    AHEAD,
    CURRENT,
    CURSOR,
    EDGE,
    GROW,
    INNER,
    KEPT,
    KINDS,
    LOGGED,
    LOW,
    OVER,
    QUEUED,
    SLICE,
    SYMBOLS,
    UNDONE,
    USED,
    WIDTH,
)


@kernel
def _head(text, begin, end):
    value = np.uint64(0)
    for i in range(8):
        value <<= np.uint64(8)
        if begin + i < end:
            value |= np.uint64(text[begin + i])
    return value


@kernel
def begin_spelling(spelling, order):
    """The first 256 symbols are the bytes in this order, uint8 [256]."""
    for symbol in range(256):
        spelling.text[symbol] = order[symbol]
        spelling.offset[symbol + 1] = symbol + 1
        spelling.head[symbol] = np.uint64(order[symbol]) << np.uint64(56)


# ---- the queue -------------------------------------------------------------------------------------------------------
# A heap of pairs, the best first, int64 [K, 3]: the weight, which may be too high but never too low; what decides
# between equal weights, the greater first; the pair.


@kernel
def _tie(both, head, by_bytes):
    """What decides between pairs of equal weight, as far as it fits in an int64."""
    if by_bytes:
        return np.int64(head[both >> 32] ^ (np.uint64(1) << np.uint64(63)))
    return -both


@kernel
def _later(both, text, offset, one, other):
    """Whether the bytes of one pair come after those of another: by the left part, then by the right."""
    shift = 0 if both[one] >> 32 == both[other] >> 32 else 32
    one, other = both[one] >> shift & LOW, both[other] >> shift & LOW
    a, b = offset[one], offset[other]
    while a < offset[one + 1] and b < offset[other + 1]:
        if text[a] != text[b]:
            return text[a] > text[b]
        a += 1
        b += 1
    return a < offset[one + 1]


@kernel
def _put(queue, at, weight, tie, pair):
    queue[at, 0], queue[at, 1], queue[at, 2] = weight, tie, pair


@kernel
def _rise(queue, both, text, offset, at, weight, tie, pair):
    """Put an entry in at a free place, or above it."""
    while at:
        above = (at - 1) >> 1
        if weight < queue[above, 0]:
            break
        if weight == queue[above, 0]:
            if tie < queue[above, 1]:
                break
            if tie == queue[above, 1] and not _later(both, text, offset, pair, queue[above, 2]):
                break
        _put(queue, at, queue[above, 0], queue[above, 1], queue[above, 2])
        at = above
    _put(queue, at, weight, tie, pair)


@kernel
def _sink(queue, both, text, offset, size, at, weight, tie, pair):
    """Put an entry in at a free place, or below it."""
    while 2 * at + 1 < size:
        below = 2 * at + 1
        other = min(below + 1, size - 1)
        if queue[other, 0] > queue[below, 0] or (
            queue[other, 0] == queue[below, 0]
            and (
                queue[other, 1] > queue[below, 1]
                or (queue[other, 1] == queue[below, 1] and _later(both, text, offset, queue[other, 2], queue[below, 2]))
            )
        ):
            below = other
        if weight > queue[below, 0]:
            break
        if weight == queue[below, 0]:
            if tie > queue[below, 1]:
                break
            if tie == queue[below, 1] and _later(both, text, offset, pair, queue[below, 2]):
                break
        _put(queue, at, queue[below, 0], queue[below, 1], queue[below, 2])
        at = below
    _put(queue, at, weight, tie, pair)


@kernel
def _best(queue, both, weights, text, offset, least, state):
    """The best pair, which stays in the queue; -1 if none weighs `least`."""
    while state[QUEUED]:
        pair = queue[0, 2]
        weight = weights[pair]
        if weight == queue[0, 0]:
            return pair if weight >= least else -1
        tie = queue[0, 1]
        if weight < least:
            state[QUEUED] -= 1
            last = state[QUEUED]
            weight, tie, pair = queue[last, 0], queue[last, 1], queue[last, 2]
        _sink(queue, both, text, offset, state[QUEUED], 0, weight, tie, pair)
    return -1


@kernel
def order(queue, pairs, spelling, by_bytes, state):
    """Make a heap of the pairs kept."""
    both, text, offset = pairs.both, spelling.text, spelling.offset
    size = state[KEPT]
    for pair in range(size):
        _put(queue, pair, pairs.weight[pair], _tie(both[pair], spelling.head, by_bytes), pair)
    for at in range(size // 2 - 1, -1, -1):
        _sink(queue, both, text, offset, size, at, queue[at, 0], queue[at, 1], queue[at, 2])
    state[QUEUED] = size


# ---- finding a pair by its symbols -----------------------------------------------------------------------------------


@kernel
def _slot(index, keys, both):
    """Where a pair stands in the index (int32, a pair + 1 or 0; a power of two long), or the free slot for it."""
    mask = len(index) - 1
    at = np.int64(fold(np.uint64(both), np.uint64(0x9E3779B97F4A7C15)) & np.uint64(mask))
    while index[at] and keys[index[at] - 1] != both:
        at = (at + 1) & mask
    return at


@kernel
def fill_index(index, pairs, state):
    """Enter all pairs kept into an empty index."""
    both = pairs.both
    for pair in range(state[KEPT]):
        index[_slot(index, both, both[pair])] = pair + 1


# ---- merging ---------------------------------------------------------------------------------------------------------
# One function, since each array handed to another costs as much as joining a place.


@kernel
def learn(line, arena, pairs, index, queue, spelling, logs, made, by_bytes, least, until, budget, reach, state):
    """Join the best pair, again and again, until V = `until`; made[s - 256] = (left, right) of symbol s.

    Gives GROW, OVER, or SLICE after about `budget` places, which cost what they cost in `gather`.
    """
    keys, weights, starts, lengths = pairs.both, pairs.weight, pairs.start, pairs.length
    text, offset, head = spelling.text, spelling.offset, spelling.head
    symbols, places, met, near = logs.symbol, logs.place, logs.met, logs.near
    while True:
        if state[CURRENT] < 0:
            if state[SYMBOLS] >= until:
                return OVER
            best = _best(queue, keys, weights, text, offset, least, state)
            if best < 0:
                return OVER
            if not _room(arena, keys, lengths, index, text, offset, symbols, best, state):
                return GROW
            state[CURRENT], state[CURSOR], state[UNDONE] = best, 0, 0
            for i in range(2):
                state[LOGGED + i], state[KINDS + i] = 0, 0
        pair, new = state[CURRENT], state[SYMBOLS]
        left, right = keys[pair] >> 32, keys[pair] & LOW

        # Replace the pair at its places, left to right, and write the neighbours down.
        i, last, before = starts[pair] + state[CURSOR], starts[pair] + lengths[pair] - 1, np.int64(-reach)
        undone, kinds_left, kinds_right = state[UNDONE], state[KINDS], state[KINDS + 1]
        lefts, rights = state[LOGGED], state[LOGGED + 1]
        while i <= last and budget > 0:
            prefetch(line, 2 * np.int64(arena[min(i + AHEAD, last)]))
            place = np.int64(arena[i])
            i += 1
            budget -= min(place - before, reach)
            before = place
            if line[2 * place] != left:
                continue
            second = place + 1
            if line[2 * second] & INNER:
                second = place + np.int64(line[2 * second] & WIDTH)
            if line[2 * second] != right:
                continue
            third = second + 1
            if line[2 * third] & INNER:
                third = second + np.int64(line[2 * third] & WIDTH)
            first = place - 1
            if line[2 * first] & INNER:
                first = place - np.int64(line[2 * first] & WIDTH)
            weight = np.int64(line[2 * place + 1])
            line[2 * second] = INNER
            line[2 * place] = new
            line[2 * place + 2] = INNER | (third - place)
            line[2 * third - 2] = INNER | (third - place)
            symbol = np.int64(line[2 * first])
            if symbol != EDGE:
                if symbol == new:
                    undone += weight  # this left part was the right neighbour of the merge before
                if near[0, symbol, 1] == 0:
                    met[0, kinds_left] = symbol
                    kinds_left += 1
                near[0, symbol, 0] += weight
                near[0, symbol, 1] += 1
                symbols[0, lefts], places[0, lefts] = symbol, first
                lefts += 1
            symbol = np.int64(line[2 * third])
            if symbol != EDGE:
                if near[1, symbol, 1] == 0:
                    met[1, kinds_right] = symbol
                    kinds_right += 1
                near[1, symbol, 0] += weight
                near[1, symbol, 1] += 1
                symbols[1, rights], places[1, rights] = symbol, place
                rights += 1
        state[CURSOR], state[UNDONE] = i - starts[pair], undone
        state[KINDS], state[KINDS + 1], state[LOGGED], state[LOGGED + 1] = kinds_left, kinds_right, lefts, rights
        if i <= last:
            return SLICE

        # Bring the pairs up to date, and keep the new ones that weigh `least`.
        at = offset[new]
        for part in (left, right):
            for i in range(offset[part], offset[part + 1]):
                text[at] = text[i]
                at += 1
        offset[new + 1] = at
        head[new] = _head(text, offset[new], at)
        made[new - 256, 0], made[new - 256, 1] = left, right
        weights[pair] = 0
        kept, used = state[KEPT], state[USED]
        for side in range(2):
            for i in range(state[KINDS + side]):
                symbol = np.int64(met[side, i])
                weight = near[side, symbol, 0]
                if symbol != new:
                    known = index[_slot(index, keys, symbol << 32 | left if side == 0 else right << 32 | symbol)] - 1
                    if known >= 0 and known != pair:
                        weights[known] -= weight
                if side == 1 and symbol == left:
                    weight -= undone
                if weight < least:
                    near[side, symbol, 1] = -1
                    continue
                both = symbol << 32 | new if side == 0 else new << 32 | symbol
                keys[kept], weights[kept], starts[kept], lengths[kept] = both, weight, used, near[side, symbol, 1]
                near[side, symbol, 1] = used
                used += lengths[kept]
                index[_slot(index, keys, both)] = kept + 1
                _rise(queue, keys, text, offset, state[QUEUED], weight, _tie(both, head, by_bytes), kept)
                state[QUEUED] += 1
                kept += 1
            for i in range(state[LOGGED + side]):
                symbol = np.int64(symbols[side, i])
                if near[side, symbol, 1] >= 0:
                    arena[near[side, symbol, 1]] = places[side, i]
                    near[side, symbol, 1] += 1
            for i in range(state[KINDS + side]):
                symbol = np.int64(met[side, i])
                near[side, symbol, 0], near[side, symbol, 1] = 0, 0
        state[KEPT], state[USED], state[SYMBOLS], state[CURRENT] = kept, used, new + 1, -1
        budget -= 64
        if budget <= 0:
            return SLICE


@kernel
def _room(arena, keys, lengths, index, text, offset, symbols, pair, state):
    """Whether all tables have room for what this merge may make."""
    kept = state[KEPT] + 2 * min(lengths[pair], state[SYMBOLS]) + 1
    left, right, new = keys[pair] >> 32, keys[pair] & LOW, state[SYMBOLS]
    spelled = offset[new] + offset[left + 1] - offset[left] + offset[right + 1] - offset[right]
    return (
        state[USED] + 2 * lengths[pair] <= len(arena)
        and kept <= len(keys)
        and 2 * kept <= len(index)
        and lengths[pair] <= symbols.shape[1]
        and spelled <= len(text)
    )
