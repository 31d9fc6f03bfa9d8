"""Byte-level BPE, compiled: text <-> ids at the speed of the memory, the same ids as the readable twin `plain_bpe`.

Source: Sennrich et al. 2016; Radford et al. 2019 (bytes); Provilkov et al. 2020 (dropout).
"""

import codecs
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import ndarray

from temaki.base import compile
from temaki.base.errors import TokenizerError
from temaki.tokens import bpe_vocabulary, feed, plain_bpe, tokenizer
from temaki.tokens.bpe_encoder import OUT_SPARE, Asked, Encoder
from temaki.tokens.bpe_vocabulary import Partial, Vocabulary
from temaki.tokens.integers import Integers
from temaki.tokens.kernels import decode as kernels
from temaki.tokens.tokenizer import END_OF_TEXT, Noise, Ragged, TextStream

SHORT = 1 << 15
"""Characters of a text that is one job."""

MANY = 1 << 20
"""Bytes from which on several threads are worth their start."""

AT_ONCE = 1 << 15
"""Ids that are decoded at a time, so that their bytes stay near."""

PIECE = 1 << 25
"""Ids that are written to one array; more of them are put together in the end."""


def from_merges(
    merges: Sequence[tuple[bytes, bytes]], special: Sequence[str] = (END_OF_TEXT,), pattern: str = "gpt2"
) -> "Bpe":
    """The tokenizer of a list of merges in our own layout: special tokens, the 256 bytes, merges.

    >>> from_merges([(b"a", b"b")]).encode_list("abba")
    [257, 99, 98]
    """
    special_ids = {text: id for id, text in enumerate(special)}
    return Bpe(plain_bpe.layout(merges, special), merges, special_ids, pattern)


class Bpe:
    """A byte-level BPE tokenizer with any layout of ids. Implements the Tokenizer contract.

    `threads` of a call: how many may work on it, by default all that the process may use; the ids do not depend on it.
    """

    kind = "bpe"

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]] | None,
        special: Mapping[str, int],
        pattern: str = "gpt2",
        whole: bool | None = None,
        remember: int = 1 << 18,
        partial: Partial | None = None,
    ):
        """`tokens[id]` are the bytes of an id (a special token's: its text), `merges` in the order learned.

        Without merges the rule of ranks holds (see `bpe_vocabulary`). `whole`: a pre-token that is a token is taken
        as it is; by default so with the rule of ranks. `remember` is how many pre-tokens beside the vocabulary are
        kept with their ids, so that a frequent one is merged once. `partial`: when bytes without a token are left
        out; they are an error without it. Raises TokenizerError as `Vocabulary` says.
        """
        whole = merges is None if whole is None else whole
        merges = None if merges is None else tuple(merges)
        self.vocabulary = Vocabulary(tuple(tokens), merges, special, pattern, whole, partial)
        self.tokens = self.vocabulary.tokens
        self.merges = merges or ()
        self.special = self.vocabulary.special
        self.pattern = pattern
        self.size = len(self.tokens)
        self.fingerprint = tokenizer.fingerprint(self.kind, self.facts())
        self._remember = remember
        self._buffers = feed.Buffers()
        self._large_buffers = feed.Buffers(4 * feed.BLOCK)  # several threads: fewer jobs to hand over
        self._room = feed.Buffers(16 * feed.BLOCK)

    @classmethod
    def from_ranks(cls, tokens: Sequence[bytes], special: Mapping[str, int], pattern: str) -> "Bpe":
        """The tokenizer of tiktoken's rule: the rank of a token is its id. Raises TokenizerError."""
        return cls(tokens, None, special, pattern)

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> "Bpe":
        """The tokenizer that gave these facts. Raises TokenizerError for anything else."""
        found = bpe_vocabulary.of(facts)
        return cls(found.tokens, found.merges, found.special, found.pattern, found.whole, partial=found.partial)

    def facts(self) -> dict[str, object]:
        """Everything that can change an id."""
        return self.vocabulary.facts()

    def encode(
        self, text: str, special: Collection[str] = (), noise: Noise | None = None, threads: int | None = None
    ) -> ndarray:
        """The ids of a text, uint32 [N]; special tokens arise from it only where named in `special`.

        Raises TokenizerError for a special token that the vocabulary lacks, for a lone surrogate, for noise that
        is no Dropout.
        """
        if type(text) is not str:
            raise TokenizerError("a text to encode is a str", found=type(text).__name__)
        asked = self._encoder.asked(special)
        if noise is not None:
            return self._encode_noisy(text, asked, noise)
        if len(text) < SHORT:
            return self._job(feed.alone(text, self._buffers), asked, self._buffers)[0]
        at_once = _at_once(feed.most_bytes([text]), threads)
        jobs = feed.stretches([text], self._cut(asked), self._buffers_for(at_once))
        return self._encode(jobs, feed.most_bytes([text]), asked, at_once).ids

    def encode_list(self, text: str, special: Collection[str] = ()) -> list[int]:
        """The ids of a text as a list; raises as `encode`."""
        if type(text) is not str:
            raise TokenizerError("a text to encode is a str", found=type(text).__name__)
        asked = self._encoder.asked(special)
        if len(text) < SHORT:
            return self._listed(feed.alone(text, self._buffers), asked)
        found: list[int] = []
        for job in feed.stretches([text], self._cut(asked), self._buffers):
            found += self._listed(job, asked)
        return found

    def encode_batch(
        self, texts: Sequence[str | bytes], special: Collection[str] = (), threads: int | None = None
    ) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8. Raises TokenizerError naming the text."""
        asked = self._encoder.asked(special)
        most = feed.most_bytes(texts)
        at_once = _at_once(most, threads)
        return self._encode(feed.texts_of(texts, self._cut(asked), self._buffers_for(at_once)), most, asked, at_once)

    def encode_file(self, path: Path | str, special: Collection[str] = (), threads: int | None = None) -> ndarray:
        """The ids of a file of UTF-8 text as one text, read in blocks. Raises TokenizerError as `encode_iterable`.

        Raises OSError for a file that cannot be read.
        """
        path = Path(path)
        asked = self._encoder.asked(special)
        most = path.stat().st_size
        at_once = _at_once(most, threads)
        buffers = self._buffers_for(at_once)
        with path.open("rb", buffering=0) as file:
            jobs = feed.stretches(iter(lambda: file.read(buffers.block), b""), self._cut(asked), buffers)
            return self._encode(jobs, most, asked, at_once).ids

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks; joined, they are those of the whole text.

        Memory is bounded as `feed.stretches` says. Bytes are read as UTF-8 and may be cut anywhere. Raises
        TokenizerError for what is not UTF-8, with the offset.
        """
        asked = self._encoder.asked(special)
        for job in feed.stretches(chunks, self._cut(asked), self._buffers):
            ids, _ = self._job(job, asked, self._buffers)
            if len(ids):
                yield ids

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids, joined. Raises TokenizerError for an id that is not in the vocabulary."""
        buffer = np.empty(0, np.uint8)
        parts: list[bytes] = []
        for part, size in self._decodable(ids):
            if buffer.size < size:
                buffer = np.empty(2 * size, np.uint8)
            parts.append(buffer[: kernels.decode(part, *self._rows, buffer)].tobytes())
        return b"".join(parts)

    def decode(self, ids: Sequence[int] | ndarray, errors: str = "replace") -> str:
        """The text of all ids; with errors="strict", TokenizerError where their bytes are not UTF-8."""
        buffer, held, before = np.empty(0, np.uint8), 0, 0
        parts: list[str] = []
        try:
            for part, size in self._decodable(ids):
                if buffer.size < held + size:
                    buffer = np.concatenate([buffer[:held], np.empty(2 * size, np.uint8)])
                stop = held + kernels.decode(part, *self._rows, buffer[held:])
                text, used = codecs.utf_8_decode(buffer.data[:stop], errors, False)  # what is cut waits for the next
                parts.append(text)
                buffer[: stop - used] = buffer[used:stop]
                held, before = stop - used, before + used
            parts.append(codecs.utf_8_decode(buffer.data[:held], errors, True)[0])
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"the ids are not UTF-8 text: {error.reason} at byte {before + error.start}", do='use errors="replace"'
            ) from None
        return "".join(parts)

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self.token)

    def token(self, id: int) -> bytes:
        """The bytes of an id. Raises TokenizerError for an unknown one."""
        if not 0 <= id < self.size or not self.tokens[id]:
            raise plain_bpe.unknown_id(id, self.size)
        return self.tokens[id]

    def id(self, token: bytes) -> int:
        """The id of the plain token with these bytes: the inverse of `token`. Raises TokenizerError."""
        if token not in self.vocabulary.ids:
            raise TokenizerError("no token has these bytes", found=repr(token))
        return self.vocabulary.ids[token]

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.vocabulary, self._remember)

    @cached_property
    def _integers(self) -> Integers:
        return Integers(self.size)

    @cached_property
    def _rows(self) -> tuple[ndarray, ndarray, ndarray]:
        """The tables of `kernels.decode`: rows, text, offsets."""
        text = np.frombuffer(bytearray(b"".join(self.tokens) + bytes(feed.SPARE)), np.uint8)
        offsets = np.zeros(self.size + 1, np.int64)
        np.cumsum(np.fromiter(map(len, self.tokens), np.int64, self.size), out=offsets[1:])
        rows = np.zeros(self.size * kernels.ROW, np.uint8)
        kernels.fill_rows(rows, text, offsets)
        return rows, text, offsets

    def _cut(self, asked: Asked) -> feed.Cut:
        return lambda buffer, stop: self._encoder.cut(buffer, stop, asked)

    def _buffers_for(self, at_once: int) -> feed.Buffers:
        return self._buffers if at_once == 1 else self._large_buffers

    def _encode(self, jobs: Iterable[feed.Job], most: int, asked: Asked, at_once: int) -> Ragged:
        """The ids of all jobs; `most`: bytes that they have at most."""
        if at_once == 1:
            return self._one_by_one(jobs, most, asked)
        return self._in_threads(jobs, most, asked, at_once)

    def _in_threads(self, jobs: Iterable[feed.Job], most: int, asked: Asked, at_once: int) -> Ragged:
        """As `_encode`: threads write ids into room that is used again, this one puts them where they stay."""
        pieces: list[ndarray] = []
        out = np.empty(min(most, PIECE), np.uint32)
        before, o = 0, 0
        offsets = [np.zeros(1, np.int64)]
        for room, stops, whole in self._in_order(jobs, asked, at_once):
            size = int(stops[-1]) if len(stops) else 0
            if o + size > out.size:
                pieces.append(_shrunk(out, o))
                before, o = before + o, 0
                out = np.empty(max(size, PIECE), np.uint32)
            out[o : o + size] = room.view(np.uint32)[:size]
            self._room.give(room)
            offsets.append(before + o + (stops if whole else stops[:-1]))
            o += size
        pieces.append(_shrunk(out, o))
        return Ragged(pieces[0] if len(pieces) == 1 else np.concatenate(pieces), np.concatenate(offsets))

    def _in_order(
        self, jobs: Iterable[feed.Job], asked: Asked, at_once: int
    ) -> Iterator[tuple[ndarray, ndarray, bool]]:
        """What `_written` gives for each job, in their order; few jobs are in flight at a time."""
        with ThreadPoolExecutor(at_once) as pool:
            waiting: deque[Future[tuple[ndarray, ndarray, bool]]] = deque()
            for job in jobs:
                waiting.append(pool.submit(self._written, job, asked))
                if len(waiting) > 2 * at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _written(self, job: feed.Job, asked: Asked) -> tuple[ndarray, ndarray, bool]:
        """The ids of a job as bytes, in room to be given back; where each of its texts ends; whether the last does."""
        room = self._room.take(4 * (int(job.bounds[-1]) + OUT_SPARE))
        stops = self._encoder.encode(job.buffer, job.bounds, asked, room.view(np.uint32))
        self._large_buffers.give(job.buffer)
        return room, stops, job.whole

    def _one_by_one(self, jobs: Iterable[feed.Job], most: int, asked: Asked) -> Ragged:
        """As `_encode`, in this thread: the ids are written where they stay."""
        pieces: list[ndarray] = []
        out = np.empty(min(most, PIECE) + OUT_SPARE, np.uint32)
        before, o = 0, 0
        offsets = [np.zeros(1, np.int64)]
        for job in jobs:
            size = int(job.bounds[-1]) + OUT_SPARE
            if o + size > out.size:
                pieces.append(_shrunk(out, o))
                before, o = before + o, 0
                out = np.empty(max(size, PIECE), np.uint32)
            stops = self._encoder.encode(job.buffer, job.bounds, asked, out[o:])
            self._buffers.give(job.buffer)
            offsets.append(before + o + (stops if job.whole else stops[:-1]))
            o += int(stops[-1]) if len(stops) else 0
        pieces.append(_shrunk(out, o))
        return Ragged(pieces[0] if len(pieces) == 1 else np.concatenate(pieces), np.concatenate(offsets))

    def _job(self, job: feed.Job, asked: Asked, buffers: feed.Buffers) -> tuple[ndarray, ndarray]:
        """The ids of a job, and where each of its texts ends."""
        size = int(job.bounds[-1]) + OUT_SPARE
        room = self._room.take(4 * size)
        out = room[: 4 * size].view(np.uint32)
        stops = self._encoder.encode(job.buffer, job.bounds, asked, out)
        ids = out[: int(stops[-1])].copy()
        buffers.give(job.buffer)
        self._room.give(room)
        return ids, stops

    def _listed(self, job: feed.Job, asked: Asked) -> list[int]:
        """The ids of a job, as a list."""
        room = self._room.take(4 * (int(job.bounds[-1]) + OUT_SPARE))
        out = room.view(np.uint32)
        count = int(self._encoder.encode(job.buffer, job.bounds, asked, out)[-1])
        self._buffers.give(job.buffer)
        found = self._integers.listed(out[:count])
        self._room.give(room)
        return found

    def _encode_noisy(self, text: str, asked: Asked, noise: Noise) -> ndarray:
        drop = plain_bpe.checked_noise(noise)
        parts: list[ndarray] = []
        place = 0
        for job in feed.stretches([text], self._cut(asked), self._buffers):
            stop = int(job.bounds[-1])
            out = np.empty(stop + OUT_SPARE, np.uint32)
            parts.append(out[: self._encoder.encode_noisy(job.buffer, stop, place, asked, drop, out)])
            self._buffers.give(job.buffer)
            place += stop
        return np.concatenate(parts)

    def _decodable(self, ids: Sequence[int] | ndarray) -> Iterator[tuple[ndarray, int]]:
        """Some ids at a time, and room for their bytes. Raises TokenizerError for one that is not in the vocabulary."""
        found = self._checked_ids(ids)
        rows, _, offsets = self._rows
        for first in range(0, len(found), AT_ONCE):
            part = found[first : first + AT_ONCE]
            size, wrong = kernels.measure(part, rows, offsets)
            if wrong >= 0:
                raise plain_bpe.unknown_id(int(part[wrong]), self.size, f" at place {first + wrong}")
            yield part, size + kernels.ROW

    def _checked_ids(self, ids: Sequence[int] | ndarray) -> ndarray:
        """The ids as uint32, C-contiguous. Raises TokenizerError for what is none."""
        found = tokenizer.flat(ids)
        if found.dtype == np.uint32:
            return np.ascontiguousarray(found)
        wrong = np.flatnonzero((found < 0) | (found >= self.size))
        if wrong.size:
            raise plain_bpe.unknown_id(int(found[wrong[0]]), self.size, f" at place {wrong[0]}")
        return found.astype(np.uint32)


def _at_once(most: int, threads: int | None) -> int:
    """How many threads work on a call of at most that many bytes. Raises TokenizerError."""
    if threads is not None and threads < 1:
        raise TokenizerError("out of range: threads", found=str(threads), allowed="1 or more; None: all there are")
    return 1 if most < MANY else threads or compile.threads()


def _shrunk(out: ndarray, size: int) -> ndarray:
    """The first `size` items; what is behind them is given back."""
    out.resize(size, refcheck=False)
    return out
