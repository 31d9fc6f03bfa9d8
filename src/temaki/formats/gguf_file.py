"""The GGUF container: typed metadata and named arrays, memory-mapped. Versions 2 and 3, little-endian.

Layout (ggml's `docs/gguf.md`): magic, version, counts of arrays and of keys; the keys; name, shape, kind and offset of
each array; padding; the arrays. The package `gguf` is not used: it takes seconds to load a vocabulary and trusts the
counts it reads. Here each length is held against what is left of the file before anything is made of it.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.model.quantise import Blocks, Stored
from temaki.model.quantise_kinds import KINDS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Of the arrays, where the file says nothing."""
MOST_ALIGNMENT = 1 << 16
LONGEST_NAME = 1 << 16
"""Bytes of a key or of an array's name."""
MOST_AXES = 4
LEAST_KEY = 13
"""Bytes that a key takes at least: its length, a type, a value of a byte."""
LEAST_ARRAY = 32
"""Bytes that the entry of an array takes at least."""

BOOL, TEXT, ARRAY = 7, 8, 9
NUMBERS = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Types of metadata that are numbers."""
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8")}
"""Kinds of arrays that are plain numbers."""
KIND_NAMES = {0: "F32", 1: "F16", 28: "F64"}
BLOCK_KINDS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 14: "Q6_K", 30: "BF16"}
UNREAD = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Kinds that are known by name alone."""
NAMES = KIND_NAMES | BLOCK_KINDS
"""Kinds that are read."""

Value = str | bool | int | float | list[str] | ndarray
"""A value of metadata; a list of texts and an array of numbers are GGUF's arrays."""


@dataclass(frozen=True)
class Held:
    """An array of a file, not read yet."""

    name: str
    kind: str
    shape: tuple[int, ...]
    """In NumPy's order: the last axis is the one whose numbers stand side by side."""
    data: ndarray
    """uint8 [bytes], memory-mapped."""

    def stored(self) -> Stored:
        """The array as it is kept."""
        for number, name in KIND_NAMES.items():
            if name == self.kind:
                return self.data.view(PLAIN[number]).reshape(self.shape)
        return Blocks(self.kind, self.shape, self.data)


@dataclass(frozen=True)
class GgufFile:
    """A file that was read as far as its arrays begin."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    arrays: Mapping[str, Held]
    bytes: int

    @cached_property
    def kinds(self) -> dict[str, int]:
        """How many arrays there are of each kind."""
        found: dict[str, int] = {}
        for held in self.arrays.values():
            found[held.kind] = found.get(held.kind, 0) + 1
        return found


def is_gguf(path: Path) -> bool:
    """Whether a file begins as this format does."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def load(path: Path) -> GgufFile:
    """Map a file and read all but its arrays. Raises FormatError for what is damaged or not understood."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise FormatError(f"{path} cannot be read: {error}") from None
    try:
        return _parsed(path, np.frombuffer(mapped, np.uint8))
    except FormatError as error:
        raise FormatError(
            f"{path} is no sound GGUF file: {error.what}", found=error.found, allowed=error.allowed, do=error.do
        ) from None


def _parsed(path: Path, content: ndarray) -> GgufFile:
    read = Reader(content)
    if read.taken(4, "the magic") != MAGIC:
        raise FormatError("it does not begin with GGUF")
    version = read.whole("<I", "the version")
    if version not in VERSIONS:
        big = version and version & 0xFFFF == 0
        found = f"version {version}" if not big else "a big-endian file"
        raise FormatError("this version is not read", found=found, allowed="2 or 3, little-endian")
    array_count = read.count(LEAST_ARRAY, "arrays")
    key_count = read.count(LEAST_KEY, "keys")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = read.text("a key", LONGEST_NAME)
        if key in metadata:
            raise FormatError("a key comes twice", found=repr(key))
        metadata[key] = read.value(key)
    arrays = _arrays(read, array_count, _alignment(metadata))
    return GgufFile(path, version, metadata, arrays, len(content))


class Reader:
    """What is left of a file's bytes; each step checks that there are enough."""

    def __init__(self, content: ndarray):
        self.content = content
        self.place = 0
        self._view = content.data

    def taken(self, size: int, what: str) -> bytes:
        """The next bytes. Raises FormatError where the file ends before."""
        self.need(size, what)
        self.place += size
        return bytes(self._view[self.place - size : self.place])

    def need(self, size: int, what: str) -> None:
        """Refuse a size that the rest of the file does not have."""
        left = len(self.content) - self.place
        if size > left:
            raise FormatError(f"the file ends inside {what}", found=f"{left} bytes left", allowed=f"{size} or more")

    def whole(self, form: str, what: str) -> int:
        """The next integer."""
        return struct.unpack(form, self.taken(struct.calcsize(form), what))[0]

    def count(self, least: int, what: str) -> int:
        """A number of things that take at least so many bytes each. Raises FormatError for more than can be there."""
        found = self.whole("<Q", f"the number of {what}")
        if found * least > len(self.content) - self.place:
            raise FormatError(f"more {what} than the file has room for", found=str(found))
        return found

    def text(self, what: str, longest: int | None = None) -> str:
        """The next text with its length before it."""
        size = self.whole("<Q", what)
        if longest is not None and size > longest:
            raise FormatError(f"{what} is too long", found=f"{size} bytes", allowed=f"{longest}")
        return _decoded(self.taken(size, what), what)

    def value(self, key: str) -> Value:
        """The next typed value."""
        kind = self.whole("<I", f"the type of {key}")
        if kind == TEXT:
            return self.text(key)
        if kind == ARRAY:
            return self._array(key)
        number = self._numbers(key, kind, 1)[0]
        if kind == BOOL:
            return _flags(key, np.array([number]))[0].item()
        return number.item()

    def _array(self, key: str) -> Value:
        kind = self.whole("<I", f"the type of {key}")
        if kind == TEXT:
            return self._texts(key, self.count(8, f"texts in {key}"))
        if kind == ARRAY:
            raise FormatError(f"{key} is an array of arrays", allowed="an array of numbers or of texts")
        if kind not in NUMBERS:
            raise FormatError(f"the type of {key} is unknown", found=str(kind))
        numbers = self._numbers(key, kind, self.count(NUMBERS[kind].itemsize, f"numbers in {key}"))
        return _flags(key, numbers) if kind == BOOL else numbers

    def _numbers(self, key: str, kind: int, count: int) -> ndarray:
        if kind not in NUMBERS:
            raise FormatError(f"the type of {key} is unknown", found=str(kind))
        size = count * NUMBERS[kind].itemsize
        self.need(size, key)
        self.place += size
        return self.content[self.place - size : self.place].view(NUMBERS[kind])

    def _texts(self, key: str, count: int) -> list[str]:
        """Texts one after the other; the loop that reads a vocabulary."""
        view, place, end = self._view, self.place, len(self.content)
        length = struct.Struct("<Q").unpack_from
        found: list[str] = []
        for number in range(count):
            after = place + 8
            stop = after + length(view, place)[0] if after <= end else end + 1
            if stop > end:
                raise FormatError(f"the file ends inside {key}", found=f"{number} of {count} texts")
            found.append(_decoded(view[after:stop], key))
            place = stop
        self.place = place
        return found


def _decoded(content: bytes | memoryview, what: str) -> str:
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{what} is not UTF-8", found=repr(bytes(content[:40]))) from None


def _flags(key: str, numbers: ndarray) -> ndarray:
    if (numbers > 1).any():
        raise FormatError(f"{key} is neither true nor false", found=str(numbers.max()))
    return numbers.astype(np.bool_)


def _alignment(metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", ALIGNMENT)
    if type(found) is not int or not 8 <= found <= MOST_ALIGNMENT or found & (found - 1):
        raise FormatError(
            "general.alignment is no power of 2", found=f"{found!r:.40}", allowed=f"8 to {MOST_ALIGNMENT}"
        )
    return found


def _arrays(read: Reader, count: int, alignment: int) -> dict[str, Held]:
    """The arrays of a file, in order. Raises FormatError for one that is not where, or not what, it says."""
    entries: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = read.text("an array's name", LONGEST_NAME)
        if name in entries:
            raise FormatError("an array comes twice", found=repr(name))
        axes = read.whole("<I", name)
        if axes > MOST_AXES:
            raise FormatError(f"{name} has too many axes", found=str(axes), allowed=f"up to {MOST_AXES}")
        shape = tuple(read.whole("<Q", name) for _ in range(axes))[::-1]
        entries[name] = (read.whole("<I", name), shape, read.whole("<Q", name))
    start = -(-read.place // alignment) * alignment
    spans: list[tuple[int, int, str]] = []
    found: dict[str, Held] = {}
    for name, (kind, shape, offset) in entries.items():
        size = array_bytes(name, kind, shape)
        if offset % alignment or start + offset + size > len(read.content):
            raise FormatError(
                f"{name} does not lie in the file",
                found=f"{size} bytes at {start} + {offset} of {len(read.content)}",
                allowed=f"a multiple of {alignment}, up to the end",
            )
        spans.append((offset, offset + size, name))
        found[name] = Held(name, NAMES[kind], shape, read.content[start + offset : start + offset + size])
    for (_, end, before), (begin, _, after) in pairwise(sorted(spans)):
        if begin < end:
            raise FormatError(f"{before} and {after} overlap")
    return found


def array_bytes(name: str, kind: int, shape: tuple[int, ...]) -> int:
    """Bytes that an array takes. Raises FormatError for a kind that is not read and for a shape without numbers."""
    if kind not in NAMES:
        said = UNREAD.get(kind, f"kind {kind}")
        raise FormatError(f"{name} is of a kind that is not read", found=said, allowed=", ".join(NAMES.values()))
    size = 1
    for axis in shape:
        size *= axis
    if not shape or not 0 < size < 1 << 62:
        raise FormatError(f"{name} has an impossible shape", found=str(shape))
    if kind in PLAIN:
        return size * PLAIN[kind].itemsize
    blocks = KINDS[BLOCK_KINDS[kind]]
    if shape[-1] % blocks.numbers:
        raise FormatError(
            f"{name} is not a whole number of blocks",
            found=str(shape),
            allowed=f"rows of a multiple of {blocks.numbers}",
        )
    return size // blocks.numbers * blocks.bytes
