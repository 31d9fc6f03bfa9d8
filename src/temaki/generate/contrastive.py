"""Contrastive search: of the k best next ids the one whose meaning is not there yet.

    score(v) = (1 - alpha) p(v) - alpha max_j cosine(h_v, h_j)

h_v is what the head would read behind v, h_j what it read at each id so far, the prompt's too. Each candidate is read
in a fork of the slot, all k in one call. Su et al. 2022. Letters: V vocabulary, D width, n ids, k candidates.
"""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from numpy import ndarray
from pydantic import Field

from temaki.base import config
from temaki.base.config import settings
from temaki.base.errors import GenerationError
from temaki.generate import search as searching
from temaki.generate.checking import longest
from temaki.generate.executor import Answer, Executor, Work
from temaki.generate.request import Done, Event, LogProbs, Matcher, Request, Row
from temaki.generate.sampler import Sampler
from temaki.generate.search import Found, Seats

CHUNK = 64
"""Prompt ids of one call: each brings its logits along with what the head read."""


@settings
class ContrastiveConfig:
    """How many ids are looked at, and how much likeness counts against them."""

    k: Annotated[int, Field(ge=1)] = 4
    """The most probable ids are candidates, so many; each takes a slot. 1 is the greedy answer."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Weight of likeness against probability; 0 is the greedy answer."""


def steps(executor: Executor, request: Request, contrast: ContrastiveConfig) -> Iterator[Event]:
    """The answer id by id, as an engine would tell it (request 0, branch 0); the last event says how it ended.

    Penalties, biases and bans of the request's settings work on log-probabilities. Ties go to the more probable id,
    then to the smaller one. Leaving the loop early frees the executor, and so does an error. Raises GenerationError
    for a request that cannot be served, or where logits are no distribution; ConfigError for settings out of range.
    """
    contrast = config.read(ContrastiveConfig, config.mapping(contrast), where="contrastive search")
    searching.check(request, executor, contrast.k, "contrastive search")
    if len(request.ids) >= executor.room:
        raise GenerationError(
            "contrastive search reads each id that it chooses, and the prompt leaves no room for one",
            found=f"{len(request.ids)} ids",
            allowed=f"{executor.room - 1} ids",
            do="shorten the prompt or make an executor with more room",
        )
    return _steps(executor, request, contrast)


def search(executor: Executor, request: Request, contrast: ContrastiveConfig) -> Found:
    """The whole answer of `steps`; its score is the mean log-probability of the ids drawn."""
    ids, logprob, done = [], 0.0, "length"
    for event in steps(executor, request, contrast):
        ids += event.ids.tolist()
        logprob += 0.0 if event.logprobs is None else float(event.logprobs.drawn.sum())
        done = "stop" if event.done == "stop" else done
    count = max(1, len(ids) + (done == "stop"))
    return Found(np.array(ids, np.int32), logprob, logprob / count, "stop" if done == "stop" else "length")


class _History:
    """What the head read at each id so far, each of length 1. Letters: m rows."""

    def __init__(self, room: int):
        self._room = room
        self._rows: ndarray | None = None
        self._count = 0

    def add(self, hidden: ndarray) -> None:
        """More rows [m, D]."""
        if self._rows is None:
            self._rows = np.zeros((self._room, hidden.shape[1]), hidden.dtype)
        self._rows[self._count : self._count + len(hidden)] = _unit(hidden)
        self._count += len(hidden)

    def likeness(self, hidden: ndarray) -> ndarray:
        """float64 [k]: for each row of hidden [k, D] the largest cosine to any row so far."""
        assert self._rows is not None, "nothing was read yet"
        return (_unit(hidden) @ self._rows[: self._count].T).max(-1).astype(np.float64)


def _unit(hidden: ndarray) -> ndarray:
    """Rows of length 1; a row of zeros stays."""
    return hidden / np.maximum(np.linalg.norm(hidden, axis=-1, keepdims=True), np.finfo(hidden.dtype).tiny)


def _steps(executor: Executor, request: Request, contrast: ContrastiveConfig) -> Iterator[Event]:
    matcher = searching.matcher(request)
    if matcher is not None and matcher.done:
        yield Event(0, 0, np.zeros(0, np.int32), done="stop")
        return
    with searching.seats(executor) as seats:
        yield from _Search(executor, seats, request, contrast, matcher).run()


class _Search:
    """One search under way. The slot has read all of `ids`, and `logits` [V] are those behind them."""

    def __init__(
        self, executor: Executor, seats: Seats, request: Request, contrast: ContrastiveConfig, matcher: Matcher | None
    ):
        self.executor, self.seats, self.request, self.contrast = executor, seats, request, contrast
        self.matcher = matcher
        self.ids = np.asarray(request.ids, np.int32)
        self.most = min(longest(request, executor.room), executor.room)
        self.sampler = Sampler(executor.vocabulary)
        self.history = _History(executor.room)
        self.slot = seats.open()
        for answer in searching.read(executor, self.slot, request, CHUNK, "all", hidden=True):
            self.history.add(_hidden(answer))
            self.logits = answer.logits[-1]

    def run(self) -> Iterator[Event]:
        done: Done | None = None
        while done is None:
            new, logprob = self._choose()
            stops = new in self.request.sampling.stop_ids
            done = "stop" if stops else self._take(new)
            drawn = LogProbs(np.array([logprob]), np.zeros((1, 0), np.int64), np.zeros((1, 0)))
            yield Event(0, 0, np.array([] if stops else [new], np.int32), drawn, done)

    def _take(self, new: int) -> Done | None:
        self.ids = np.append(self.ids, np.int32(new))
        if self.matcher is not None:
            self.matcher.advance(new)
            if self.matcher.done:
                return "stop"
        return "length" if len(self.ids) == self.most else None

    def _choose(self) -> tuple[int, float]:
        """The next id, now read, and its log-probability."""
        row = Row(self.slot, self.ids, len(self.request.ids), self.request)
        allowed = None if self.matcher is None else self.matcher.mask()
        ids, logprobs = self.sampler.best(self.logits, row, self.contrast.k, allowed)
        if not len(ids):
            raise GenerationError("every id is ruled out: no id can be chosen", do="loosen the constraint")
        slots = [self.slot, *(self.seats.fork(self.slot) for _ in ids[1:])]
        asked = zip(slots, ids, strict=True)
        work = [Work(slot, np.array([id], np.int32), "last", self.request.adapter) for slot, id in asked]
        answer = self.executor.run(work, hidden=True)
        likeness, alpha = self.history.likeness(_hidden(answer)), self.contrast.alpha
        best = int(np.argmax((1 - alpha) * np.exp(logprobs) - alpha * likeness))  # the first of the largest
        self.history.add(_hidden(answer)[[best]])
        self.logits, self.slot = answer.logits[best], slots[best]
        for slot in slots:
            if slot != self.slot:
                self.seats.close(slot)
        return int(ids[best]), float(logprobs[best])


def _hidden(answer: Answer) -> ndarray:
    assert answer.hidden is not None, "the executor was asked for it"
    return answer.hidden
