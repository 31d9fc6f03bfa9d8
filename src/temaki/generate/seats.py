"""Who sits in the executor's slots, who waits, and who is put aside where the slots together may hold only so many ids.

Requests get slots in the order they came. Where a step would hold more than `held` ids, the youngest is put aside: its
memory is saved, its slots are closed; later it is loaded into any slot and goes on, bit for bit. The oldest is never
put aside and fits alone, nobody new is let in while somebody is aside, and those aside come back the oldest first: so
each gets to its end.
"""

from bisect import insort
from collections import deque

from temaki.generate.branches import Branch, Prompt
from temaki.generate.executor import Executor, Saved
from temaki.generate.prefixes import Prefixes
from temaki.generate.speculate import Proposer

AHEAD = 16
"""Ids that whoever comes back, and all beside it, can take before somebody has to be put aside again."""


class Seats:
    """All that is under way, each in one of four lists.

    held: ids that all slots may hold together; None: any. The proposer hears which slots answers leave; draft: ids that
    it drafts at most.
    """

    def __init__(self, executor: Executor, prefixes: Prefixes, held: int | None, proposer: Proposer | None, draft: int):
        self.executor = executor
        self.prefixes = prefixes
        self.proposer = proposer
        self.held = held
        self.draft = 0 if proposer is None else draft
        self.free = list(range(executor.slots))
        self.waiting: deque[Prompt] = deque()
        self.reading: list[Prompt] = []
        self.running: list[Branch] = []
        self.aside: list[Prompt | Branch] = []
        self.preempted = 0
        """How often somebody was put aside."""

    @property
    def empty(self) -> bool:
        """Nobody is there."""
        return not (self.waiting or self.reading or self.running or self.aside)

    @property
    def used(self) -> int:
        """Ids that the slots hold."""
        return sum(each.read for each in (*self.running, *self.reading))

    def prompts(self) -> list[Prompt]:
        """Requests whose prompt is not read yet."""
        return [*self.waiting, *self.reading, *(each for each in self.aside if isinstance(each, Prompt))]

    def answers(self) -> list[Branch]:
        """Answers under way, running or aside."""
        return [*self.running, *(each for each in self.aside if isinstance(each, Branch))]

    def admit(self) -> None:
        """Give slots to those aside, then to those who wait: nobody overtakes."""
        while self.aside and self._seated(self.aside[0]):
            self.aside.pop(0)
        while self.waiting and not self.aside and self._seated(self.waiting[0]):
            self.waiting.popleft()

    def parts(self, chunk: int) -> list[tuple[Prompt, int]]:
        """(prompt, where to stop reading) for the prompts that share this step's chunk, in order."""
        found, left = [], chunk
        for prompt in self.reading:
            rest = self._stop(prompt) - prompt.read
            count = rest if self.executor.whole else min(rest, left)
            if not count or (found and count > left):
                break
            found.append((prompt, prompt.read + count))
            left -= count
        return found

    def fit(self, chunk: int) -> list[tuple[Prompt, int]]:
        """`parts`, after so many of the youngest were put aside that the step holds no more than it may."""
        parts = self.parts(chunk)
        if self.held is None:
            return parts
        while self.used + self._needed(parts) > self.held:
            self.put_aside(max((*self.running, *self.reading), key=lambda each: each.age))
            parts = self.parts(chunk)
        return parts

    def put_aside(self, each: Prompt | Branch) -> None:
        """Save and close; bits are kept."""
        self.preempted += 1
        if each.read:
            each.saved = self.executor.save(each.slots[0])
        self.leave(each)
        insort(self.aside, each, key=lambda each: each.age)

    def fork(self, prompt: Prompt, branches: list[Branch]) -> None:
        """The prompt is read: its slots go to its branches, each with a copy; who finds no room for it is put aside."""
        self.reading.remove(prompt)
        length = len(prompt.request.ids)
        used, saved = self.used + length, None
        for each, slot in zip(branches, prompt.slots, strict=True):
            if each is branches[0] or self.held is None or used + length <= self.held:
                if each is not branches[0]:
                    self.executor.fork(prompt.slots[0], slot)
                    used += length
                each.slots = [slot]
                insort(self.running, each, key=lambda each: each.age)
            else:
                saved = self.executor.save(prompt.slots[0]) if saved is None else saved
                each.saved = saved
                self.preempted += 1
                self.free.append(slot)
                insort(self.aside, each, key=lambda each: each.age)

    def leave(self, each: Prompt | Branch) -> None:
        """Off the lists, its slots closed and free."""
        if each in self.aside:
            self.aside.remove(each)
        elif isinstance(each, Branch):
            self.running.remove(each)
        else:
            (self.reading if each in self.reading else self.waiting).remove(each)
        for slot in each.slots:
            if isinstance(each, Branch) and self.proposer is not None:
                self.proposer.close(slot)
            self._close(slot)
        each.slots = []

    def drop(self, prompt: Prompt, branch: int) -> None:
        """A branch goes before its prompt is read; the first slot, which reads, goes with the last branch."""
        if len(prompt.branches) == 1:
            self.leave(prompt)
        prompt.branches.remove(branch)
        if len(prompt.slots) > len(prompt.branches):
            self._close(prompt.slots.pop())

    def _seated(self, each: Prompt | Branch) -> bool:
        """Give slots to one, if there are enough and room for its ids."""
        if each.wanted > len(self.free) or not self._roomy(each):
            return False
        each.slots = [self.free.pop(0) for _ in range(each.wanted)]
        saved, each.saved = each.saved, None
        if isinstance(each, Prompt):
            saved = self._prefix(each) if saved is None else saved
            insort(self.reading, each, key=lambda each: each.age)
        else:
            insort(self.running, each, key=lambda each: each.age)
        if saved is None:
            self.executor.open(each.slots[0])
        else:
            self.executor.load(each.slots[0], saved)
        return True

    def _close(self, slot: int) -> None:
        self.executor.close(slot)
        self.free.append(slot)

    def _prefix(self, prompt: Prompt) -> Saved | None:
        saved = self.prefixes.longest(prompt.request.adapter, prompt.request.ids)
        if saved is not None:
            prompt.read = saved.length
        return saved

    def _roomy(self, each: Prompt | Branch) -> bool:
        seated = [*self.running, *self.reading]
        return self.held is None or not seated or sum(map(self._soon, (*seated, each))) <= self.held

    def _soon(self, each: Prompt | Branch) -> int:
        """Ids that one holds before long."""
        if isinstance(each, Prompt):
            return len(each.request.ids) * each.wanted
        return each.read + min(each.rest, AHEAD + self.draft)

    def _needed(self, parts: list[tuple[Prompt, int]]) -> int:
        """Ids that this step reads, drafts of full length counted, so that what is drafted depends on nobody else."""
        answers = sum(1 + min(self.draft, each.rest - 1) for each in self.running)
        return answers + sum(stop - prompt.read for prompt, stop in parts)

    def _stop(self, prompt: Prompt) -> int:
        """Up to where a prompt is read next: the end of what it shares, where that is to be kept, or its own."""
        request = prompt.request
        shared = request.shared
        if shared is None or self.executor.whole or prompt.read >= shared or not self.prefixes.worth(shared):
            return len(request.ids)
        return shared
