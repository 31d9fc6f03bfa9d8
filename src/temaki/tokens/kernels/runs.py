"""Where special tokens stand in a text, and the runs of plain text between them."""
# pyright: basic, reportCallIssue=false

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from temaki.base.compile import equal64, kernel, trailing
from temaki.tokens.kernels.count import same


class Needles(NamedTuple):
    """Special tokens to look for."""

    text: ndarray
    """uint8: all of them, the longest first."""
    ends: ndarray
    """int64 [n+1]."""
    head: ndarray
    """int64 [h, 2]: the first two bytes that one can have, each once; -1: there is no second."""


@kernel
def plain_runs(text, bounds, needles, out):
    """The runs between special tokens in each text[bounds[i, 0]:bounds[i, 1]]; how many.

    They are written to `out` (int64 [n, 2]) as far as it goes; runs without text are left out.
    """
    runs = 0
    for i in range(len(bounds)):
        begin, stop = bounds[i, 0], bounds[i, 1]
        while begin < stop:
            found, end = find(text, begin, stop, needles)
            if found > begin:
                if runs < len(out):
                    out[runs, 0], out[runs, 1] = begin, found
                runs += 1
            begin = end
    return runs


@kernel
def specials(text, begin, stop, open_from, needles, out):
    """Where the special tokens of text[begin:stop] that begin before `open_from` begin and end; how many.

    They are written to `out` (int64 [n, 2]) as far as it goes.
    """
    count = 0
    while begin < open_from:
        found, begin = find(text, begin, stop, needles)
        if found >= open_from:
            break
        if count < len(out):
            out[count, 0], out[count, 1] = found, begin
        count += 1
    return count


@kernel
def find(text, begin, stop, needles):
    """Where the first special token begins and ends; (stop, stop) if there is none."""
    heads = needles.head
    for block in range(begin, stop, 64):
        mask = np.uint64(0)
        for i in range(len(heads)):
            one = equal64(text, block, heads[i, 0])
            if heads[i, 1] >= 0:
                one &= equal64(text, block + 1, heads[i, 1])
            mask |= one
        while mask:
            place = block + trailing(mask)
            mask &= mask - np.uint64(1)
            end = _needle_at(text, place, stop, needles)
            if end > place:
                return place, end
    return stop, stop


@kernel
def _needle_at(text, place, stop, needles):
    """The end of the special token that begins here, or `place`."""
    for i in range(len(needles.ends) - 1):
        begin, length = needles.ends[i], needles.ends[i + 1] - needles.ends[i]
        if place + length <= stop and same(needles.text, begin, text, place, place + length):
            return place + length
    return place
