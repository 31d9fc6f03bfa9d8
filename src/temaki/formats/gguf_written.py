"""Writing the GGUF container, version 3: what `gguf_file` reads."""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from numpy import ndarray

from temaki.formats.gguf_file import ALIGNMENT, ARRAY, BOOL, MAGIC, NAMES, NUMBERS, TEXT, VERSIONS, Value, array_bytes
from temaki.formats.weights import some


@dataclass(frozen=True)
class Planned:
    """An array to be written."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def number(self) -> int:
        """The kind's number in the format."""
        return next(number for number, name in NAMES.items() if name == self.kind)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return array_bytes(self.name, self.number, self.shape)


def write(
    file: BinaryIO,
    metadata: Mapping[str, Value],
    planned: Sequence[Planned],
    arrays: Iterator[tuple[str, ndarray]],
    packed: Callable[[str, ndarray], ndarray],
) -> None:
    """Write a whole file; `arrays` may come in any order, `packed(kind, array)` gives the bytes of one. Raises OSError.

    Every planned array comes once.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(planned), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key), _typed(value)]
    places: dict[str, tuple[int, Planned]] = {}
    offset = 0
    for each in planned:
        places[each.name] = (offset, each)
        shape = each.shape[::-1]
        head += [_text(each.name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, each.number, offset)]
        offset = _padded(offset + each.bytes)
    content = b"".join(head)
    start = _padded(len(content))
    file.write(content)
    for name, array in arrays:
        offset, each = places.pop(name)
        assert array.shape == each.shape, f"{name}: {array.shape}, planned {each.shape}"
        file.seek(start + offset)
        file.write(packed(each.kind, array).data)
    assert not places, f"never came: {some(list(places))}"
    file.seek(0, 2)
    file.write(bytes(-file.tell() % ALIGNMENT))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _typed(value: Value) -> bytes:
    """A value with its type before it: whole numbers are uint32, others float32."""
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, TEXT, len(value)) + b"".join(map(_text, value))
    kind = next(number for number, dtype in NUMBERS.items() if dtype == value.dtype)
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + value.tobytes()
