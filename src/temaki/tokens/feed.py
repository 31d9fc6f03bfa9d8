"""Texts on their way to a compiled encoder: UTF-8 in buffers with room behind, checked, in blocks split one by one.

A job is a buffer and the bounds of the texts in it. A text that is longer than a block comes as several jobs, cut where
both sides give the ids of the whole.
"""

import codecs
import contextlib
import ctypes
import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import utf8
from temaki.tokens.kernels.split import validate

BLOCK = 1 << 17
"""Bytes of a job, about."""

SPARE = 64
"""Bytes behind the text of a buffer, which kernels may read."""

LONG = 1 << 12
"""Characters from which on a text is read where it lies."""

STRETCH = 1 << 14
"""Characters that are turned into UTF-8 at a time, where that is work."""

_as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
_as_utf8.argtypes = [ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t)]
_as_utf8.restype = ctypes.c_void_p
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_view.restype = ctypes.py_object
READ = 0x100
"""What Python calls PyBUF_READ."""

Cut = Callable[[ndarray, int], int]
"""The last place of buffer[:stop] where it can be cut whatever follows; 0 if there is none."""


@dataclass(frozen=True)
class Job:
    """Texts to encode in one call: text i is buffer[bounds[i]:bounds[i+1]]."""

    buffer: ndarray
    """uint8 with SPARE bytes more."""
    bounds: ndarray
    """int64 [n+1]."""
    whole: bool
    """Whether the last text ends here, or goes on in the next job."""


class Buffers:
    """Buffers that are used again: whoever is done with a job gives its buffer back."""

    def __init__(self, block: int = BLOCK):
        self.block = block
        self._free: list[ndarray] = []
        self._last = (0, 0)

    def take(self, size: int) -> ndarray:
        """A buffer for `size` bytes and SPARE more; its size is a multiple of SPARE."""
        try:
            while True:
                buffer = self._free.pop()
                if buffer.size >= size + SPARE:
                    return buffer
        except IndexError:  # none is there, or another thread was faster
            return np.zeros(-(-max(size, 2 * self.block) // SPARE) * SPARE + SPARE, np.uint8)

    def again(self, text: str) -> bool:
        """Whether the text before this one was the same, or at least as long and in the same place."""
        last, self._last = self._last, (id(text), len(text))
        return self._last == last

    def give(self, buffer: ndarray) -> None:
        """Take a buffer back; a very large one is let go."""
        if buffer.size <= 8 * self.block and len(self._free) < 8:
            self._free.append(buffer)


def stretches(chunks: Iterable[str | bytes], cut: Cut, buffers: Buffers) -> Iterator[Job]:
    """One text that comes in chunks, as jobs; bytes may be cut anywhere. Nothing for an empty text.

    Holds one chunk, one block and the longest stretch that cannot be cut, twice. Raises TokenizerError for what is not
    UTF-8, with the offset in the bytes read.
    """
    buffer, filled, checked = buffers.take(0), 0, 0
    read = 0  # bytes that came as bytes
    wanted = buffers.block
    for data, text in _pieces(chunks, buffers):
        if text is Text.BEGINS and checked < filled:  # a character cut by a text never becomes whole
            raise _not_utf8(read - (filled - checked), buffer[checked:filled])
        if filled + len(data) + SPARE > buffer.size:
            larger = buffers.take(2 * (filled + len(data)))
            larger[:filled] = buffer[:filled]
            buffer = larger
        buffer[filled : filled + len(data)] = data
        checked = _checked(buffer, checked, filled + len(data), read - filled)
        filled += len(data)
        read += 0 if text else len(data)
        if checked < wanted:
            continue
        end = cut(buffer, checked)
        wanted = max(buffers.block, 2 * (checked - end))  # doubling: a run without a cut is looked at just a few times
        if end:
            following = buffers.take(filled - end)
            following[: filled - end] = buffer[end:filled]
            yield Job(buffer, np.array([0, end], np.int64), False)
            buffer, filled, checked = following, filled - end, checked - end
    if checked < filled:
        raise _not_utf8(read - (filled - checked), buffer[checked:filled])
    yield Job(buffer, np.array([0, checked], np.int64), True)


def alone(text: str, buffers: Buffers) -> Job:
    """The job of one short text. Raises TokenizerError for a lone surrogate."""
    data = utf8_of(text)
    buffer = buffers.take(len(data))
    buffer[: len(data)] = data
    return Job(buffer, np.array([0, len(data)], np.int64), True)


def most_bytes(texts: Sequence[str | bytes]) -> int:
    """How many bytes of UTF-8 they have at most. Raises TokenizerError naming what is no text."""
    kinds = set(map(type, texts))
    if not kinds <= {str, bytes}:
        wrong = next(i for i, text in enumerate(texts) if type(text) not in (str, bytes))
        raise TokenizerError(f"text {wrong}: a text to encode is a str", found=type(texts[wrong]).__name__)
    return sum(map(len, texts)) * (4 if str in kinds else 1)


def texts_of(texts: Sequence[str | bytes], cut: Cut, buffers: Buffers) -> Iterator[Job]:
    """Several texts as jobs: short ones together, long ones in stretches. Raises TokenizerError naming the text."""
    kinds = set(map(type, texts))
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    first = 0
    while first < len(texts):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + buffers.block)))
        if int(ends[last - 1]) - before > 2 * buffers.block:
            with _naming(first):
                yield from stretches([texts[first]], cut, buffers)
        else:
            job = _joined(texts[first:last], ends[first:last] - before, kinds == {str}, first, buffers)
            if bytes in kinds and not _all_valid(job):
                _refuse(texts[first:last], first)
            yield job
        first = last


def _joined(texts: Sequence[str | bytes], ends: ndarray, all_text: bool, first: int, buffers: Buffers) -> Job:
    """The job of some texts; `ends`: where they end if a character is a byte, `first`: the number of the first."""
    bounds = np.zeros(len(texts) + 1, np.int64)
    try:
        if int(ends[-1]) > LONG * len(texts):
            parts = [utf8_of(text) if isinstance(text, str) else np.frombuffer(text, np.uint8) for text in texts]
            np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)), out=bounds[1:])
            return Job(_filled(parts, bounds[1:], buffers), bounds, True)
        if all_text and all(map(str.isascii, texts)):  # pyright: ignore[reportArgumentType]
            bounds[1:] = ends
            joined = "".join(texts)  # pyright: ignore[reportArgumentType, reportCallIssue]
            return Job(_filled([utf8_of(joined)], bounds[-1:], buffers), bounds, True)
        encoded = [text.encode("utf-8") if isinstance(text, str) else text for text in texts]
    except (UnicodeEncodeError, TokenizerError):
        _refuse(texts, first)
        raise
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=bounds[1:])
    return Job(_filled([np.frombuffer(b"".join(encoded), np.uint8)], bounds[-1:], buffers), bounds, True)


def _filled(parts: Sequence[ndarray], ends: ndarray, buffers: Buffers) -> ndarray:
    """A buffer with these bytes; `ends`: where each part ends."""
    buffer, at = buffers.take(int(ends[-1])), 0
    for part, end in zip(parts, ends.tolist(), strict=True):
        buffer[at:end] = part
        at = end
    return buffer


def _all_valid(job: Job) -> bool:
    """Whether each text of a job is UTF-8."""
    stop = int(job.bounds[-1])
    begins = job.bounds[job.bounds < stop]
    return bool(np.all(job.buffer[begins] & 0xC0 != 0x80)) and validate(job.buffer, 0, stop) < 0


def _refuse(texts: Sequence[str | bytes], first: int) -> None:
    """Name the text that cannot be encoded. Raises TokenizerError."""
    for i, text in enumerate(texts):
        with _naming(first + i):
            "".join(utf8.decoded([text]))


@contextlib.contextmanager
def _naming(number: int) -> Iterator[None]:
    try:
        yield
    except TokenizerError as error:
        raise TokenizerError(f"text {number}: {error}") from None


class Text(enum.Enum):
    """Where a piece of a text stands in it."""

    BEGINS = 1
    GOES_ON = 2


def _pieces(chunks: Iterable[str | bytes], buffers: Buffers) -> Iterator[tuple[ndarray, Text | None]]:
    """The same bytes in pieces of about a block: short chunks joined, long ones cut; None for what is no text."""
    said, block = 0, buffers.block  # said: characters that came before
    for chunk in _gathered(chunks, block):
        if isinstance(chunk, str):
            kind = Text.BEGINS
            for data in _stretches_of(chunk, said, buffers.again(chunk)):
                for i in range(0, len(data), block):
                    yield data[i : i + block], kind
                    kind = Text.GOES_ON
            said += len(chunk)
        else:
            data = np.frombuffer(chunk, np.uint8)
            for i in range(0, len(data), block):
                yield data[i : i + block], None


def _stretches_of(text: str, before: int, again: bool) -> Iterator[ndarray]:
    """A text in UTF-8: as it lies if it is ASCII, else some of it at a time; `before`: characters before it.

    Of a text that comes again, Python is asked to keep the UTF-8.
    """
    if text.isascii():
        yield utf8_of(text, before)
        return
    if again:
        with contextlib.suppress(UnicodeEncodeError):  # said below, with the place
            yield _as_it_lies(text)
            return
    for first in range(0, len(text), STRETCH):
        yield _encoded(text[first : first + STRETCH], before + first)


def _gathered(chunks: Iterable[str | bytes], block: int) -> Iterator[str | bytes]:
    """The same chunks, none empty, short ones of one type joined."""
    held: list[str | bytes] = []
    size = 0
    for chunk in chunks:
        if type(chunk) is not str and type(chunk) is not bytes:
            raise TokenizerError("a text to encode is a str", found=type(chunk).__name__)
        if held and (len(chunk) > block or type(held[0]) is not type(chunk)):
            yield _join(held)
            held, size = [], 0
        if chunk:
            held.append(chunk)
            size += len(chunk)
        if size >= block:
            yield _join(held)
            held, size = [], 0
    if held:
        yield _join(held)


def _join(held: list[str | bytes]) -> str | bytes:
    if len(held) == 1:
        return held[0]
    return held[0][:0].join(held)  # pyright: ignore[reportArgumentType, reportCallIssue]


def utf8_of(text: str, before: int = 0) -> ndarray:
    """A text in UTF-8, uint8 [n], to be read while the text lives: where it is long and ASCII, not a copy.

    Raises TokenizerError for a lone surrogate; `before`: characters that came before it.
    """
    if len(text) < LONG or not text.isascii():
        return _encoded(text, before)
    return _as_it_lies(text)


def _as_it_lies(text: str) -> ndarray:
    """What Python itself keeps of a text in UTF-8, made if it is not there. Raises UnicodeEncodeError."""
    size = ctypes.c_ssize_t()
    address = _as_utf8(text, ctypes.byref(size))
    return np.frombuffer(_view(address, size, READ), np.uint8)


def _encoded(text: str, before: int) -> ndarray:
    """As `utf8_of`, always a copy."""
    try:
        return np.frombuffer(text.encode("utf-8"), np.uint8)
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds a lone surrogate at character {before + error.start}, which UTF-8 cannot say",
            found=ascii(text[error.start]),
            do='read files with errors="replace", not "surrogateescape"',
        ) from None


def _checked(buffer: ndarray, begin: int, stop: int, offset: int) -> int:
    """Where the whole characters of buffer[begin:stop] end. Raises TokenizerError; buffer[i] was read at offset + i."""
    wrong = validate(buffer, begin, stop)
    if wrong < 0:
        return stop
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(buffer[wrong:stop].tobytes())
    except UnicodeDecodeError:
        raise _not_utf8(offset + wrong, buffer[wrong:stop]) from None
    return wrong


def _not_utf8(offset: int, found: ndarray) -> TokenizerError:
    return TokenizerError(
        f"the bytes are not UTF-8 at offset {offset}",
        found=repr(found[:4].tobytes()),
        do='decode them with errors="replace" first, or convert the file to UTF-8',
    )
