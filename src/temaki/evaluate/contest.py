"""Tokenizers trained and measured side by side on one corpus, each in a fresh process of its own.

A process measures one contestant: seconds and memory of its training, then on held-out text bytes a token, tokens a
word and a word of each script, encoding speed, and whether texts come back exactly. Memory counts from after the
texts are in memory, the packages loaded and a small training done once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import memory
from temaki.base.errors import TokenizerError
from temaki.evaluate import words
from temaki.evaluate.contestants import CONTESTANTS, Trained

LEAST_SECONDS = 0.5
"""Encoding is repeated until it took so long, so that short texts are timed too."""
MOST_REPEATS = 50
SAMPLE = 300
"""Characters of the passage that is shown cut into pieces."""
WARM = ("the cat sat on the mat, the dog ran. 猫が好き 123\n" * 40, "Was, wenn? Привет мир, 你好世界\n" * 40)
"""What the small training reads that comes first."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Score:
    """What one contestant reached."""

    name: str
    asked: int
    """Ids asked for."""
    size: int
    """Ids it has."""
    train_seconds: float
    """Wall time of the training."""
    memory: int | None
    """Most bytes its training held above what the process held before it; None where the system does not tell."""
    bytes_per_token: float
    """UTF-8 bytes of the held-out text over its tokens."""
    tokens_per_word: float
    fertility: Mapping[str, float]
    """Script -> tokens a word (in scripts without spaces: a character)."""
    encode_mb_per_second: float
    """Of CPU time, on one thread where the package can be told so."""
    exact: float
    """Share of the held-out documents that come back byte for byte."""
    pieces: Sequence[str]
    """A passage of the held-out text, cut."""


def chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The contestants that take part and those whose package is missing; all of them if none is named.

    Raises TokenizerError for an unknown name.
    """
    for name in names:
        if name not in CONTESTANTS:
            raise TokenizerError("unknown contestant", found=repr(name), allowed=", ".join(CONTESTANTS))
    asked = list(names) or list(CONTESTANTS)
    return [n for n in asked if CONTESTANTS[n].installed], [n for n in asked if not CONTESTANTS[n].installed]


def run(name: str, size: int, train: Path, held: Path, progress: Progress) -> Score:
    """Train and measure a contestant in a process of its own; `train` and `held` were written by `write`.

    Raises TokenizerError with its last words if it fails. An interrupt ends it too.
    """
    command = [sys.executable, "-m", "temaki.evaluate.contest", name, str(size), str(train), str(held)]
    alone = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads meanwhile would fill up and hold the process
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=alone)
        try:
            assert process.stdout is not None, "it was asked for"
            for line in process.stdout:
                if not line.startswith(b"{"):  # a package that talks
                    continue
                told = json.loads(line)
                if "progress" in told:
                    progress(f"{name}: {told['what']}", *told["progress"])
                found = told.get("score", found)
            process.communicate()
        except BaseException:
            process.kill()
            process.communicate()
            raise
        said.seek(0)
        problem = said.read().decode("utf-8", "replace")
    if process.returncode or not found:
        raise TokenizerError(f"{name} could not be trained to {size} ids", found=_message(problem))
    return Score(**found)


def _message(said: str) -> str:
    """The error that a process ended with, in one line: what stands below its last unindented line belongs to it.

    >>> _message("Traceback ..\\n  File ..\\ntemaki.base.errors.TokenizerError: no text\\n  do: give some\\n")
    'TokenizerError: no text; do: give some'
    """
    lines = said.strip().splitlines() or ["no message"]
    begin = max((place for place, line in enumerate(lines) if not line.startswith(" ")), default=0)
    kind, colon, rest = lines[begin].partition(":")
    name = kind if " " in kind else kind.rpartition(".")[2]
    return "; ".join([name + colon + rest, *(line.strip() for line in lines[begin + 1 :])])


def write(path: Path, texts: Sequence[str]) -> None:
    """Texts as a file that a contestant's process reads: JSON strings, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps(text) + "\n")


def measure(trained: Trained, texts: Sequence[str]) -> dict[str, Any]:
    """What a trained tokenizer reaches on texts it has not seen: the fields of Score that training does not fill."""
    size = sum(len(text.encode("utf-8")) for text in texts)
    tokens, seconds = _timed(trained, texts)
    by_script = words.by_script(texts)
    fertility = {name: sum(trained.lengths(found.kept)) / len(found.kept) for name, found in by_script.items()}
    count = sum(found.count for found in by_script.values())
    return {
        "size": trained.size,
        "bytes_per_token": size / max(1, tokens),
        "tokens_per_word": sum(fertility[name] * found.count for name, found in by_script.items()) / max(1, count),
        "fertility": fertility,
        "encode_mb_per_second": size / 1e6 / seconds,
        "exact": sum(trained.back(text) == text for text in texts) / max(1, len(texts)),
        "pieces": trained.pieces(passage(texts)),
    }


def passage(texts: Sequence[str]) -> str:
    """The beginning of the longest text, cut at a space where one is near."""
    text = max(texts, key=len, default="")
    if len(text) <= SAMPLE:
        return text
    return text[: max(text.rfind(" ", SAMPLE // 2, SAMPLE), SAMPLE // 2 if " " in text[:SAMPLE] else SAMPLE)]


def _timed(trained: Trained, texts: Sequence[str]) -> tuple[int, float]:
    """Tokens of all texts, and the least CPU seconds that encoding them once took."""
    trained.lengths(texts[:1])
    best, spent, tokens = float("inf"), 0.0, 0
    for _ in range(MOST_REPEATS):
        begin = time.process_time()
        tokens = sum(trained.lengths(texts))
        took = time.process_time() - begin
        best, spent = min(best, took), spent + took
        if spent >= LEAST_SECONDS:
            break
    return tokens, max(best, 1e-9)


def _read(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _contest(name: str, size: int, train: Path, held: Path) -> Iterator[dict[str, Any]]:
    """What the process says, line by line."""
    contestant = CONTESTANTS[name]
    texts = _read(train)
    contestant.train(WARM, 400, lambda done, of: None)
    memory.forget()
    before = memory.held()
    begin = time.perf_counter()
    trained = contestant.train(texts, size, _Saying())
    seconds = time.perf_counter() - begin
    most = memory.peak()
    yield {"what": "measuring", "progress": [0, 2]}
    above = None if most is None or before is None else max(0, most - before)
    measured = measure(trained, _read(held))
    yield {"score": {"name": name, "asked": size, "train_seconds": seconds, "memory": above, **measured}}


class _Saying:
    """Progress of the training as lines for the parent, five a second at most."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._last >= 0.2:
            self._last = now
            print(json.dumps({"what": "training", "progress": [done, of]}), flush=True)


if __name__ == "__main__":
    for line in _contest(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])):
        print(json.dumps(line), flush=True)
