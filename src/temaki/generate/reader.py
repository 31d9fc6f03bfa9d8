"""One call of the executor for all who have something to read; if it breaks, each alone, so that only one ends."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from numpy import ndarray

from temaki.base.errors import TemakiError
from temaki.generate.executor import Executor, Work

BREAKS = (TemakiError, RuntimeError, MemoryError)
"""What an executor may raise by bad luck; anything else is a mistake of ours and goes up."""


class Task(NamedTuple):
    """What one slot is to read, and what it has read."""

    slot: int
    before: ndarray
    """int32 [n]."""
    ids: ndarray
    """int32 [m]."""
    want: Literal["none", "last", "all"]
    """all: a draft, so the slot is marked before."""
    prompt: int
    """How many of all these ids, from the front, are the prompt."""
    adapter: str | None


class Found(NamedTuple):
    """What a task found. Letters as in `executor.Answer`."""

    logits: ndarray
    hidden: ndarray | None


class Reader:
    """Runs tasks together. A call that breaks leaves unknown what its slots hold: they are closed, and their rows read
    anew from their ids, one by one; who breaks alone too gets the error, the others never notice. A draft that breaks
    is left out: then one row of logits is found.

    chunk: ids of one call when a row is read anew.
    """

    def __init__(self, executor: Executor, chunk: int):
        self.executor = executor
        self.chunk = chunk

    def run(self, tasks: Sequence[Task], hidden: bool) -> list[Found | str]:
        """What each task found, in order, or what broke it."""
        try:
            return self._together(tasks, hidden)
        except BREAKS as error:
            if len(tasks) == 1 and tasks[0].want != "all":
                return [_told(error)]
        for task in tasks:  # all at once: what they hold is of no use, and the first may need the memory
            self.executor.close(task.slot)
        return [self._alone(task, hidden) for task in tasks]

    def _together(self, tasks: Sequence[Task], hidden: bool) -> list[Found | str]:
        drafted = [task.slot for task in tasks if task.want == "all"]
        if drafted:
            self.executor.mark(drafted)
        answer = self.executor.run([Work(task.slot, task.ids, task.want, task.adapter) for task in tasks], hidden)
        found: list[Found | str] = []
        at = 0
        for task in tasks:
            stop = at + {"none": 0, "last": 1, "all": len(task.ids)}[task.want]
            found.append(Found(answer.logits[at:stop], None if answer.hidden is None else answer.hidden[at:stop]))
            at = stop
        return found

    def _alone(self, task: Task, hidden: bool) -> Found | str:
        """Read a row from its first id on, if need be without its draft: nobody ends by ids that he may never say."""
        self.executor.close(task.slot)
        try:
            self.executor.open(task.slot)
            self._again(task)
            return self._together([task], hidden)[0]
        except BREAKS as error:
            told = _told(error)
        return self._alone(task._replace(ids=task.ids[:1], want="last"), hidden) if task.want == "all" else told

    def _again(self, task: Task) -> None:
        at = 0
        while at < len(task.before):
            step = task.prompt if self.executor.whole and at == 0 else self.chunk
            ids = task.before[at : at + step]
            self.executor.run([Work(task.slot, ids, "none", task.adapter)])
            at += len(ids)


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, TemakiError) else f"{type(error).__name__}: {error}"
