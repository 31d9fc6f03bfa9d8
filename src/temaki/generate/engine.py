"""The engine: requests come and go between steps, and each step is one call of the executor.

A prompt is read in chunks beside the answers that are already running; then it is forked into its branches, and each
branch takes an id a step, or several where a proposer drafted them. Nothing here depends on who else is there: an id is
drawn from its own row's logits at `keys.uniform(seed, "sample", branch, place)`. The engine speaks ids only; text is
the business of `text`.

Who sits where: `seats`. What an answer takes from its logits: `branches`. A call that breaks: `reader`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from temaki.base.errors import GenerationError
from temaki.generate.branches import Branch, Prompt, Said, Speaker
from temaki.generate.checking import check, longest
from temaki.generate.executor import Executor
from temaki.generate.prefixes import Prefixes
from temaki.generate.reader import Found, Reader, Task
from temaki.generate.request import Event, Matcher, Request
from temaki.generate.seats import Seats
from temaki.generate.speculate import NONE, Acceptance, Draft, Proposer
from temaki.generate.spoken import Spoken

NOTHING = np.zeros(0, np.int32)


class Engine:
    """Continuous batching over an executor whose slots are all closed, and which nobody else uses meanwhile.

    chunk: prompt ids read in one step, over all requests; answers under way wait that long at most. Only of an executor
    that reads prompts whole may one prompt be longer.
    proposer, draft: who drafts up to `draft` ids for each answer and step; they are verified in one pass. acceptance:
    "exact" changes nothing in what is said, "typical" does (see `speculate`).
    held: ids that all slots may hold together; None: as many as they have room for. See `seats`.
    prefixes: bytes of a store of prefixes that were read, see `Prefixes`; 0: none. A prompt that is read in other parts
    gives logits that differ in their last bits, where the executor's do.

    An error of the executor ends the request that causes it (see `reader`). Any other exception, an interrupt too,
    leaves the engine such that only `close` is right.
    """

    def __init__(
        self,
        executor: Executor,
        chunk: int = 512,
        *,
        proposer: Proposer | None = None,
        draft: int = 4,
        acceptance: Acceptance = "exact",
        held: int | None = None,
        prefixes: int = 0,
    ):
        for name, value, least in (
            ("chunk", chunk, 1),
            ("draft", draft, 1),
            ("held", held, 1),
            ("prefixes", prefixes, 0),
        ):
            if value is not None and value < least:
                raise GenerationError(f"{name} is too small", found=str(value), allowed=f"{least} or more")
        if acceptance not in get_args(Acceptance):
            raise GenerationError("no such acceptance", found=acceptance, allowed=", ".join(get_args(Acceptance)))
        self.executor = executor
        self.chunk = chunk
        self.proposer = proposer
        self.draft = draft
        self.spoken = Spoken()
        self.prefixes = Prefixes(0 if executor.whole else prefixes)
        self.seats = Seats(executor, self.prefixes, held, proposer, draft)
        self._reader = Reader(executor, chunk)
        self._speaker = Speaker(executor.vocabulary, acceptance)
        self._events: list[Event] = []
        self._count = 0

    @property
    def free(self) -> int:
        """Slots that nobody sits in."""
        return len(self.seats.free)

    @property
    def idle(self) -> bool:
        """Nothing to do: `step` would give []."""
        return self.seats.empty and not self._events

    def submit(self, request: Request) -> int:
        """Queue a request; its number stands in its events. Requests get slots in the order they came.

        Raises GenerationError for one that can never be served, ConfigError for settings out of range.
        """
        check(request, self.executor, self.seats.held)
        request = replace(request, ids=np.array(request.ids, np.int32))
        number = self._count
        self._count += 1
        branches = list(range(request.first, request.first + request.branches))
        self.seats.waiting.append(Prompt(number, request, branches))
        return number

    def cancel(self, request: int, branch: int | None = None) -> None:
        """End a request or one branch of it: its slots are free at once, the next step says so. What is over
        stays.

        Raises GenerationError for a number that was never given.
        """
        if not 0 <= request < self._count:
            raise GenerationError(f"there is no request {request}", found=f"{self._count} requests so far")
        for prompt in [each for each in self.seats.prompts() if each.number == request]:
            for gone in [each for each in prompt.branches if branch in (None, each)]:
                self.seats.drop(prompt, gone)
                self._events.append(Event(request, gone, NOTHING, done="cancelled"))
        for each in [each for each in self.seats.answers() if each.number == request]:
            if branch in (None, each.branch):
                self.seats.leave(each)
                self._events.append(Event(request, each.branch, NOTHING, done="cancelled"))

    def close(self) -> None:
        """Cancel everything, silently: all slots are free."""
        for number in {each.number for each in (*self.seats.prompts(), *self.seats.answers())}:
            self.cancel(number)
        self._events.clear()

    def step(self) -> list[Event]:
        """Run the executor once and draw: an event for every branch that runs or is read; [] only if idle."""
        self.seats.admit()
        parts = self.seats.fit(self.chunk)
        running = list(self.seats.running)
        drafts = self._drafts(running)
        tasks = [_answering(each, draft) for each, draft in zip(running, drafts, strict=True)]
        tasks += [_reading(prompt, stop) for prompt, stop in parts]
        if tasks:
            hidden = self.proposer is not None and self.proposer.hidden
            found = self._reader.run(tasks, hidden)
            self._go_on(running, drafts, found[: len(running)])
            self._read_on(parts, found[len(running) :])
        events, self._events = self._events, []
        return events

    def _drafts(self, running: Sequence[Branch]) -> list[Draft]:
        """What the proposer proposes, cut so that no answer grows too long.

        Raises GenerationError for an id that the model does not know.
        """
        if self.proposer is None or not running:
            return [NONE] * len(running)
        drafts = self.proposer.propose([each.row for each in running], self.draft)
        return [self._cut(draft, each.rest - 1) for each, draft in zip(running, drafts, strict=True)]

    def _cut(self, draft: Draft, most: int) -> Draft:
        ids, q = draft.ids, draft.probabilities
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.executor.vocabulary:
            raise GenerationError(
                "the proposer drafts ids that the model does not know; is it of the same vocabulary?",
                found=f"{ids.min()} to {ids.max()}",
                allowed=f"0 to {self.executor.vocabulary - 1}",
            )
        most = min(most, self.draft)
        return draft if len(ids) <= most else Draft(ids[:most], None if q is None else q[:most])

    def _go_on(self, running: Sequence[Branch], drafts: Sequence[Draft], found: Sequence[Found | str]) -> None:
        """Every running answer takes its ids; what was drafted in vain is taken back."""
        stay: list[tuple[Branch, int]] = []
        back: list[tuple[int, int]] = []
        for each, draft, answer in zip(running, drafts, found, strict=True):
            if isinstance(answer, str):
                self._say(each, Said([], 0, None, "error", answer))
                continue
            draft = draft if len(answer.logits) > 1 else NONE  # one that broke the executor was left out
            said = self._speaker.say(each, answer.logits, draft)
            self.spoken.count(drafted=len(draft.ids), accepted=said.kept, ids=len(said.ids))
            self._say(each, said)
            if said.done is None:
                stay.append((each, said.kept))
                each.hidden = None if answer.hidden is None else answer.hidden[said.kept].copy()
                if len(draft.ids):
                    back.append((each.slot, 1 + said.kept))
        if back:
            self.executor.rewind([slot for slot, _ in back], [keep for _, keep in back])
        if self.proposer is not None and stay:
            self.proposer.settle([each.slot for each, _ in stay], [kept for _, kept in stay])

    def _read_on(self, parts: Sequence[tuple[Prompt, int]], found: Sequence[Found | str]) -> None:
        """Prompts have read their part; those that are whole become answers."""
        for prompt, stop in parts:
            prompt.read = stop
        for (prompt, stop), answer in zip(parts, found, strict=True):
            if isinstance(answer, str):
                self._fail(prompt, answer)
                continue
            self._keep(prompt)
            if stop == len(prompt.request.ids):
                self._start(prompt, answer)
            else:
                self._events += [Event(prompt.number, branch, NOTHING) for branch in prompt.branches]

    def _keep(self, prompt: Prompt) -> None:
        """Store what was read, where it is worth it."""
        request, ids = prompt.request, prompt.request.ids[: prompt.read]
        ends = self.prefixes.worth(prompt.read) and prompt.read in (len(request.ids), request.shared)
        if ends and not self.prefixes.holds(request.adapter, ids):
            self.prefixes.keep(request.adapter, ids, self.executor.save(prompt.slots[0]))

    def _start(self, prompt: Prompt, answer: Found) -> None:
        """The prompt is read: fork it, and let every branch draw its first id from the same logits."""
        try:
            matchers = _matchers(prompt)
        except GenerationError as error:
            self._fail(prompt, str(error))
            return
        length = len(prompt.request.ids)
        hidden = None if answer.hidden is None else answer.hidden[0].copy()
        branches = []
        for branch, matcher in zip(prompt.branches, matchers, strict=True):
            ids = np.zeros(longest(prompt.request, self.executor.room), np.int32)
            ids[:length] = prompt.request.ids
            branches.append(Branch(prompt.number, branch, [], prompt.request, matcher, ids, length, hidden))
        self.seats.fork(prompt, branches)
        for each in branches:
            over = each.matcher is not None and each.matcher.done
            self._say(each, Said([], 0, None, "stop") if over else self._speaker.say(each, answer.logits))

    def _say(self, each: Branch, said: Said) -> None:
        if said.done is not None:
            self.seats.leave(each)
        ids = np.array(said.ids, np.int32)
        self._events.append(Event(each.number, each.branch, ids, said.logprobs, said.done, said.error))

    def _fail(self, prompt: Prompt, error: str) -> None:
        """A prompt that cannot be read ends with all its branches."""
        self.seats.leave(prompt)
        self._events += [Event(prompt.number, each, NOTHING, done="error", error=error) for each in prompt.branches]


def _answering(each: Branch, draft: Draft) -> Task:
    """Read the newest id and what was drafted behind it."""
    prompt, adapter = len(each.request.ids), each.request.adapter
    before, newest = each.ids[: each.length - 1], each.ids[each.length - 1 : each.length]
    if not len(draft.ids):
        return Task(each.slot, before, newest, "last", prompt, adapter)
    return Task(each.slot, before, np.concatenate([newest, draft.ids.astype(np.int32)]), "all", prompt, adapter)


def _reading(prompt: Prompt, stop: int) -> Task:
    """Read a part of a prompt."""
    ids = prompt.request.ids
    want = "last" if stop == len(ids) else "none"
    return Task(prompt.slots[0], ids[: prompt.read], ids[prompt.read : stop], want, len(ids), prompt.request.adapter)


def _matchers(prompt: Prompt) -> list[Matcher | None]:
    """One for each branch. Raises GenerationError for a constraint that cannot be."""
    wanted = prompt.request.healing if prompt.request.constraint is None else prompt.request.constraint
    if wanted is None:
        return [None] * len(prompt.branches)
    first = wanted.matcher()
    return [first, *(first.copy() for _ in prompt.branches[1:])]
