"""Pictures with labels, from the two kinds of folder in which handwritten digits are found.

IDX files: four bytes (0, 0, 8 for unsigned bytes, number of dimensions), each dimension as a big-endian uint32, then
the values; as they are or through gzip. JSON lists: `0.json` .. `9.json`, each the pictures of one digit, a flat list
of grey values or `{"data": [..]}` with such a list. Letters: n pictures, h rows, w columns.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from temaki.base import keys
from temaki.base.errors import DataError

LARGEST = 1 << 30
"""Bytes of a file's values, at most."""
SIDE = 28
"""Of a picture in a flat JSON list."""
LABELS = 10
"""JSON lists, one a label."""


@dataclass(frozen=True)
class Pictures:
    """Some pictures and what they show."""

    images: NDArray[np.uint8]
    """[n, h, w]"""
    labels: NDArray[np.int64]
    """[n], from 0 on."""


def read(folder: Path) -> tuple[Pictures, Pictures | None]:
    """The pictures of a folder, and those it keeps apart for testing, if it does.

    Raises DataError for a folder that holds none, and for files that are damaged or do not fit each other.
    """
    images = _idx_path(folder, "train-images", 3)
    if images is not None:
        test = _idx_path(folder, "t10k-images", 3)
        return _labelled(folder, images, "train"), None if test is None else _labelled(folder, test, "t10k")
    missing = [f"{i}.json" for i in range(LABELS) if not (folder / f"{i}.json").is_file()]
    if missing:
        raise DataError(
            f"{folder} holds no pictures",
            found="some JSON lists, but not " + ", ".join(missing) if len(missing) < LABELS else "",
            allowed="train-images-idx3-ubyte and train-labels-idx1-ubyte (plain or .gz), or 0.json to 9.json",
        )
    return _from_lists([_grey(folder / f"{i}.json") for i in range(LABELS)]), None


def split(pictures: Pictures, apart: Pictures | None, train: int, test: int) -> tuple[Pictures, Pictures]:
    """At most `train` pictures to learn from and `test` others, drawn by a fixed key; from `apart` where there are any.

    Where there are fewer than both together, they are shared out in that proportion. Raises DataError for a side of
    none.

    >>> ten = Pictures(np.zeros((10, 1, 1), np.uint8), np.arange(10))
    >>> [len(each.labels) for each in split(ten, None, 8000, 2000)]
    [8, 2]
    """
    total = len(pictures.labels)
    mixed = _drawn(pictures, "train")
    if apart is not None:
        sides = _first(mixed, train), _first(_drawn(apart, "test"), test)
    else:
        held = min(test, math.ceil(total * test / (train + test)))
        sides = _first(_rest(mixed, held), train), _first(mixed, held)
    if not all(len(each.labels) for each in sides):
        raise DataError("too few pictures to learn from some and be tested by others", found=f"{total} pictures")
    return sides


def shrunk(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures of side x side, each value the mean of those it stands for, rounded. Raises DataError.

    >>> shrunk(np.array([[[0, 2], [4, 7]]], np.uint8), 1).tolist()
    [[[3]]]
    """
    n, h, w = images.shape
    if h % side or w % side:
        raise DataError(f"pictures of {h} x {w} cannot be shrunk evenly to {side} x {side}", do="choose a divisor")
    parts = images.reshape(n, side, h // side, side, w // side).astype(np.float64)
    return np.rint(parts.mean(axis=(2, 4))).astype(np.uint8)


def _drawn(pictures: Pictures, purpose: str) -> Pictures:
    order = keys.generator(0, f"pictures {purpose}", len(pictures.labels)).permutation(len(pictures.labels))
    return Pictures(pictures.images[order], pictures.labels[order])


def _first(pictures: Pictures, count: int) -> Pictures:
    return Pictures(pictures.images[:count], pictures.labels[:count])


def _rest(pictures: Pictures, start: int) -> Pictures:
    return Pictures(pictures.images[start:], pictures.labels[start:])


# ---- IDX ------------------------------------------------------------------------------------------------------------


def _idx_path(folder: Path, name: str, dimensions: int) -> Path | None:
    """The file of a name, whichever way its ending is written; None where there is none."""
    names = [f"{name}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    return next((folder / each for each in names if (folder / each).is_file()), None)


def _labelled(folder: Path, images: Path, name: str) -> Pictures:
    path = _idx_path(folder, f"{name}-labels", 1)
    if path is None:
        raise DataError(f"{folder} holds pictures without labels", allowed=f"{name}-labels-idx1-ubyte beside them")
    seen, labels = idx(images, 3), idx(path, 1)
    if len(seen) != len(labels):
        raise DataError(f"{path} does not belong to {images.name}", found=f"{len(seen)} pictures, {len(labels)} labels")
    if not seen.size:
        raise DataError(f"{images} holds no pictures", found=" x ".join(map(str, seen.shape)))
    return Pictures(seen, labels.astype(np.int64))


def idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The values of an IDX file of so many dimensions. Raises DataError for a damaged one, before it is read whole."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            return _idx(path, raw.read, dimensions)
        with gzip.GzipFile(fileobj=raw) as file:
            return _idx(path, _unpacking(path, file), dimensions)


def _unpacking(path: Path, file: gzip.GzipFile | BinaryIO) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        try:
            return file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged: {error}", do="fetch it again") from None

    return read


def _idx(path: Path, read: Callable[[int], bytes], dimensions: int) -> NDArray[np.uint8]:
    magic = bytes([0, 0, 8, dimensions])
    head = read(4 + 4 * dimensions)
    if len(head) != 4 + 4 * dimensions or head[:4] != magic:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes in {dimensions} dimensions", found=f"it begins {head[:4].hex()}",
            allowed=magic.hex(),
        )  # fmt: skip
    shape = tuple(int(each) for each in np.frombuffer(head, ">u4", dimensions, 4))
    size = math.prod(shape)
    if size > LARGEST:
        raise DataError(f"{path} is too large", found=f"{size} values", allowed=f"{LARGEST}")
    values = read(size + 1)
    if len(values) != size:
        found = f"{len(values)} values" if len(values) < size else "more values"
        raise DataError(f"{path} does not hold what it says", found=found, allowed=f"{size} values: {shape}")
    return np.frombuffer(values, np.uint8).reshape(shape)


# ---- JSON lists -----------------------------------------------------------------------------------------------------


def _grey(path: Path) -> NDArray[np.float64]:
    """The values of one list: float64 [n, h, w]. Raises DataError."""
    values = _array(path, _loaded(path))
    if values.ndim == 1:
        values = values.reshape(-1, SIDE * SIDE) if len(values) % (SIDE * SIDE) == 0 else values
    side = math.isqrt(values.shape[1]) if values.ndim == 2 else SIDE
    if values.ndim == 2 and values.size and side * side == values.shape[1]:
        values = values.reshape(-1, side, side)
    if values.ndim != 3 or not values.size:
        raise DataError(
            f"{path} holds no square pictures", found=f"numbers of shape {values.shape}",
            allowed=f"a multiple of {SIDE * SIDE} numbers, or a list for each picture",
        )  # fmt: skip
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise DataError(f"{path}: grey values out of range", allowed="0 to 1, or 0 to 255")
    return values


def _loaded(path: Path) -> Any:
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} is too large", found=f"{path.stat().st_size} bytes", allowed=f"{LARGEST}")
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", do="fetch it again") from None
    return found.get("data") if isinstance(found, dict) else found


def _array(path: Path, found: Any) -> NDArray[np.float64]:
    try:
        values = np.asarray(found)
    except ValueError:
        raise DataError(f"{path}: lists of several lengths", allowed="numbers") from None
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path} holds no list of numbers", found=str(type(found).__name__))
    return values.astype(np.float64)


def _from_lists(lists: list[NDArray[np.float64]]) -> Pictures:
    """One list a label; where no value is above 1, 1 is white."""
    shapes = {each.shape[1:] for each in lists}
    if len(shapes) > 1:
        raise DataError("pictures of several sizes", found=", ".join(f"{h} x {w}" for h, w in sorted(shapes)))
    values = np.concatenate(lists)
    values = np.rint(values * 255 if values.max() <= 1 else values).astype(np.uint8)
    return Pictures(values, np.repeat(np.arange(len(lists)), [len(each) for each in lists]))
