"""Bytes of one pre-token -> ids, by joining the pair of lowest rank, leftmost first, until none is ranked.

Short ones keep a 32-bit word for each place (rank and place, so that the least word is the next merge) and look for the
least 16 at a time; long ones keep a heap, so that n bytes cost O(n log n) however they look. The table of pairs holds
left id, right id and rank in 64 bits, in open addressing. Source of dropout: Provilkov et al. 2020.
"""
# pyright: basic, reportCallIssue=false

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from temaki.base.compile import _pointer, bare_kernel, leading, trailing
from temaki.tokens.kernels.encode_memory import MIX_A

SCAN = 64
"""Bytes up to which the next merge is looked for by a scan."""
RANK_BITS = 22
NO_RANK = np.uint32((1 << RANK_BITS) - 1)
NEVER = np.uint32(0xFFFF_FFFF)
EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
ID_BITS = np.uint64(21)
RANK_AT = np.uint64(RANK_BITS)
RANK = np.uint64(NO_RANK)
ZERO, ONE, SIX, LAST_SIX = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(63)
PLACE_BITS = 40
PLACE = (1 << 40) - 1
GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Rules(NamedTuple):
    """What may be joined. Never changes once it is built."""

    pairs: Any
    """uint64 [power of 2]: left id (21 bits), right id (21), rank (22); EMPTY."""
    marks: Any
    """uint64 [power of 2]: a bit for each pair under its hash; where it is not set, no pair is looked for."""
    joined: Any
    """uint32: rank -> id."""
    singles: Any
    """uint32 [256]: byte -> id."""
    doubles: Any
    """uint32 [65536]: two bytes -> rank of their pair << 6, NEVER for none."""


@intrinsic
def least16(_context, array, at):
    """`least16(words, i)`: the least of 16 uint32 from place i on."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(ir.IntType(32), 16)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        words = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)
        kind = ir.FunctionType(ir.IntType(32), [vector])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.umin.v16i32")
        return builder.call(function, [words])

    return types.uint32(array, types.intp), generate


@bare_kernel
def rank_of(rules, left, right):
    """The rank of a pair of ids, NO_RANK if it may not be joined."""
    key = np.uint64(left) << ID_BITS | np.uint64(right)
    hashed = key * MIX_A >> np.uint64(24)
    mark = rules.marks[(hashed >> SIX) & np.uint64(rules.marks.size - 1)]
    if mark >> (hashed & LAST_SIX) & ONE == ZERO:
        return NO_RANK
    pairs = rules.pairs
    mask = np.uint64(pairs.size - 1)
    at = hashed & mask
    while True:
        found = pairs[at]
        if found >> RANK_AT == key:
            return np.uint32(found & RANK)
        if found == EMPTY:
            return NO_RANK
        at = (at + ONE) & mask


@bare_kernel
def add_pairs(rules, lefts, rights, ranks):
    """Fill the tables of pairs. Of a pair that comes twice the lower rank counts."""
    for i in range(len(lefts)):
        add_pair(rules, lefts[i], rights[i], ranks[i])


@bare_kernel
def add_pair(rules, left, right, rank):
    """Put one pair into the tables."""
    pairs, marks = rules.pairs, rules.marks
    mask = np.uint64(pairs.size - 1)
    key = np.uint64(left) << ID_BITS | np.uint64(right)
    hashed = key * MIX_A >> np.uint64(24)
    marks[(hashed >> SIX) & np.uint64(marks.size - 1)] |= ONE << (hashed & LAST_SIX)
    at = hashed & mask
    while pairs[at] != EMPTY and pairs[at] >> RANK_AT != key:
        at = (at + ONE) & mask
    pairs[at] = min(pairs[at], key << RANK_AT | np.uint64(rank))


class Desk(NamedTuple):
    """Room to work in, one for each call of a kernel."""

    ends: Any
    """int64 [ENDS]: see `encode`."""
    entries: Any
    """uint8 [AHEAD * ENTRY]: see `encode`."""
    words: Any
    """uint32 [SCAN + 16]: for short pre-tokens."""
    room: Any
    """int64 [7 n + 3]: for long ones of up to n bytes."""


@bare_kernel
def merge(rules, text, at, n, out, o, desk):
    """Write the ids of text[at:at+n], n >= 1, to out[o:]; how many they are."""
    if n <= SCAN:
        return _scan(rules, text, at, n, out, o, desk.words)
    return merge_long(rules, text, at, n, out, o, ZERO, ZERO, desk.room)


@bare_kernel
def _scan(rules, text, at, n, out, o, words):
    joined = rules.joined
    last = np.uint32(text[at])
    out[o] = rules.singles[last]
    for i in range(1, n):
        byte = np.uint32(text[at + i])
        words[i - 1] = rules.doubles[last << np.uint32(8) | byte] | np.uint32(i - 1)
        out[o + i] = rules.singles[byte]
        last = byte
    for i in range(n - 1, (n + 15) & ~15):
        words[i] = NEVER
    alive = EMPTY >> np.uint64(64 - n)
    while True:
        least = least16(words, 0)
        for i in range(16, n - 1, 16):
            least = min(least, least16(words, i))
        if least >= NO_RANK << np.uint32(6):
            break
        place = np.uint64(least) & np.uint64(63)
        joint = joined[least >> np.uint32(6)]
        out[o + np.int64(place)] = joint
        above = alive & (EMPTY << place) << ONE
        second = np.uint64(trailing(above))
        alive ^= ONE << second
        above &= above - ONE
        words[second] = NEVER
        if above != ZERO:
            third = trailing(above)
            words[place] = rank_of(rules, joint, out[o + third]) << np.uint32(6) | np.uint32(place)
        else:
            words[place] = NEVER
        below = alive & ~(EMPTY << place)
        if below != ZERO:
            first = 63 - leading(below)
            words[first] = rank_of(rules, out[o + first], joint) << np.uint32(6) | np.uint32(first)
    count = 0
    while alive != ZERO:
        out[o + count] = out[o + trailing(alive)]
        count += 1
        alive &= alive - ONE
    return count


@bare_kernel
def merge_long(rules, text, at, n, out, o, key, below, room):
    """As `merge` for any n, with dropout: each possible merge of a step is left out where its draw is under `below`.

    `key`: 64 bits that the draws are a function of; `below` = 2^53 times the probability, 0 for no dropout.
    """
    ids, ranks, before, after, heap = room[:n], room[n : 2 * n], room[2 * n : 3 * n], room[3 * n : 4 * n], room[4 * n :]
    size = 0
    for i in range(n):
        ids[i] = rules.singles[text[at + i]]
        before[i], after[i] = i - 1, i + 1
    for i in range(n):
        rank = rank_of(rules, ids[i], ids[i + 1]) if i + 1 < n else NO_RANK
        size = _rank(ranks, heap, size, i, rank)
    aside = 0  # left out of this step: heap[size:size+aside]
    while size > 0:
        top = heap[0]
        size = _pop(heap, size, aside)
        place = top & PLACE
        rank = top >> PLACE_BITS
        if ranks[place] != rank:
            continue  # merged otherwise meanwhile
        if below != ZERO:
            key += GOLDEN
            if mixed(key) >> np.uint64(11) < below:
                heap[size + aside] = top
                aside += 1
                continue
        joint = rules.joined[rank]
        second = after[place]
        third = after[second]
        ids[place], ranks[second], after[place] = joint, NO_RANK, third
        while aside > 0:
            size = _push(heap, size, heap[size])
            aside -= 1
        if third < n:
            before[third] = place
            size = _rank(ranks, heap, size, place, rank_of(rules, joint, ids[third]))
        else:
            ranks[place] = NO_RANK
        first = before[place]
        if first >= 0:
            size = _rank(ranks, heap, size, first, rank_of(rules, ids[first], joint))
    count = 0
    place = 0
    while place < n:
        out[o + count] = ids[place]
        count += 1
        place = after[place]
    return count


@bare_kernel
def mixed(word):
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    word = (word ^ word >> np.uint64(30)) * MIX_1
    word = (word ^ word >> np.uint64(27)) * MIX_2
    return word ^ word >> np.uint64(31)


@bare_kernel
def _rank(ranks, heap, size, place, rank):
    """Note the rank of the pair that begins at a place, and put it into the heap if it has one; the heap's size."""
    ranks[place] = rank
    if rank == NO_RANK:
        return size
    return _push(heap, size, np.int64(rank) << PLACE_BITS | place)


@bare_kernel
def _push(heap, size, word):
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= word:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = word
    return size + 1


@bare_kernel
def _pop(heap, size, aside):
    """Remove the least of heap[:size]; what is kept in the `aside` places after it moves one place down."""
    size -= 1
    word = heap[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= word:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = word
    if aside > 0:
        heap[size] = heap[size + aside]
    return size


@bare_kernel
def fill_doubles(rules):
    """Note for each two bytes the rank of their pair."""
    singles, doubles = rules.singles, rules.doubles
    for left in range(256):
        for right in range(256):
            rank = rank_of(rules, singles[left], singles[right])
            doubles[left << 8 | right] = NEVER if rank == NO_RANK else rank << np.uint32(6)
