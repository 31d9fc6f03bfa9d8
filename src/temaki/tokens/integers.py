"""Ids as lists of Python integers that are there already, which takes less time than to make new ones."""

from collections import deque

import numpy as np
from numpy import ndarray

FEW = 64
"""Ids that become a list of new integers: for so few the rest costs more."""

AT_ONCE = 1 << 15
"""Ids that are turned at a time, so that all stays near."""


class Integers:
    """The integers below a size; safe to use from several threads."""

    def __init__(self, size: int):
        self._integers = np.array(range(size), np.object_)
        self._rooms: deque[tuple[ndarray, ndarray]] = deque(maxlen=8)

    def listed(self, ids: ndarray) -> list[int]:
        """The ids, uint32 [N], each below the size, as a list."""
        if len(ids) < FEW:
            return ids.tolist()
        try:
            places, taken = self._rooms.pop()
        except IndexError:  # none is there, or another thread was faster
            places, taken = np.empty(AT_ONCE, np.int64), np.empty(AT_ONCE, np.object_)
        found: list[int] = []
        for first in range(0, len(ids), AT_ONCE):
            n = min(AT_ONCE, len(ids) - first)
            places[:n] = ids[first : first + n]
            self._integers.take(places[:n], out=taken[:n], mode="clip")  # "raise" would copy once more
            part = taken[:n].tolist()
            if found:
                found += part
            else:
                found = part  # mostly all, and not copied
        self._rooms.append((places, taken))
        return found
