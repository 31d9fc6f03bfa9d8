"""What a verb is given to read: options, a file or standard input, or JSON lines."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from temaki.base.errors import DataError


def text(file: Path) -> str:
    """One text, from a file or, for -, standard input. Raises DataError for nothing and for what is not UTF-8."""
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    if not content:
        raise DataError(f"{file} is empty", do="write a text into it, or leave the option out")
    return _decoded(content, str(file))


def lines(file: Path, key: str) -> list[str]:
    """The texts of JSON lines {key: text}, or of lines that are JSON strings. Raises DataError naming the line."""
    found = [_line(line, f"{file}, line {number}", key) for number, line in _numbered(text(file))]
    if not found:
        raise DataError(f"{file} holds no line", allowed=f'{{"{key}": "..."}}')
    return found


def given(prompts: Sequence[str], file: Path | None, jsonl: Path | None) -> list[str]:
    """All of them: as options, the one in a file, those of JSON lines; the empty prompt where there are none."""
    for each in prompts:
        if not each.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in each):
            raise DataError(
                "a prompt on the command line is not UTF-8", do="convert it, or give it in a file by --file"
            )
    found = list(prompts)
    found += [text(file)] if file is not None else []
    found += lines(jsonl, "prompt") if jsonl is not None else []
    return found or [""]


def _numbered(content: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, line


def _line(line: str, where: str, key: str) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, column {error.colno} is no JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply") from None
    if isinstance(found, dict):
        found = found.get(key)
    if not isinstance(found, str):
        raise DataError(f"{where} has no text under {key!r}", allowed=f'{{"{key}": "..."}}, or a JSON string')
    try:
        found.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} holds a lone surrogate") from None
    return found


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 at byte {error.start}", do="convert it to UTF-8") from None
