"""Beam search: the answers of the best score that keeping the K best beginnings at each length finds.

A score is the sum of log-probabilities / n^length_penalty, n the ids drawn with the one that stops (the form of
transformers; Wu et al. 2016, equation 14, has ((5 + n) / 6)^a instead). At each length the continuations of all beams
are ranked by their sums, equal ones by their beam and then by the smaller id: of the K best, those that end are
answers, and the K best that do not end go on. Sums are float64. Letters: K beams, V vocabulary, n ids.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy import ndarray
from pydantic import Field

from temaki.base import config
from temaki.base.config import settings
from temaki.base.errors import ConfigError, GenerationError
from temaki.generate import search as searching
from temaki.generate.checking import longest
from temaki.generate.executor import Executor, Work
from temaki.generate.request import Matcher, Request, Row
from temaki.generate.sampler import Sampler
from temaki.generate.search import Found, Seats

CHUNK = 512
"""Prompt ids of one call."""


@settings
class BeamConfig:
    """How wide is searched, and which answers are good."""

    beams: Annotated[int, Field(ge=1, le=256)] = 4
    """Beginnings that are kept; each takes a slot. One until "enough" is the greedy answer."""
    best: Annotated[int, Field(ge=1)] = 1
    """Answers that are given, at most `beams`."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Sums are divided by n to this power: 0 prefers short answers, more than 1 long ones."""
    until: Literal["certain", "enough"] = "certain"
    """certain: until no beam can get better than the worst answer kept; enough: until there are as many as beams."""


@dataclass(eq=False)
class _Beam:
    """A beginning. Its slot has read all ids but the newest."""

    ids: ndarray
    """int32: prompt and answer."""
    logprob: float
    slot: int
    matcher: Matcher | None


class _Next(NamedTuple):
    """One more id for a beam; sorted as they rank."""

    cost: float
    """Minus the sum of log-probabilities."""
    beam: int
    id: int


def search(
    executor: Executor, request: Request, beam: BeamConfig, told: Callable[[int, int], None] | None = None
) -> list[Found]:
    """The `best` answers to a request, best first; fewer only where there are no more.

    Penalties, biases and bans of the request's settings work on log-probabilities, as in transformers. told: called
    with (ids so far, at most) after each step. All slots are closed afterwards, on errors too. Raises GenerationError
    for a request that cannot be served, or where logits are no distribution; ConfigError for settings out of range.
    """
    beam = config.read(BeamConfig, config.mapping(beam), where="beam search")
    if beam.best > beam.beams:
        raise ConfigError("beam search: more answers than beams", found=str(beam.best), allowed=f"1 to {beam.beams}")
    searching.check(request, executor, beam.beams, "beam search")
    with searching.seats(executor) as seats:
        return _Search(executor, seats, request, beam).run(told)


class _Search:
    """One search under way."""

    def __init__(self, executor: Executor, seats: Seats, request: Request, beam: BeamConfig):
        self.executor, self.seats, self.request, self.beam = executor, seats, request, beam
        self.prompt = len(request.ids)
        self.most = longest(request, executor.room) - self.prompt
        self.sampler = Sampler(executor.vocabulary)
        self.beams: list[_Beam] = []
        self.found: list[Found] = []
        """The best K so far, best first."""

    def run(self, told: Callable[[int, int], None] | None) -> list[Found]:
        first = _Beam(np.asarray(self.request.ids, np.int32), 0.0, self.seats.open(), searching.matcher(self.request))
        if first.matcher is not None and first.matcher.done:
            return [Found(first.ids[:0], 0.0, 0.0, "stop")]
        self.beams = [first]
        *_, answer = searching.read(self.executor, first.slot, self.request, CHUNK, "last", hidden=False)
        logits = answer.logits
        for n in range(1, self.most + 1):
            self._step(logits, n)
            if told is not None:
                told(n, self.most)
            if not self.beams or self._settled(n):
                break
            work = [Work(each.slot, each.ids[-1:], "last", self.request.adapter) for each in self.beams]
            logits = self.executor.run(work).logits
        if not self.found:
            raise GenerationError("no answer is possible: every continuation is ruled out", do="loosen the constraint")
        return self.found[: self.beam.best]

    def _step(self, logits: ndarray, n: int) -> None:
        """Rank all continuations by the n-th id: some are answers, some go on."""
        width, going = self.beam.beams, list[tuple[_Next, Matcher | None]]()
        for rank, each in enumerate(self._ranked(logits)):
            if len(going) == width or (n == self.most and rank == width):
                break
            stops = each.id in self.request.sampling.stop_ids
            matcher = None if stops else self._advanced(each)
            over = stops or (matcher is not None and matcher.done)
            if not over and n < self.most:
                going.append((each, matcher))
            elif rank < width:
                ids = np.append(self.beams[each.beam].ids[self.prompt :], np.int32(each.id))[: n - stops]
                self._keep(Found(ids, -each.cost, self._score(-each.cost, n), "stop" if over else "length"))
        self._go_on(going)

    def _ranked(self, logits: ndarray) -> Iterator[_Next]:
        """Continuations, best first, looked up as far as they are asked for: many may end before K go on."""
        count, told = self.beam.beams + len(set(self.request.sampling.stop_ids)), 0
        while True:
            lists = self._listed(logits, count)
            ranked = sorted(itertools.chain(*lists))
            cut = [each[-1] for each in lists if len(each) == count]  # what is not listed comes behind one of these
            sure = bisect_right(ranked, min(cut)) if cut else len(ranked)
            yield from ranked[told:sure]
            if not cut:
                return
            told, count = sure, 4 * count

    def _listed(self, logits: ndarray, count: int) -> list[list[_Next]]:
        """The `count` best of each beam; fewer only where there are no more."""
        found = []
        for number, (each, row) in enumerate(zip(self.beams, logits, strict=True)):
            so_far = Row(each.slot, each.ids, self.prompt, self.request)
            allowed = None if each.matcher is None else each.matcher.mask()
            ids, logprobs = self.sampler.best(row, so_far, count, allowed)
            costs = (-(each.logprob + logprobs)).tolist()
            found.append([_Next(cost, number, id) for cost, id in zip(costs, ids.tolist(), strict=True)])
        return found

    def _advanced(self, each: _Next) -> Matcher | None:
        """The matcher of a beam after one more id."""
        before = self.beams[each.beam].matcher
        if before is None:
            return None
        after = before.copy()
        after.advance(each.id)
        return after

    def _go_on(self, going: Sequence[tuple[_Next, Matcher | None]]) -> None:
        """Seat the beams that go on: the first of a beginning keeps its slot, the others fork it."""
        parents = [self.beams[each.beam] for each, _ in going]
        for old in self.beams:
            if old not in parents:
                self.seats.close(old.slot)
        seated: set[int] = set()
        beams: list[_Beam] = []
        for (each, matcher), old in zip(going, parents, strict=True):
            slot = old.slot if old.slot not in seated else self.seats.fork(old.slot)
            seated.add(slot)
            beams.append(_Beam(np.append(old.ids, np.int32(each.id)), -each.cost, slot, matcher))
        self.beams = beams

    def _keep(self, found: Found) -> None:
        """Among the K best; of equal ones the earlier."""
        self.found = sorted([*self.found, found], key=lambda each: -each.score)[: self.beam.beams]

    def _score(self, logprob: float, n: int) -> float:
        return logprob / n**self.beam.length_penalty

    def _settled(self, n: int) -> bool:
        """Whether the answers are what they will be, at n ids."""
        if len(self.found) < self.beam.beams:
            return False
        if self.beam.until == "enough":
            return True
        at = self.most if self.beam.length_penalty > 0 else n + 1  # where a beam's sum, were it to stay, scores best
        return all(self._score(each.logprob, at) <= self.found[-1].score for each in self.beams)
