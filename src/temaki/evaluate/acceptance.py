"""How many drafted ids a model accepts, and what that saves: the same greedy answer with a proposer and without."""

import time
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.request import Request
from temaki.generate.speculate import Proposer
from temaki.generate.spoken import Spoken


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
    """Calls of the model that wrote them; the first id comes from reading the prompt."""
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
        """Ids written a call of the model; 1 without drafts."""
        return (self.ids - 1) / self.passes if self.passes else 0.0


def measure(executor: Executor, proposer: Proposer, prompt: ndarray, count: int) -> Acceptance:
    """Let an executor, whose slots are all closed, say `count` ids behind a prompt [n], plainly and by drafts."""
    plain, spent, _ = _said(executor, None, prompt, count)
    said, faster, spoken = _said(executor, proposer, prompt, count)
    drafted, accepted = sum(spoken.drafted), sum(spoken.accepted)
    return Acceptance(drafted, accepted, len(said), spoken.passes, spent / faster, said == plain)


def _said(
    executor: Executor, proposer: Proposer | None, prompt: ndarray, count: int
) -> tuple[list[int], float, Spoken]:
    """The greedy ids, the seconds they took behind the prompt's, and what was drafted."""
    engine = Engine(executor, proposer=proposer)
    engine.submit(Request(ids=np.asarray(prompt, np.int32), sampling=SamplingConfig(temperature=0, max_tokens=count)))
    ids: list[int] = []
    begin = time.perf_counter()
    while events := engine.step():
        new = [int(id) for event in events for id in event.ids]
        if not ids:
            begin = time.perf_counter()  # the first id is the prompt's
        ids += new
    return ids, max(time.perf_counter() - begin, 1e-9), engine.spoken
