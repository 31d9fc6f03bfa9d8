"""Drafts by a smaller model of the same vocabulary. Letters: V vocabulary.

The draft model keeps a state of its own, which has read all ids of a row and, behind a mark, all drafted ids but the
last.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.generate.chains import Chain
from temaki.generate.executor import Executor, Work
from temaki.generate.reader import BREAKS
from temaki.generate.request import Row
from temaki.generate.sampler import Sampler
from temaki.generate.speculate import NONE, Draft

CHUNK = 512
"""Ids of a prompt that the draft model reads in one call."""


class DraftModel:
    """A model that drafts: its own executor, with as many slots as the model's, which nobody else uses.

    vocabulary: of the model it drafts for. least: a draft ends before a place where the draft model's likeliest id is
    less probable than this; 0: never. Raises GenerationError for another vocabulary, and for a model that reads
    prompts both ways.
    """

    hidden = False

    def __init__(self, executor: Executor, vocabulary: int, least: float = 0.0):
        if executor.vocabulary != vocabulary:
            raise GenerationError(
                "the draft model has another vocabulary than the model it drafts for",
                found=f"{executor.vocabulary:,} ids",
                allowed=f"{vocabulary:,} ids",
                do="take a draft model of the same tokenizer, or train one: recipes/draft.toml",
            )
        if executor.whole:
            raise GenerationError("a draft model must read id after id", found="prompts that it sees both ways")
        if not 0 <= least < 1:
            raise GenerationError("`least` is a probability", found=str(least), allowed="0 to below 1")
        self.executor, self.least = executor, least
        self._sampler = Sampler(vocabulary)
        self._read: dict[int, ndarray] = {}
        """int32: what each slot's state has read, drafted ids aside."""
        self._drafted: dict[int, ndarray] = {}
        """What it has drafted since its mark."""

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        """Chains of at most n ids; none where the draft model breaks, whose slots then begin anew."""
        try:
            return self._chains(rows, n)
        except BREAKS:
            for row in rows:
                self.close(row.slot)
            return [NONE] * len(rows)

    def _chains(self, rows: Sequence[Row], n: int) -> list[Draft]:
        chains = {row.slot: Chain(row, self._sampler, self.least) for row in rows if n > 0 and self._fits(row)}
        going = list(chains.values())
        logits = self._catch_up([each.row for each in going])
        self.executor.mark(list(chains))
        for place in range(n):
            going = [each for each, found in zip(going, logits, strict=True) if each.say(found)]
            if place + 1 < n:
                going = [each for each in going if len(each.row.ids) + len(each.ids) <= self.executor.room]
                work = [Work(each.row.slot, np.array(each.ids[-1:], np.int32), "last") for each in going]
                logits = list(self.executor.run(work).logits) if work else []
        self._drafted.update({slot: np.array(each.ids, np.int32) for slot, each in chains.items()})
        return [chains[row.slot].draft() if row.slot in chains else NONE for row in rows]

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        for slot, count in zip(slots, kept, strict=True):
            if slot in self._drafted:
                self._back(slot, count)

    def close(self, slot: int) -> None:
        self._drafted.pop(slot, None)
        if self._read.pop(slot, None) is not None:
            self.executor.close(slot)

    def _fits(self, row: Row) -> bool:
        """Whether a slot has room for the row; one that read another row is closed."""
        if row.slot in self._drafted:
            self._back(row.slot, 0)
        read = self._read.get(row.slot)
        if read is not None and (len(read) >= len(row.ids) or not np.array_equal(read, row.ids[: len(read)])):
            self.close(row.slot)
        return row.slot < self.executor.slots and len(row.ids) <= self.executor.room

    def _catch_up(self, rows: Sequence[Row]) -> Sequence[ndarray]:
        """Read what is new of every row: the logits [V] behind the newest id of each."""
        for row in rows:
            if row.slot not in self._read:
                self.executor.open(row.slot)
                self._read[row.slot] = row.ids[:0].copy()
            while len(row.ids) - len(self._read[row.slot]) > CHUNK:
                start = len(self._read[row.slot])
                self.executor.run([Work(row.slot, row.ids[start : start + CHUNK].copy(), "none")])
                self._read[row.slot] = row.ids[: start + CHUNK].copy()
        work = [Work(row.slot, row.ids[len(self._read[row.slot]) :].copy(), "last") for row in rows]
        self._read.update({row.slot: row.ids.copy() for row in rows})
        return list(self.executor.run(work).logits) if work else []

    def _back(self, slot: int, kept: int) -> None:
        """Take back what was drafted, but for the first `kept` ids that the state has read."""
        drafted = self._drafted.pop(slot)
        left = max(0, min(kept, len(drafted) - 1))  # the last one was never read
        self.executor.rewind([slot], [left])
        self._read[slot] = np.concatenate([self._read[slot], drafted[:left]])
