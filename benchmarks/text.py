"""The texts that benchmarks read: real, none of it twice, each file named with its sha256.

English is documentation and source text that is installed on the machine; Chinese, the GPT-2 vocabulary and other data
come from the folder that TEMAKI_DATA names. Paragraphs (runs between blank lines) that were seen before are left out:
licences and headers that stand in many files would make the text repeat itself.
"""

import argparse
import functools
import gzip
import hashlib
import html
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STRAY = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "licenses", "fonts-dejavu-core"})
"""Folders that are passed over: others count them in, tests, tables without a sentence."""
PLACES: tuple[tuple[str, str, float], ...] = (
    ("/usr/share/doc", "*.txt *.md *.rst *.html *.txt.gz *.md.gz *.html.gz", 6e6),
    ("/usr/share/vim", "*.txt", 5e6),
    ("/usr/share/perl", "*.pod *.pm", 4e6),
    ("{rust}", "*.html", 3e6),
    ("{stdlib}", "*.py *.rst *.txt", 12e6),
    ("{packages}", "*.md *.rst *.txt", 3e6),
    ("{packages}", "*.py", 12e6),
)
"""Where English is looked for: folder, files, bytes taken at most."""
CHINESE = (
    "zh_poetry/classics.txt.gz", "zh_novels/hongloumeng.txt.gz", "zh_novels/sanguoyanyi.txt.gz",
    "zh_novels/shuihuzhuan.txt.gz", "zh_novels/xiyouji.txt.gz",
)  # fmt: skip
MB = 1_000_000
SMALLEST, LARGEST = 1_000, 2_000_000
"""Bytes of a file that is read."""
ENGLISH_SHARE = 0.97
"""The share of ASCII from which a document counts as English."""
TAG = re.compile(r"<(script|style|nav)\b.*?</\1>|<[^>]*>", re.DOTALL)


@dataclass(frozen=True)
class Text:
    """Documents, and where they come from."""

    name: str
    documents: tuple[str, ...]
    files: tuple[tuple[str, str, int], ...]
    """(path, sha256 of the file, bytes taken of it)."""

    @functools.cached_property
    def whole(self) -> str:
        """All documents as one text."""
        return "".join(self.documents)

    @functools.cached_property
    def data(self) -> bytes:
        """The same as UTF-8."""
        return self.whole.encode("utf-8")

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @property
    def sha256(self) -> str:
        """Of the whole text."""
        return hashlib.sha256(self.data).hexdigest()

    def line(self) -> str:
        """What it is, in a line."""
        return f"{self.name}: {self.size / MB:.1f} MB, {len(self.files)} files, sha256 {self.sha256}"

    def fresh(self, documents: bool) -> "Text":
        """A copy that nobody has touched: a text that was read before lies in caches, and Python keeps its UTF-8."""
        made = tuple(document.encode("utf-8").decode("utf-8") for document in self.documents) if documents else ()
        copy = Text(self.name, made, self.files)
        copy.__dict__.update(
            {} if documents else {"whole": "".join(self.documents), "data": bytes(bytearray(self.data))}
        )
        return copy


def english(size: float) -> Text:
    """At least `size` bytes of English documentation and source text from this machine, none of it twice."""
    rust = next(iter(sorted(Path.home().glob(".rustup/toolchains/*/share/doc/rust/html/book"))), Path("/nowhere"))
    named = {
        "rust": str(rust),
        "stdlib": sysconfig.get_path("stdlib"),
        "packages": sysconfig.get_path("purelib"),
    }
    seen: set[bytes] = set()
    taken: list[tuple[str, str, int]] = []
    documents: list[str] = []
    held = 0
    for folder, patterns, most in PLACES:
        root, here = Path(folder.format(**named)), 0
        for path in _files(root, patterns):
            if here >= most or held >= size:
                break
            document, digest = _document(path, seen)
            if document is None:
                continue
            amount = len(document.encode("utf-8"))
            documents.append(document)
            taken.append((str(path), digest, amount))
            here += amount
            held += amount
    if held < size:
        sys.exit(f"this machine holds {held / MB:.1f} MB of English documentation and source, {size / MB:.0f} wanted")
    return Text("English", tuple(documents), tuple(taken))


def chinese(size: float) -> Text:
    """At most `size` bytes of Chinese from TEMAKI_DATA: novels and classics, a document for each 20 kB or so."""
    taken: list[tuple[str, str, int]] = []
    documents: list[str] = []
    rest = size
    for number, name in enumerate(CHINESE):
        path, share = data(name), rest / (len(CHINESE) - number)
        content = path.read_bytes()
        lines = gzip.decompress(content).decode("utf-8").splitlines(keepends=True)
        held: list[str] = []
        amount = characters = 0
        for line in lines:
            if amount >= share:
                break
            held.append(line)
            amount += len(line.encode("utf-8"))
            characters += len(line)
            if characters >= 7_000:
                documents.append("".join(held))
                held, characters = [], 0
        documents.append("".join(held))
        taken.append((str(path), hashlib.sha256(content).hexdigest(), amount))
        rest -= amount
    return Text("Chinese", tuple(documents), tuple(taken))


def data(name: str) -> Path:
    """A file of the folder TEMAKI_DATA."""
    root = os.environ.get("TEMAKI_DATA")
    if not root or not (path := Path(root) / name).exists():
        sys.exit(f"{name} is not there: set TEMAKI_DATA to the folder of real data")
    return path


def _files(root: Path, patterns: str) -> Iterator[Path]:
    if not root.is_dir():
        return
    found = {path for pattern in patterns.split() for path in root.rglob(pattern)}
    for path in sorted(found):
        inner = path.relative_to(root).parts
        if path.is_file() and not path.is_symlink() and not STRAY.intersection(inner[:-1]):
            yield path


def _document(path: Path, seen: set[bytes]) -> tuple[str | None, str]:
    """The text of a file without paragraphs that were seen before; None where it is no English text."""
    try:
        if not SMALLEST <= path.stat().st_size <= LARGEST:
            return None, ""
        content = path.read_bytes()
        plain = gzip.decompress(content) if path.suffix == ".gz" else content
        text = plain.decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError):
        return None, ""
    if "\0" in text or sum(map(str.isascii, text[:20_000])) < ENGLISH_SHARE * min(len(text), 20_000):
        return None, ""
    if ".html" in path.name:
        text = re.sub(r"\n\s*\n", "\n\n", html.unescape(TAG.sub("", text)))
    fresh: list[str] = []
    for paragraph in re.split(r"(?<=\n)(?=[ \t]*\n)", text):
        key = hashlib.blake2b(paragraph.strip().encode("utf-8"), digest_size=8).digest()
        if key not in seen or not paragraph.strip():
            seen.add(key)
            fresh.append(paragraph)
    made = "".join(fresh)
    return (made, hashlib.sha256(content).hexdigest()) if len(made) >= SMALLEST else (None, "")


def main() -> None:
    """Print the files of the texts, with their sha256 and the bytes taken of each."""
    words = argparse.ArgumentParser(description=main.__doc__)
    words.add_argument("--english", type=float, default=24.0, help="MB of English")
    words.add_argument("--chinese", type=float, default=6.0, help="MB of Chinese; 0: none")
    asked = words.parse_args()
    for text in [english(asked.english * MB)] + ([chinese(asked.chinese * MB)] if asked.chinese else []):
        print(f"# {text.line()}")
        for path, digest, size in text.files:
            print(f"{digest}  {size:>9}  {path}")


if __name__ == "__main__":
    main()
