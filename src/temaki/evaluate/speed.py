"""How fast an executor reads and writes here: by length of prompt, by context, alone and eight together. No torch.

Letters: n ids. Speeds are ids a second of wall time. What is read does not matter for time, so ids are drawn.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from temaki.base import compile as compiling
from temaki.generate.executor import Executor, Work

PROMPTS = (128, 512, 2048)
"""Ids of the prompts whose reading is timed."""
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Ids held where writing is timed."""
STREAMS = 8
STEPS = 24
"""Steps of which a median is taken."""
CHUNK = 512
"""Ids read in one call, as the engine does by default."""
BUFFER = 1 << 26
"""int64 numbers read to measure memory: 512 MB, more than a cache holds."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Speed:
    """What was measured; a length that the time or the room did not suffice for is not in it."""

    prefill: Mapping[int, float]
    """Ids of a prompt -> ids a second."""
    decode: Mapping[int, float]
    """Ids held -> ids a second of one stream."""
    streams: float | None
    """Ids a second of STREAMS streams together; None where the executor has fewer slots."""
    left_out: tuple[int, ...] = field(default=())
    """Contexts for which the time did not suffice."""

    def facts(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def measure(executor: Executor, seconds: float = 15.0, say: Say = lambda _: None) -> Speed:
    """Time an executor whose slots are all closed, for about so many seconds; it must let STEPS ids be taken back.

    The contexts are read one after the other in one slot, as far as time and room go; the shortest is always measured.
    """
    end = time.perf_counter() + seconds
    ids = np.random.default_rng(0).integers(0, executor.vocabulary, max(CONTEXTS)).astype(np.int32)
    say("warming up")
    _prefill(executor, ids[: min(PROMPTS[0], executor.room)])
    executor.close(0)
    say("reading and writing")
    reads = {n: _fastest(executor, ids[:n], 3) for n in PROMPTS[:2] if n <= executor.room}
    streams = _together(executor, ids) if executor.slots >= STREAMS else None
    spent, decode, left_out = 0.0, dict[int, float](), tuple[int, ...]()
    executor.open(0)
    held = 0
    reachable = [n for n in CONTEXTS if n + STEPS <= executor.room] or [max(1, executor.room - STEPS)]
    for n in reachable:
        ahead = spent / held * (n - held) * 1.3 if held else 0.0
        if held and (time.perf_counter() + ahead > end or executor.whole):
            left_out = tuple(each for each in reachable if each >= n)
            break
        say(f"reading and writing at {n:,} ids")
        spent += _read(executor, ids[held:n])
        held = n
        if n in PROMPTS and n not in reads:
            reads[n] = n / spent
        decode[n] = 1 / statistics.median(_steps(executor, [0], _fitting(executor, n)))
    executor.close(0)
    return Speed(reads, decode, streams, left_out)


def _prefill(executor: Executor, ids: ndarray) -> float:
    executor.open(0)
    return _read(executor, ids)


def _fastest(executor: Executor, ids: ndarray, repeats: int) -> float:
    """Ids a second of reading a prompt from nothing: the median of some times."""
    found = []
    for _ in range(repeats):
        found.append(_prefill(executor, ids))
        executor.close(0)
    return len(ids) / statistics.median(found)


def _read(executor: Executor, ids: ndarray) -> float:
    """Seconds that slot 0 takes to read ids, in chunks; the last one's logits are wanted."""
    size = len(ids) if executor.whole else CHUNK
    begin = time.perf_counter()
    for first in range(0, len(ids), size):
        last = first + size >= len(ids)
        executor.run([Work(0, ids[first : first + size], "last" if last else "none")])
    return time.perf_counter() - begin


def _steps(executor: Executor, slots: Sequence[int], count: int) -> list[float]:
    """Seconds of each of so many steps, all slots together, greedy; the slots forget them."""
    executor.mark(slots)
    best, found = [1 % executor.vocabulary] * len(slots), []
    for _ in range(count):
        work = [Work(slot, np.array([id], np.int32), "last") for slot, id in zip(slots, best, strict=True)]
        begin = time.perf_counter()
        logits = executor.run(work).logits
        best = [int(each.argmax()) for each in logits]
        found.append(time.perf_counter() - begin)
    executor.rewind(slots, [0] * len(slots))
    return found


def _fitting(executor: Executor, held: int) -> int:
    """STEPS, or as many as there is room for behind so many ids."""
    return max(1, min(STEPS, executor.room - held))


def _together(executor: Executor, ids: ndarray) -> float:
    """Ids a second of STREAMS streams behind the shortest prompt."""
    held = max(1, min(PROMPTS[0], executor.room - STEPS))
    _prefill(executor, ids[:held])
    for slot in range(1, STREAMS):
        executor.fork(0, slot)
    found = _steps(executor, range(STREAMS), _fitting(executor, held))
    for slot in range(STREAMS):
        executor.close(slot)
    return STREAMS / statistics.median(found)


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from main memory: the best of some passes over a large buffer."""
    buffer = np.ones(BUFFER, np.int64)
    cuts = [BUFFER * i // threads for i in range(threads + 1)]
    tasks = [lambda a=a, b=b: _sum(buffer, a, b) for a, b in itertools.pairwise(cuts)]
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        compiling.run(tasks, threads)
        best = min(best, time.perf_counter() - begin)
    return buffer.nbytes / best


@compiling.kernel
def _sum(numbers: ndarray, start: int, stop: int) -> int:
    total = 0
    for i in range(start, stop):
        total += numbers[i]
    return total
