"""What beam and contrastive search share: the request's checks, seats in an executor, and an answer with its score.

A search is a loop of its own over an executor that nobody else uses meanwhile and whose slots are all closed.
Letters: V vocabulary, n ids.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.generate import checking
from temaki.generate.executor import Answer, Executor, Work
from temaki.generate.request import Matcher, Request


@dataclass(frozen=True)
class Found:
    """An answer of a search."""

    ids: ndarray
    """int32 [n]; without the id that stopped it."""
    logprob: float
    """The sum of its ids' log-probabilities, in nats, with that of the id that stopped it."""
    score: float
    """What answers are ranked by; the larger, the better."""
    done: Literal["stop", "length"]


def check(request: Request, executor: Executor, slots: int, what: str) -> None:
    """Raises GenerationError for a request that this search can never serve, ConfigError for settings out of range.

    slots: how many the search takes. what: its name, for messages. Settings that only a draw can obey are refused.
    """
    checking.check(request, executor, None)
    c = request.sampling
    if c.temperature not in (0, 1) or c.top_k is not None or (c.typical_p, c.top_p, c.min_p) != (1, 1, 0):
        raise GenerationError(
            f"{what} draws nothing, so temperature, top_k, typical_p, top_p and min_p mean nothing to it",
            do="leave them out; penalties, biases and limits hold",
        )
    if request.branches != 1:
        raise GenerationError(f"{what} makes no branches", found=str(request.branches), allowed="1")
    if slots > executor.slots:
        raise GenerationError(
            f"{what} needs more slots than the executor has", found=str(slots), allowed=f"1 to {executor.slots}"
        )


class Seats:
    """The slots of an executor, taken and given back one by one; `all_free` gives back what is left, on errors too."""

    def __init__(self, executor: Executor):
        self.executor = executor
        self._taken: list[int] = []
        self._free = list(range(executor.slots))

    def open(self) -> int:
        """A slot that has read nothing."""
        slot = self._take()
        self.executor.open(slot)
        return slot

    def fork(self, source: int) -> int:
        """Another slot that has read the same."""
        slot = self._take()
        self.executor.fork(source, slot)
        return slot

    def close(self, slot: int) -> None:
        """A slot is no longer needed."""
        self._taken.remove(slot)
        self._free.append(slot)
        self.executor.close(slot)

    def _take(self) -> int:
        slot = self._free.pop(0)
        self._taken.append(slot)
        return slot

    def all_free(self) -> None:
        for slot in list(self._taken):
            self.close(slot)


@contextmanager
def seats(executor: Executor) -> Iterator[Seats]:
    """Seats that are all free afterwards."""
    found = Seats(executor)
    try:
        yield found
    finally:
        found.all_free()


def read(
    executor: Executor, slot: int, request: Request, chunk: int, want: Literal["last", "all"], hidden: bool
) -> Iterator[Answer]:
    """Read a prompt in chunks, or whole where the executor asks for it.

    last: only the last answer has logits, those behind the prompt. all: each answer has those of all its ids.
    """
    ids = np.asarray(request.ids, np.int32)
    step = len(ids) if executor.whole else chunk
    for start in range(0, len(ids), step):
        part = ids[start : start + step]
        wanted = "none" if want == "last" and start + step < len(ids) else want
        yield executor.run([Work(slot, part, wanted, request.adapter)], hidden)


def matcher(request: Request) -> Matcher | None:
    """Of the request's constraint or healing. Raises GenerationError for a constraint that cannot be."""
    wanted = request.healing if request.constraint is None else request.constraint
    return None if wanted is None else wanted.matcher()
