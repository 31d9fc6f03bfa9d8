"""What is under way in the engine: prompts that are read, answers that go on, and how an answer takes its next ids.

An answer is judged place by place: the logits of a place are filtered for the ids before it as if nothing had been
drafted, so constraint, penalties, seeds, stop ids and limits hold inside a draft as they do outside.
Letters: V vocabulary, D width, m drafted ids.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from temaki.base import keys
from temaki.base.errors import GenerationError
from temaki.generate.executor import Saved
from temaki.generate.request import Done, LogProbs, Matcher, Request, Row
from temaki.generate.sampler import Sampler
from temaki.generate.speculate import NONE, Acceptance, Draft, judged, typical


@dataclass(eq=False)
class Prompt:
    """A request that waits for slots (it has none), or whose prompt is being read in the first of them."""

    number: int
    request: Request
    branches: list[int]
    slots: list[int] = field(default_factory=list)
    read: int = 0
    """How many ids the first slot has read."""
    saved: Saved | None = None
    """Its memory, while it was put aside for others."""

    @property
    def age(self) -> tuple[int, int]:
        """The lower, the older."""
        return self.number, self.branches[0]

    @property
    def wanted(self) -> int:
        """Slots."""
        return len(self.branches)


@dataclass(eq=False)
class Branch:
    """An answer under way. Its slot has read all ids but the newest; put aside, it has none."""

    number: int
    branch: int
    slots: list[int]
    request: Request
    matcher: Matcher | None
    ids: ndarray
    """int32, room for the longest answer; the first `length` are there."""
    length: int
    hidden: ndarray | None = None
    """[D] at the last id that was read, if a proposer asks for it."""
    saved: Saved | None = None

    @property
    def age(self) -> tuple[int, int]:
        """The lower, the older."""
        return self.number, self.branch

    @property
    def wanted(self) -> int:
        """Slots."""
        return 1

    @property
    def slot(self) -> int:
        return self.slots[0]

    @property
    def read(self) -> int:
        """How many ids its slot has read."""
        return self.length - 1

    @property
    def rest(self) -> int:
        """How many ids it may still take."""
        return len(self.ids) - self.length

    @property
    def row(self) -> Row:
        """What filters and proposers may know."""
        prompt = len(self.request.ids)
        slot = self.slots[0] if self.slots else 0
        return Row(slot, self.ids[: self.length], prompt, self.request, self.branch, self.hidden)


class Said(NamedTuple):
    """What one pass brought an answer."""

    ids: list[int]
    kept: int
    """How many drafted ids were accepted."""
    logprobs: LogProbs | None
    done: Done | None
    error: str | None = None


class Speaker:
    """Takes the next ids of answers from logits; for models of one vocabulary."""

    def __init__(self, vocabulary: int, acceptance: Acceptance):
        self.acceptance: Acceptance = acceptance
        self._sampler = Sampler(vocabulary)

    def say(self, each: Branch, logits: ndarray, draft: Draft = NONE) -> Said:
        """Judge logits [m + 1, V], the first behind the newest id, each next one behind one more drafted id.

        What cannot be drawn from, or what a constraint refuses, ends this answer alone.
        """
        ids: list[int] = []
        found: list[LogProbs] = []
        count, kept = each.request.logprobs, 0
        for i in range(len(draft.ids) + 1):
            try:
                new = self._next(each, logits[i], draft, i)
                done = self._take(each, new)
            except GenerationError as failure:
                return Said(ids, kept, _joined(found), "error", str(failure))
            if new not in each.request.sampling.stop_ids:
                ids.append(new)
                if count is not None:
                    found.append(self._sampler.logprobs(logits[i], new, count))
            agreed = i < len(draft.ids) and new == draft.ids[i]
            kept += agreed
            if done is not None or not agreed:
                return Said(ids, kept, _joined(found), done)
        raise AssertionError("the place behind a draft agrees with nothing")

    def _take(self, each: Branch, new: int) -> Done | None:
        """Take an id, and say whether the answer is over."""
        if new in each.request.sampling.stop_ids:
            return "stop"
        if each.matcher is not None:
            each.matcher.advance(new)
        each.ids[each.length] = new
        each.length += 1
        if each.matcher is not None and each.matcher.done:
            return "stop"
        return "length" if each.length == len(each.ids) else None

    def _next(self, each: Branch, logits: ndarray, draft: Draft, i: int) -> int:
        """The id of place i of a draft, or behind it."""
        row, sampler, seed = each.row, self._sampler, each.request.seed
        allowed = None if each.matcher is None else each.matcher.mask()
        greedy = each.request.sampling.temperature == 0  # needs no chance, and a hash takes a tenth of its step
        uniform = 0.0 if greedy else keys.uniform(seed, "sample", each.branch, each.length)
        q = draft.probabilities
        if i == len(draft.ids) or (q is None and self.acceptance == "exact"):
            return sampler.draw(logits, row, uniform, allowed)
        p, drafted = sampler.probabilities(logits, row, allowed), int(draft.ids[i])
        if self.acceptance == "typical":
            return drafted if typical(p, drafted) else sampler.draw(logits, row, uniform, allowed)
        accepting = keys.uniform(seed, "accept", each.branch, each.length)
        return judged(p, drafted, None if q is None else q[i], accept=accepting, draw=uniform)


def _joined(parts: list[LogProbs]) -> LogProbs | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return LogProbs(*(np.concatenate([vars(each)[name] for each in parts]) for name in ("drawn", "ids", "best")))
