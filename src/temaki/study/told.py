"""What a study found, as results.json keeps it and the page reads it: plain mappings, nothing else is needed."""

import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temaki.base import device as devices
from temaki.report import folder as folders
from temaki.study import worked
from temaki.study.studies import Study
from temaki.study.sweep import Result

if TYPE_CHECKING:
    from temaki.study.lab import Length

POINTS = 60
"""Of a training curve that are kept."""


def run(folder: Path, result: Result, seed: int, measures: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    read = folders.read(folder)
    speeds = [y for _, y in read.curve("step", "tokens_per_second")[2:] if y is not None]
    return {
        "seed": seed,
        "state": result.state,
        "why": result.why,
        "loss": result.loss,
        "accuracy": read.last("validate", "accuracy") if result.state == "finished" else None,
        "bits_per_byte": result.bits_per_byte,
        "steps": result.steps,
        "seconds": result.seconds,
        "lr": read.setting("optim", "lr"),
        "parameters": read.started.get("params"),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "validation": _kept(read.curve("validate", "loss")),
        "accuracies": _kept(read.curve("validate", "accuracy")),
        "training": _kept(read.curve("step", "loss")),
        "gradients": _kept(read.curve("step", "grad_norm")),
        "measures": dict(measures),
    }


def _kept(curve: Sequence[tuple[float, float | None]]) -> list[list[float | None]]:
    """At most POINTS points of a curve, the mean of each stretch."""
    size = -(-len(curve) // POINTS) if curve else 1
    made: list[list[float | None]] = []
    for low in range(0, len(curve), size):
        each = curve[low : low + size]
        seen = [y for _, y in each if y is not None]
        made.append([each[-1][0], float(f"{statistics.fmean(seen):.6g}") if len(seen) == len(each) else None])
    return made


def study(
    found: Study,
    length: "Length",
    steps: Mapping[str, int],
    made: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    tuned: Mapping[str, Mapping[str, Mapping[float, float]]],
    stopped: str | None,
) -> dict[str, Any]:
    """All that is known of a study so far."""
    parts = {}
    for part in found.parts:
        ends = made.get(part.name, {})
        parts[part.name] = {
            "title": part.title,
            "says": part.says,
            "steps": steps.get(part.name),
            "tokens": part.recipe["batch"]["tokens"],
            "context": part.context,
            "recipe": dict(part.recipe),
            "rates": {name: _finite(each) for name, each in tuned.get(part.name, {}).items()},
            "variants": {each.name: variant(each.says, ends.get(each.name, [])) for each in part.variants},
        }
    return {
        "study": found.name,
        "title": found.title,
        "says": found.says,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "machine": {**asdict(devices.machine(devices.choose())), "system": platform.platform()},
        "seeds": length.seeds,
        "stopped": stopped,
        "worked": worked.pictures(found.name),
        "parts": parts,
    }


def _finite(ends: Mapping[float, float]) -> dict[str, float | None]:
    """Factor of the rate -> loss; None where it diverged."""
    return {f"{factor:g}": loss if math.isfinite(loss) else None for factor, loss in sorted(ends.items())}


def variant(says: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A variant's runs and what they are in the mean.

    >>> found = variant("", [{"state": "finished", "loss": 1.0}, {"state": "finished", "loss": 3.0}])
    >>> found["loss"]
    {'mean': 2.0, 'deviation': 1.4142135623730951, 'runs': 2}
    """
    made: dict[str, Any] = {"says": says, "runs": list(runs), "diverged": sum(r["state"] == "diverged" for r in runs)}
    for name in ("loss", "accuracy", "bits_per_byte", "tokens_per_second"):
        values = [each[name] for each in runs if each.get(name) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            made[name] = {"mean": statistics.fmean(values), "deviation": spread, "runs": len(values)}
    return made
