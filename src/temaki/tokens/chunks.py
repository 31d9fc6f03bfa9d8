"""Texts and files -> chunks that threads can split apart: cut at special tokens and where a pattern allows it."""

import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import utf8
from temaki.tokens.kernels import runs as kernels
from temaki.tokens.kernels import split as splitting
from temaki.tokens.kernels.count import PADDING
from temaki.tokens.kernels.runs import Needles

CHUNK = 1 << 20
"""Bytes of a chunk, more or less."""

RESIDENT = 1 << 24
"""Bytes of a mapped file that stay in memory."""


@dataclass(frozen=True)
class Chunk:
    """Bytes of UTF-8 to be split."""

    text: ndarray
    """uint8, PADDING bytes more than the last run."""
    runs: ndarray
    """int64 [n, 2]: where each run of plain text begins and ends; each is split as if it stood alone."""
    size: int
    """Bytes of text, special tokens included."""


def needles(special: Sequence[str]) -> Needles:
    """What finds special tokens."""
    texts = sorted((text.encode() for text in special), key=lambda text: (-len(text), text))
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    head = sorted({(text[0], text[1] if len(text) > 1 else -1) for text in texts})
    return Needles(
        np.frombuffer(b"".join(texts) + bytes(PADDING), np.uint8), ends, np.array(head, np.int64).reshape(-1, 2)
    )


def of_texts(texts: Iterable[str | bytes], rule: int, special: Sequence[str]) -> Iterator[Chunk]:
    """Chunks of texts; bytes are read as UTF-8. Raises TokenizerError naming the text and the place."""
    found = needles(special)
    held, bounds = bytearray(), []
    for number, text in enumerate(texts):
        if isinstance(text, str | bytes) and len(text) >= CHUNK // 2:
            yield from _long_text(text, f"text {number}", rule, found)
        elif read := encoded(text, f"text {number}"):
            bounds.append((len(held), len(held) + len(read)))
            held += read
        if len(held) >= CHUNK:
            yield _joined(held, bounds, found)
            held, bounds = bytearray(), []
    if held:
        yield _joined(held, bounds, found)


def encoded(text: str | bytes, name: str) -> bytes:
    """A text's UTF-8. Raises TokenizerError naming the text and the place."""
    try:
        if isinstance(text, bytes):
            text.decode()
            return text
        return utf8.checked(text).encode()
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error.start, text[error.start :]) from None  # type: ignore[arg-type]
    except TokenizerError as error:
        raise TokenizerError(f"{name}: {error}") from None


def of_file(path: Path, rule: int, special: Needles) -> Iterator[Chunk]:
    """Chunks of a file, which is mapped and not read. Raises TokenizerError naming the place, OSError."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise TokenizerError(f"{path} is no file on disk", do="write what it gives to a file first")
        if not found.st_size:
            return
        # A private mapping is never written to. Chunks refer to it, so it is left to them to let go of it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    passed = 0
    for chunk in of_array(np.frombuffer(mapped, np.uint8), rule, special, str(path)):
        yield chunk
        passed += chunk.size
        if passed >= RESIDENT and sys.platform == "linux":
            mapped.madvise(mmap.MADV_DONTNEED)  # what was read may leave memory
            passed = 0


def of_array(text: ndarray, rule: int, special: Needles, name: str) -> Iterator[Chunk]:
    """Chunks of one text of any length, without a copy but of its end."""
    begin, window = 0, CHUNK
    while len(text) - begin > window + PADDING:
        stop = _boundary(text, begin + window)
        _check(text, begin, stop, name)
        cut, runs = _cut(text, begin, stop, rule, special)
        if cut == begin:
            window *= 2
            continue
        yield Chunk(text, runs, cut - begin)
        begin, window = cut, CHUNK
    rest = _padded(text[begin:])
    stop = len(text) - begin
    _check(rest, 0, stop, name, begin)
    yield Chunk(rest, _runs(rest, stop, special), stop)


def _long_text(text: str | bytes, name: str, rule: int, special: Needles) -> Iterator[Chunk]:
    """Chunks of one long text, encoded and copied piece by piece."""
    held, before, wanted = b"", 0, CHUNK
    for place in range(0, len(text), CHUNK):
        held += _piece(text, place, name)
        last = place + CHUNK >= len(text)
        if len(held) < wanted and not last:
            continue
        array = _padded(held)
        stop = len(held) if last else _boundary(array, len(held) - 4)
        _check(array, 0, stop, name, before)
        cut, runs = (stop, _runs(array, stop, special)) if last else _cut(array, 0, stop, rule, special)
        if cut:
            yield Chunk(array, runs, cut)
        held, before = held[cut:], before + cut
        wanted = max(CHUNK, 2 * len(held))


def _piece(text: str | bytes, place: int, name: str) -> bytes:
    piece = text[place : place + CHUNK]
    try:
        return piece if isinstance(piece, bytes) else piece.encode()
    except UnicodeEncodeError:
        encoded(text, name)  # says where
        raise


def _joined(held: bytearray, bounds: list[tuple[int, int]], special: Needles) -> Chunk:
    """A chunk of many short texts."""
    text = _padded(held)
    runs = np.array(bounds, np.int64)
    if len(special.head):
        out = np.empty((2 * len(bounds), 2), np.int64)
        many = kernels.plain_runs(text, runs, special, out)
        if many > len(out):
            out = np.empty((many, 2), np.int64)
            kernels.plain_runs(text, runs, special, out)
        runs = out[:many]
    return Chunk(text, runs, len(held))


def _cut(text: ndarray, begin: int, stop: int, rule: int, special: Needles) -> tuple[int, ndarray]:
    """The last place where text[begin:stop] can be cut whatever follows, `begin` if there is none; the runs before."""
    longest = int(special.ends[1]) if len(special.head) else 1
    open_from = stop if longest == 1 else _boundary(text, max(begin, stop - longest + 1))
    found = _specials(text, begin, stop, open_from, special)
    end = int(found[-1, 1]) if len(found) else begin
    cut = end if end >= open_from else int(splitting.safe_cut(rule, text, end, open_from))
    return cut, _between(begin, cut, found)


def _runs(text: ndarray, stop: int, special: Needles) -> ndarray:
    """The runs of a text that ends at `stop`."""
    return _between(0, stop, _specials(text, 0, stop, stop, special))


def _specials(text: ndarray, begin: int, stop: int, open_from: int, special: Needles) -> ndarray:
    """int64 [n, 2]: where each special token that begins before `open_from` begins and ends."""
    if not len(special.head):
        return np.empty((0, 2), np.int64)
    out = np.empty((1024, 2), np.int64)
    many = kernels.specials(text, begin, stop, open_from, special, out)
    if many > len(out):
        out = np.empty((many, 2), np.int64)
        kernels.specials(text, begin, stop, open_from, special, out)
    return out[:many]


def _between(begin: int, stop: int, found: ndarray) -> ndarray:
    """int64 [n, 2]: the runs between special tokens, none empty."""
    runs = np.stack([np.append(begin, found[:, 1]), np.append(found[:, 0], stop)], axis=1)
    return np.ascontiguousarray(runs[runs[:, 0] < runs[:, 1]])


def _boundary(text: ndarray, place: int) -> int:
    """The last place not after `place` where a character begins, were the text valid."""
    back = 0
    while back < 3 and place > back and text[place - back] & 0xC0 == 0x80:
        back += 1
    return place - back


def _padded(text: bytes | bytearray | ndarray) -> ndarray:
    array = np.empty(len(text) + PADDING, np.uint8)
    array[: len(text)] = text if isinstance(text, ndarray) else np.frombuffer(text, np.uint8)
    array[len(text) :] = 0
    return array


def _check(text: ndarray, begin: int, stop: int, name: str, before: int = 0) -> None:
    """Refuse what is not UTF-8; `before`: how many bytes of the named text lie before this array."""
    place = int(splitting.validate(text, begin, stop))
    if place >= 0:
        raise _not_utf8(name, before + place, text[place:stop].tobytes())


def _not_utf8(name: str, place: int, found: bytes) -> TokenizerError:
    return TokenizerError(
        f"{name}: the bytes are not UTF-8 at offset {place}",
        found=repr(found[:4]),
        do='decode them with errors="replace" first, or convert the file to UTF-8',
    )
