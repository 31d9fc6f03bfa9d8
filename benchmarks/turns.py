"""Contestants in processes of their own that take turns: one line of JSON asks, one answers. Standard library alone.

A contestant reads ids into streams and says the best next id of each; all that is timed is made of that, by the same
code for everyone. A child is `python reader_x.py MODEL --threads N ..`, bound to as many processors as it has threads.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).parent
PROMPT, SHORT = 512, 32
"""Ids of a long and of a short prompt."""
FIRST, LAST = 1000, 40_000
"""Ids of prompts are drawn from here, where every vocabulary has words."""


class Reader(Protocol):
    """A model that reads."""

    def forget(self) -> None:
        """All streams are empty again."""
        ...

    def read(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Read on in streams 0, 1, ..; the most probable next id of each."""
        ...


def prompt(length: int, stream: int = 0) -> list[int]:
    """Ids that mean nothing, the same for everyone; a stream has its own.

    >>> prompt(3), prompt(3) == prompt(3, stream=1)
    ([1000, 8919, 16838], False)
    """
    return [FIRST + (7919 * (place + 61 * stream)) % (LAST - FIRST) for place in range(length)]


def perform(reader: Reader, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Do one piece of work and say how long it took."""
    work = asked["work"]
    if work == "prefill":
        reader.forget()
        begin = time.perf_counter()
        best = reader.read([prompt(asked["ids"])])
        return {"seconds": time.perf_counter() - begin, "best": best}
    if work == "decode":
        reader.forget()
        best = reader.read([prompt(SHORT, stream) for stream in range(asked["streams"])])
        seconds, drawn = steps(reader, best, asked["count"])
        return {"seconds": seconds, "drawn": drawn}
    if work == "deeper":
        if asked["from"] == 0:
            reader.forget()
        best = reader.read([prompt(asked["to"])[asked["from"] :]])
        return {"seconds": steps(reader, best, asked["count"])[0]}
    assert work == "memory", work
    return {"peak": peak()}


def steps(reader: Reader, best: list[int], count: int) -> tuple[list[float], list[list[int]]]:
    """Seconds of each of so many steps in which every stream reads its best id, and the ids read."""
    seconds, drawn = [], []
    for _ in range(count):
        drawn.append(best)
        begin = time.perf_counter()
        best = reader.read([[each] for each in best])
        seconds.append(time.perf_counter() - begin)
    return seconds, drawn


def serve(load: Callable[[], Reader]) -> None:
    """Be a child: load, answer what is asked until the input ends."""
    begin = time.perf_counter()
    reader = load()
    best = reader.read([prompt(SHORT)])
    print(json.dumps({"loaded": time.perf_counter() - begin, "best": best}), flush=True)
    for line in sys.stdin:
        print(json.dumps(perform(reader, json.loads(line))), flush=True)


def peak() -> int | None:
    """Most bytes that this process held at once; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


class Child:
    """A contestant's process, seen from outside. Raises RuntimeError with its last words where it dies."""

    def __init__(self, name: str, python: str, words: Sequence[str], threads: int):
        self.name = name
        processors = sorted(os.sched_getaffinity(0))[-threads:] if hasattr(os, "sched_getaffinity") else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles all modules anew
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody reads would fill up)
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [python, *words, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            cwd=HERE,
            preexec_fn=(lambda: os.sched_setaffinity(0, processors)) if processors else None,
        )
        said = self._line()
        self.first = time.perf_counter() - begin
        """Seconds from the start of the process to the first id that follows a short prompt."""
        self.loaded: float = said["loaded"]
        """The same without the interpreter's start and imports."""

    def ask(self, **work: Any) -> dict[str, Any]:
        """Let it work."""
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.close()
        self._process.wait(60)
        self._errors.close()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "a pipe"
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} died: {self._errors.read()[-1000:]}")
        return json.loads(line)
