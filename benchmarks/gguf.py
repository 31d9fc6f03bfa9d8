"""Loading a GGUF file: time beside reading it and dequantising it with plain NumPy, and peak memory.

    python benchmarks/gguf.py [FILE.gguf] [--repeats 7]

Without a file: the one of `temaki get smollm2`. Each measurement is a process of its own; `load` is `Opened.model()`
on an opened file, `open` is everything before it (metadata, configuration, tables of weights), both after imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy import ndarray

MB = 1 << 20
GOALS = {"time": 1.5, "memory": 1.3}
"""Largest ratios: load to plain NumPy, peak above the process after imports to the float32 weights."""


def plain(path: Path) -> dict[str, ndarray]:
    """All arrays in float32, each by a few NumPy calls on the whole of it; the file is read, not mapped."""
    from temaki.formats import gguf_file

    content = np.frombuffer(path.read_bytes(), np.uint8)
    found: dict[str, ndarray] = {}
    for name, held in gguf_file.load(path).arrays.items():
        start = held.data.ctypes.data - _base(held.data)
        raw = content[start : start + held.data.size]
        found[name] = PLAIN[held.kind](raw).reshape(held.shape)
    return found


def _base(data: ndarray) -> int:
    """The address where the mapped file begins."""
    whole = data
    while isinstance(whole.base, ndarray):
        whole = whole.base
    return whole.ctypes.data


def _q8_0(raw: ndarray) -> ndarray:
    blocks = raw.reshape(-1, 34)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * blocks[:, :2].copy().view(np.float16).astype(np.float32)


def _q4_1(raw: ndarray) -> ndarray:
    blocks = raw.reshape(-1, 20)
    scale, least = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
    return scale * q + least


PLAIN: dict[str, Callable[[ndarray], ndarray]] = {
    "F32": lambda raw: raw.view(np.float32).copy(),
    "Q8_0": _q8_0,
    "Q4_1": _q4_1,
}


def child(path: Path, what: str) -> dict[str, float]:
    """Measure one of `plain` and `load` in this process."""
    from temaki.base import memory
    from temaki.formats import gguf

    if what == "plain":
        begin = time.perf_counter()
        found = plain(path)
        return {"seconds": time.perf_counter() - begin, "bytes": sum(array.nbytes for array in found.values())}
    import torch

    from temaki.model import build  # noqa: F401  (what `.model()` imports)

    torch.set_num_threads(1)
    memory.forget()
    before = memory.held() or 0
    begin = time.perf_counter()
    opened = gguf.open(path)
    opened.weights()
    middle = time.perf_counter()
    model = opened.model(torch.float32)
    end = time.perf_counter()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return {"open": middle - begin, "seconds": end - middle, "peak": (memory.peak() or 0) - before, "weights": weights}


def main() -> None:
    """Ratios, medians of interleaved repeats; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description="Loading a GGUF file, beside plain NumPy.")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", choices=["plain", "load"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.file is None:
        from temaki.cli import named

        asked.file = named.path("smollm2")
    if asked.child:
        print(json.dumps(child(asked.file, asked.child)))
        return
    said: dict[str, list[dict[str, float]]] = {"plain": [], "load": []}
    for _ in range(asked.repeats):
        for what, found in said.items():
            command = [sys.executable, __file__, str(asked.file), "--child", what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    both = zip(said["load"], said["plain"], strict=True)
    slower = statistics.median((load["open"] + load["seconds"]) / plain["seconds"] for load, plain in both)
    median = {key: statistics.median(each[key] for each in said["load"]) for key in said["load"][0]}
    larger = median["peak"] / median["weights"]
    print(f"open {median['open'] * 1000:.0f} ms, load {median['seconds'] * 1000:.0f} ms")
    print(f"time: {slower:.2f}x reading and plain NumPy (goal {GOALS['time']})")
    print(f"memory: {median['peak'] / MB:.0f} MB above imports, {larger:.2f}x the weights (goal {GOALS['memory']})")
    sys.exit(slower > GOALS["time"] or larger > GOALS["memory"])


if __name__ == "__main__":
    main()
