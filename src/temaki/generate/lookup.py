"""N-gram lookup: what followed the row's last ids when they stood there before is what may come again.

Saxena 2023, "Prompt lookup decoding"; before it Yang et al. 2023, "Inference with reference". The draft has no
probabilities, so speculative = plain token for token under sampling too. Letters: n ids of a row.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.generate.request import Row
from temaki.generate.speculate import NONE, Draft

FIRST = 3
"""Ids of the first draft after an ending of some length: with the newest id they are four, which kernels like."""


class Lookup:
    """Drafts from the row itself: what came after the last earlier place of its longest ending that it has had before.

    longest, shortest: ids of the ending that is searched. How much is drafted after an ending of so many ids follows
    from how the last such draft of the row did: twice as much and one more after one that was accepted whole, else one
    id more than was accepted.

    >>> from temaki.generate.request import Request
    >>> row = Row(0, np.array([1, 2, 3, 4, 9, 2, 3], np.int32), 7, Request(ids=np.array([1])))
    >>> Lookup().propose([row], 2)[0].ids.tolist()
    [4, 9]
    """

    hidden = False

    def __init__(self, longest: int = 4, shortest: int = 2):
        if not 1 <= shortest <= longest:
            raise GenerationError(
                "lookup searches for endings of `shortest` to `longest` ids",
                found=f"{shortest} to {longest}",
                allowed="1 <= shortest <= longest",
            )
        self.longest, self.shortest = longest, shortest
        self._known: dict[int, _Index] = {}

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        return [self._draft(row, n) for row in rows]

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        for slot, count in zip(slots, kept, strict=True):
            if slot in self._known:
                self._known[slot].settle(count)

    def close(self, slot: int) -> None:
        self._known.pop(slot, None)

    def _draft(self, row: Row, n: int) -> Draft:
        index = self._known.get(row.slot)
        if index is None or not index.begins(row.ids):
            index = self._known[row.slot] = _Index(self.longest, self.shortest)
        index.read(row.ids)
        found = index.after(n)
        return Draft(found) if len(found) else NONE


class _Index:
    """Where each n-gram of a row last ended with something behind it."""

    def __init__(self, longest: int, shortest: int):
        self.sizes = range(longest, shortest - 1, -1)
        self.ids = np.zeros(0, np.int32)
        self.places: dict[tuple[int, ...], int] = {}
        """The ids of an n-gram -> the place behind it."""
        self.length = dict.fromkeys(self.sizes, FIRST)
        """How much is drafted after an ending of each size."""
        self.last: tuple[int, int] | None = None
        """(size of the ending, ids drafted) of the last draft."""

    def begins(self, ids: ndarray) -> bool:
        """Whether the row goes on from what was read."""
        return bool(np.array_equal(self.ids, ids[: len(self.ids)]))

    def read(self, ids: ndarray) -> None:
        """Note every n-gram that has an id behind it by now."""
        first = max(1, len(self.ids))
        start = max(0, first - self.sizes.start)
        tail = ids[start:].tolist()
        for stop in range(first, len(ids)):
            for size in self.sizes:
                if size <= stop:
                    self.places[tuple(tail[stop - size - start : stop - start])] = stop
        self.ids = ids.copy()

    def after(self, most: int) -> ndarray:
        """At most `most` ids that may come: int32; behind the row's own end they repeat."""
        self.last = None
        tail = self.ids[-self.sizes.start :].tolist()
        for size in self.sizes:
            if size <= len(tail) and (place := self.places.get(tuple(tail[-size:]))) is not None:
                count = min(most, self.length[size])
                self.last = size, count
                return np.resize(self.ids[place:], count)
        return self.ids[:0]

    def settle(self, kept: int) -> None:
        if self.last is not None:
            size, drafted = self.last
            self.length[size] = 2 * drafted + 1 if kept >= drafted else kept + 1
