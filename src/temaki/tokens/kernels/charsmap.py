"""Compiled normalisation by SentencePiece's rules, and what its unknown pieces become.

The rules are a double array of uint32 units (darts-clone's form: bits 10-30 the offset, bit 9 that it is 256 times as
large, bit 8 that a value follows, bits 0-7 the byte) from the bytes to be replaced to a place in `texts`, where the
replacement stands up to a zero byte. Files are not trusted: every place is checked.
"""
# pyright: basic

import numpy as np

from temaki.base.compile import kernel
from temaki.tokens.kernels.viterbi import width

STARTED, SPACED = 1, 2
"""Bits of the state: something was written; the last thing written (or nothing yet) was a space."""


@kernel
def normalize(text, begin, stop, whole, state, prefix, squeeze, escape, rules, texts, units, first, plain, out):
    """Normalise text[begin:stop] into `out`: (bytes written, place reached, state).

    Stops early when `out` may not hold the next piece, and, if not `whole`, where the text's end could change what
    comes. prefix: a space before the text; squeeze: no space at the beginning, one at most in between (those at the end
    are left to the caller); escape: U+2581 for a space; units, first: a `trie` of what is never changed; plain: bool
    [256], bytes that stay as they are before an ASCII one.
    """
    written = 0
    at = begin
    while at < stop:
        if state & STARTED:
            while at + 1 < stop and plain[text[at]] and text[at + 1] < 0x80 and written < out.size:
                out[written] = text[at]
                written += 1
                at += 1
                state = STARTED
        length, is_open = _longest_literal(text, at, stop, units, first)
        low, read, replaced = at, length, False
        if length == 0 and (whole or not is_open):
            low, length, read, is_open = _longest_rule(text, at, stop, rules, texts)
            replaced = read > 0
            if not replaced:
                read = min(width(text[at]), stop - at)
                low, length = at, read
        if is_open and not whole:
            break
        if written + 3 * length + 8 > out.size:
            break
        at += read
        if state & STARTED == 0:
            if squeeze and length == 1 and (texts[low] if replaced else text[low]) == 32:
                continue
            state = STARTED | (SPACED if squeeze else 0)
            if prefix:
                written = _space(out, written, escape)
        spaced = state & SPACED != 0
        for k in range(low, low + length):
            byte = texts[k] if replaced else text[k]
            if byte != 32:
                out[written] = byte
                written += 1
                spaced = False
                state = STARTED
            elif not spaced:
                written = _space(out, written, escape)
                state = STARTED | (SPACED if squeeze else 0)
    return written, at, state


@kernel
def _space(out, written, escape):
    if escape:
        out[written], out[written + 1], out[written + 2] = 0xE2, 0x96, 0x81
        return written + 3
    out[written] = 32
    return written + 1


@kernel
def _longest_literal(text, at, stop, units, first):
    """Bytes of the longest piece that begins at `at`, 0 if there is none; does the end of the text leave it open?"""
    longest = 0
    if units.size == 0:
        return longest, False
    unit = first[text[at]]
    j = at
    while unit != 0:
        j += 1
        if unit >> np.uint64(32) != 0:
            longest = j - at
        offset = (unit >> np.uint64(8)) & np.uint64(0xFFFFFF)
        if j >= stop:
            return longest, offset != 0
        unit = units[np.int64(offset) ^ np.int64(text[j])]
        if np.uint8(unit & np.uint64(0xFF)) != text[j]:
            break
    return longest, False


@kernel
def _longest_rule(text, at, stop, rules, texts):
    """The longest rule that applies at `at`: (place of its replacement, its bytes, bytes replaced, is it open?)."""
    low, read = 0, 0
    if rules.size == 0:
        return low, 0, read, False
    node = _offset(rules[0])
    j = at
    is_open = True
    while j < stop:
        node ^= np.int64(text[j])
        if node >= rules.size or rules[node] & np.uint32(0x800000FF) != text[j]:
            is_open = False
            break
        j += 1
        unit = rules[node]
        node ^= _offset(unit)
        if unit & np.uint32(0x100) != 0 and node < rules.size:
            place = np.int64(rules[node] & np.uint32(0x7FFFFFFF))
            if place < texts.size:
                low, read = place, j - at
    length = 0
    while read > 0 and low + length < texts.size and texts[low + length] != 0:
        length += 1
    return low, length, read, is_open


@kernel
def _offset(unit):
    """How far the children of a unit lie."""
    return np.int64(unit >> np.uint32(10)) << np.int64((unit & np.uint32(0x200)) >> np.uint32(6))


@kernel
def spell(text, path, sizes, unknown, unknown_before, byte_ids, out):
    """The ids to be given for a path through text: runs of `unknown` as one, or its bytes if `byte_ids` (int64 [256])
    has them: (how many are written to `out`, uint32; is the last piece unknown?). sizes: int64, bytes of each piece."""
    written = 0
    at = 0
    for id in path:
        if id != unknown:
            unknown_before = False
            out[written] = id
            written += 1
            at += sizes[id]
            continue
        size = min(width(text[at]), text.size - at)
        if byte_ids.size:
            for k in range(at, at + size):
                out[written] = byte_ids[text[k]]
                written += 1
        elif not unknown_before:
            out[written] = id
            written += 1
        unknown_before = True
        at += size
    return written, unknown_before
