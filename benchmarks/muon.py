"""Muon against tuned AdamW: one small model, one begin, one schedule; the rule that moves the matrices differs.

    python benchmarks/muon.py [TEXT] [--seeds 3] [--steps 400] [--curves curves.json]

TEXT is tinyshakespeare's input.txt. Rates of both are the best of a grid over the training part alone (its last tenth
is scored): the rate of all parameters, and that of the matrices as a multiple of it. Then the seeds run on the real
split; the goal is the median loss at AdamW's end.
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path

import race
import shakespeare
from race import Contestant, Course, Recipe

from temaki.base import config as config_door
from temaki.batches.prepare import Prepared

GRIDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "muon": ((5e-3, 1e-2, 2e-2), (0.5, 1.0)),
    "adamw": ((2.5e-3, 5e-3, 1e-2), (0.25, 0.5, 1.0)),
}
"""Rule -> (optim.lr, the matrices' multiple of it)."""
RULES: dict[str, Recipe] = {
    "muon": {"kind": "muon", "momentum": 0.9},
    "adamw": {"kind": "adamw", "beta1": 0.9, "beta2": 0.99},
}


def contestant(rule: str, lr: float, rate: float, steps: int) -> Contestant:
    """`recipes/shakespeare.toml` with the matrices moved by a rule."""
    recipe = config_door.read_toml(shakespeare.RECIPES / "shakespeare.toml")
    recipe["optim"] = {**recipe["optim"], "lr": lr, "matrix": {**RULES[rule], "rate": rate}}
    recipe["stop"] = {"steps": steps}
    return Contestant(rule, recipe, max(1, steps // 20))


def tuned(rule: str, data: Prepared, steps: int) -> tuple[float, float]:
    """The rates whose run ends lowest; every one is printed."""
    found: dict[tuple[float, float], float] = {}
    for lr, rate in itertools.product(*GRIDS[rule]):
        one = contestant(rule, lr, rate, steps)
        found[lr, rate] = race.run(Contestant(rule, one.recipe, steps), data, 1).losses[-1]
        print(f"{rule}: lr {lr:g}, matrices {lr * rate:g}: {found[lr, rate]:.4f}", flush=True)
    return min(found, key=lambda pair: found[pair])


def table(courses: dict[str, list[Course]], rates: dict[str, tuple[float, float]]) -> str:
    """Steps and seconds to the loss at AdamW's end, and both curves."""
    goal = race.median(courses["adamw"], lambda course: course.losses[-1])
    lines = [
        f"| matrices by | lr, of matrices | ms a step | loss at the end | steps to {goal:.3f} | s to it |",
        "|---|---|---|---|---|---|",
    ]
    for rule, each in courses.items():
        lr, rate = rates[rule]
        found = race.until(each, goal + 1e-9)
        at = f"{found[0]:.0f} | {found[1]:.1f}" if found else "never | "
        lines.append(
            f"| {rule} | {lr:g}, {lr * rate:g} | {race.median(each, lambda course: course.step_seconds) * 1e3:.1f} "
            f"| {race.spread(each, lambda course: course.losses[-1])} | {at} |"
        )
    for rule, each in courses.items():
        middle = [sorted(losses)[len(losses) // 2] for losses in zip(*(course.losses for course in each), strict=True)]
        pairs = ", ".join(f"{step}: {loss:.3f}" for step, loss in zip(each[0].steps, middle, strict=True))
        lines += ["", f"{rule}, step: median loss: {pairs}"]
    return "\n".join(lines)


def main() -> None:
    """Tune both, run both, print."""
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    root = os.environ.get("TEMAKI_DATA", "data")
    given.add_argument("text", nargs="?", type=Path, default=Path(root) / "tinyshakespeare" / "input.txt")
    given.add_argument("--seeds", type=int, default=3)
    given.add_argument("--steps", type=int, default=400)
    given.add_argument("--curves", type=Path)
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sliced, whole = Path(folder) / "slice", Path(folder) / "whole"
        sliced.mkdir()
        whole.mkdir()
        data = shakespeare.data(asked.text, sliced, True)
        rates = {rule: tuned(rule, data, asked.steps) for rule in GRIDS}
        data = shakespeare.data(asked.text, whole, False)
        courses: dict[str, list[Course]] = {rule: [] for rule in GRIDS}
        for seed in range(1, asked.seeds + 1):
            for rule, each in courses.items():
                each.append(race.run(contestant(rule, *rates[rule], asked.steps), data, seed))
                race.keep(asked.curves, [course for every in courses.values() for course in every])
    print(table(courses, rates))


if __name__ == "__main__":
    main()
