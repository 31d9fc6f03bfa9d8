"""Text -> ids -> bytes through files and pipes, in constant memory: what `encode` and `decode` do."""

import contextlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from temaki.base import files
from temaki.base.errors import ConfigError, DataError, TokenizerError
from temaki.cli import pieces
from temaki.tokens.tokenizer import Tokenizer

CHUNK = 1 << 16
"""Bytes that are read at a time."""
HEADER = 128
"""Bytes of the header of the .npy files that are written here."""
SPACED = frozenset({"wordpiece", "unigram", "sentencepiece-bpe"})
"""Kinds whose decoding looks at neighbours."""
SMALL = 1 << 16
"""Sizes up to which a .bin file holds two bytes an id."""
DIGITS = 18
"""Characters that a number has at most: an int64 holds them."""


def asked_special(tokenizer: Tokenizer, word: str) -> list[str]:
    """The special tokens that --special names: none, all, or some with commas between. Raises TokenizerError."""
    if word in ("none", "all"):
        return list(tokenizer.special) if word == "all" else []
    names = word.split(",")
    for name in names:
        if name not in tokenizer.special:
            raise TokenizerError(
                f"--special names what is no special token: {name!r}",
                allowed=f"none, all, or some of {', '.join(map(repr, tokenizer.special)) or '(there are none)'}",
            )
    return names


def opened(path: Path, stack: ExitStack) -> BinaryIO:
    """A file to read, or standard input for "-"."""
    return sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))


def documents(paths: Iterable[Path], lines: bool) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name, chunks) of each document: a file, or a line of one without its newline."""
    with ExitStack() as stack:
        for path in paths:
            file = opened(path, stack)
            if not lines:
                yield str(path), iter(lambda file=file: file.read(CHUNK), b"")
                continue
            for number, line in enumerate(file, start=1):
                yield f"{path}, line {number}", iter([line.removesuffix(b"\n")])


def encoded(
    tokenizer: Tokenizer, name: str, chunks: Iterable[bytes], special: Collection[str]
) -> Iterator[NDArray[np.uint32]]:
    """The ids of one document as they come. Raises TokenizerError naming the document."""
    try:
        yield from tokenizer.encode_iterable(chunks, special)
    except TokenizerError as error:
        raise TokenizerError(f"{name}: {error}") from None


def print_ids(found: Iterable[NDArray[np.uint32]]) -> None:
    """The ids of one document as one line."""
    between = ""
    for ids in found:
        if len(ids):
            sys.stdout.write(between + " ".join(map(str, ids.tolist())))
            between = " "
    sys.stdout.write("\n")


def print_pieces(tokenizer: Tokenizer, found: Iterable[NDArray[np.uint32]], colour: bool) -> None:
    """The pieces of one document."""
    between = "" if colour else "|"
    first = True
    for ids in found:
        if len(ids):
            said = pieces.line([tokenizer.tokens[id] for id in ids.tolist()], colour)
            sys.stdout.write(said if first else between + said)
            first = False
    sys.stdout.write("\n")


def print_json(tokenizer: Tokenizer, name: str, found: Iterable[NDArray[np.uint32]], with_pieces: bool) -> None:
    """One document as one JSON object; its ids are in memory all at once."""
    ids = [id for some in found for id in some.tolist()]
    line: dict[str, object] = {"document": name, "ids": ids}
    if with_pieces:
        line["pieces"] = [pieces.shown(tokenizer.tokens[id]) for id in ids]
    print(json.dumps(line, ensure_ascii=False))


class IdFile:
    """Ids on their way into FILE.npy or FILE.bin; the place where each document ends is kept beside."""

    def __init__(self, path: Path, size: int, stack: ExitStack):
        """`size` is the vocabulary's: it decides how wide an id of a .bin file is. The file is whole or absent."""
        if path.suffix not in (".npy", ".bin"):
            raise ConfigError(f"--out {path} names no format", allowed="FILE.npy, FILE.bin")
        self.path = path
        self.kind = np.dtype("<u2" if path.suffix == ".bin" and size <= SMALL else "<u4")
        self.ends = [0]
        self._file = stack.enter_context(files.writing(path))
        if path.suffix == ".npy":
            self._file.write(bytes(HEADER))

    def write(self, found: Iterable[NDArray[np.uint32]]) -> None:
        """All ids of one document."""
        count = self.ends[-1]
        for ids in found:
            self._file.write(ids.astype(self.kind).tobytes())
            count += len(ids)
        self.ends.append(count)

    def finish(self) -> None:
        """Fill the header in; several documents leave FILE.offsets.npy, int64 [n+1], where each begins and ends.

        Where there are not several, an older one, which tells of other ids, goes.
        """
        if self.path.suffix == ".npy":
            self._file.seek(0)
            self._file.write(_header(self.ends[-1]))
        beside = self.path.with_suffix(".offsets.npy")
        if len(self.ends) > 2:
            with files.writing(beside) as file:
                np.save(file, np.array(self.ends, np.int64))
        else:
            beside.unlink(missing_ok=True)


def read_ids(path: Path, size: int) -> Iterator[NDArray[np.int64]]:
    """Ids from FILE.npy, FILE.bin or a text of numbers ("-": standard input), some at a time. Raises DataError."""
    if path.suffix == ".npy":
        try:
            found = npy.open_memmap(path, mode="r")
        except (ValueError, OverflowError, TokenError) as error:  # a shape that is too large; a header that is cut off
            raise DataError(f"{path} is no .npy file of ids: {error}") from None
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise DataError(f"{path} holds no flat list of ids", found=f"shape {found.shape}, {found.dtype}")
        yield from (found[at : at + CHUNK].astype(np.int64) for at in range(0, len(found), CHUNK))
        return
    with ExitStack() as stack:
        file = opened(path, stack)
        yield from _binary(path, file, size) if path.suffix == ".bin" else _numbers(path, file)


def read_lines(path: Path) -> Iterator[NDArray[np.int64]]:
    """The ids of each line of a text of numbers."""
    with ExitStack() as stack:
        for number, line in enumerate(opened(path, stack), start=1):
            yield _parsed(f"{path}, line {number}", line)


def decoded_lines(tokenizer: Tokenizer, lines: Iterable[NDArray[np.int64]]) -> Iterator[bytes]:
    """The bytes of each line of ids, and a newline."""
    for ids in lines:
        yield tokenizer.decode_bytes(ids) + b"\n"


def decoded(tokenizer: Tokenizer, source: Iterable[NDArray[np.int64]]) -> Iterator[bytes]:
    """The bytes of one document whose ids come some at a time.

    Where what an id says depends on its neighbours (spaces between words), they are told one by one, as text.
    """
    if tokenizer.kind not in SPACED:
        yield from map(tokenizer.decode_bytes, source)
        return
    stream = tokenizer.stream()
    for ids in source:
        yield "".join(map(stream.push, ids.tolist())).encode("utf-8")
    yield stream.close().encode("utf-8")


def _header(count: int) -> bytes:
    """The first HEADER bytes of a .npy file of `count` uint32."""
    text = f"{{'descr': '<u4', 'fortran_order': False, 'shape': ({count},), }}"
    start = npy.magic(1, 0) + (HEADER - 10).to_bytes(2, "little")
    return start + text.encode("ascii").ljust(HEADER - 11) + b"\n"


def _binary(path: Path, file: BinaryIO, size: int) -> Iterator[NDArray[np.int64]]:
    kind = np.dtype("<u2" if size <= SMALL else "<u4")
    while chunk := file.read(CHUNK):
        if len(chunk) % kind.itemsize:
            raise DataError(f"{path} is cut off inside an id", found=f"{len(chunk) % kind.itemsize} bytes too many")
        yield np.frombuffer(chunk, kind).astype(np.int64)


def _numbers(path: Path, file: BinaryIO) -> Iterator[NDArray[np.int64]]:
    held = b""
    while chunk := file.read1(CHUNK):  # type: ignore[attr-defined]
        whole = held + chunk
        cut = max(whole.rfind(b" "), whole.rfind(b"\n"), whole.rfind(b"\t")) + 1
        held = whole[cut:]
        yield _parsed(str(path), whole[:cut])
    yield _parsed(str(path), held)


def _parsed(where: str, text: bytes) -> NDArray[np.int64]:
    words = text.split()
    if max(map(len, words), default=0) <= DIGITS:  # an array makes room for the longest in each place
        with contextlib.suppress(ValueError):
            return np.array(words, np.bytes_).astype(np.int64) if words else np.zeros(0, np.int64)
    wrong = next((word for word in words if not word.isdigit() or len(word) > DIGITS), b"")
    raise DataError(f"{where}: not an id", found=ascii(wrong[:40].decode("utf-8", "replace")), allowed="whole numbers")
