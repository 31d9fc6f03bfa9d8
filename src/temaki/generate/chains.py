"""A drafted chain under way: its ids are drawn through the request's own filters, so that q and p are warped alike.

A model that drafts may be wrong or broken; that ends its drafts and never an answer. Letters: V vocabulary.
"""

from dataclasses import replace

import numpy as np
from numpy import ndarray

from temaki.base import keys
from temaki.base.errors import GenerationError
from temaki.generate.request import Row
from temaki.generate.sampler import Sampler
from temaki.generate.speculate import NONE, Draft, drawn


class Chain:
    """What is drafted behind one row, id by id.

    least: the chain ends before a place where the likeliest id, before the filters, is less probable than this. The
    drawn id may not be asked so: a decision that depends on the draw would change what is said.
    """

    def __init__(self, row: Row, sampler: Sampler, least: float = 0.0):
        self.row = row
        self.ids: list[int] = []
        self.ended = False
        self._sampler, self._least = sampler, least
        self._spread: list[ndarray] = []
        """q of every id; none are kept where all mass lies on the id."""

    def say(self, logits: ndarray) -> bool:
        """Draft the next id from logits [V]; False: the chain has ended before it."""
        row = replace(self.row, ids=np.append(self.row.ids, np.array(self.ids, np.int32)), hidden=None)
        try:
            q = self._sampler.probabilities(logits, row)
        except GenerationError:  # NaN, or nothing that the filters leave: no draft
            self.ended = True
            return False
        self.ended = self.ended or (self._least > 0 and _most(logits) < self._least)
        if self.ended:
            return False
        self.ids.append(drawn(q, keys.uniform(row.request.seed, "draft", row.branch, len(row.ids))))
        if row.request.sampling.temperature > 0:
            self._spread.append(q)
        return True

    def draft(self) -> Draft:
        """All of it."""
        if not self.ids:
            return NONE
        return Draft(np.array(self.ids, np.int32), np.array(self._spread) if self._spread else None)


def _most(logits: ndarray) -> float:
    """The largest of softmax(logits)."""
    return 1 / float(np.exp(logits - logits.max()).sum())
