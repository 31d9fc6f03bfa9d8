"""Files -> documents: the text exactly as it lies on disk, no newline translated, always in the same order.

Two sources: `standard_library`, the corpus that every CPython installation carries, and `files`, a user's own
file or folder. `held_out` sets a share of any documents aside by hash.
"""

import hashlib
import mmap
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from temaki.base.errors import ConfigError, DataError

Errors = Literal["strict", "replace"]

SEPARATOR = "<|endoftext|>"
"""Where it stands in a single file, a document ends; it belongs to none."""

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders of the standard library that are not read: tests and what the user installed."""

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How a file in UTF-16 begins; it would be read as anything but what it says."""

FEW = 8
"""Below so many documents, a share is held out by pieces of documents."""


@dataclass(frozen=True)
class Document:
    """One text, what names it, and what is known of it."""

    text: str
    id: str
    """Unique in its source; a path relative to the source, with "/", or a part of one: "name#3"."""
    meta: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Documents in a fixed order, from place `start` on; to go on later, save `position` and start there."""

    name: str
    start: int
    position: int
    """The place after the document given last."""
    skipped: Mapping[str, int]
    """After an iteration: reason -> how many files were not used."""

    def __iter__(self) -> Iterator[Document]: ...


class Files:
    """A file a document, in the order of the given paths; what is not text is counted and skipped."""

    def __init__(self, name: str, root: Path, paths: Sequence[str], errors: Errors = "strict", start: int = 0):
        """`paths` are relative to `root`, with "/". A file that cannot be used is skipped, never an error."""
        self.name = name
        self.root = root
        self.paths = tuple(paths)
        self.errors = errors
        self.start = self.position = start
        self.skipped: dict[str, int] = {}

    def __iter__(self) -> Iterator[Document]:
        """Raises DataError at the end if not one of the files was text."""
        self.position = self.start
        self.skipped = {}
        for place in range(self.start, len(self.paths)):
            self.position = place + 1
            text = self._read(self.root / self.paths[place])
            if text is not None:
                yield Document(text, _speakable(self.paths[place]))
        if self.paths and sum(self.skipped.values()) == len(self.paths):
            raise DataError(f"no file of {self.name} is text", found=_counted(self.skipped))

    def _read(self, path: Path) -> str | None:
        try:
            content = path.read_bytes()
        except OSError:
            return self._skip("unreadable")
        if not content:
            return self._skip("empty")
        if b"\0" in content:
            return self._skip("UTF-16" if content[:2] in UTF_16 else "binary")
        try:
            return content.decode("utf-8", self.errors)
        except UnicodeDecodeError:
            return self._skip("not UTF-8")

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


class SingleFile:
    """One file: one document, or one for each run between SEPARATORs. One document is in memory at a time."""

    def __init__(self, path: Path, errors: Errors = "strict", start: int = 0):
        self.name = path.name
        self.path = path
        self.errors = errors
        self.start = self.position = start
        self.skipped: dict[str, int] = {}

    def __iter__(self) -> Iterator[Document]:
        """Raises DataError for what is not UTF-8 text, naming offset and line, unless errors are replaced."""
        self.position = self.start
        self.skipped = {}
        name = _speakable(self.name)
        nothing = self.start == 0
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            whole = content.find(SEPARATOR.encode()) < 0
            for place, (begin, end) in enumerate(_runs(content, SEPARATOR.encode())):
                if place < self.start:
                    continue
                self.position = place + 1
                if begin < end:
                    nothing = False
                    text = self._decode(content, begin, end)
                    yield Document(text, name if whole else f"{name}#{place}")
        if nothing:
            raise DataError(f"{self.path} holds no text", do="give a file with text in it")

    def _decode(self, content: mmap.mmap, begin: int, end: int) -> str:
        if content[:2] in UTF_16:
            raise DataError(f"{self.path} is UTF-16", allowed="UTF-8", do="convert it (iconv -f UTF-16 -t UTF-8)")
        found = content[begin:end]
        if self.errors == "strict" and (zero := found.find(b"\0")) >= 0:
            raise self._refuse("a NUL byte, which no text holds", content, begin + zero)
        try:
            return found.decode("utf-8", self.errors)
        except UnicodeDecodeError as error:
            raise self._refuse("bytes that are not UTF-8", content, begin + error.start) from None

    def _refuse(self, what: str, content: mmap.mmap, offset: int) -> DataError:
        line = content[:offset].count(b"\n") + 1
        return DataError(
            f"{self.path} holds {what}",
            found=f"{content[offset : offset + 4]!r} at byte {offset}, line {line}",
            do="convert the file to UTF-8, or go on with --errors replace",
        )


def standard_library(start: int = 0) -> Files:
    """The source text of the running CPython's standard library, without what is LEFT_OUT.

    Raises DataError where the installation carries no sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in _walk(root) if path.endswith(".py") and _is_source(path)]
    if not paths:
        raise DataError(f"this Python carries no source text of its library in {root}", do="give a text with --text")
    return Files(f"Python {platform.python_version()} standard library", root, paths, start=start)


def files(path: Path | str, errors: Errors = "strict", start: int = 0) -> Files | SingleFile:
    """The documents of a text file, or of a folder with all its folders, in the order of their paths.

    Hidden files and folders are left out, links to folders are not followed. In a folder, what is not UTF-8
    text is counted and skipped; in a single file it is an error. With errors="replace" such bytes become
    U+FFFD. Raises DataError for a path that is missing, empty or no file.
    """
    path = Path(path)
    if errors not in ("strict", "replace"):
        raise ConfigError("errors must be one of these two", found=repr(errors), allowed="strict, replace")
    try:
        if path.is_dir():
            return _folder(path, errors, start)
        if not path.exists():
            raise DataError(f"no such file or folder: {path}", do="give the path of a text file or a folder")
        if not path.is_file():
            raise DataError(f"{path} is neither a file nor a folder", do="write its text into a file first")
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{path} is empty", do="give a file with text in it")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return SingleFile(path, errors, start)


def held_out(documents: Iterable[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Split documents into (train, held), each in its order, by the hash of their text: about `share` is held.

    A document is held if its `fraction` is below the share, so that two of the same text are on the same side.
    With fewer than FEW documents, or if one side would be empty, documents are cut into pieces first, and if one
    side still is, it gets the piece nearest to it (where all pieces are alike, one of them). No text is lost, doubled
    or cut inside a character. Raises ConfigError for a share not between 0 and 1, DataError for a text too short to
    cut.
    """
    if not 0 < share < 1:
        raise ConfigError("the held-out share is out of range", found=str(share), allowed="above 0, below 1")
    given = list(documents)
    held = [document for document in given if fraction(document.text) < share]
    if len(given) >= FEW and 0 < len(held) < len(given):
        return [document for document in given if fraction(document.text) >= share], held
    cut = _cut(given)
    if len(cut) < 2:
        raise DataError(
            "the text is too short to hold a part of it out",
            found=f"{sum(len(document.text) for document in given)} characters",
            do="give more text",
        )
    nearest = sorted((fraction(document.text), document.id) for document in cut)
    below = sum(found < share for found, _ in nearest)
    chosen = frozenset(id for _, id in nearest[: min(max(1, below), len(cut) - 1)])
    return [one for one in cut if one.id not in chosen], [one for one in cut if one.id in chosen]


def fraction(text: str) -> float:
    """A number in 0..1 that the text alone decides: the first 8 bytes of its sha256, big endian, over 2^64.

    >>> round(fraction("import os"), 6)
    0.86784
    """
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def pieces(text: str, size: int) -> Iterator[str]:
    """A text cut at ends of paragraphs (blank lines) into pieces of `size` characters or somewhat more.

    Where no paragraph ends between size and 4 x size, a line's end there is taken; a longer line is cut.

    >>> list(pieces("one\\n\\ntwo\\nthree\\n\\nfour", 4))
    ['one\\n\\n', 'two\\nthree\\n\\n', 'four']
    """
    begin = 0
    while begin < len(text):
        least, most = begin + size, min(begin + 4 * size, len(text))
        end = most
        if least < len(text):
            paragraph = text.find("\n\n", max(begin, least - 2), most)
            line = text.find("\n", least - 1, most)
            end = paragraph + 2 if paragraph >= 0 else line + 1 if line >= 0 else most
        yield text[begin:end]
        begin = end


def _cut(documents: Sequence[Document]) -> list[Document]:
    """Documents cut into pieces of 4 to 64 thousand characters (less where there are few), with own ids."""
    total = sum(len(document.text) for document in documents)
    size = max(1, min(total // 8, max(4_000, min(16_000, total // 64))))
    return [
        Document(text, f"{document.id}#{number}", document.meta)
        for document in documents
        for number, text in enumerate(pieces(document.text, size))
    ]


def _folder(path: Path, errors: Errors, start: int) -> Files:
    paths = _walk(path)
    if not paths:
        raise DataError(f"no files in the folder {path}", do="give a folder with text files (hidden ones are left out)")
    return Files(path.resolve().name, path, paths, errors, start)


def _walk(root: Path) -> list[str]:
    """All regular files below a folder that are not hidden, as sorted paths relative to it."""
    found: list[str] = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        here = Path(folder)
        found += [
            (here / name).relative_to(root).as_posix()
            for name in names
            if not name.startswith(".") and (here / name).is_file()
        ]
    return sorted(found)


def _counted(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items())


def _is_source(path: str) -> bool:
    return not LEFT_OUT.intersection(path.split("/")[:-1])


def _runs(content: mmap.mmap, separator: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    while (end := content.find(separator, begin)) >= 0:
        yield begin, end
        begin = end + len(separator)
    yield begin, len(content)


def _speakable(path: str) -> str:
    """A path with what is not UTF-8 in it written out, so that it can be hashed, logged and stored."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
