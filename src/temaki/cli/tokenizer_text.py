"""The text that the tokenizer verbs read: files as they lie on disk, what is no text counted and skipped."""

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from temaki.batches.config import DataConfig
from temaki.corpus import sources
from temaki.tokens.tokenizer import Tokenizer

PIECE = 1 << 20
"""Bytes that are read at a time."""
SAMPLE = 2_000_000
"""Bytes of text over which bytes a token are told."""


class Corpus:
    """The text that the settings name."""

    def __init__(self, settings: DataConfig, progress: Callable[[str, int, int], None]):
        """`progress` is told, once, what is read and what was skipped. Raises DataError for a path without text."""
        named = settings.text == "stdlib"
        self.source = sources.standard_library() if named else sources.files(settings.text, settings.errors)
        self._replacing = settings.errors == "replace"
        self._progress = progress
        self._told = False
        progress(f"reading the documents of {self.source.name}", 1, 1)

    def __iter__(self) -> Iterator[str]:
        """All documents, one in memory at a time."""
        count = size = 0
        whole = self._size()
        for document in self.source:
            count += 1
            size += len(document.text.encode("utf-8"))
            self._progress("reading: bytes", min(size, whole), max(2, whole))
            yield document.text
        self._tell(count, size, "documents")

    def paths(self) -> list[Path] | None:
        """The files that are text as they lie on disk; None where bytes are replaced. Raises DataError if none is."""
        if self._replacing:
            return None
        if not isinstance(self.source, sources.Files):
            found = [self.source.path] if usable(self.source.path) is None else []
        else:
            here = [self.source.root / name for name in self.source.paths]
            reasons = [usable(path) for path in here]
            self.source.skipped = dict(Counter(reason for reason in reasons if reason is not None))
            found = [path for path, reason in zip(here, reasons, strict=True) if reason is None]
        if not found:
            for _ in self.source:  # it says what is wrong, and where
                pass
        self._tell(len(found), sum(path.stat().st_size for path in found), "files")
        return found

    def _size(self) -> int:
        """Bytes of all files, whether they are text or not."""
        if not isinstance(self.source, sources.Files):
            return self.source.path.stat().st_size
        return sum((self.source.root / name).stat().st_size for name in self.source.paths)

    def _tell(self, count: int, size: int, what: str) -> None:
        if not self._told:
            self._told = True
            line = f"{self.source.name}: {count} {what}, {size / 1e6:.2f} MB"
            if self.source.skipped:
                line += "; skipped " + ", ".join(f"{n} ({reason})" for reason, n in self.source.skipped.items())
            self._progress(line, 1, 1)


def usable(path: Path) -> str | None:
    """Why a file is no text, read once in pieces; None if it is: not empty, no NUL, UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            size = 0
            while piece := file.read(PIECE):
                size += len(piece)
                if b"\0" in piece:
                    return "binary"
                decoder.decode(piece)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not UTF-8"
    except OSError:
        return "unreadable"
    return None if size else "empty"


def sampled(settings: DataConfig, tokenizer: Tokenizer) -> tuple[int, int]:
    """(bytes, tokens) of the first SAMPLE bytes of the text or somewhat more."""
    size = tokens = 0
    for text in Corpus(settings, lambda what, done, of: None):
        size += len(text.encode("utf-8"))
        tokens += len(tokenizer.encode(text))
        if size >= SAMPLE:
            break
    return size, tokens
