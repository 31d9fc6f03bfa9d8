"""A delay of 1,000 places: one layer of a state space beside one of long short-term memory, by equal numbers and time.

    python benchmarks/delay.py --out runs/delay [--minutes 1] [--only lstm]

Letters of an alphabet of 16; at each place the one of 1,000 places before is asked. Both models are an embedding, one
layer, a small feed-forward layer and a head; the peer's hidden vector is as large as gives it no fewer parameters. Each
model's rate is the best of three on a seed that is not among those reported. What is done is not done again. Each run
has one thread: where a machine is shared, two that wait for each other are slower than one.

The state space is given what a delay line of about 1,100 places needs: a step of 1/550 and 550 pairs of states, whose
frequencies then reach the highest that ids can have. Guessing is right once in 16, at a loss of ln 16 = 2.773.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.model.count import count
from temaki.report import folder as folders
from temaki.study import grid, recipes, sweep

LAG, LETTERS, CONTEXT = 1000, 16, 2048
RATES = {"s4d": (5e-3, 1e-2, 2e-2), "lstm": (1e-3, 3e-3, 1e-2), "gru": (1e-3, 3e-3, 1e-2)}
TUNED, SEEDS = 7, (1, 2, 3)
STATE_SPACE = {"kind": "s4d", "states": 1100, "step_min": 1 / 550, "step_max": 1 / 550}


def recipe(mixer: Mapping[str, Any], minutes: float) -> dict[str, Any]:
    """A run of so many minutes."""
    block = {"mixer": dict(mixer), "ffn": {"kind": "gelu", "width": 32}}
    return {
        "name": "delay",
        "data": {"task": {"kind": "delay", "letters": LETTERS, "lag": LAG}},
        "model": {"width": 16, "depth": 1, "tied": False, "pattern": [block]},
        "optim": {"vector": {"kind": "adamw", "rate": 4.0}, "dynamics": {"kind": "adamw", "rate": 1e-6}},
        "batch": {"tokens": 8 * CONTEXT, "context": CONTEXT},
        "stop": {"steps": 1000, "minutes": minutes},
        "watch": {"validate": 1_000_000, "validate_tokens": 32 * CONTEXT},
        "save": {"every": 100_000, "keep": 1},
        "parallel": {"threads": 1},
    }


def parameters(mixer: Mapping[str, Any]) -> int:
    """Numbers of the model with this mixer."""
    found = recipe(mixer, 1)
    return count(recipes.complete(found, recipes.vocabulary(recipes.data(found))).model).total


def peer(kind: str) -> dict[str, Any]:
    """The peer's mixer: the smallest that is no smaller than the state space's model."""
    wanted, size = parameters(STATE_SPACE), 1
    while parameters({"kind": kind, "size": size}) < wanted:
        size += 1
    return {"kind": kind, "size": size}


def ended(folder: Path, result: sweep.Result) -> tuple[float, float]:
    """(loss, accuracy) at the end of a run; of one that diverged, those of guessing never."""
    accuracy = folders.read(folder / result.name).last("validate", "accuracy")
    return (float("inf"), 0.0) if result.loss is None else (result.loss, accuracy or 0.0)


def runs(mixer: Mapping[str, Any], minutes: float, folder: Path, settings: list[dict[str, Any]]) -> list[sweep.Result]:
    """Train with each of these settings, unless it is done."""
    found = recipe(mixer, minutes)
    points = grid.points(found, settings)
    return list(sweep.sweep(found, points, folder, made=said, light=True).results)


def said(which: int, of: int, result: sweep.Result) -> None:
    loss = "diverged" if result.loss is None else f"{result.loss:.4f}"
    print(f"  {result.name}: loss {loss}, {result.steps} steps, {result.seconds:.0f} s", flush=True)


def measured(mixer: Mapping[str, Any], minutes: float, folder: Path) -> str:
    """A line of the table: the rate tuned on one seed, then the other seeds."""
    kind = str(mixer["kind"])
    print(f"{kind}: {parameters(mixer):,} parameters, {config_door.toml(dict(mixer)).strip()!r}", flush=True)
    tuned = runs(mixer, minutes, folder, [{"optim.lr": rate, "seed": TUNED} for rate in RATES[kind]])
    best = min(tuned, key=lambda each: ended(folder, each)[0]).settings["optim.lr"]
    found = runs(mixer, minutes, folder, [{"optim.lr": best, "seed": seed} for seed in SEEDS])
    losses, shares = zip(*(ended(folder, each) for each in found), strict=True)
    steps, seconds = (statistics.mean(getattr(each, name) for each in found) for name in ("steps", "seconds"))
    return (
        f"{kind:<6} {parameters(mixer):>10,} {best:>7g} {steps:>7.0f} {seconds:>7.0f} "
        f"{statistics.mean(losses):>8.4f} {statistics.stdev(losses):>7.4f} "
        f"{statistics.mean(shares):>9.2%} {min(shares):>9.2%} {max(shares):>9.2%}"
    )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, required=True, help="folder of all runs")
    words.add_argument("--minutes", type=float, default=1.0, help="of each run")
    words.add_argument(
        "--only", choices=RATES, action="append", help="one mixer; repeat for more; s4d and lstm if none"
    )
    asked = words.parse_args()
    kinds = asked.only or ["s4d", "lstm"]
    mixers = {kind: STATE_SPACE if kind == "s4d" else peer(kind) for kind in kinds}
    found = [measured(mixer, asked.minutes, asked.out / kind) for kind, mixer in mixers.items()]
    print("\nmixer  parameters    rate   steps seconds     loss   +- sd  accuracy     least      most")
    print("\n".join(found))


if __name__ == "__main__":
    main()
