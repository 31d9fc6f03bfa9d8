"""Drafts by the model's own heads of further ids. Letters: V vocabulary, R rows."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy import ndarray

from temaki.generate.chains import Chain
from temaki.generate.request import Row
from temaki.generate.sampler import Sampler
from temaki.generate.speculate import NONE, Draft

Choose = Callable[[int, ndarray], Sequence[int]]
"""(ids drafted so far, float logits [R, V]) -> the id drafted next in each of R rows."""


class Looking(Protocol):
    """What says further ids: an executor whose model has heads with blocks, or heads over hidden vectors."""

    hidden: bool
    """It needs `Row.hidden`."""

    def ready(self, row: Row) -> bool:
        """Whether it can look ahead of this row."""
        ...

    def ahead(self, rows: Sequence[Row], count: int, choose: Choose) -> None:
        """Have `choose` say at most `count` ids of each row, one after the other."""
        ...


class Heads:
    """Drafts of as many ids as there are heads, drawn through the requests' own filters."""

    def __init__(self, looking: Looking, vocabulary: int, least: float = 0.0):
        self.looking, self.least = looking, least
        self.hidden = looking.hidden
        self._sampler = Sampler(vocabulary)

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        able = [row for row in rows if n > 0 and self.looking.ready(row)]
        chains = [Chain(row, self._sampler, self.least) for row in able]

        def choose(_place: int, logits: ndarray) -> list[int]:
            return [each.ids[-1] if each.say(found) else 0 for each, found in zip(chains, logits, strict=True)]

        if able:
            self.looking.ahead(able, n, choose)
        drafts = {each.row.slot: each.draft() for each in chains}
        return [drafts.get(row.slot, NONE) for row in rows]

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        """Nothing is remembered here: what the heads have read goes with the executor's own slots."""

    def close(self, slot: int) -> None:
        """As `settle`."""


class Medusa(Protocol):
    """Heads that read what the model's own head reads, and nothing else."""

    count: int

    def logits(self, k: int, hidden: ndarray) -> ndarray:
        """[R, D] -> [R, V], of head k."""
        ...


class MedusaLooking:
    """Medusa heads beside any executor that gives hidden vectors: they need no state."""

    hidden = True

    def __init__(self, heads: Medusa):
        self.heads = heads

    def ready(self, row: Row) -> bool:
        return row.hidden is not None

    def ahead(self, rows: Sequence[Row], count: int, choose: Choose) -> None:
        hidden = np.stack([row.hidden for row in rows if row.hidden is not None])
        for k in range(min(count, self.heads.count)):
            choose(k, self.heads.logits(k, hidden))
