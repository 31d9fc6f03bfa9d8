"""The first call of a new process with a warm compile cache: import and one line encoded."""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import peers
from vocabularies import gpt2

Row = tuple[str, ...]
CODE = """
from temaki.tokens import files
print(files.load({folder!r}).encode_list("Not all heroes wear capes."))
"""
ALONE = """
import sys, warnings
sys.modules["awkward"] = None
warnings.simplefilter("ignore")
"""
"""gigatoken brings awkward, which Numba loads when it starts; who has not installed it does not wait for it."""


def rows(rounds: int) -> Iterator[Row]:
    """GPT-2's vocabulary from our own folder, one line encoded; wall and CPU seconds of the whole process."""
    from temaki.tokens import files

    with tempfile.TemporaryDirectory() as folder:
        files.save(peers.ours(1).make(gpt2()), Path(folder) / "gpt2")
        code = CODE.format(folder=str(Path(folder) / "gpt2"))
        ways = {"": ALONE + code} | ({", awkward installed": code} if peers.installed("awkward") else {})
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, text in ways.items():
                spent[name].append(_timed(text))
        for name, found in spent.items():
            wall, cpu = (statistics.median(each[i] for each in found[1:]) for i in (0, 1))
            what = f"first call, GPT-2, import included, wall / CPU{name}"
            yield what, "1", f"{wall:.2f} / {cpu:.2f} s", "-", "-", "-", "under 1 s"


def _timed(code: str) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
