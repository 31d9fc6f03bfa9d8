"""How many steps the runs of a study may take, so that all of it fits into its minutes.

A few steps of every variant are trained first, which also finds what cannot run. All runs of a part have equal steps.
"""

import itertools
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.batches.prepare import Progress
from temaki.report import folder as folders
from temaki.study import sweep
from temaki.study.grid import Point
from temaki.study.studies import Part
from temaki.study.sweep import Result

PROBE = 6
"""Steps that are timed; the first two are not counted, since they compile."""
LEAST = 20
"""Steps of the shortest runs a study is made of."""
VALIDATIONS = 8
"""In a run."""
FORWARD = 1 / 3
"""Of a training step's time, that of reading as many ids."""


def paced(recipe: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The recipe with so many steps, and warmup, validations and lines in proportion."""
    return config_door.merge(
        recipe,
        {
            "stop": {"steps": steps},
            "optim": {"schedule": {"warmup": max(1, steps // 10)}},
            "watch": {"validate": -(-steps // VALIDATIONS), "log": max(1, steps // 100)},
            "save": {"every": steps, "keep": 1},
        },
    )


@dataclass(frozen=True)
class Cost:
    """What a variant costs."""

    step: float
    """Seconds."""
    run: float
    """Seconds of a run beside its steps: start, validations, what is measured."""


def probe(part: Part, points: Sequence[Point], folder: Path, progress: Progress) -> dict[str, Cost] | str:
    """What a run of each point costs; the points' recipes have PROBE steps. The signal's name where one stopped it."""
    found: dict[str, Cost] = {}
    clock = time.perf_counter()

    def heard(which: int, of: int, result: Result) -> None:
        nonlocal clock
        now = time.perf_counter()
        found[result.name] = _cost(folder / result.name, now - clock, part)
        progress(f"{part.name}: timing variants", which, of)
        clock = time.perf_counter()

    done = sweep.sweep({"probe": part.name}, points, folder, made=heard, light=True)
    shutil.rmtree(folder, ignore_errors=True)
    return done.stopped if done.stopped is not None else found


def _cost(run: Path, wall: float, part: Part) -> Cost:
    read = folders.read(run)
    seconds = [y for _, y in read.curve("step", "seconds") if y is not None]
    steps = [b - a for a, b in itertools.pairwise(seconds[1:])]
    step = statistics.median(steps) if steps else wall / PROBE
    held = part.recipe.get("watch", {}).get("validate_tokens", 65_536)
    validations = VALIDATIONS * FORWARD * held / part.recipe["batch"]["tokens"] * step
    starting = max(0.0, wall - (seconds[-1] if seconds else 0.0))
    return Cost(step, starting + validations)


def fitting(part: Part, costs: Mapping[str, Cost], seconds: float, runs: int, measuring: float) -> int:
    """Steps of each run so that `runs` of every variant take about so many seconds; may be below LEAST, or 0.

    measuring: seconds that the measures of a run take, in steps of its variant.
    """
    step = sum(cost.step for cost in costs.values())
    beside = sum(cost.run + measuring * cost.step for cost in costs.values())
    return max(0, int((seconds / runs - beside) / step)) if step else 0


def needed(part: Part, costs: Mapping[str, Cost], runs: int, measuring: float) -> float:
    """Seconds that the shortest runs take."""
    return runs * sum(cost.run + (LEAST + measuring) * cost.step for cost in costs.values())


def check(minutes: float | None, steps: int | None, seeds: int) -> None:
    """Raise ConfigError for a length that is none."""
    if minutes is not None and steps is not None:
        raise ConfigError("--minutes and --steps both fix the length", do="give one of them")
    if minutes is not None and not 0 < minutes < 1e6:
        raise ConfigError("--minutes is out of range", found=f"{minutes:g}", allowed="above 0")
    if steps is not None and steps < 2:
        raise ConfigError("--steps is out of range", found=str(steps), allowed="2 or more")
    if not 1 <= seeds <= 100:
        raise ConfigError("--seeds is out of range", found=str(seeds), allowed="1 to 100")
