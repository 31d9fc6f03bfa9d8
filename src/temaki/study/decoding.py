"""What writing an id costs behind a long past: milliseconds, and bytes of state. Greedy, one stream, on torch."""

import statistics
import time
from typing import Any

import numpy as np

from temaki.generate.executor import Work
from temaki.generate.torch_executor import TorchExecutor
from temaki.model.build import Model

HELD = (64, 1024)
"""Ids read before the steps that are timed."""
STEPS = 24
CHUNK = 256


def measure(model: Model, held: tuple[int, ...] = HELD, steps: int = STEPS) -> dict[str, Any]:
    """Milliseconds of a step (the median) and bytes of one slot's state, behind so many ids."""
    executor = TorchExecutor(model, slots=1, room=max(held) + steps)
    ids = np.random.default_rng(0).integers(0, executor.vocabulary, max(held)).astype(np.int32)
    made: dict[str, Any] = {"held": list(held), "milliseconds": [], "bytes": []}
    executor.open(0)
    read = 0
    for end in held:
        for low in range(read, end, CHUNK):
            executor.run([Work(0, ids[low : min(low + CHUNK, end)], "none")])
        read = end
        made["bytes"].append(executor.save(0).bytes)
        made["milliseconds"].append(1e3 * _step(executor, steps))
    executor.close(0)
    return made


def _step(executor: TorchExecutor, steps: int) -> float:
    """Seconds of a step: the median of some, which the slot then forgets."""
    saved, newest, found = executor.save(0), 1 % executor.vocabulary, []
    for _ in range(steps):
        begin = time.perf_counter()
        logits = executor.run([Work(0, np.array([newest], np.int32), "last")]).logits
        found.append(time.perf_counter() - begin)
        newest = int(logits[0].argmax())
    executor.close(0)
    executor.load(0, saved)
    return statistics.median(found)
