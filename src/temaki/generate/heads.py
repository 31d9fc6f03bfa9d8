"""Heads of further ids in decoding: what each has read of every slot, and what it has still to read.

Heads with blocks read every place that the model has read, but late: what the model leaves for them waits until a draft
is asked for, so nothing that is taken back is ever read by them. Place t of a slot is the id t of its row; n ids are
known, and the model has read all but the newest. Head k (1, 2, ..) of a chain reads the id t + k at place t: where that
one is itself only drafted, the reading is taken back at once, and the next draft reads the place again.
Letters: D width, V vocabulary, R rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from temaki.generate.ahead import Choose
from temaki.generate.request import Row


class Blocks(Protocol):
    """Heads as layers with slots of their own; head k = 0 is the first."""

    count: int
    chained: bool
    """Head k also reads ids, and the vectors of the head before it; else all read the model's."""
    nothing: ndarray
    """[0, D]: no vectors."""

    def length(self, k: int, slot: int) -> int:
        """Places that head k has read."""
        ...

    def read(self, k: int, slots: Sequence[int], vectors: Sequence[ndarray], ids: Sequence[ndarray]) -> list[ndarray]:
        """Vectors [m, D] of each slot, and ids [m] where heads are chained, at its next m places -> [m, D]."""
        ...

    def logits(self, k: int, vectors: ndarray) -> ndarray:
        """[R, D] as `read` gives them -> [R, V]."""
        ...

    def mark(self, k: int, slots: Sequence[int]) -> None: ...
    def rewind(self, k: int, slots: Sequence[int], keep: Sequence[int]) -> None: ...
    def fork(self, k: int, source: int, target: int) -> None: ...
    def save(self, k: int, slot: int) -> Mapping[str, Any]: ...
    def load(self, k: int, slot: int, saved: Mapping[str, Any]) -> None: ...
    def close(self, k: int, slot: int) -> None: ...


class HeadsState:
    """The decoding state of heads with blocks, for all slots."""

    hidden = False

    def __init__(self, blocks: Blocks, slots: int):
        self.blocks = blocks
        self.each = range(blocks.count)
        self.waiting = [self._nothing() for _ in range(slots)]
        """The vectors [m, D] of a slot that each head has still to read, from its own length on."""
        self.lost: set[int] = set()
        """Slots that went back to before what the heads have read: no drafts until they are closed."""

    def feed(self, slot: int, vectors: ndarray) -> None:
        """What the model has left at the places it read just now: [m, D]."""
        wait = self.waiting[slot]
        for k in self.each[:1] if self.blocks.chained else self.each:
            wait[k] = np.concatenate((wait[k], vectors))

    def ready(self, row: Row) -> bool:
        """Whether a row can have a draft: the heads know all but the newest id."""
        wait = len(self.waiting[row.slot][0])
        known = self.blocks.length(0, row.slot) + wait + 1
        return row.slot not in self.lost and wait > 0 and known == len(row.ids)

    def ahead(self, rows: Sequence[Row], count: int, choose: Choose) -> None:
        """Have `choose` say the next ids of these rows, at most `count`, one a head."""
        slots, count = [row.slot for row in rows], min(count, self.blocks.count)
        if self.blocks.chained:
            self._ahead_chained(slots, [row.ids.astype(np.int64) for row in rows], count, choose)
        else:
            self._ahead_beside(slots, count, choose)

    def _ahead_beside(self, slots: Sequence[int], count: int, choose: Choose) -> None:
        for k in range(count):
            found = self.blocks.read(k, slots, [self.waiting[slot][k] for slot in slots], ())
            for slot in slots:
                self.waiting[slot][k] = self.blocks.nothing
            choose(k, self.blocks.logits(k, _last(found)))

    def _ahead_chained(self, slots: Sequence[int], ids: list[ndarray], count: int, choose: Choose) -> None:
        known, fresh = [len(each) for each in ids], None
        for k in range(count):
            starts = [self.blocks.length(k, slot) for slot in slots]
            wait = [self.waiting[slot][k] for slot in slots]
            if fresh is not None:
                wait = [np.concatenate(each) for each in zip(wait, fresh, strict=True)]
            read = [row[start + k + 1 : n + k] for row, start, n in zip(ids, starts, known, strict=True)]
            sure = [max(0, n - k - 1 - start) for n, start in zip(known, starts, strict=True)]
            self.blocks.mark(k, slots)
            fresh = self.blocks.read(k, slots, wait, read)
            self.blocks.rewind(k, slots, sure)
            for slot, vectors, start, n, past in zip(slots, wait, starts, known, sure, strict=True):
                self.waiting[slot][k] = vectors[past : max(past, min(n - 1, n - k) - start)]
            said = choose(k, self.blocks.logits(k, _last(fresh)))
            ids = [np.append(row, each) for row, each in zip(ids, said, strict=True)]
            if k + 1 == count < self.blocks.count:
                for slot, vectors, past in zip(slots, fresh, sure, strict=True):
                    self.waiting[slot][k + 1] = np.concatenate((self.waiting[slot][k + 1], vectors[:past]))

    def rewind(self, slot: int, length: int) -> None:
        """The model's own state has gone back to `length` ids: what a head has read of later ones is lost."""
        for k in self.each:
            read, past = self.blocks.length(k, slot), k if self.blocks.chained else 0
            known = read + past + 1 if self.blocks.chained and read else read  # ids that what it has read depends on
            if known > length:
                self.lost.add(slot)
            self.waiting[slot][k] = self.waiting[slot][k][: max(0, length - past - read)]

    def fork(self, source: int, target: int) -> None:
        for k in self.each:
            self.blocks.fork(k, source, target)
        self.waiting[target] = list(self.waiting[source])
        (self.lost.add if source in self.lost else self.lost.discard)(target)

    def save(self, slot: int) -> dict[str, Any]:
        """All of one slot, by name."""
        found: dict[str, Any] = {"lost": np.array(slot in self.lost)}
        for k in self.each:
            found[f"{k}/waiting"] = self.waiting[slot][k].copy()
            found |= {f"{k}/{name}": each for name, each in self.blocks.save(k, slot).items()}
        return found

    def load(self, slot: int, saved: Mapping[str, Any]) -> None:
        """The inverse of `save`, bit for bit."""
        for k in self.each:
            own = {name.removeprefix(f"{k}/"): each for name, each in saved.items() if name.startswith(f"{k}/")}
            self.waiting[slot][k] = own.pop("waiting")
            self.blocks.load(k, slot, own)
        (self.lost.add if saved["lost"] else self.lost.discard)(slot)

    def close(self, slot: int) -> None:
        """Forget a slot."""
        for k in self.each:
            self.blocks.close(k, slot)
        self.waiting[slot] = self._nothing()
        self.lost.discard(slot)

    def _nothing(self) -> list[ndarray]:
        return [self.blocks.nothing for _ in self.each]


def _last(pieces: Sequence[ndarray]) -> ndarray:
    """The last vector of each piece: [R, D]."""
    return np.stack([each[-1] for each in pieces])
