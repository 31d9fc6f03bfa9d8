"""What is asked of the engine and what it says: ids only. Letters: n ids, V vocabulary, K alternatives, D width."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from numpy import ndarray

from temaki.generate.config import SamplingConfig

Done = Literal["stop", "length", "cancelled", "error"]


class Matcher(Protocol):
    """Which ids may come next in one answer. It is told every id that comes, but for one that stops the answer."""

    @property
    def done(self) -> bool:
        """Nothing may follow but an end: the answer ends here."""
        ...

    def mask(self) -> ndarray | None:
        """bool [V], True = allowed, ends included where the answer may end; None: all. Valid until the next call."""
        ...

    def advance(self, id: int) -> None:
        """`id` has come. Raises GenerationError if it was not allowed."""
        ...

    def copy(self) -> "Matcher":
        """Another at the same place that goes its own way."""
        ...


class Constraint(Protocol):
    """What answers must look like."""

    def matcher(self) -> Matcher:
        """A matcher before the first id of an answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to go on from it. Answers are a function of the request alone, whoever runs beside
    it."""

    ids: ndarray
    """Integers [n], n >= 1."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    """The draw of a branch's id at a place in its row is uniform(seed, "sample", branch, place)."""
    branches: int = 1
    """Answers wanted; the prompt is read once, then forked. Takes as many slots."""
    first: int = 0
    """The first branch's number: branch b of many comes again alone as first=b."""
    logprobs: int | None = None
    """None: no log-probabilities; 0: those of the ids drawn; K: also the K best at each place."""
    constraint: Constraint | None = None
    """What the answer must look like."""
    healing: Constraint | None = None
    """How the answer must begin; instead of a constraint."""
    adapter: str | None = None
    """The adapter that reads it."""
    shared: int | None = None
    """How many ids of the prompt other prompts begin with too (a system text): worth keeping in the engine's store."""


@dataclass(frozen=True)
class Row:
    """What a filter or a proposer may know of a running answer."""

    slot: int
    ids: ndarray
    """int32 [n]: prompt and output so far."""
    prompt: int
    """How many of them are the prompt."""
    request: Request
    branch: int = 0
    hidden: ndarray | None = None
    """[D], what the head read at the last id that the state has read (ids[-2]), if the proposer asked for it."""


Filter = Callable[[ndarray, Row], ndarray]
"""float32 [V] -> [V], -inf = out; pure."""


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities, in nats, by the model itself: before any filter or constraint."""

    drawn: ndarray
    """float64 [n], of the ids of the event."""
    ids: ndarray
    """int64 [n, K]: the best ids at each place, best first."""
    best: ndarray
    """float64 [n, K]: theirs."""


@dataclass(frozen=True)
class Event:
    """What one step brought one branch of a request."""

    request: int
    branch: int
    ids: ndarray
    """int32: the new ids: none while a prompt is being read or the answer waits for memory, several where drafted ids
    were accepted. An id that stops the answer is not among them."""
    logprobs: LogProbs | None = None
    done: Done | None = None
    """stop: a stop id was drawn, or the constraint is fulfilled; length: max_tokens or the room is used up."""
    error: str | None = None
