"""Fair races: the contestants take turns in one process, medians count, CPU time beside wall time.

CPU time is that of all threads of the process, so a package that starts threads of its own pays for them.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], object]
Prepare = Callable[[], Run]
"""Makes what a run needs, untimed, and gives the run."""


@dataclass(frozen=True)
class Time:
    """Median seconds of several runs."""

    cpu: float
    wall: float


def race(contestants: Mapping[str, Prepare], rounds: int) -> dict[str, Time]:
    """The median times of all contestants over so many rounds, each round in turned order."""
    names = list(contestants)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent[name].append(timed(contestants[name]()))
    return {
        name: Time(statistics.median(cpu for cpu, _ in each), statistics.median(wall for _, wall in each))
        for name, each in spent.items()
    }


def timed(run: Run) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one run; what it gives is freed after the clock stopped."""
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        held = run()
        spent = time.process_time() - cpu, time.perf_counter() - wall
    finally:
        gc.enable()
    del held
    return spent


def again(run: Run) -> Prepare:
    """A contestant whose runs need nothing prepared: it has seen the text before, from its second run on."""
    return lambda: run
