"""Files that are whole or absent: a temporary name, fsync, rename, fsync of the folder; and their
checksums."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from temaki.base.errors import CheckpointError, RunError, TemakiError

try:
    import fcntl
except ImportError:  # Windows: folders cannot be locked there, and two runs in one are not noticed
    fcntl = None


@dataclass(frozen=True)
class FileMark:
    """What identifies a file's content."""

    bytes: int
    sha256: str


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part. Raises OSError."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically, newlines as they are."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, keys in their order."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def only(folder: Path, busy: RunError | None = None) -> Iterator[None]:
    """Make a folder, and be the only process that works in it; the system forgets a killed one's claim.

    Raises RunError where another process is at work there: `busy`, else that it is training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy or RunError(
                f"another process is training in {folder}; nothing was changed",
                do="wait for its end, end it (touch a file named stop there), or choose another --out or name",
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its name only when the block ends without an error."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # the name that was asked for
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def creating(path: Path) -> Iterator[BinaryIO]:
    """Open a new file inside a folder that is itself still temporary; on disk when the block ends. Raises
    OSError."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mark(path: Path) -> FileMark:
    """Size and sha256 of a file, read once in pieces."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return FileMark(size, digest.hexdigest())


def read_json(path: Path, error: type[TemakiError] = CheckpointError, limit: int = 1 << 30) -> dict[str, Any]:
    """Read a JSON object. Raises `error` for a file that is missing, too large or no JSON object, naming
    it."""
    try:
        if path.stat().st_size > limit:
            raise error(f"{path} is too large to be a JSON file", found=f"{path.stat().st_size} bytes")
        found = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise error(f"no such file: {path}") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise error(f"{path} holds no JSON object", found=type(found).__name__)
    return found


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
