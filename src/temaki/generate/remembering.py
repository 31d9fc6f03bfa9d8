"""An executor of one slot that reads only what it has not read yet: for chats, where a prompt holds those before it.

The engine forgets a slot when an answer ends. Here forgetting is put off: what the slot has read is remembered, the
next prompt's ids that agree with it are not read again, and the rest is taken back by `rewind`, where the slot was
marked early enough, else all is read anew. A draft that is taken back moves the mark; so before the first draft of an
answer the slot is saved, and whoever wants to go back behind the mark begins there.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.generate.executor import Answer, Executor, Saved, Work


class Remembering:
    """Another executor's first slot, kept between requests. `read` counts the ids that were really read."""

    slots = 1

    def __init__(self, inner: Executor):
        self.inner = inner
        self.room = inner.room
        self.vocabulary = inner.vocabulary
        self.whole = inner.whole
        self.read = 0
        self._ids = np.zeros(inner.room, np.int32)
        self._held = 0
        """How many of `_ids` the inner slot has read."""
        self._at = 0
        """How many of them the request under way agrees with."""
        self._marked: int | None = None
        """The length up to which the inner slot can go back; None: it is closed."""
        self._drafted: int | None = None
        """Where the draft under way begins."""
        self._fresh = True
        """The request under way has had no draft yet."""
        self._saved: Saved | None = None
        """The slot before the first draft of the latest answer that had one."""

    def open(self, slot: int, source: ndarray | None = None) -> None:
        """Begin a request: nothing is read yet. Raises GenerationError for source ids, which are not remembered."""
        if source is not None:
            raise GenerationError("a remembering executor reads no source", found=f"{len(source)} ids")
        self._at = 0
        self._fresh = True
        if self.whole:  # what was read saw its own prompt both ways, so it says nothing of a longer one
            self.forget()
        if self._marked is None:
            self.inner.open(0)
            self.inner.mark([0])
            self._held = self._marked = 0

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        """Read what is new of one work; ids that nobody wants logits of and that are held cost nothing."""
        (each,) = work
        ids = np.asarray(each.ids, np.int32)
        if self._at + len(ids) > self.room:
            raise GenerationError(
                f"no room for {len(ids)} more ids", found=f"{self._at} ids", allowed=f"{self.room} ids"
            )
        same = _agreeing(ids, self._ids[self._at : self._held])
        if same == len(ids) and each.want == "none":
            self._at += same
            return Answer(np.zeros((0, self.vocabulary), np.float32))
        same = {"none": same, "last": min(same, len(ids) - 1), "all": 0}[each.want]
        again = self._back_to(self._at + same)
        found = self._read(np.concatenate([again, ids[same:]]), each, hidden)
        wanted = {"none": 0, "last": 1, "all": len(ids)}[each.want]
        first = len(found.logits) - wanted
        return Answer(found.logits[first:], None if found.hidden is None else found.hidden[first:])

    def close(self, slot: int) -> None:
        """The request is over; its ids stay."""
        self._at = 0

    def forget(self) -> None:
        """Really close the slot."""
        if self._marked is not None:
            self.inner.close(0)
        self._held = self._at = 0
        self._marked = self._saved = None

    def mark(self, slots: Sequence[int]) -> None:
        """A draft begins."""
        assert self._at == self._held, "a draft goes on from the newest id"
        if self._fresh:
            self._saved, self._fresh = self.inner.save(0), False
        self._drafted = self._held

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        """All but the first keep[0] ids of the draft are taken back."""
        assert self._drafted is not None, "the slot is not marked"
        self._back_to(self._drafted + keep[0])
        self._at, self._drafted = self._held, None

    def fork(self, source: int, target: int) -> None:
        raise GenerationError("a remembering executor has one slot")

    def save(self, slot: int) -> Saved:
        return self.inner.save(0)

    def load(self, slot: int, saved: Saved) -> None:
        raise GenerationError("a remembering executor knows only what it has read itself")

    def _back_to(self, length: int) -> ndarray:
        """Make the inner slot end at `length` ids; gives the ids that must be read again for it."""
        assert self._marked is not None, "the slot was not opened"
        if length == self._held:
            return self._ids[:0]
        try:
            self._held = self._marked = self._gone_back(length, self._marked)
        except BaseException:  # an interrupt too: where the slot ends is not known any more
            self.forget()
            raise
        return self._ids[self._held : length].copy()

    def _gone_back(self, length: int, marked: int) -> int:
        """Take the inner slot back to `length` ids or, where no mark reaches so far, to fewer: how many."""
        start = length
        if length >= marked:
            self.inner.rewind([0], [length - marked])
        else:
            self.inner.close(0)
            start = 0 if self._saved is None or self._saved.length > length else self._saved.length
            if self._saved is not None and start:
                self.inner.load(0, self._saved)
            else:
                self.inner.open(0)
        self.inner.mark([0])
        return start

    def _read(self, ids: ndarray, each: Work, hidden: bool) -> Answer:
        try:
            found = self.inner.run([Work(0, ids, each.want, each.adapter)], hidden)
        except BaseException:  # an interrupt too: what the slot has read is not known any more
            self.forget()
            raise
        self._ids[self._held : self._held + len(ids)] = ids
        self._held += len(ids)
        self._at = self._held
        self.read += len(ids)
        return found


def _agreeing(ids: ndarray, held: ndarray) -> int:
    """How many ids two rows share from the front."""
    count = min(len(ids), len(held))
    differ = np.flatnonzero(ids[:count] != held[:count])
    return int(differ[0]) if len(differ) else count
