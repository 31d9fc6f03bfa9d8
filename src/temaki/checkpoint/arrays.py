"""Named arrays <-> a safetensors file, streamed on the way out and memory-mapped on the way in.

Written here rather than by the safetensors library, whose writer for NumPy stores a transposed array in the
wrong order, hides the system's error number and makes files only their owner can read. The library checks
every file read. Format: 8 bytes of header length, a JSON header padded to a multiple of 8 bytes, then the
arrays back to back.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from temaki.base import files
from temaki.base.errors import CheckpointError
from temaki.model.quantise import Blocks, Stored

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
"""What safetensors calls NumPy's types."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a safetensors file, one array at a time and without a copy of those that lie in
    order.

    Format: 8 bytes of header length, a JSON header padded to 8 bytes, then the arrays, widest type first.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    start = 0
    for name in order:
        array = arrays[name]
        kind = array.dtype.newbyteorder("<").str
        if kind not in NAMES:
            raise CheckpointError(f"{path}: {name} has a type that cannot be saved", found=str(array.dtype))
        header[name] = {
            "dtype": NAMES[kind], "shape": list(array.shape), "data_offsets": [start, start + array.nbytes],
        }  # fmt: skip
        start += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with files.creating(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            array = np.asarray(arrays[name], arrays[name].dtype.newbyteorder("<"), order="C")
            file.write(array.reshape(-1).view(np.uint8).data)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name, memory-mapped: read when touched; a change of one is never
    written back.

    Raises CheckpointError for a file that is missing or malformed, or holds a type that NumPy has not.
    """
    plain: dict[str, np.ndarray] = {}
    for name, array in stored(path).items():
        if isinstance(array, Blocks):
            raise CheckpointError(
                f"{path}: {name} has a type that NumPy has not", found=array.kind, allowed=", ".join(DTYPES)
            )
        plain[name] = array
    return plain


def stored(path: Path) -> dict[str, Stored]:
    """The same, and bfloat16 arrays too. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        with safe_open(path, framework="numpy"):  # checks lengths, shapes and offsets against the file's size
            pass
        raw = np.memmap(path, np.uint8, "c").view(np.ndarray)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8:start].tobytes())
    header.pop("__metadata__", None)
    return {name: _view(path, name, entry, raw[start:]) for name, entry in header.items()}


def _view(path: Path, name: str, entry: Mapping[str, Any], data: np.ndarray) -> Stored:
    if entry["dtype"] == "BF16" and entry["shape"]:
        return Blocks("BF16", tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} has a type that NumPy has not", found=entry["dtype"], allowed=", ".join(DTYPES)
        )
    first, last = entry["data_offsets"]
    dtype = np.dtype(DTYPES[entry["dtype"]])
    shape = tuple(entry["shape"])
    if last - first != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path}: {name} does not fill its shape", found=f"{last - first} bytes for {shape}")
    return np.require(data[first:last].view(dtype).reshape(shape), requirements="A")
