"""How many drafted ids a model accepts, and what that saves: the same greedy answer with a proposer and without."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.request import Request, Row
from temaki.generate.speculate import Draft, Proposer


@dataclass(frozen=True)
class Acceptance:
    """What a proposer did for one answer."""

    drafted: int
    """Ids proposed."""
    accepted: int
    """Of them, those that the model would have said."""
    ids: int
    """Ids of the answer."""
    passes: int
    """Calls of the model that wrote them."""
    gain: float
    """Seconds without the proposer over seconds with it."""
    same: bool
    """Whether the answer is the same id for id."""

    @property
    def rate(self) -> float:
        """The share of drafted ids that was accepted; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def per_pass(self) -> float:
        """Ids written a call of the model."""
        return self.ids / self.passes if self.passes else 0.0


class Counted:
    """A proposer, and how many of its ids were accepted."""

    def __init__(self, inner: Proposer):
        self.inner = inner
        self.hidden = inner.hidden
        self.drafted = self.accepted = 0

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        found = self.inner.propose(rows, n)
        self.drafted += sum(len(each.ids) for each in found)
        return found

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        self.accepted += int(sum(kept))
        self.inner.settle(slots, kept)

    def close(self, slot: int) -> None:
        self.inner.close(slot)


def measure(executor: Executor, proposer: Proposer, prompt: ndarray, count: int) -> Acceptance:
    """Let an executor, whose slots are all closed, say `count` ids behind a prompt [n], plainly and by drafts."""
    plain, spent, _ = _said(executor, None, prompt, count)
    counted = Counted(proposer)
    said, faster, passes = _said(executor, counted, prompt, count)
    return Acceptance(counted.drafted, counted.accepted, len(said), passes, spent / faster, said == plain)


def _said(executor: Executor, proposer: Proposer | None, prompt: ndarray, count: int) -> tuple[list[int], float, int]:
    """The greedy ids, the seconds they took behind the prompt's, and the calls of the model."""
    engine = Engine(executor, proposer=proposer)
    engine.submit(Request(ids=np.asarray(prompt, np.int32), sampling=SamplingConfig(temperature=0, max_tokens=count)))
    ids: list[int] = []
    passes, begin = 0, time.perf_counter()
    while events := engine.step():
        new = [int(id) for event in events for id in event.ids]
        if not ids:
            begin = time.perf_counter()  # the first id is the prompt's
        passes += bool(ids)
        ids += new
    return ids, max(time.perf_counter() - begin, 1e-9), passes
