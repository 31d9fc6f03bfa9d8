"""A store of read prefixes: a new prompt that begins with one of them copies its memory instead of reading it again."""

from collections import Counter, OrderedDict

import numpy as np
from numpy import ndarray

from temaki.generate.executor import Saved

SHORTEST = 16
"""Ids of the shortest prefix that is worth keeping."""

Key = tuple[str | None, bytes]


class Prefixes:
    """Saves by (adapter, ids), at most `limit` bytes of them; what was not used for longest goes first. limit = 0: off.

    A save is of one length and cannot be cut (a recurrence has no half), so prefixes are kept where they are likely to
    be asked for again: at the end of a prompt and of what a request calls shared.

    >>> store, ids = Prefixes(1000), np.arange(40, dtype=np.int32)
    >>> store.keep(None, ids[:20], Saved(20, {"k": np.zeros(100, np.uint8)}))
    >>> [store.longest(adapter, ids).length for adapter in (None,)], store.longest("other", ids), store.bytes
    ([20], None, 180)
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        """What the saves and their ids take."""
        self.reused = 0
        """Ids that did not have to be read."""
        self._saves: OrderedDict[Key, Saved] = OrderedDict()
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._saves)

    def worth(self, length: int) -> bool:
        """Whether a prefix of so many ids is kept at all."""
        return self.limit > 0 and length >= SHORTEST

    def holds(self, adapter: str | None, ids: ndarray) -> bool:
        """Whether exactly these ids are there."""
        return _key(adapter, ids) in self._saves

    def longest(self, adapter: str | None, ids: ndarray) -> Saved | None:
        """The save of the longest stored prefix of ids [n] that leaves at least one id to read."""
        for length in sorted((each for each in self._lengths if each < len(ids)), reverse=True):
            key = _key(adapter, ids[:length])
            if key in self._saves:
                self._saves.move_to_end(key)
                self.reused += length
                return self._saves[key]
        return None

    def keep(self, adapter: str | None, ids: ndarray, saved: Saved) -> None:
        """Store what a slot held after reading ids [n]; one that is larger than the limit is let go."""
        key = _key(adapter, ids)
        if key in self._saves:
            self._drop(key)
        if _size(key, saved) > self.limit:
            return
        self._saves[key] = saved
        self._lengths[saved.length] += 1
        self.bytes += _size(key, saved)
        while self.bytes > self.limit:
            self._drop(next(iter(self._saves)))

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._saves):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        saved = self._saves.pop(key)
        self.bytes -= _size(key, saved)
        self._lengths[saved.length] -= 1
        self._lengths += Counter()  # without zeros


def _key(adapter: str | None, ids: ndarray) -> Key:
    return adapter, np.ascontiguousarray(ids, np.int32).tobytes()


def _size(key: Key, saved: Saved) -> int:
    return len(key[1]) + saved.bytes
