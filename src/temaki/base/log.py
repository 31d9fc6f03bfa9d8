"""Metric lines: one JSON object a line, appended as a run goes on."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from temaki.base import files


class MetricLog:
    """Appends metric lines to `metrics.jsonl`; each line is flushed, so that a killed run keeps what it
    logged."""

    def __init__(self, path: Path):
        self.path = path
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        """Who hears each line when it has been written."""
        before = path.read_bytes() if path.exists() else b""
        self._file = self._open()
        if before and not before.endswith(b"\n"):  # a kill cut the last line off: keep the next one apart from it
            self._file.write("\n")

    def _open(self) -> TextIO:
        return self.path.open("a", encoding="utf-8", newline="\n")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line. A number that JSON has no word for (nan, inf) is written as text."""
        self._file.write(json.dumps(_plain(line)) + "\n")
        self._file.flush()
        for hear in [*self.listeners]:
            hear(line)

    def cut(self, step: int) -> None:
        """Drop the lines of steps after `step`, and go on after what stays."""
        self._file.close()
        cut(self.path, step)
        self._file = self._open()

    def close(self) -> None:
        self._file.close()


class SilentLog(MetricLog):
    """The log of a process that is not the one that writes."""

    def __init__(self) -> None:
        """Opens nothing."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Say nothing."""

    def cut(self, step: int) -> None:
        """Nothing is there to drop."""

    def close(self) -> None:
        """Nothing is open."""


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metric log in order; a last line cut off by a kill is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield line


def cut(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: what a resumed run will write again."""
    if path.exists():
        kept = [line for line in read(path) if line.get("step", 0) <= step]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
