"""What compiled tokenizers of pieces share: a text is brought into its normal form, then segmented, run by run.

Special tokens hold no bytes here: `tokens` and `token` show their text, decoding and streaming leave them out.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy import ndarray

from temaki.base import compile, keys
from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.kernels import decode
from temaki.tokens.runs import RunTokenizer, asked, checked_ids
from temaki.tokens.segmenter import Segmenting
from temaki.tokens.tokenizer import Noise, Ragged, TextStream

BATCH = 1 << 20
"""Bytes of texts that a thread encodes at a time, more or less."""


class Run(Protocol):
    """One run of plain text as it comes: joined, the ids are those of the whole run."""

    def push(self, text: str) -> ndarray:
        """The ids that more text makes certain."""
        ...

    def close(self) -> ndarray:
        """The ids of the rest."""
        ...


Kind = TypeVar("Kind", bound=Segmenting)


class SegmentedTokenizer(RunTokenizer, Generic[Kind]):
    """The Tokenizer contract over a segmenter. A run between special tokens is segmented for itself."""

    segmenter: Kind
    cuts = r"(?!)"

    def __init__(self, tokens: Sequence[bytes], special: Mapping[str, int]):
        super().__init__(tokens, special)
        silent = set(self.special.values())
        self._bytes = tuple(b"" if id in silent else token for id, token in enumerate(self.tokens))

    @abstractmethod
    def read(self, text: str) -> bytes:
        """What is segmented: the text in its normal form as UTF-8."""

    def spelled(self, ids: ndarray, text: ndarray) -> ndarray:
        """The ids that are given for those of a path through `text`, uint32: the same, unless a kind says otherwise."""
        return ids

    def respells(self, ids: ndarray) -> bool:
        """Whether `spelled` changes some of these ids of paths."""
        return False

    def encode(
        self, text: str, special: Collection[str] = (), noise: Noise | None = None, threads: int | None = None
    ) -> ndarray:
        """The ids of a text, uint32 [N]; with noise, of a random segmentation: the same with any number of threads.

        Raises TokenizerError for a lone surrogate, an unknown special token, noise of another kind or out of range.
        """
        if noise is not None:
            return self._sampled(utf8.checked(text), special, noise, threads)
        if special or not isinstance(text, str):
            asked(special, self.special)
            return self._encoded(utf8.checked(text), special)
        return self._best(text, threads)

    def encode_run(self, text: str) -> ndarray:
        """The ids of plain text, in which no special token is looked for: uint32 [N]."""
        return self._best(text, 1)

    def encode_batch(
        self, texts: Sequence[str | bytes], special: Collection[str] = (), threads: int | None = None
    ) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8. Raises TokenizerError naming the text."""
        asked(special, self.special)
        tasks = [partial(self._batch, texts, begin, stop, special) for begin, stop in _groups(texts)]
        found = compile.run(tasks, threads)
        lengths = np.concatenate([np.zeros(1, np.int64), *(lengths for _, lengths in found)])
        ids = np.concatenate([np.empty(0, np.uint32), *(ids for ids, _ in found)])
        return Ragged(ids, np.cumsum(lengths))

    @abstractmethod
    def drawn(self, text: ndarray, noise: Noise, key: int, threads: int | None) -> ndarray:
        """The ids of a random path through a text, uint32 [N], by draws from `key`. Raises TokenizerError for noise
        that this kind does not know, or out of range."""

    @abstractmethod
    def run(self) -> Run:
        """What encodes one run of plain text as it comes."""

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks; joined, they are those of the whole text.

        Memory: a chunk, about BLOCK characters, and the longest stretch that pieces of the vocabulary overlap without a
        gap (in common text some hundred bytes; "aaaa..." has none). Raises TokenizerError.
        """
        asked(special, self.special)
        run = self.run()
        for plain, found in _plain_runs(utf8.decoded(chunks), special):
            yield run.push(plain)
            if found is not None:
                yield run.close()
                yield np.array([self.special[found]], np.uint32)
                run = self.run()
        yield run.close()

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids but special ones, joined. Raises TokenizerError for an id that is not in the
        vocabulary."""
        return self._joined(checked_ids(ids, self.size))

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self._spoken)

    def _best(self, text: str, threads: int | None) -> ndarray:
        try:
            read = np.frombuffer(self.read(text), np.uint8)
        except UnicodeEncodeError:
            utf8.checked(text)  # says where
            raise
        return self.spelled(self.segmenter.best(read, threads), read)

    def _sampled(self, text: str, special: Collection[str], noise: Noise, threads: int | None) -> ndarray:
        asked(special, self.special)
        ids = [np.empty(0, np.uint32)]
        for number, (part, is_special) in enumerate(split.parts(text, special)):
            if is_special:
                ids.append(np.array([self.special[part]], np.uint32))
                continue
            key = keys.key(noise.seed, "segmentation", noise.place, number) & (1 << 64) - 1
            read = np.frombuffer(self.read(part), np.uint8)
            ids.append(self.spelled(self.drawn(read, noise, key, threads), read))
        return np.concatenate(ids)

    def _batch(
        self, texts: Sequence[str | bytes], begin: int, stop: int, special: Collection[str]
    ) -> tuple[ndarray, ndarray]:
        """The ids of texts begin..stop and how many each has."""
        held = [_text(texts[number], number) for number in range(begin, stop)]
        if any(name in text for name in special for text in held):
            found = [self._encoded(text, special) for text in held]
            return np.concatenate(found), np.array([len(ids) for ids in found], np.int64)
        read = [self.read(text) for text in held]
        whole = np.frombuffer(b"".join(read), np.uint8)
        bounds = np.cumsum([0, *map(len, read)], dtype=np.int64)
        ids, stops = self.segmenter.best_each(whole, bounds)
        paths = zip(np.append(0, stops[:-1]), stops, bounds[:-1], bounds[1:], strict=True)
        if not self.respells(ids):
            return ids, np.diff(stops, prepend=0)
        found = [self.spelled(ids[low:high], whole[start:end]) for low, high, start, end in paths]
        return np.concatenate(found), np.array([len(ids) for ids in found], np.int64)

    @cached_property
    def _rows(self) -> tuple[ndarray, ndarray, ndarray]:
        """The tables of `kernels.decode`: rows, text, offsets."""
        text = np.frombuffer(bytearray(b"".join(self._bytes) + bytes(16)), np.uint8)
        offsets = np.cumsum([0, *map(len, self._bytes)], dtype=np.int64)
        rows = np.zeros(self.size * decode.ROW, np.uint8)
        decode.fill_rows(rows, text, offsets)
        return rows, text, offsets

    def _joined(self, ids: ndarray) -> bytes:
        """The bytes of ids that are in the vocabulary, joined."""
        rows, text, offsets = self._rows
        said = np.ascontiguousarray(ids[np.diff(offsets)[ids] > 0], np.uint32)
        total, _ = decode.measure(said, rows, offsets)
        out = np.empty(total + decode.ROW, np.uint8)
        decode.decode(said, rows, text, offsets, out)
        return out[:total].tobytes()

    def _spoken(self, id: int) -> bytes:
        self.token(id)
        return self._bytes[id]


def _text(text: str | bytes, number: int) -> str:
    """A text of a batch. Raises TokenizerError naming it."""
    try:
        return utf8.checked(text) if isinstance(text, str) else "".join(utf8.decoded([text]))
    except TokenizerError as error:
        raise TokenizerError(f"text {number}: {error}") from None


def _groups(texts: Sequence[str | bytes]) -> Iterable[tuple[int, int]]:
    """Runs of texts of about BATCH bytes."""
    begin, size = 0, 0
    for number, text in enumerate(texts):
        size += len(text) if isinstance(text, str | bytes) else 0  # what is no text is refused where it is read
        if size >= BATCH:
            yield begin, number + 1
            begin, size = number + 1, 0
    if begin < len(texts):
        yield begin, len(texts)


def _plain_runs(chunks: Iterable[str], special: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Plain text in blocks, each with the special token behind it, if one ends it there."""
    beyond = max(map(len, special), default=1) - 1  # characters of one that may be incomplete
    held: list[str] = []
    length = 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length >= split.BLOCK + beyond:
            text, end = "".join(held), 0
            for match in split.finder(special).finditer(text) if special else ():
                if match.start() >= length - beyond:
                    break
                yield text[end : match.start()], match.group()
                end = match.end()
            end_of_plain = max(end, length - beyond)
            yield text[end:end_of_plain], None
            held, length = [text[end_of_plain:]], length - end_of_plain
    for part, is_special in split.parts("".join(held), special):
        yield ("", part) if is_special else (part, None)
