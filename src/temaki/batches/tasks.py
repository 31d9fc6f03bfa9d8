"""Tasks whose examples follow from a rule: what is read, what is to be said, and where it is asked.

An example is a function of a generator alone. Copy, recall and ListOps are texts whose last ids are asked, so that a
trained model can be given a prompt; the delay is asked at every place that has an answer. All begin with the boundary
but the delay. Letters: n ids of an example, E boundary.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from temaki.batches import tasks_listops
from temaki.batches.tasks_config import (
    CopyConfig,
    DelayConfig,
    ListopsConfig,
    RecallConfig,
    SyntheticConfig,
)
from temaki.tokens.characters import Characters
from temaki.tokens.tokenizer import END_OF_TEXT

UNKNOWN = "<|unknown|>"
"""What the tokenizer of a task reads for a character that the task does not know."""
SPECIAL = (END_OF_TEXT, UNKNOWN)
FIRST = len(SPECIAL)
"""Id of a task's first symbol."""
LOWER, UPPER = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK, MARK = ".", ":"


@dataclass(frozen=True)
class Example:
    """A piece with answers."""

    ids: NDArray[np.int64]
    """[n]: what is read."""
    targets: NDArray[np.int64]
    """[n]: what is to be said at each place."""
    asked: NDArray[np.bool_]
    """[n]: where it is asked."""


class Task(Protocol):
    """A rule that makes examples."""

    symbols: str
    """All characters that examples are written with, in the order of their ids."""
    answers: int
    """How many answers there are: one guessed without reading is right once in so many times, or about so."""
    longest: int
    """Ids of the longest example; a row must have room for one."""

    def example(self, generator: np.random.Generator, room: int) -> Example | None:
        """The generator's next example; None where it does not fit into so many ids."""
        ...


def told(symbols: NDArray[np.int64], asked: int) -> Example:
    """A text [E, symbols] of which the last `asked` ones are asked, each at the place before it.

    symbols: places in the task's alphabet.

    >>> told(np.array([4, 0, 5]), 1).targets.tolist(), told(np.array([4, 0, 5]), 1).asked.tolist()
    ([6, 2, 7], [False, False, True])
    """
    ids = symbols + FIRST
    return Example(np.append(0, ids[:-1]), ids, np.arange(len(ids)) >= len(ids) - asked)


class Copy:
    """Letters, blanks, a mark, the letters again."""

    def __init__(self, config: CopyConfig):
        self.config, self.answers = config, config.letters
        self.symbols = LOWER[: config.letters] + BLANK + MARK
        self.longest = 2 * config.length + config.gap + 1

    def example(self, generator: np.random.Generator, room: int) -> Example | None:
        if room < self.longest:
            return None
        length, read = self.config.length, np.full(self.config.length + self.config.gap, self.config.letters)
        letters = generator.integers(self.config.letters, size=length)
        between = self.config.blanks == "between"
        read[np.sort(generator.permutation(len(read))[:length]) if between else slice(length)] = letters
        return told(np.concatenate([read, [self.config.letters + 1], letters]), length)


class Recall:
    """Pairs of a key and a value, a mark, and some of the keys again, each with its value, which is asked."""

    def __init__(self, config: RecallConfig):
        self.config, self.answers = config, config.values
        self.symbols = LOWER[: config.keys] + UPPER[: config.values] + MARK
        self.longest = 2 * (config.pairs + config.queries) + 1

    def example(self, generator: np.random.Generator, room: int) -> Example | None:
        if room < self.longest:
            return None
        config = self.config
        keys = generator.permutation(config.keys)[: config.pairs]
        pairs = np.stack([keys, config.keys + generator.integers(config.values, size=config.pairs)], axis=1)
        again = pairs[generator.permutation(config.pairs)[: config.queries]]
        found = told(np.concatenate([pairs.ravel(), [len(self.symbols) - 1], again.ravel()]), 2 * config.queries)
        values = found.targets >= FIRST + config.keys
        return Example(found.ids, found.targets, found.asked & values)


class Delay:
    """Letters; at each place the one `lag` places before. It fills the row."""

    def __init__(self, config: DelayConfig):
        self.config, self.answers = config, config.letters
        self.symbols, self.longest = LOWER[: config.letters], config.lag + 1

    def example(self, generator: np.random.Generator, room: int) -> Example | None:
        if room < self.longest:
            return None
        ids = FIRST + generator.integers(self.config.letters, size=room)
        asked = np.arange(room) >= self.config.lag
        return Example(ids, np.where(asked, np.roll(ids, self.config.lag), ids), asked)


class Listops:
    """An expression, an equals sign, its value."""

    symbols, answers = tasks_listops.SYMBOLS, 10

    def __init__(self, config: ListopsConfig):
        self.config, self.longest = config, config.longest + 2

    def example(self, generator: np.random.Generator, room: int) -> Example | None:
        text, value = tasks_listops.expression(generator, self.config.depth, self.config.arguments, self.config.longest)
        if len(text) + 2 > room:
            return None
        places = [self.symbols.index(each) for each in f"{text}={value}"]
        return told(np.array(places), 1)


def task(config: SyntheticConfig) -> Task:
    """The rule of a configuration.

    >>> task(DelayConfig(letters=2, lag=1)).example(np.random.default_rng(0), 4).targets.tolist()
    [3, 3, 3, 3]
    """
    match config:
        case CopyConfig():
            return Copy(config)
        case RecallConfig():
            return Recall(config)
        case DelayConfig():
            return Delay(config)
        case ListopsConfig():
            return Listops(config)


def tokenizer(symbols: str) -> Characters:
    """The tokenizer of a task: a boundary, an id for unknown characters, and the task's symbols in their order.

    >>> tokenizer("ab").encode("ba?").tolist()
    [3, 2, 1]
    """
    return Characters(list(symbols), SPECIAL, UNKNOWN)
