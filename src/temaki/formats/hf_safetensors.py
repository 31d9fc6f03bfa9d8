"""Arrays of a Hugging Face folder: one safetensors file or several with an index, read mapped, written in a stream."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy import ndarray

from temaki.base import files
from temaki.base.errors import FormatError
from temaki.checkpoint import arrays
from temaki.formats.weights import some
from temaki.model.quantise import Stored

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")
LIMIT = 1 << 26
"""Bytes up to which an index is read."""

Dtype = Literal["float32", "float16", "bfloat16"]
NAMES: Mapping[Dtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types that are written, and what safetensors calls them."""
BYTES: Mapping[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


def read(folder: Path) -> dict[str, Stored]:
    """Every array by its name, memory-mapped. Raises FormatError, CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return arrays.stored(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = [name for name in PICKLES if (folder / name).exists()]
    if pickled:
        raise FormatError(
            f"{folder / pickled[0]} is a pickle: to read it is to run a program of its maker, so it is not read",
            allowed=f"{WEIGHTS}, or shards with {INDEX}",
            do="look for safetensors of this model, or save it anew with save_pretrained on a machine you can lose",
        )
    raise FormatError(f"{folder} holds no weights", allowed=f"{WEIGHTS}, or shards with {INDEX}")


def write(
    path: Path, shapes: Sequence[tuple[str, tuple[int, ...]]], dtype: Dtype, found: Iterable[tuple[str, ndarray]]
) -> None:
    """Write arrays as they come, which is in the order of `shapes`, each in `dtype`.

    Raises FormatError for a number that the type cannot hold, OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes:
        end = start + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with files.creating(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (wanted, shape), (name, array) in zip(shapes, found, strict=True):
            assert (name, array.shape) == (wanted, shape), f"{name} {array.shape}, wanted {wanted} {shape}"
            file.write(packed(name, array, dtype).data)


def packed(name: str, array: ndarray, dtype: Dtype) -> ndarray:
    """The bytes of an array in a type, uint8 [N]. Raises FormatError for a number beyond its range."""
    with np.errstate(over="ignore"):  # told below
        plain = np.ascontiguousarray(array, np.float32).reshape(-1)
        halves = plain.astype("<f2") if dtype == "float16" else None
    if halves is not None:
        made = halves
    elif dtype == "bfloat16":
        made = _bfloat16(plain)
    else:
        made = plain.astype("<f4", copy=False)
    back = _widened(made) if dtype == "bfloat16" else made
    if not np.array_equal(np.isinf(back), np.isinf(array.reshape(-1))):
        do = "" if dtype == "float32" else "write float32"
        raise FormatError(f"{name} holds numbers beyond {dtype}", found=f"{np.nanmax(np.abs(array)):g}", do=do)
    return made.view(np.uint8)


def _bfloat16(plain: ndarray) -> ndarray:
    """float32 [N] -> uint16 [N]: the upper half, rounded to the nearest, halves to even; what is no number stays so."""
    bits = plain.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(plain), np.uint32(0x7FC0), rounded).astype("<u2")


def _widened(halves: ndarray) -> ndarray:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _shards(folder: Path) -> dict[str, Stored]:
    """The arrays of all shards, each from the one that the index names."""
    where = folder / INDEX
    places = files.read_json(where, FormatError, LIMIT).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{where} has no weight_map")
    shards: dict[str, dict[str, Stored]] = {}
    for name in dict.fromkeys(map(_plain_name, places.values())):
        if name is None:
            strange = next(place for place in places.values() if _plain_name(place) is None)
            raise FormatError(
                f"{where} names a shard that is no file beside it",
                found=f"{strange!r:.80}",
                allowed="plain .safetensors names",
            )
        if not (folder / name).is_file():
            raise FormatError(f"{where} names a shard that is not there", found=name)
        shards[name] = arrays.stored(folder / name)
    missing = [name for name, place in places.items() if name not in shards[place]]
    if missing:
        raise FormatError(f"{where}: {len(missing)} arrays are not in the shard it names", found=some(missing))
    unlisted = [name for place, held in shards.items() for name in held if places.get(name) != place]
    if unlisted:
        raise FormatError(f"{where} does not name {len(unlisted)} arrays of its shards", found=some(unlisted))
    return {name: shards[place][name] for name, place in places.items()}


def _plain_name(place: object) -> str | None:
    """A file's name without any way out of the folder; None for anything else."""
    plain = isinstance(place, str) and place.endswith(".safetensors") and not set(place) & set("/\\:\0")
    return place if plain and isinstance(place, str) and len(place) < 256 else None
