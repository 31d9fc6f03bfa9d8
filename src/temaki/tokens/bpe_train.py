"""Training byte-level BPE, compiled: texts or files -> a vocabulary. The readable twin is `plain_bpe.train`.

Pre-tokens are counted by threads, then the most frequent pair of neighbours is joined again and again. Neither the
number of threads nor the memory has a part in what is learned. Source: Sennrich et al. 2016; Radford et al. 2019
(bytes); Stanford CS336 (the tie rule).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy import ndarray

from temaki.base import compile
from temaki.base.errors import TokenizerError
from temaki.tokens import bpe_merges, bpe_vocabulary, chunks, split, utf8
from temaki.tokens.bpe import Bpe
from temaki.tokens.bpe_merges import Learner
from temaki.tokens.chunks import Chunk
from temaki.tokens.kernels.split import RULES
from temaki.tokens.room import Room
from temaki.tokens.tokenizer import END_OF_TEXT
from temaki.tokens.word_counts import Counts, Spill

Ties = Literal["bytes", "ids"]
"""Which of the pairs with the highest count is joined: the greatest pair of bytes, or the smallest pair of ids.

"ids" is the rule of the `tokenizers` package, and the ids are then its own: special tokens, the bytes in the order of
GPT-2's files, merges.
"""

MEMORY = 1 << 30
"""Bytes that tables of words take by default, before they go to disk."""

SMALLEST = 8 << 20
"""The least memory that may be asked for."""

WORDS_AT_ONCE = 1 << 18
"""Words that an own pattern found are held before they are counted."""

Progress = Callable[[int, int], None]
"""(done, of)."""
Reading = Callable[[int, int | None], None]
"""(bytes counted, of; None where nobody knows)."""


@dataclass(frozen=True)
class Report:
    """What a training run met."""

    bytes: int
    """Of text, special tokens included."""
    words: int
    """Different pre-tokens."""
    words_total: int
    """Pre-tokens, each as often as it occurs."""
    pruned: int
    """Different pre-tokens left out because they occur less often than `prune`."""
    pruned_total: int
    """How often those occur together."""
    spilled: int
    """Bytes that went to disk."""
    merges: int
    """Merges learned."""


@dataclass(frozen=True)
class Plan:
    """How to train. Raises TokenizerError for what is out of range."""

    special: Sequence[str] = (END_OF_TEXT,)
    pattern: str = "gpt2"
    """A name of `split.PATTERNS` or an own regular expression."""
    ties: Ties = "bytes"
    prune: int | None = None
    """Pre-tokens that occur less often are left out, which changes the merges and is reported. None: all count."""
    memory: int | None = MEMORY
    """Bytes that the tables of words may take, and after them the line they are merged in and what belongs to it; the
    rest lies in temporary files, of which the system keeps in memory what it has room for. On top come the text being
    read and the vocabularies. None: no bound."""
    threads: int | None = None
    """None: as many as the process may use."""

    def __post_init__(self) -> None:
        split.check_special(self.special)
        split.named(self.pattern)
        if self.ties not in ("bytes", "ids"):
            raise TokenizerError("unknown rule for ties", found=repr(self.ties), allowed='"bytes", "ids"')
        for name, value, least in (
            ("prune", self.prune, 1),
            ("memory", self.memory, SMALLEST),
            ("threads", self.threads, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise TokenizerError(f"{name} out of range", found=repr(value), allowed=f"{least} or more, or None")


@overload
def train(
    texts: Iterable[str | bytes],
    size: int,
    special: Sequence[str] = ...,
    pattern: str = ...,
    progress: Progress | None = ...,
    *,
    reading: Reading | None = ...,
    report: Callable[[Report], None] | None = ...,
    ties: Ties = ...,
    prune: int | None = ...,
    memory: int | None = ...,
    threads: int | None = ...,
) -> Bpe: ...
@overload
def train(
    texts: Iterable[str | bytes],
    size: Sequence[int],
    special: Sequence[str] = ...,
    pattern: str = ...,
    progress: Progress | None = ...,
    *,
    reading: Reading | None = ...,
    report: Callable[[Report], None] | None = ...,
    ties: Ties = ...,
    prune: int | None = ...,
    memory: int | None = ...,
    threads: int | None = ...,
) -> list[Bpe]: ...
def train(
    texts: Iterable[str | bytes],
    size: int | Sequence[int],
    special: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    progress: Progress | None = None,
    *,
    reading: Reading | None = None,
    report: Callable[[Report], None] | None = None,
    ties: Ties = "bytes",
    prune: int | None = None,
    memory: int | None = MEMORY,
    threads: int | None = None,
) -> Bpe | list[Bpe]:
    """Learn a vocabulary of `size` ids from texts: special tokens first, then the 256 bytes, then merges.

    Several sizes give several tokenizers for the price of the largest: each one's merges begin the next one's. Stops
    early, with a smaller `.size`, when no pair is left. Special tokens found in the texts are not counted; bytes are
    read as UTF-8. The settings are those of `Plan`. `reading(bytes, None)` is called as text is counted,
    `progress(ids so far, largest size)` as merges are learned, `report` at the end. Raises TokenizerError for a size
    that leaves no room, an empty corpus, unusable settings, and text that is not UTF-8, naming the place.

    >>> train(["low low low lower newest newest"], size=260).token(259)
    b' low'
    """
    plan = Plan(special, pattern, ties, prune, memory, threads)
    if isinstance(texts, str | bytes):
        raise TokenizerError("texts are a list of texts", found="one text", do="write [text]")
    made = _train(_Texts(texts), _sizes(size, plan), plan, progress, reading, report)
    return made if isinstance(size, Sequence) else made[0]


def train_files(
    paths: Sequence[Path],
    size: Sequence[int],
    plan: Plan,
    progress: Progress | None = None,
    reading: Reading | None = None,
    report: Callable[[Report], None] | None = None,
) -> list[Bpe]:
    """The same from files of UTF-8, each one text, mapped into memory and kept byte for byte; `reading(bytes, of)`.

    Raises TokenizerError, also for a file that cannot be read; OSError where temporary files cannot be written.
    """
    try:
        return _train(_Files(paths), _sizes(size, plan), plan, progress, reading, report)
    except OSError as error:
        if error.filename is None:
            raise
        raise TokenizerError(f"{error.filename} cannot be read: {error.strerror}") from None


# ---- what is read ----------------------------------------------------------------------------------------------------


class _Source(Protocol):
    """Texts to learn from."""

    total: int | None
    """Bytes, where known."""

    def chunks(self, rule: int, special: Sequence[str]) -> Iterator[Chunk]:
        """For a compiled pattern."""
        ...

    def texts(self) -> Iterator[Iterable[str]]:
        """For an own one: each text in pieces."""
        ...


class _Texts:
    """Texts in memory, or made one by one."""

    def __init__(self, texts: Iterable[str | bytes]):
        self.total: int | None = None
        self._texts = texts

    def chunks(self, rule: int, special: Sequence[str]) -> Iterator[Chunk]:
        return chunks.of_texts(self._texts, rule, special)

    def texts(self) -> Iterator[Iterable[str]]:
        for number, text in enumerate(self._texts):
            yield [chunks.encoded(text, f"text {number}").decode()]


class _Files:
    """Files of UTF-8."""

    def __init__(self, paths: Sequence[Path]):
        self.total: int | None = sum(path.stat().st_size for path in paths)
        self._paths = paths

    def chunks(self, rule: int, special: Sequence[str]) -> Iterator[Chunk]:
        needles = chunks.needles(special)
        for path in self._paths:
            yield from chunks.of_file(path, rule, needles)

    def texts(self) -> Iterator[Iterable[str]]:
        return map(_decoded, self._paths)


def _decoded(path: Path) -> Iterator[str]:
    """A file's text in pieces. Raises TokenizerError naming it and the place."""
    with path.open("rb") as file:
        try:
            yield from utf8.decoded(iter(lambda: file.read(chunks.CHUNK), b""))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None


# ---- the run ---------------------------------------------------------------------------------------------------------


def _train(
    source: _Source,
    sizes: list[int],
    plan: Plan,
    progress: Progress | None,
    reading: Reading | None,
    report: Callable[[Report], None] | None,
) -> list[Bpe]:
    order = _order(plan.ties)
    number = np.argsort(order).astype(np.uint8)
    with Spill() as spill:
        counts = Counts(plan.threads or compile.threads(), plan.memory, spill)
        done = _count(source, counts, plan, reading)
        room = Room(plan.memory)
        line = bpe_merges.line(counts, number, plan.prune or 1, spill, room)
        if not line.found.words:
            raise TokenizerError("no text to learn a vocabulary from", do="give a corpus that is not empty")
        largest = max(sizes)
        first = len(plan.special)
        most_pairs = None if plan.memory is None else plan.memory // 4 // bpe_merges.BYTES_A_PAIR
        learner = Learner(line, order, largest - first, plan.ties == "bytes", room, most_pairs)
        while learner.step():
            if progress is not None:
                progress(first + learner.symbols, largest)
        if report is not None:
            found = line.found
            report(
                Report(
                    done, found.words, found.total, found.pruned, found.pruned_total, spill.bytes, learner.symbols - 256
                )
            )
        tokens = learner.tokens()
    return [_tokenizer(tokens, learner.made, size, plan) for size in sizes]


def _count(source: _Source, counts: Counts, plan: Plan, reading: Reading | None) -> int:
    """Count all pre-tokens; how many bytes of text there were."""
    done = 0

    def counted(size: int) -> None:
        nonlocal done
        done += size
        if reading is not None:
            reading(done, source.total)

    if plan.pattern in RULES:
        rule = RULES[plan.pattern]
        counts.count(source.chunks(rule, plan.special), rule, counted)
    else:
        _count_by_expression(source, counts, plan, counted)
    return done


def _count_by_expression(source: _Source, counts: Counts, plan: Plan, counted: Callable[[int], None]) -> None:
    """For an own pattern, which only the `regex` package knows."""
    splitter = split.Splitter(plan.pattern)
    words: Counter[str] = Counter()
    for text in source.texts():
        for block in splitter.blocks(text, plan.special):
            for part, is_special in split.parts(block, plan.special):
                if not is_special:
                    words.update(splitter.words(part))
            if len(words) > WORDS_AT_ONCE:
                counts.add((word.encode(), count) for word, count in words.items())
                words.clear()
            counted(len(block.encode()))
    counts.add((word.encode(), count) for word, count in words.items())


def _sizes(size: int | Sequence[int], plan: Plan) -> list[int]:
    """The sizes asked for. Raises TokenizerError."""
    sizes: list[Any] = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size]
    first, last = 256 + len(plan.special), bpe_vocabulary.LARGEST
    for one in sizes or [size]:
        if isinstance(one, bool) or not isinstance(one, int) or not first <= one <= last:
            raise TokenizerError(
                "vocabulary size out of range",
                found=repr(one),
                allowed=f"{first} (256 bytes and {len(plan.special)} special tokens) to {last}",
            )
    return sizes


def _order(ties: Ties) -> ndarray:
    """uint8 [256]: the bytes in the order of their ids."""
    values = np.arange(256)
    printable = ((values > 0x20) & (values < 0x7F)) | (values > 0xA0) & (values != 0xAD)
    return (values if ties == "bytes" else np.argsort(~printable, kind="stable")).astype(np.uint8)


def _tokenizer(tokens: list[bytes], made: ndarray, size: int, plan: Plan) -> Bpe:
    """The first `size` ids of what was learned."""
    special = [text.encode() for text in plan.special]
    tokens = tokens[: size - len(special)]
    merges = [(tokens[left], tokens[right]) for left, right in made[: len(tokens) - 256].tolist()]
    return Bpe([*special, *tokens], merges, {text: id for id, text in enumerate(plan.special)}, plan.pattern)
