"""Rows of examples: any row is a function of (seed, purpose, place), so it is reached by seeking.

A row holds as many examples as fit, each a piece of its own, so nothing is seen across them; what is left of it is one
piece of boundary ids at which nothing is asked. Letters: B rows, T ids a row.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from temaki.base import keys
from temaki.base.rows import Rows, TokenBatch
from temaki.batches import packing
from temaki.batches.shards import Shards
from temaki.batches.tasks import Example, Task

HELD = 0
"""The seed of held-out examples: the same for all runs, so that they can be compared."""


class Examples(Protocol):
    """Where rows come from."""

    @property
    def rows(self) -> int | None:
        """How many there are; None: no end."""
        ...

    def row(self, place: int, room: int) -> list[Example]:
        """The examples of a row of so many ids."""
        ...


class Made:
    """Examples by a rule, drawn for (seed, purpose, place)."""

    rows: int | None = None

    def __init__(self, task: Task, seed: int, purpose: str):
        self.task, self.seed, self.purpose = task, seed, purpose

    def row(self, place: int, room: int) -> list[Example]:
        generator = keys.generator(self.seed, self.purpose, place)
        found: list[Example] = []
        while room and (example := self.task.example(generator, room)) is not None:
            found.append(example)
            room -= len(example.ids)
        return found


class Pictures:
    """Pictures with labels, documents [E, pixels, label] of shards: in seeded orders without end, or once in theirs."""

    def __init__(self, shards: Shards, context: int, answers: int, seed: int | None):
        """answers: at how many last places the label is asked; seed: of the orders, None for once in the shards'."""
        self.shards, self.answers, self.seed = shards, answers, seed
        self.count = shards.manifest.documents
        self.size = len(shards.document(0)) - 2
        """Pixels of a picture."""
        self.each = context // self.size
        """Pictures a row."""
        self.rows: int | None = None if seed is not None else -(-self.count // self.each)
        self._epoch, self._order = -1, np.arange(self.count)

    def row(self, place: int, room: int) -> list[Example]:
        numbers = range(place * self.each, (place + 1) * self.each)
        return [self._example(self._picture(i)) for i in numbers if self.rows is None or i < self.count]

    def _picture(self, number: int) -> int:
        epoch, place = divmod(number, self.count)
        if self.seed is not None and epoch != self._epoch:
            self._epoch = epoch
            self._order = keys.generator(self.seed, "order", epoch).permutation(self.count)
        return int(self._order[place])

    def _example(self, number: int) -> Example:
        read = self.shards.document(number)
        ids, asked = read[1:-1], np.arange(self.size) >= self.size - self.answers
        return Example(ids, np.where(asked, read[-1], ids), asked)


class TaskLoader:
    """Rows of `context` ids of a task, any of them by its place."""

    def __init__(self, examples: Examples, context: int):
        self.examples, self.context = examples, context

    def take(self, position: int, count: int) -> TokenBatch:
        """The batch of rows position..position+count-1."""
        return batch([self._row(position + i) for i in range(count)])

    def _row(self, place: int) -> list[Example]:
        found = self.examples.row(place, self.context)
        left = self.context - sum(len(each.ids) for each in found)
        return [*found, blank(left)] if left else found


def blank(count: int) -> Example:
    """So many boundary ids at which nothing is asked.

    >>> blank(2).asked.tolist()
    [False, False]
    """
    return Example(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, bool))


def batch(rows: list[list[Example]]) -> TokenBatch:
    """The batch of rows of equally many ids, each example a piece.

    >>> batch([[blank(2), blank(1)], [blank(3)]]).rows.cuts.tolist()
    [0, 2, 3, 6]
    """
    every = [each for row in rows for each in row]
    cuts: NDArray[np.int64] = np.cumsum([0, *(len(each.ids) for each in every)])
    ids, targets, asked = (
        torch.from_numpy(np.concatenate(each))
        for each in zip(*((e.ids, e.targets, e.asked) for e in every), strict=True)
    )
    shape = (len(rows), int(cuts[-1]) // len(rows))
    read = Rows(ids, torch.from_numpy(cuts), torch.from_numpy(packing.positions(cuts)), shape)
    return TokenBatch(read, targets, asked.float())
