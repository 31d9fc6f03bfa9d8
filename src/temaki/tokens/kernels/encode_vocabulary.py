"""The tables that an encoder builds of its vocabulary before the first text: bytes -> id, pairs, a seeded memory."""
# pyright: basic, reportCallIssue=false

from typing import Any, NamedTuple

import numpy as np

from temaki.base.compile import bare_kernel
from temaki.tokens.kernels.encode_memory import LONGEST, SHORT, line_of, long_key, remember, short_key
from temaki.tokens.kernels.encode_merge import add_pair, merge


class Index(NamedTuple):
    """Bytes -> id of the plain tokens."""

    text: Any
    """uint8: the bytes of all tokens by id, one after the other, and 64 more."""
    offsets: Any
    """int64 [V+1]."""
    table: Any
    """int32 [power of 2]: ids under the hash of their bytes, -1 where there is none."""


@bare_kernel
def fill_index(index, plain):
    """Put the ids into the empty table where `plain`, bool [V], says so."""
    for id in range(len(plain)):
        if plain[id]:
            begin = index.offsets[id]
            at = _hash(index.text, begin, index.offsets[id + 1] - begin) & (index.table.size - 1)
            while index.table[at] >= 0:
                at = (at + 1) & (index.table.size - 1)
            index.table[at] = id


@bare_kernel
def id_of(index, text, at, n):
    """The id of the token with the bytes text[at:at+n], n >= 1; -1 if there is none."""
    place = _hash(text, at, n) & (index.table.size - 1)
    while index.table[place] >= 0:
        id = index.table[place]
        begin = index.offsets[id]
        if index.offsets[id + 1] - begin == n:
            i = 0
            while i < n and index.text[begin + i] == text[at + i]:
                i += 1
            if i == n:
                return np.int64(id)
        place = (place + 1) & (index.table.size - 1)
    return np.int64(-1)


@bare_kernel
def _hash(text, at, n):
    if n <= SHORT:
        low, high = short_key(text, at, n)
    else:
        low, high = long_key(text, at, n)
    low ^= high * np.uint64(0x9E3779B97F4A7C15)
    low ^= low >> np.uint64(32)
    return np.int64(low * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(32))


@bare_kernel
def splits(index, plain, sizes, lefts, rights, ranks):
    """All pairs of tokens that join to a token, for the rule of ranks; how many. Counts only while there is no room.

    `sizes`: bool, whether a token has so many bytes: all cuts of a very long token would take time for ever.
    """
    count = 0
    for id in range(len(plain)):
        if not plain[id]:
            continue
        begin, stop = index.offsets[id], index.offsets[id + 1]
        for at in range(begin + 1, stop):
            if not (sizes[at - begin] and sizes[stop - at]):
                continue
            right = id_of(index, index.text, at, stop - at)
            if right < 0:
                continue
            left = id_of(index, index.text, begin, at - begin)
            if left < 0:
                continue
            if count < len(lefts):
                lefts[count], rights[count], ranks[count] = left, right, id
            count += 1
    return count


@bare_kernel
def last_pairs(rules, index, plain, unmade, desk, out):
    """Fill empty tables of pairs, for the rule of ranks, with the one pair that each token is ever made of.

    What happens between two places that no merge has crossed does not depend on what lies around them, so the last
    merge of a token is the same in every text: the one when its bytes stand alone. Notes in `unmade`, bool [V], the
    tokens that are never made. False, with tables to be thrown away, where the merges before the last of some token
    have higher ranks. To work in: `desk`, `out` uint32 [longest + 16].
    """
    none = np.int64(0)
    for id in range(len(plain)):
        begin = index.offsets[id]
        n = index.offsets[id + 1] - begin
        if not plain[id] or n == 1:
            continue
        if merge(rules, index.text, begin, n, out, none, desk) != 2:
            unmade[id] = True
            continue
        add_pair(rules, out[0], out[1], id)
        if n == 2:
            rules.doubles[np.uint32(index.text[begin]) << np.uint32(8) | index.text[begin + 1]] = np.uint32(id << 6)
    for id in range(len(plain)):
        begin = index.offsets[id]
        if unmade[id] and merge(rules, index.text, begin, index.offsets[id + 1] - begin, out, none, desk) == 2:
            return False
    return True


@bare_kernel
def find_unmade(rules, index, plain, unmade, desk, out):
    """Note in `unmade`, bool [V], the tokens that the merges do not make of their own bytes. Works in `desk`, `out`."""
    for id in range(len(plain)):
        begin = index.offsets[id]
        n = index.offsets[id + 1] - begin
        unmade[id] = plain[id] and merge(rules, index.text, begin, n, out, np.int64(0), desk) != 1


@bare_kernel
def seed(memory, index, wanted, out):
    """Let a new memory know the tokens where `wanted`, bool [V], says so. To work in: `out` uint32 [16]."""
    none, one = np.int64(0), np.int64(1)
    for id in range(len(wanted)):
        begin = index.offsets[id]
        n = index.offsets[id + 1] - begin
        if not wanted[id] or n > LONGEST:
            continue
        out[0] = id
        if n <= SHORT:
            low, high = short_key(index.text, begin, n)
            remember(memory, low, high, line_of(memory.slots, low, high), index.text, begin, none, out, none, one)
        else:
            low, high = long_key(index.text, begin, n)
            remember(memory, low, high, line_of(memory.slots, low, high), index.text, begin, n, out, none, one)
