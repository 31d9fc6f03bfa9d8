"""Ids of an answer into text as they come: never half a character, never a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.generate.request import Done, Event, LogProbs
from temaki.tokens.tokenizer import TextStream


@dataclass(frozen=True)
class Completion:
    """What followed a prompt."""

    index: int
    """Which prompt."""
    branch: int
    text: str
    """Without the prompt, and without what stopped it."""
    ids: ndarray
    """int32 [n]: the ids drawn, those that spelled a stop string and those that spelled the end of a healed prompt
    again included."""
    done: Done
    """length: max_tokens or the room is used up; what a constraint asks for may then be incomplete."""
    error: str | None = None
    logprobs: LogProbs | None = None
    """Of each of `ids`, by the model itself: before any filter or constraint."""
    left_out: int = 0
    """Ids of the prompt that were cut away at its left."""
    score: float | None = None
    """What a search ranks its answers by."""


class Holdback:
    """Lets text through as far as no stop string can lie in it, and ends at the first one that is complete.

    Of two that are complete at the same place, the one that began earlier counts. How the text is cut into
    pieces does not change what comes out.

    >>> hold = Holdback(["END"])
    >>> hold.push("the E"), hold.push("A EN"), hold.push("D of it"), hold.stopped
    ('the ', 'EA ', '', True)
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """More text in; what is certain by now out."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self.stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            end, length = min(found)
            return text[: end + length]
        cut = len(text) - self._open(text)
        self._held = text[cut:]
        return text[:cut]

    def close(self) -> str:
        """The text has ended: what was held is certain now."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """How many characters at the end of `text` may begin a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self.stops):
                return count
        return 0


@dataclass(eq=False)
class Writer:
    """One answer as text."""

    index: int
    branch: int
    known: int
    """Ids that the tokenizer has; a model may have more."""
    decoder: TextStream
    hold: Holdback
    most: int
    """Tokens that the answer may have beyond `unsaid`."""
    unsaid: int = 0
    """Bytes at the answer's beginning that spell the end of a healed prompt again."""
    tokens: Sequence[bytes] = ()
    """Of every id; read only while there are such bytes."""
    left_out: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[LogProbs] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    said: int = 0
    """Ids that said something beyond `unsaid`."""
    done: Done | None = None
    error: str | None = None

    def take(self, event: Event) -> str:
        """The text that an event makes certain. Ids behind the one that ends the answer are left out: drafted ids
        come several at a time."""
        text, count = "", 0
        for id in event.ids.tolist():
            text += self._push(id)
            count += 1
            if self.done is not None:
                break
        self.ids += event.ids[:count].tolist()
        if event.logprobs is not None and count:
            self.logprobs.append(_rows(event.logprobs, count))
        if event.done is not None and count == len(event.ids) and self.done in (None, "length"):
            self.done, self.error = event.done, event.error
        if self.done is not None:
            text += self._close()
        self.texts.append(text)
        return text

    def cancel(self) -> None:
        """It was left before its end."""
        if self.done is None:
            self.done = "cancelled"

    def completion(self) -> Completion:
        """What was said, all of it."""
        assert self.done is not None, "the answer is still under way"
        ids, text = np.array(self.ids, np.int32), "".join(self.texts)
        found = joined(self.logprobs)
        return Completion(self.index, self.branch, text, ids, self.done, self.error, found, self.left_out)

    def _push(self, id: int) -> str:
        """One more id: the text it makes certain. `done` is set if it ends the answer."""
        again = self.unsaid > 0 and len(self.tokens[id]) <= self.unsaid
        if self.unsaid:
            self.unsaid -= min(self.unsaid, len(self.tokens[id]))
        if id >= self.known:  # padding of the vocabulary has no text
            text = ""
        else:
            try:
                text = self.hold.push(self.decoder.push(id))
            except TokenizerError as error:
                self.done, self.error = "error", str(error)
                return ""
        self.said += not again
        if self.hold.stopped:
            self.done = "stop"
        elif self.said == self.most:
            self.done = "length"
        return text

    def _close(self) -> str:
        text = self.hold.push(self.decoder.close()) + self.hold.close()
        if self.hold.stopped:
            self.done = "stop"
        return text


def joined(parts: Sequence[LogProbs]) -> LogProbs | None:
    """Log-probabilities of one answer, step behind step; None for none."""
    if not parts:
        return None
    return LogProbs(
        np.concatenate([each.drawn for each in parts]),
        np.concatenate([each.ids for each in parts]),
        np.concatenate([each.best for each in parts]),
    )


def _rows(found: LogProbs, count: int) -> LogProbs:
    return LogProbs(found.drawn[:count], found.ids[:count], found.best[:count])
