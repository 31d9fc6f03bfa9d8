"""A compiled double array over bytes: which pieces begin at a place of a text.

A slot is one uint64: byte 0 is the byte that leads here, bits 8-31 say where the children lie (their offset), bits
32-63 are the piece that ends here, plus one; zero is an empty slot. The child of a slot by byte b lies at offset ^ b,
if the byte of that slot is b. No two slots share an offset, so one comparison decides. Offsets below 256 are never
given out, and block 0 holds bytes that cannot match: a slot without children needs no test. Source: Aoe 1989; the
exclusive-or form: Yata 2007 (darts-clone).
"""
# pyright: basic

import numpy as np

from temaki.base.compile import kernel

ROOT = 256
"""The offset of the first bytes' slots."""

_TRIES = 256
"""Empty slots looked at for a slot's children before a new block of 256 is opened."""


@kernel
def build(pool, starts, sizes, numbers, units, taken, following, preceding, queue):
    """Fill `units` with pieces that are sorted by their bytes, none twice, none empty; slots used, or 0 for no room.

    Piece i = pool[starts[i] : starts[i] + sizes[i]], uint8; `numbers` int64 [n] is what its slot shows. units: uint64
    [cap], zeros; taken: uint8 [cap], zeros: which offsets are in use; following, preceding: int64 [cap + 1]: scratch
    for the list of empty slots; queue: int64 [4, total bytes + 1]: first, last + 1, depth, slot of those whose children
    wait.
    """
    capacity = units.size
    head = capacity  # of the ring of empty slots
    following[head] = head
    preceding[head] = head
    for byte in range(256):
        units[byte] = np.uint64(byte ^ 1)
    top = 256
    labels = np.empty(257, np.int64)
    bounds = np.empty(258, np.int64)
    queue[0, 0], queue[1, 0], queue[2, 0], queue[3, 0] = 0, starts.size, 0, -1
    done, waiting = 0, 1
    while done < waiting:
        low, high, depth, slot = queue[0, done], queue[1, done], queue[2, done], queue[3, done]
        done += 1
        if low < high and sizes[low] == depth:
            low += 1
        if low == high:
            continue
        count = 0
        last = -1
        for i in range(low, high):
            byte = np.int64(pool[starts[i] + depth])
            if byte != last:
                labels[count] = byte
                bounds[count] = i
                count += 1
                last = byte
        bounds[count] = high
        offset = 0
        if slot >= 0:
            candidate = preceding[head]  # the newest are the emptiest
            for _ in range(_TRIES):
                if candidate == head:
                    break
                base = candidate ^ labels[0]
                if taken[base] == 0:
                    fits = True
                    for k in range(1, count):
                        if preceding[base ^ labels[k]] < 0:
                            fits = False
                            break
                    if fits:
                        offset = base
                        break
                candidate = preceding[candidate]
        if offset == 0:
            if top + 256 > capacity or top + 256 > (1 << 24):
                return 0
            for free in range(top, top + 256):
                tail = preceding[head]
                following[tail] = free
                preceding[free] = tail
                following[free] = head
                preceding[head] = free
            offset = top  # of the root: ROOT, for it comes first
            top += 256
        taken[offset] = 1
        if slot >= 0:
            units[slot] |= np.uint64(offset) << np.uint64(8)
        for k in range(count):
            child = offset ^ labels[k]
            following[preceding[child]] = following[child]
            preceding[following[child]] = preceding[child]
            preceding[child] = -1  # no longer empty
            first = bounds[k]
            unit = np.uint64(labels[k])
            if sizes[first] == depth + 1:
                unit |= np.uint64(numbers[first] + 1) << np.uint64(32)
            units[child] = unit
            queue[0, waiting], queue[1, waiting] = first, bounds[k + 1]
            queue[2, waiting], queue[3, waiting] = depth + 1, child
            waiting += 1
    return top
