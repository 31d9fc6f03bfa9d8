"""Text -> ids of byte-level BPE, in two phases over a few hundred pre-tokens at a time.

The first phase turns each pre-token into a key and asks for the line of the memory that it belongs to; the second looks
it up there, when the line has come, and copies four ids whether there are so many or not. Only what is unknown is
merged. What is neither (the end of a text, a special token, a very long pre-token) travels as a note among the keys.
"""
# pyright: basic, reportCallIssue=false

from typing import Any, NamedTuple

import numpy as np

from temaki.base.compile import bare_kernel, load64, prefetch, store64
from temaki.tokens.kernels import split
from temaki.tokens.kernels.encode_joints import can_cut
from temaki.tokens.kernels.encode_memory import (
    COUNT,
    COUNT_AT,
    INLINE,
    LENGTH,
    LONGEST,
    SAME,
    SEGMENT,
    SHORT,
    TOP,
    count_of,
    find,
    line_of,
    long_key,
    recall,
    remember,
    same_bytes,
    seen64,
    short_key,
)
from temaki.tokens.kernels.encode_merge import GOLDEN, SCAN, Desk, merge, merge_long, mixed
from temaki.tokens.kernels.encode_special import next_special
from temaki.tokens.kernels.encode_vocabulary import id_of

AHEAD = 256
"""Pre-tokens between the two phases."""
ENTRY = 32
"""Bytes of one: two words of key, the place of the line, the place in the text and the length."""
ENDS = 512
END, ID, LARGE, LARGE_PIECE = (SEGMENT | np.uint64(n) for n in (0, 1, 4, 5))
"""Notes in place of the second word of a key: a text ends, an id comes, a pre-token or a piece of one is too long to be
remembered."""
ZERO = np.uint64(0)


def desk(longest: int) -> Desk:
    """Room to work on texts of up to that many bytes."""
    ends, entries = np.empty(ENDS, np.int64), np.empty(AHEAD * ENTRY, np.uint8)
    return Desk(ends, entries, np.empty(SCAN + 16, np.uint32), np.empty(7 * longest + 3, np.int64))


class Known(NamedTuple):
    """What an encoder needs but for its memory. Never changes once it is built."""

    rules: Any
    """`encode_merge.Rules`."""
    index: Any
    """`encode_vocabulary.Index`, asked where a pre-token that is a token is taken as it is."""
    whole: Any
    """bool scalar: whether it is."""
    joints: Any
    """uint64: see `encode_joints`."""
    segment: Any
    """uint64 scalar: SEGMENT if a piece must be told from a pre-token with the same bytes, else 0."""


@bare_kernel
def encode(known, memory, special, desk, rule, text, bounds, out, stops):
    """Write the ids of the texts text[bounds[i]:bounds[i+1]] to `out`, and to stops[i] where those of text i end.

    text uint8 with 64 bytes more, valid UTF-8; bounds int64 [n+1]; out uint32 with room for an id a byte and 16 more;
    stops int64 [n]; `special`: the special tokens that are looked for.
    """
    ends, entries = desk.ends, desk.entries
    none = np.int64(0)  # a literal 0 would have all that it is given to compiled anew
    o, m = none, none
    for i in range(len(stops)):
        at, stop = bounds[i], bounds[i + 1]
        while at < stop:
            part, after, id = stop, stop, -1
            if len(special.ids) > 0:
                part, after, id = next_special(special, text, at, stop)
            while at < part:
                count, reached = split.ends(rule, text, at, part, ends)
                m, o = _enter(known, memory, text, at, ends, count, entries, m, out, o, stops, desk)
                at = reached
            if id >= 0:
                m = _put(memory.slots, entries, m, np.uint64(id), ID, none)
                if m == AHEAD * ENTRY:
                    o = _look_up(known, memory, text, entries, m, out, o, stops, desk)
                    m = 0
            at = after
        m = _put(memory.slots, entries, m, np.uint64(i), END, none)
        if m == AHEAD * ENTRY:
            o = _look_up(known, memory, text, entries, m, out, o, stops, desk)
            m = 0
    return _look_up(known, memory, text, entries, m, out, o, stops, desk)


@bare_kernel
def encode_cut(known, memory, desk, text, begin, ends, out):
    """Write the ids of the pre-tokens that begin at `begin` and end at `ends` to `out`; how many they are."""
    entries = desk.entries
    stops, none = ends[:0], np.int64(0)
    m, o = _enter(known, memory, text, begin, ends, len(ends), entries, none, out, none, stops, desk)
    return _look_up(known, memory, text, entries, m, out, o, stops, desk)


@bare_kernel
def encode_noisy(known, special, desk, rule, text, begin, stop, place, key, below, out):
    """As `encode` for one text text[begin:stop], with dropout (see `merge_long`); how many ids.

    `place`: where text[begin] lies in the whole text, in bytes.
    """
    ends = desk.ends
    o, at = np.int64(0), begin
    while at < stop:
        part, after, id = stop, stop, -1
        if len(special.ids) > 0:
            part, after, id = next_special(special, text, at, stop)
        while at < part:
            count, reached = split.ends(rule, text, at, part, ends)
            o = encode_cut_noisy(known, desk, text, at, ends[:count], place + at - begin, key, below, out, o)
            at = reached
        if id >= 0:
            out[o] = id
            o += 1
        at = after
    return o


@bare_kernel
def encode_cut_noisy(known, desk, text, begin, ends, place, key, below, out, o):
    """As `encode_cut`, with dropout; where the ids end in `out`."""
    at = begin
    for i in range(len(ends)):
        draws = mixed(key + np.uint64(place + at - begin) * GOLDEN)
        o += merge_long(known.rules, text, at, ends[i] - at, out, o, draws, below, desk.room)
        at = ends[i]
    return o


@bare_kernel
def _enter(known, memory, text, begin, ends, count, entries, m, out, o, stops, desk):
    """The first phase for some pre-tokens; when `entries` is full, the second. The new (m, o)."""
    slots = memory.slots
    at = begin
    for i in range(np.uint64(count)):
        end = ends[i]
        n = end - at
        if n <= SHORT and text[np.uint64(end - 1)] < 0x80:
            low, high = short_key(text, at, n)
            m = _put(slots, entries, m, low, high, at)
            if m == AHEAD * ENTRY:
                o = _look_up(known, memory, text, entries, m, out, o, stops, desk)
                m = 0
            at = end
            continue
        flag = ZERO
        while at < end:
            m, at = _enter_hard(known.joints, known.segment, slots, text, at, end, flag, entries, m)
            flag = known.segment
            if m == AHEAD * ENTRY:
                o = _look_up(known, memory, text, entries, m, out, o, stops, desk)
                m = 0
    return m, o


@bare_kernel
def _enter_hard(joints, segment, slots, text, begin, end, flag, entries, m):
    """The first phase for a pre-token that is long or may be cut between characters of three bytes.

    Gives the new m and how far it came: to `end`, or to a cut where `entries` is full.
    """
    at, place = begin, begin
    if text[np.uint64(end - 1)] < 0x80:
        place = end
    while at < end:
        place = _next_cut(joints, text, place, end)
        if place < end:
            flag = segment
        n = place - at
        if n <= SHORT:
            low, high = short_key(text, at, n)
            m = _put(slots, entries, m, low, high | flag, at << 8 | n)
        else:
            m = _enter_one(slots, text, at, n, flag, entries, m)
        at = place
        if m == AHEAD * ENTRY:
            break
    return m, at


@bare_kernel
def _next_cut(joints, text, begin, end):
    """The first place after `begin` where no token can lie across, between characters of three bytes; else `end`."""
    place = begin
    while place + 3 < end:
        if text[np.uint64(place)] & 0xF0 != 0xE0:
            place += 1
            continue
        place += 3
        if text[np.uint64(place)] & 0xF0 == 0xE0 and can_cut(joints, text, place):
            return place
    return end


@bare_kernel
def _enter_one(slots, text, at, n, flag, entries, m):
    """Enter a piece of more than SHORT bytes; the new m."""
    if n <= LONGEST:
        low, high = long_key(text, at, n)
        return _put(slots, entries, m, low, high | flag, at << 8 | n)
    return _put(slots, entries, m, np.uint64(n), LARGE if flag == ZERO else LARGE_PIECE, at)


@bare_kernel
def _put(slots, entries, m, low, high, place):
    """Enter a key and ask for its line; the new m."""
    line = line_of(slots, low, high)
    prefetch(slots, line)
    store64(entries, m, low)
    store64(entries, m + 8, high)
    store64(entries, m + 16, np.uint64(line))
    store64(entries, m + 24, np.uint64(place))
    return m + ENTRY


@bare_kernel
def _look_up(known, memory, text, entries, m, out, o, stops, desk):
    """The second phase for entries[:m]; where the ids end in `out`."""
    slots = memory.slots
    for entry in range(0, m, ENTRY):
        low, high = load64(entries, entry), load64(entries, entry + 8)
        line = np.int64(load64(entries, entry + 16))
        first, second = seen64(slots, line + 8), seen64(slots, line + 40)
        in_first = ((first ^ high) & SAME == ZERO) & (load64(slots, line) == low)
        in_second = ((second ^ high) & SAME == ZERO) & (load64(slots, line + 32) == low)
        stored = first if in_first else second
        count = np.int64(stored >> COUNT_AT & COUNT)
        if (in_first | in_second) & (count <= INLINE):
            slot = line if in_first else line + 32
            store64(out, o, load64(slots, slot + 16))
            store64(out, o + 2, load64(slots, slot + 24))
            o += count
        else:
            o = _look_further(known, memory, text, entries, entry, out, o, stops, desk)
    return o


@bare_kernel
def _look_further(known, memory, text, entries, entry, out, o, stops, desk):
    """The second phase for an entry that its line does not answer."""
    low, high = load64(entries, entry), load64(entries, entry + 8)
    if high == END:
        stops[np.int64(low)] = o
        return o
    if high == ID:
        out[o] = np.uint32(low)
        return o + 1
    place = np.int64(load64(entries, entry + 24))
    if high in (LARGE, LARGE_PIECE):
        return o + _work_out(known, text, place, np.int64(low), high == LARGE_PIECE, out, o, desk)
    line = np.int64(load64(entries, entry + 16))
    slot = find(memory.slots, low, high, line)
    n = np.int64(high >> TOP & LENGTH)
    if n > 0:
        return _short(known, memory, slot, low, high, line, n, entries, entry, out, o, desk)
    at, n = place >> 8, place & 255
    if slot >= 0 and same_bytes(memory, slot, text, at, n):
        return o + recall(memory, slot, n, out, o)
    count = _work_out(known, text, at, n, high >= SEGMENT, out, o, desk)
    if slot < 0:
        remember(memory, low, high, line, text, at, n, out, o, count)
    return o + count


@bare_kernel
def _work_out(known, text, at, n, piece, out, o, desk):
    """The ids of a pre-token, or of a piece of one, without the memory; how many."""
    if known.whole and not piece:
        id = id_of(known.index, text, at, n)
        if id >= 0:
            out[o] = id
            return 1
    return merge(known.rules, text, at, n, out, o, desk)


@bare_kernel
def _short(known, memory, slot, low, high, line, n, entries, entry, out, o, desk):
    """The ids of a pre-token that is its own key."""
    if slot >= 0:
        count = count_of(memory.slots, slot)
        if count > INLINE:
            return o + recall(memory, slot, np.int64(0), out, o)
        store64(out, o, load64(memory.slots, slot + 16))
        store64(out, o + 2, load64(memory.slots, slot + 24))
        return o + count
    count = _work_out(known, entries, entry, n, high >= SEGMENT, out, o, desk)
    remember(memory, low, high, line, entries, entry, np.int64(0), out, o, count)
    return o + count
