"""Ids -> bytes. A token is a row of 16 bytes that is copied whole; the next one overwrites what was too much."""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import bare_kernel, load64, store64

ROW = 16
INLINE = 15
"""Bytes of a token that its row holds; the row's last byte is their number, LONG if there are more."""
LONG = 255
TOP = np.uint64(56)


@bare_kernel
def fill_rows(rows, text, offsets):
    """Rows of all tokens: `rows` uint8 [V * 16] of zeros, the tokens text[offsets[i]:offsets[i+1]]."""
    for id in range(len(offsets) - 1):
        begin = offsets[id]
        n = offsets[id + 1] - begin
        for i in range(min(n, INLINE)):
            rows[id * ROW + i] = text[begin + i]
        rows[id * ROW + INLINE] = n if n <= INLINE else LONG


@bare_kernel
def measure(ids, rows, offsets):
    """(bytes that the ids stand for, -1), or (_, place of the first id that stands for nothing)."""
    size = len(rows) // ROW
    total = 0
    for place in range(len(ids)):
        id = np.int64(ids[place])
        if id >= size:
            return total, place
        n = np.int64(rows[np.uint64(id * ROW + INLINE)])
        if n == LONG:
            n = offsets[id + 1] - offsets[id]
        elif n == 0:
            return total, place
        total += n
    return total, -1


@bare_kernel
def decode(ids, rows, text, offsets, out):
    """Write the bytes of ids that were measured to `out`, which has 16 bytes more than they need; how many."""
    o = 0
    for place in range(len(ids)):
        id = np.int64(ids[place])
        row = id * ROW
        last = load64(rows, row + 8)
        store64(out, o, load64(rows, row))
        store64(out, o + 8, last)
        n = np.int64(last >> TOP)
        if n == LONG:
            begin = offsets[id]
            n = offsets[id + 1] - begin
            for i in range(n):
                out[o + i] = text[begin + i]
        o += n
    return o
