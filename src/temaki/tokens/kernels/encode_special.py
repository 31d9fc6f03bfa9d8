"""Where the next special token of a text is: leftmost first, the longest where two begin at one place."""
# pyright: basic, reportCallIssue=false

from typing import Any, NamedTuple

import numpy as np

from temaki.base.compile import bare_kernel, equal64, trailing
from temaki.tokens.kernels import split

ZERO, ONE = np.uint64(0), np.uint64(1)


class Special(NamedTuple):
    """The special tokens that a call looks for, longest first."""

    heads: Any
    """uint8: the bytes that they begin with, each once."""
    text: Any
    """uint8: their bytes, one after the other."""
    offsets: Any
    """int64 [n+1]."""
    ids: Any
    """int64 [n]."""


@bare_kernel
def next_special(special, text, begin, stop):
    """(begin, end, id) of the first special token in text[begin:stop]; (stop, stop, -1) if there is none."""
    for at in range(begin, stop, 64):
        mask = ZERO
        for head in special.heads:
            mask |= equal64(text, at, head)
        while mask != ZERO:
            place = at + trailing(mask)
            mask &= mask - ONE
            if place >= stop:
                break
            end, id = _special_at(special, text, place, stop)
            if id >= 0:
                return place, end, id
    return stop, stop, -1


@bare_kernel
def _special_at(special, text, place, stop):
    for i in range(len(special.ids)):
        begin, end = special.offsets[i], special.offsets[i + 1]
        if place + end - begin > stop:
            continue
        same = True
        for k in range(end - begin):
            if text[place + k] != special.text[begin + k]:
                same = False
                break
        if same:
            return place + end - begin, special.ids[i]
    return -1, -1


@bare_kernel
def cut(special, longest, rule, text, begin, stop):
    """The last place of text[begin:stop] where it can be cut whatever follows; `begin` if there is none.

    `longest`: bytes of the longest special token, 1 if there is none; a rule of -1 has no cuts but special tokens.
    """
    open_from = stop - longest + 1  # from here on, one may be incomplete
    while begin < open_from < stop and text[open_from] & 0xC0 == 0x80:
        open_from -= 1
    last = begin
    while len(special.ids) > 0:
        place, end, _ = next_special(special, text, last, stop)
        if place >= open_from or place == stop:
            break
        last = end
    if rule < 0 or open_from <= last:
        return last
    return split.safe_cut(rule, text, last, open_from)
