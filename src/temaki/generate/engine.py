"""The engine: requests come and go between steps, and each step is one call of the executor.

A prompt is read in chunks beside the answers that are already running; then it is forked into its branches,
and each branch takes one id a step. Nothing here depends on who else is there: an id is drawn from its own
row's logits at `keys.uniform(seed, "sample", branch, place)`. The engine speaks ids only; text is the
business of `text`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy import ndarray

from temaki.base import keys
from temaki.base.errors import GenerationError
from temaki.generate import sampling
from temaki.generate.config import checked
from temaki.generate.executor import Executor, Work
from temaki.generate.request import Done, Event, Filter, LogProbs, Request, Row

NOTHING = np.zeros(0, np.int32)


@dataclass(eq=False)
class _Prompt:
    """A request that waits for slots (it has none), or whose prompt is being read in the first of them."""

    number: int
    request: Request
    branches: list[int]
    slots: list[int] = field(default_factory=list)
    read: int = 0


@dataclass(eq=False)
class _Branch:
    """An answer under way. The slot has read all ids but the newest."""

    number: int
    branch: int
    slot: int
    request: Request
    filters: list[Filter]
    ids: ndarray
    """int32, room for the longest answer; the first `length` are there."""
    length: int
    prompt: int


class Engine:
    """Continuous batching over an executor whose slots are all closed, and which nobody else uses meanwhile.

    chunk: prompt ids read in one step, over all requests; answers under way wait that long at most. Only of an executor
    that reads prompts whole may one prompt be longer.
    """

    def __init__(self, executor: Executor, chunk: int = 512):
        if chunk < 1:
            raise GenerationError("a chunk must hold at least one id", found=str(chunk))
        self.executor = executor
        self.chunk = chunk
        self._free = list(range(executor.slots))
        self._waiting: deque[_Prompt] = deque()
        self._reading: list[_Prompt] = []
        self._running: list[_Branch] = []
        self._cancelled: list[Event] = []
        self._count = 0

    @property
    def free(self) -> int:
        """Slots that nobody sits in."""
        return len(self._free)

    @property
    def idle(self) -> bool:
        """Nothing to do: `step` would give []."""
        return not (self._waiting or self._reading or self._running or self._cancelled)

    def submit(self, request: Request) -> int:
        """Queue a request; its number stands in its events. Requests get slots in the order they came.

        Raises GenerationError for one that can never be served, ConfigError for settings out of range.
        """
        self._check(request)
        request = replace(request, ids=np.array(request.ids, np.int32))
        number = self._count
        self._count += 1
        branches = list(range(request.first, request.first + request.branches))
        self._waiting.append(_Prompt(number, request, branches))
        return number

    def cancel(self, request: int, branch: int | None = None) -> None:
        """End a request or one branch of it: its slots are free at once, the next step says so. What is over
        stays.

        Raises GenerationError for a number that was never given.
        """
        if not 0 <= request < self._count:
            raise GenerationError(f"there is no request {request}", found=f"{self._count} requests so far")
        for prompt in [each for each in (*self._waiting, *self._reading) if each.number == request]:
            for gone in [each for each in prompt.branches if branch in (None, each)]:
                self._leave(prompt, gone)
        for each in [each for each in self._running if each.number == request]:
            if branch in (None, each.branch):
                self._running.remove(each)
                self._close(each.slot)
                self._cancelled.append(Event(request, each.branch, NOTHING, done="cancelled"))

    def close(self) -> None:
        """Cancel everything, silently: all slots are free."""
        for number in {each.number for each in (*self._waiting, *self._reading, *self._running)}:
            self.cancel(number)
        self._cancelled.clear()

    def step(self) -> list[Event]:
        """Run the executor once and draw: an event for every branch that runs or is read; [] only if idle."""
        events, self._cancelled = self._cancelled, []
        self._admit()
        running, parts = list(self._running), self._parts()
        work = [Work(each.slot, each.ids[each.length - 1 : each.length], "last") for each in running]
        for prompt, stop in parts:
            whole = stop == len(prompt.request.ids)
            ids = prompt.request.ids[prompt.read : stop]
            work.append(Work(prompt.slots[0], ids, "last" if whole else "none"))
        if not work:
            return events
        logits = iter(self.executor.run(work).logits)
        events += [self._take(each, next(logits)) for each in running]
        for prompt, stop in parts:
            prompt.read = stop
            if stop == len(prompt.request.ids):
                events += self._start(prompt, next(logits))
            else:
                events += [Event(prompt.number, branch, NOTHING) for branch in prompt.branches]
        return events

    def _check(self, request: Request) -> None:
        settings, executor = checked(request.sampling), self.executor
        ids = np.asarray(request.ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise GenerationError("a prompt is a flat row of integers", found=f"{ids.dtype} {list(ids.shape)}")
        if not len(ids):
            raise GenerationError("a prompt of no ids", do="begin with the id that starts a document, as `text` does")
        if len(ids) > executor.room:
            raise GenerationError(
                "the prompt is longer than a slot's room",
                found=f"{len(ids)} ids",
                allowed=f"{executor.room} ids",
                do="shorten the prompt or make an executor with more room",
            )
        if not 0 <= ids.min() <= ids.max() < executor.vocabulary:
            strange = ids[(ids < 0) | (ids >= executor.vocabulary)]
            raise GenerationError(
                "the prompt holds an id that the model does not know; is this its tokenizer?",
                found=str(strange[0]),
                allowed=f"0 to {executor.vocabulary - 1}",
            )
        if not 1 <= request.branches <= executor.slots:
            raise GenerationError(
                "a branch takes a slot",
                found=f"{request.branches} branches",
                allowed=f"1 to {executor.slots}",
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= executor.vocabulary:
            raise GenerationError(
                "too many log-probabilities",
                found=str(request.logprobs),
                allowed=f"0 to {executor.vocabulary}",
            )
        if settings.stop:
            raise GenerationError("the engine speaks ids and cannot see stop strings", do="use generate/text")

    def _admit(self) -> None:
        """Give slots to those who wait, first come first served: nobody overtakes, so nobody starves."""
        while self._waiting and len(self._waiting[0].branches) <= len(self._free):
            prompt = self._waiting.popleft()
            prompt.slots = [self._free.pop(0) for _ in prompt.branches]
            self.executor.open(prompt.slots[0])
            self._reading.append(prompt)

    def _parts(self) -> list[tuple[_Prompt, int]]:
        """(prompt, where to stop reading) for the prompts that share this step's chunk, in order."""
        found, left = [], self.chunk
        for prompt in self._reading:
            rest = len(prompt.request.ids) - prompt.read
            count = rest if self.executor.whole else min(rest, left)
            if not count or (found and count > left):
                break
            found.append((prompt, prompt.read + count))
            left -= count
        return found

    def _start(self, prompt: _Prompt, logits: ndarray) -> list[Event]:
        """The prompt is read: fork it, and let every branch draw its first id from the same logits."""
        self._reading.remove(prompt)
        request, length = prompt.request, len(prompt.request.ids)
        for slot in prompt.slots[1:]:
            self.executor.fork(prompt.slots[0], slot)
        events = []
        for branch, slot in zip(prompt.branches, prompt.slots, strict=True):
            longest = min(length + request.sampling.max_tokens, self.executor.room + 1)
            ids = np.zeros(longest, np.int32)
            ids[:length] = request.ids
            chain = sampling.filters(request.sampling)
            each = _Branch(prompt.number, branch, slot, request, chain, ids, length, length)
            self._running.append(each)
            events.append(self._take(each, logits))
        return events

    def _take(self, each: _Branch, logits: ndarray) -> Event:
        """Draw a branch's next id from logits [V]; what cannot be drawn from ends this branch alone."""
        try:
            found = self._draw(each, logits)
        except GenerationError as error:
            return self._event(each, [], None, "error", str(error))
        if found in each.request.sampling.stop_ids:
            return self._event(each, [], None, "stop")
        each.ids[each.length] = found
        each.length += 1
        logprobs = None if each.request.logprobs is None else _logprobs(logits, found, each.request.logprobs)
        return self._event(each, [found], logprobs, "length" if each.length == len(each.ids) else None)

    def _draw(self, each: _Branch, logits: ndarray) -> int:
        sampling.check(logits)
        row = Row(each.slot, each.ids[: each.length], each.prompt, each.request)
        for filtered in each.filters:
            logits = filtered(logits, row)
        return sampling.draw(logits, keys.uniform(each.request.seed, "sample", each.branch, each.length))

    def _event(
        self,
        each: _Branch,
        ids: Sequence[int],
        logprobs: LogProbs | None,
        done: Done | None,
        error: str | None = None,
    ) -> Event:
        if done is not None:
            self._running.remove(each)
            self._close(each.slot)
        return Event(each.number, each.branch, np.asarray(ids, np.int32), logprobs, done, error)

    def _leave(self, prompt: _Prompt, branch: int) -> None:
        """A branch goes before its prompt is read; the first slot, which reads, goes with the last branch."""
        prompt.branches.remove(branch)
        if prompt.slots:
            self._close(prompt.slots.pop())
        if not prompt.branches:
            (self._reading if prompt in self._reading else self._waiting).remove(prompt)
        self._cancelled.append(Event(prompt.number, branch, NOTHING, done="cancelled"))

    def _close(self, slot: int) -> None:
        self.executor.close(slot)
        self._free.append(slot)


def _logprobs(logits: ndarray, drawn: int, count: int) -> LogProbs:
    found = sampling.log_probabilities(logits)
    ids = sampling.best(found, count)
    return LogProbs(found[[drawn]], ids[None], found[ids][None])
