"""Shards: the ids of many documents in memory-mapped files, with document offsets and checksums.

A folder holds `ids-00000.bin`, .. (little-endian uint16 or uint32, by the vocabulary's size), `offsets.bin` (little-
endian int64 [documents + 1]) and `manifest.json`, written last. A document's ids begin with the boundary id; the
stream of all documents is one array, cut into files only for the file system's sake.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temaki.base import files
from temaki.base.errors import DataError
from temaki.base.files import FileMark

VERSION = 1
IDS_PER_FILE = 1 << 28


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    """What a folder of shards holds."""

    version: int
    ids: int
    documents: int
    bytes: int
    """UTF-8 bytes of the documents' text."""
    vocabulary: int
    boundary: int
    """The id that begins each document."""
    dtype: str
    tokenizer: str
    """The tokenizer's fingerprint."""
    files: dict[str, FileMark]

    @property
    def fingerprint(self) -> str:
        """sha256 of all that a loader can see."""
        seen = [self.tokenizer, str(self.boundary), self.dtype]
        seen += [f"{name}:{mark.sha256}" for name, mark in sorted(self.files.items())]
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()


class Shards:
    """A folder of shards, opened: `read` any stretch of ids, `document` any document; nothing is loaded before."""

    def __init__(self, folder: Path, manifest: ShardManifest):
        self.folder = folder
        self.manifest = manifest
        names = sorted(name for name in manifest.files if name.startswith("ids-"))
        self._parts = [_map(folder / name, np.dtype(manifest.dtype)) for name in names]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.offsets: NDArray[np.int64] = _map(folder / "offsets.bin", np.dtype("<i8"))
        self._check()

    def _check(self) -> None:
        m, offsets = self.manifest, self.offsets
        total = int(self._starts[-1])
        if total != m.ids or len(offsets) != m.documents + 1:
            raise DataError(
                f"{self.folder} does not hold what its manifest says",
                found=f"{total} ids, {len(offsets) - 1} documents", allowed=f"{m.ids} ids, {m.documents} documents",
                do="prepare the data again",
            )  # fmt: skip
        if int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((np.diff(offsets) < 1).any()):
            raise DataError(
                f"{self.folder / 'offsets.bin'} is damaged: its offsets do not ascend",
                do="prepare the data again",
            )

    def __len__(self) -> int:
        return self.manifest.ids

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """ids[start:stop] of the whole stream, copied."""
        assert 0 <= start <= stop <= len(self), f"ids {start}:{stop} of {len(self)}"
        pieces = []
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            low = start - int(self._starts[part])
            piece = self._parts[part][low : low + stop - start]
            pieces.append(piece)
            start += len(piece)
            part += 1
        return np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, np.int64)

    def document(self, i: int) -> NDArray[np.int64]:
        """The ids of document i, the boundary id first."""
        return self.read(int(self.offsets[i]), int(self.offsets[i + 1]))


def open_shards(folder: Path, tokenizer: str | None = None, verify: bool = True) -> Shards:
    """Open a folder of shards.

    `tokenizer`: the fingerprint they must have been made with. `verify`: check every file's sha256, not its size alone.
    Raises DataError naming the file that is missing, damaged or of another tokenizer.
    """
    manifest = _manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            found = files.mark(path) if verify else FileMark(path.stat().st_size, expected.sha256)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}", do="prepare the data again") from None
        if found != expected:
            raise DataError(
                f"{path} is damaged", found=f"{found.bytes} bytes, sha256 {found.sha256[:12]}",
                allowed=f"{expected.bytes} bytes, sha256 {expected.sha256[:12]}", do="prepare the data again",
            )  # fmt: skip
    if tokenizer is not None and tokenizer != manifest.tokenizer:
        raise DataError(
            f"{folder} was made with another tokenizer", found=manifest.tokenizer[:12], allowed=tokenizer[:12],
            do="prepare the data again with this tokenizer, or give the tokenizer it was made with",
        )  # fmt: skip
    return Shards(folder, manifest)


class ShardWriter:
    """Writes a folder of shards; it takes its name only when the `with` block ends without an error."""

    def __init__(self, folder: Path, vocabulary: int, boundary: int, tokenizer: str, per_file: int = IDS_PER_FILE):
        if folder.exists():
            raise DataError(f"{folder} exists already", do="choose another folder or remove it")
        self.folder = folder
        self.vocabulary, self.boundary, self.tokenizer, self.per_file = (
            vocabulary,
            boundary,
            tokenizer,
            per_file,
        )
        self.dtype = np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")
        self._offsets = [0]
        self._bytes = 0

    def __enter__(self) -> "ShardWriter":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir()
        self._file = None
        self._room = 0
        self._count = 0
        return self

    def add(self, ids: NDArray[np.unsignedinteger], text_bytes: int) -> None:
        """Add one document's ids, without its boundary; `text_bytes` is the size of its text."""
        whole = np.empty(len(ids) + 1, self.dtype)
        whole[0] = self.boundary
        whole[1:] = ids
        self._offsets.append(self._offsets[-1] + len(whole))
        self._bytes += text_bytes
        while len(whole):
            if self._room == 0:
                self._next_file()
            assert self._file is not None
            self._file.write(whole[: self._room].tobytes())
            taken = min(self._room, len(whole))
            self._room -= taken
            whole = whole[taken:]

    def _next_file(self) -> None:
        self._close()
        self._file = (self._part / f"ids-{self._count:05d}.bin").open("wb")
        self._count += 1
        self._room = self.per_file

    def _close(self) -> None:
        """End the file at hand, on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        try:
            if kind is None:
                self._finish()
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._part)

    def _finish(self) -> None:
        if len(self._offsets) == 1:
            raise DataError("no documents to write", do="give text that is not empty")
        with files.creating(self._part / "offsets.bin") as file:
            file.write(np.asarray(self._offsets, "<i8").tobytes())
        names = sorted(path.name for path in self._part.iterdir())
        manifest = ShardManifest(
            version=VERSION, ids=self._offsets[-1], documents=len(self._offsets) - 1, bytes=self._bytes,
            vocabulary=self.vocabulary, boundary=self.boundary, dtype=self.dtype.str, tokenizer=self.tokenizer,
            files={name: files.mark(self._part / name) for name in names},
        )  # fmt: skip
        said = asdict(manifest)
        files.write_json(self._part / "manifest.json", {**said, "seal": _seal(said)})
        files.sync_folder(self._part)
        self._part.replace(self.folder)
        files.sync_folder(self.folder.parent)


def write(
    folder: Path,
    documents: Iterable[tuple[NDArray[np.unsignedinteger], int]],
    vocabulary: int,
    boundary: int,
    tokenizer: str,
) -> Shards:
    """Write (ids, text bytes) of each document as a folder of shards and open it."""
    with ShardWriter(folder, vocabulary, boundary, tokenizer) as writer:
        for ids, size in documents:
            writer.add(ids, size)
    return open_shards(folder, verify=False)


def _manifest(folder: Path) -> ShardManifest:
    path = folder / "manifest.json"
    found = files.read_json(path, DataError)
    seal = found.pop("seal", None)
    try:
        if seal != _seal(found):
            raise ValueError("its seal does not fit what it says")
        marks = {str(name): FileMark(int(m["bytes"]), str(m["sha256"])) for name, m in found["files"].items()}
        fields = {name: kind(found[name]) for name, kind in _FIELDS.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r}", do="prepare the data again") from None
    odd = [name for name in marks if "/" in name or "\\" in name or name.startswith(".")]
    if fields["version"] != VERSION or fields["dtype"] not in ("<u2", "<u4") or odd or "offsets.bin" not in marks:
        raise DataError(
            f"{path} is damaged or of another version", found=f"version {fields['version']}, dtype {fields['dtype']}",
            allowed=f"version {VERSION}, dtype <u2 or <u4", do="prepare the data again",
        )  # fmt: skip
    return ShardManifest(files=marks, **fields)


def _seal(said: Mapping[str, Any]) -> str:
    """sha256 of a manifest: no changed digit goes unseen."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8")).hexdigest()


_FIELDS = {
    "version": int, "ids": int, "documents": int, "bytes": int, "vocabulary": int, "boundary": int, "dtype": str,
    "tokenizer": str,
}  # fmt: skip


def _map(path: Path, dtype: np.dtype) -> NDArray:  # type: ignore[type-arg]
    size = path.stat().st_size
    if size % dtype.itemsize or size == 0:
        raise DataError(f"{path} is damaged", found=f"{size} bytes", allowed=f"a multiple of {dtype.itemsize}, not 0")
    return np.memmap(path, dtype, mode="r")
