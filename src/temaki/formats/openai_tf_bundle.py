"""TensorFlow's checkpoint of arrays ("tensor bundle") without TensorFlow: an index of names, and files of numbers.

    checkpoint                     text: model_checkpoint_path: "PREFIX"
    PREFIX.index                   a table (`openai_tf_table`); key "": header, every other key: an array's name
    PREFIX.data-00000-of-00001     numbers, little-endian

    header: 1 number of data files, 2 endianness (0: little), 3 version {1 written by, 2 oldest reader}
    array:  1 dtype, 2 shape {2 dimension {1 size}}, 3 data file, 4 offset, 5 bytes, 6 masked CRC-32C (fixed 32 bits),
            7 slices

Source: TensorFlow, `tensor_bundle.proto`, `types.proto`, `tensor_shape.proto`.
"""

import itertools
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy import ndarray

from temaki.base import compile, files
from temaki.base.errors import FormatError
from temaki.formats import openai_tf_table as table
from temaki.formats.openai_tf_crc import crc32c, masked

NAMED = "checkpoint"
"""The file that names the prefix."""
PREFIX = "model.ckpt"
"""Of what is written."""
NAMED_LIMIT = 1 << 16
INDEX_LIMIT = 1 << 20
"""Bytes up to which the two are read. A place takes far more memory than its entry; the index of the largest GPT-2 has
some 30 KB."""
DTYPES = {1: "<f4", 2: "<f8", 19: "<f2"}
"""Numbers of `types.proto` that are read: floats alone."""
OTHERS = {3: "int32", 7: "string", 9: "int64", 14: "bfloat16"}
SMALL = 1 << 22
"""Bytes of arrays up to which one thread compares their checksums."""
VERSION = 1
"""Of the format: the newest `oldest reader` that is understood."""
AXES = 8
VARINT, WIDE, GROUP, NARROW = 0, 1, 2, 5
"""Wire types of a field: a number, 8 bytes, some bytes, 4 bytes."""
Fields = dict[int, list[int | bytes]]


@dataclass(frozen=True)
class Place:
    """Where one array lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True)
class Bundle:
    """An opened checkpoint: places by name, and its data files."""

    prefix: Path
    shards: int
    places: Mapping[str, Place]

    def arrays(self, names: Iterable[str] | None = None) -> dict[str, ndarray]:
        """Arrays by name (default: all), memory-mapped, each checksum compared. Raises FormatError."""
        wanted = {name: self.places[name] for name in (self.places if names is None else names)}
        for name, place in wanted.items():
            _check_kind(name, place)
        _check_apart(wanted)
        mapped = {shard: self._mapped(shard) for shard in {place.shard for place in wanted.values()}}
        held: dict[str, ndarray] = {}
        for name, place in wanted.items():
            if place.end > mapped[place.shard].size:
                raise FormatError(
                    f"{self.data(place.shard)} is cut short: {name} ends at byte {place.end}",
                    found=f"{mapped[place.shard].size} bytes",
                )
            held[name] = mapped[place.shard][place.offset : place.end]
        checks = [partial(_differs, name, held[name], place) for name, place in wanted.items()]
        wrong = compile.run(checks, None if sum(map(len, held.values())) > SMALL else 1)
        for name in filter(None, wrong):
            raise FormatError(f"{name} in {self.prefix} does not have its checksum", do="copy or download it again")
        return {name: held[name].view(DTYPES[place.dtype]).reshape(place.shape) for name, place in wanted.items()}

    def data(self, shard: int) -> Path:
        """The path of a file of numbers."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.shards:05d}")

    def _mapped(self, shard: int) -> ndarray:
        path = self.data(shard)
        try:
            if not path.stat().st_size:
                return np.empty(0, np.uint8)
            return np.memmap(path, np.uint8, "r").view(ndarray)
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}") from None


def open(folder: Path) -> Bundle:
    """The checkpoint that a folder's file `checkpoint` names. Raises FormatError."""
    prefix = folder / named(folder)
    index = prefix.with_name(prefix.name + ".index")
    found = table.read(_bytes(index, INDEX_LIMIT), str(index))
    try:
        shards = _shards(found.pop(b"", b""))
        places = {key.decode("utf-8"): _place(value, shards) for key, value in found.items()}
    except (FormatError, UnicodeDecodeError) as error:
        raise FormatError(f"{index} is damaged: {error}") from None
    return Bundle(prefix, shards, places)


def named(folder: Path) -> str:
    """The prefix that the file `checkpoint` names, which lies in the same folder. Raises FormatError."""
    path = folder / NAMED
    line = re.search(rb'^\s*model_checkpoint_path\s*:\s*"([^"\n]*)"', _bytes(path, NAMED_LIMIT), re.MULTILINE)
    if line is None:
        raise FormatError(f"{path} names no checkpoint", allowed='a line model_checkpoint_path: "model.ckpt"')
    name = line[1].decode("utf-8", "replace")
    if not re.fullmatch(r"[\w.+-]+", name, re.ASCII) or name.strip(".") == "":
        raise FormatError(
            f"{path} names a checkpoint that is not beside it",
            found=ascii(name),
            allowed="a name of letters, digits and . _ + -, without folders",
        )
    return name


def write(arrays: Iterable[tuple[str, ndarray]], folder: Path) -> None:
    """Write arrays as a checkpoint into a folder that is there: the data, the index, and what names them.

    Arrays are asked for one after the other. Raises OSError.
    """
    codes = {np.dtype(name): code for code, name in DTYPES.items()}
    index = {b"": _field(1, 1) + _field(3, _field(1, VERSION))}
    offset = 0
    with files.writing(folder / f"{PREFIX}.data-00000-of-00001") as data:
        for name, array in arrays:
            content = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(-1)
            raw = content.view(np.uint8)
            data.write(raw.data)
            shape = b"".join(_field(2, _field(1, size)) for size in array.shape)
            said = _field(1, codes[content.dtype]) + _field(2, shape) + _field(4, offset) + _field(5, raw.size)
            index[name.encode("utf-8")] = said + _narrow(6, masked(crc32c(raw)))
            offset += raw.size
    files.write_bytes(folder / f"{PREFIX}.index", table.write(index))
    files.write_text(folder / NAMED, f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n')


def _narrow(field: int, value: int) -> bytes:
    """A field of 4 bytes."""
    return table.number(field << 3 | NARROW) + struct.pack("<I", value)


def _field(field: int, value: int | bytes) -> bytes:
    """A field that holds a number, or bytes."""
    if isinstance(value, int):
        return table.number(field << 3 | VARINT) + table.number(value)
    return table.number(field << 3 | GROUP) + table.number(len(value)) + value


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(limit + 1)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    if len(found) > limit:
        raise FormatError(f"{path} is too large", allowed=f"{limit} bytes")
    return found


def _shards(header: bytes) -> int:
    """The number of data files, as the header says."""
    fields = _fields(header)
    version = _fields(_group(fields, 3))
    if _int(fields, 2) != 0:
        raise FormatError("its numbers are big-endian, which is not read here")
    if _int(version, 2) > VERSION:
        raise FormatError(f"it asks for a reader of version {_int(version, 2)}; this one reads up to {VERSION}")
    shards = _int(fields, 1)
    if not 1 <= shards <= 99_999:
        raise FormatError(f"it says it has {shards} data files")
    return shards


def _place(value: bytes, shards: int) -> Place:
    """Where an array lies. Raises FormatError for a place that cannot be."""
    fields = _fields(value)
    shape = _fields(_group(fields, 2))
    sizes = [_int(_fields(_as_bytes(each)), 1) for each in shape.get(2, [])]
    if fields.get(7):
        raise FormatError("it holds an array in slices, which is not read here")
    place = Place(_int(fields, 1), tuple(sizes), *(_int(fields, each) for each in (3, 4, 5, 6)))
    if len(sizes) > AXES or max([*sizes, place.offset, place.size]) >= 1 << 62 or place.shard >= shards:
        raise FormatError(f"it says of an array what cannot be: {place}")
    return place


def _check_kind(name: str, place: Place) -> None:
    """Refuse numbers that are no floats, and a size that is not that of the shape."""
    if place.dtype not in DTYPES:
        kind = OTHERS.get(place.dtype, f"dtype {place.dtype}")
        raise FormatError(f"{name} holds {kind}", allowed="float32, float64, float16")
    wanted = math.prod(place.shape) * np.dtype(DTYPES[place.dtype]).itemsize
    if wanted != place.size:
        raise FormatError(f"{name} of shape {place.shape} should take {wanted} bytes", found=f"{place.size}")


def _check_apart(places: Mapping[str, Place]) -> None:
    """Refuse arrays that lie over each other: many large ones would stand in a small file."""
    order = sorted(places, key=lambda name: (places[name].shard, places[name].offset, places[name].end))
    for before, after in itertools.pairwise(order):
        first, second = places[before], places[after]
        if first.shard == second.shard and first.end > second.offset:
            raise FormatError(f"{before} and {after} lie over each other")


def _differs(name: str, content: ndarray, place: Place) -> str | None:
    """The name of an array whose bytes do not have their checksum; None where they have."""
    return None if masked(crc32c(content)) == place.checksum else name


def _fields(content: bytes) -> Fields:
    """The fields of a message by number; the last of a number counts where one is asked for."""
    found: Fields = {}
    for number, value in _walk(content):
        found.setdefault(number, []).append(value)
    return found


def _walk(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        tag, at = table.varint(content, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = table.varint(content, at)
            yield tag >> 3, value
            continue
        if wire == GROUP:
            size, at = table.varint(content, at)
        elif wire in (NARROW, WIDE):
            size = 4 if wire == NARROW else 8
        else:
            raise FormatError(f"a field of wire type {wire}")
        if at + size > len(content):
            raise FormatError(f"a field reaches beyond its message: {size} bytes at {at} of {len(content)}")
        raw = content[at : at + size]
        yield tag >> 3, raw if wire == GROUP else int.from_bytes(raw, "little")
        at += size


def _int(fields: Fields, number: int) -> int:
    """A number; 0 where it is not said."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise FormatError(f"field {number} is no number")
    return value


def _group(fields: Fields, number: int) -> bytes:
    """The bytes of a field; none where it is not said."""
    return _as_bytes(fields.get(number, [b""])[-1])


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError("a number stands where a message should")
    return value
