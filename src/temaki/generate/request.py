"""What is asked of the engine and what it says: ids only. Letters: n ids, V vocabulary, K alternatives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from numpy import ndarray

from temaki.generate.config import SamplingConfig

Done = Literal["stop", "length", "cancelled", "error"]


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


@dataclass(frozen=True)
class Row:
    """What a filter may know of a running answer."""

    slot: int
    ids: ndarray
    """int32 [n]: prompt and output so far."""
    prompt: int
    """How many of them are the prompt."""
    request: Request


Filter = Callable[[ndarray, Row], ndarray]
"""float32 [V] -> [V], -inf = out; pure."""


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities, in nats, by the model itself: before any filter."""

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
    """int32: the new ids; none while a prompt is being read. An id that stops the answer is not among
    them."""
    logprobs: LogProbs | None = None
    done: Done | None = None
    """stop: a stop id was drawn; length: max_tokens or the room is used up."""
    error: str | None = None
