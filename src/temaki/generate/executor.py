"""The executor contract: a model with slots, spoken to in NumPy arrays.

The state of a slot has always read all ids of its row but the newest. A drafted chain of m ids is verified by
`mark; run([newest, *draft], want="all"); rewind(1 + accepted)`.
Letters: V vocabulary, D width, M wanted places, n ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy import ndarray


@dataclass(frozen=True)
class Work:
    """What one slot is to read in one call, and which of its logits are wanted."""

    slot: int
    ids: ndarray
    """int32 [n], n >= 1: a prompt's chunk, one id, or one id and a draft."""
    want: Literal["none", "last", "all"]
    adapter: str | None = None
    """The adapter to read them with; the executor splits its work by it."""


@dataclass(frozen=True)
class Answer:
    """What one call found."""

    logits: ndarray
    """float32 [M, V] (float64 from a float64 model), the wanted places in the order of the work."""
    hidden: ndarray | None = None
    """[M, D], if asked for: what the head read."""


@dataclass(frozen=True)
class Saved:
    """One slot's memory outside of the executor; only the executor that made it looks inside."""

    length: int
    """Ids read."""
    content: Mapping[str, Any]
    """Arrays or tensors by name."""

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(each.nbytes for each in self.content.values())


class Executor(Protocol):
    """A model with slots. A slot is opened, reads, and is closed; no slot sees another."""

    slots: int
    room: int
    """Ids a slot can hold."""
    vocabulary: int
    """V, so that a strange id is refused before it stands in a batch with others."""
    whole: bool
    """A prompt must be read in one call, the first of its slot, and no part of it can be taken back: its ids see each
    other both ways."""

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        """Read all of `work` in one call; a slot may come up once."""
        ...

    def open(self, slot: int, source: ndarray | None = None) -> None:
        """Make an empty slot ready; `source` ids go through the encoder here, once."""
        ...

    def mark(self, slots: Sequence[int]) -> None:
        """From here on, `rewind` is possible for these slots."""
        ...

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        """Slot slots[i] forgets all but the first keep[i] ids read since its mark, and is unmarked."""
        ...

    def fork(self, source: int, target: int) -> None:
        """Copy one slot's memory to another slot."""
        ...

    def save(self, slot: int) -> Saved:
        """One slot's memory, as a copy."""
        ...

    def load(self, slot: int, saved: Saved) -> None:
        """The inverse of `save`, bit for bit, in a slot that is closed: it is open then."""
        ...

    def close(self, slot: int) -> None:
        """Forget a slot: its memory is zeroed."""
        ...
