"""Our model folder: `config.toml`, `model.safetensors`, `tokenizer/`, and `manifest.json` with every file's
checksum.

A folder is whole or absent: it is written under a temporary name, every file synced, the manifest last, and
takes its name by one rename. The manifest seals itself, so that no changed byte anywhere goes unseen. Several
processes may share the writing: each array stands whole in one of `model-00001-of-0000N.safetensors` and the
like, and the first process writes the rest. A checkpoint is such a folder with more in it (see `store.py`).
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np

from temaki.base import config, files
from temaki.base.config import settings
from temaki.base.errors import CheckpointError, ConfigError
from temaki.base.files import FileMark
from temaki.checkpoint import arrays

FORMAT = 1
MANIFEST = "manifest.json"
CONFIG = "config.toml"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TOKENIZER = "tokenizer"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Among(Protocol):
    """The processes that write a folder together, seen from one of them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def wait(self) -> None:
        """Until all are here."""
        ...


@dataclass(frozen=True)
class Single:
    """One process writes."""

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Nobody else is there."""


SINGLE = Single()


@settings
class Contents:
    """What the manifest of every folder of ours says; a checkpoint's says more."""

    format: Literal[1]
    files: Mapping[str, FileMark]
    """Name inside the folder, with / between parts -> size and checksum."""
    step: int | None = None
    """The training step the weights come from."""
    tokenizer: str | None = None
    """The tokenizer's fingerprint."""


@dataclass(frozen=True)
class Folder:
    """A folder whose manifest is whole; each file's checksum is compared before its content is used."""

    path: Path
    contents: Contents
    facts: Mapping[str, Any]
    """The whole manifest as a plain mapping, without its seal."""

    def verify(self) -> None:
        """Read every file and compare its checksum. Raises CheckpointError naming the first damaged one."""
        for name in self.contents.files:
            self.checked(name)

    def checked(self, name: str) -> Path:
        """The path of a file whose content is what was written. Raises CheckpointError if it is not."""
        path = self.path / name
        if name not in self.contents.files:
            raise CheckpointError(f"{self.path / MANIFEST} lists no {name}")
        try:
            found = files.mark(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        if found != self.contents.files[name]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the one in {MANIFEST}")
        return path

    def settings(self) -> dict[str, Any]:
        """The mapping in `config.toml`."""
        try:
            return config.read_toml(self.checked(CONFIG))
        except ConfigError as error:
            raise CheckpointError(error.what) from None

    def weights(self) -> dict[str, np.ndarray]:
        """The model's arrays by name, memory-mapped."""
        return self._arrays(WEIGHTS)

    def optimizer(self) -> dict[str, np.ndarray] | None:
        """The optimizer's arrays by name, memory-mapped; None where none were saved."""
        return self._arrays(OPTIMIZER) if _files(OPTIMIZER, self.contents.files) else None

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for file in _files(name, self.contents.files):
            found |= arrays.read(self.checked(file))
        return found

    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer's files, each checked; None where none was saved."""
        names = [name for name in self.contents.files if name.startswith(f"{TOKENIZER}/")]
        for name in names:
            self.checked(name)
        return self.path / TOKENIZER if names else None


def write(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    tokenizer: Path | None,
    step: int | None = None,
) -> None:
    """Write a model folder: a configuration with a `[model]` table, arrays by name, a copy of a tokenizer's
    folder.

    Raises CheckpointError if `folder` exists (nothing is overwritten) or cannot be written; then nothing is
    left behind.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; nothing was written", do="choose another name or remove it")
    write_folder(folder, config_text(config), {WEIGHTS: weights}, tokenizer, {} if step is None else {"step": step})


def read(folder: Path) -> Folder:
    """Open a model or checkpoint folder: its manifest, and each file's presence and size.

    Raises CheckpointError naming the file that is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no whole model folder: {path}, which is written last, is not there",
            allowed=f"a folder with {CONFIG}, {WEIGHTS} and {MANIFEST}",
        )
    facts = files.read_json(path, limit=1 << 26)
    seal = facts.pop("seal", None)
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is of another format", found=str(facts.get("format"))[:80], allowed=f"format {FORMAT}"
        )
    if not _fits(seal, facts):
        raise CheckpointError(f"{path} is damaged: its seal does not fit what it says")
    known = ("format", "files", "step", "tokenizer")
    contents = facts_as(Contents, {key: facts[key] for key in known if key in facts}, path)
    for name in (CONFIG, WEIGHTS):
        if not _files(name, contents.files):
            raise CheckpointError(f"{path} lists no {name}")
    for name, mark in contents.files.items():
        _present(folder, name, mark)
    return Folder(folder, contents, facts)


def facts_as(kind: type[config.T], facts: Mapping[str, Any], path: Path) -> config.T:
    """A manifest's mapping as a settings class. Raises CheckpointError naming `path`."""
    try:
        return config.read(kind, facts, where=str(path))
    except ConfigError as error:
        raise CheckpointError(error.what) from None


def config_text(found: Mapping[str, Any]) -> str:
    """The text of `config.toml`. Raises CheckpointError where there is no `[model]` table."""
    if not isinstance(found.get("model"), Mapping):
        raise CheckpointError(
            "a model folder's configuration needs a [model] table", found=", ".join(found) or "nothing"
        )
    return config.toml(found)


def write_folder(
    folder: Path,
    config: str,
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    tokenizer: Path | None,
    facts: Mapping[str, Any],
    among: Among = SINGLE,
) -> None:
    """Write `folder` whole or not at all, in the place of an older one of the same name if there is one.

    `tensors` maps a file's name to its arrays, `facts` is what the manifest says beside format and files. Several
    processes call it together, each with arrays of its own. Raises CheckpointError saying what could not be
    written, and for a full disk the bytes needed and free.
    """
    part = beside(folder, "part")
    first = among.rank == 0
    try:
        if first:
            _clear(part)
            part.mkdir(parents=True)
        among.wait()
        for name, content in tensors.items():
            arrays.write(part / numbered(name, among.rank, among.size), content)
        among.wait()
        if first:
            _fill(part, config, tokenizer, facts)
            _take_name(part, folder)
        among.wait()
    except OSError as error:
        raise _unwritten(folder, error, tensors) from None
    finally:
        if first:
            _clear(part)


def numbered(name: str, rank: int, size: int) -> str:
    """The file of one of `size` processes.

    >>> numbered("model.safetensors", 0, 1), numbered("model.safetensors", 0, 2)
    ('model.safetensors', 'model-00001-of-00002.safetensors')
    """
    stem, dot, ending = name.partition(".")
    return name if size == 1 else f"{stem}-{rank + 1:05d}-of-{size:05d}{dot}{ending}"


def _files(name: str, listed: Mapping[str, object]) -> list[str]:
    """The files that make up `name` together, all of them; none where one is not listed."""
    if name in listed:
        return [name]
    stem, _, ending = name.partition(".")
    pattern = re.compile(rf"{re.escape(stem)}-[0-9]{{5}}-of-([0-9]{{5}})\.{re.escape(ending)}")
    sizes = {int(match[1]) for file in listed if (match := pattern.fullmatch(file))}
    found = [numbered(name, rank, size) for size in sizes for rank in range(size)]
    return found if len(sizes) == 1 and all(file in listed for file in found) else []


def beside(folder: Path, ending: str) -> Path:
    """The hidden name next to a folder: `part` while it is written, `old` while it is replaced.

    >>> beside(Path("checkpoints/step-00000005"), "part").as_posix()
    'checkpoints/.step-00000005.part'
    """
    return folder.parent / f".{folder.name}.{ending}"


def remove(folder: Path) -> None:
    """Remove a folder so that no half of it ever stands under its name. Raises OSError."""
    part = beside(folder, "part")
    _clear(part)
    os.replace(folder, part)
    _clear(part)
    files.sync_folder(folder.parent)


def recover(folder: Path) -> None:
    """Undo what a save of this folder left behind when it was killed. Raises OSError."""
    _clear(beside(folder, "part"))
    old = beside(folder, "old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    _clear(old)


def _fill(part: Path, config: str, tokenizer: Path | None, facts: Mapping[str, Any]) -> None:
    """Write and sync all files beside the arrays, the manifest last."""
    _put(part / CONFIG, config.encode("utf-8"))
    if tokenizer is not None:
        _copy(tokenizer, part / TOKENIZER)
    names = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
    marks = {name: asdict(files.mark(part / name)) for name in names}
    manifest = {"format": FORMAT, **facts, "files": marks}
    _put(part / MANIFEST, (json.dumps({**manifest, "seal": _seal(manifest)}, indent=1) + "\n").encode("utf-8"))
    files.sync_folder(part)


def _copy(source: Path, target: Path) -> None:
    """Copy the plain files of a folder that holds no folders."""
    target.mkdir()
    found = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    if not found:
        raise CheckpointError(f"{source} holds no tokenizer")
    for path in found:
        _put(target / path.name, path.read_bytes())
    files.sync_folder(target)


def _take_name(part: Path, folder: Path) -> None:
    """Give the finished folder its name; an older one steps aside first and stays readable until then."""
    old = beside(folder, "old")
    if folder.exists():
        _clear(old)
        os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    files.sync_folder(folder.parent)
    _clear(old)


def _put(path: Path, content: bytes) -> None:
    with files.creating(path) as file:
        file.write(content)


def _clear(folder: Path) -> None:
    """Remove a hidden folder; what another program holds open stays until the next save."""
    shutil.rmtree(folder, ignore_errors=True)


def _fits(seal: Any, facts: Mapping[str, Any]) -> bool:
    try:
        return seal == _seal(facts)
    except RecursionError:
        return False


def _seal(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()


def _present(folder: Path, name: str, mark: FileMark) -> None:
    path = folder / name
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name or name == MANIFEST:
        raise CheckpointError(f"{folder / MANIFEST} names a file outside its folder", found=name)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    if path.stat().st_size != mark.bytes:
        raise CheckpointError(
            f"{path} is damaged: its size is wrong",
            found=f"{path.stat().st_size} bytes",
            allowed=f"{mark.bytes} bytes",
        )


def _unwritten(folder: Path, error: OSError, tensors: Mapping[str, Mapping[str, np.ndarray]]) -> CheckpointError:
    what = f"{folder} could not be written: {error.strerror or error}; what was saved before is untouched"
    if error.errno not in FULL:
        return CheckpointError(what)
    needed = sum(array.nbytes for content in tensors.values() for array in content.values())
    free = shutil.disk_usage(folder.parent if folder.parent.exists() else folder.parent.parent).free
    return CheckpointError(
        what,
        found=f"{free} bytes free",
        allowed=f"about {needed} bytes are needed",
        do="make room, then save or resume",
    )
