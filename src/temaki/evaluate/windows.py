"""What a model pays for a text, and in which windows a text is read. No torch."""

import math
from dataclasses import dataclass

from temaki.base.errors import ConfigError


@dataclass(frozen=True)
class Score:
    """What a model pays for a text, and how long the text is.

    >>> score = Score(nats=math.log(2) * 6, tokens=3, bytes=12)
    >>> round(score.bits_per_byte, 6), round(score.perplexity, 6)
    (0.5, 4.0)
    """

    nats: float
    """Sum of -log p over all predicted ids, the closing special of each document included."""
    tokens: int
    """Ids predicted: each document's ids but the first, and its closing special."""
    bytes: int
    """UTF-8 bytes of the documents' text; special tokens have none."""

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / bytes: what an arithmetic coder driven by the model would need."""
        return self.nats / math.log(2) / self.bytes

    @property
    def loss(self) -> float:
        """Nats a token; depends on the tokenizer."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that is beyond a float; depends on the tokenizer."""
        return math.exp(self.loss) if not self.loss > 709 else math.inf


@dataclass(frozen=True)
class Window:
    """A run of a document that is read together, and which of its targets are counted here."""

    start: int
    """First place read."""
    counted: int
    """First place whose target is counted; the places before it are context."""
    stop: int
    """End of both."""


def windows(length: int, context: int, stride: int) -> list[Window]:
    """Windows of at most `context` places moving by `stride`, which count each of `length` targets once.

    The first window counts all its targets; the others only those that no window before them reached, each
    with at least context - stride places on its left. Raises ConfigError for a stride that leaves gaps.

    >>> [(w.start, w.counted, w.stop) for w in windows(10, context=4, stride=3)]
    [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    """
    if not 1 <= stride <= context:
        raise ConfigError(
            "windows cannot count each target once",
            found=f"stride {stride}, context {context}",
            allowed="1 to context",
        )
    made: list[Window] = []
    start = reached = 0
    while reached < length:
        stop = min(start + context, length)
        made.append(Window(start, reached, stop))
        start, reached = start + stride, stop
    return made
