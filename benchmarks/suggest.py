"""Does `temaki suggest` find what a full sweep finds? Recommend, sweep rate by batch at the full length, compare.

    TEMAKI_DATA=/path/to/data python benchmarks/suggest.py --out runs/suggest

Two small recipes: bytes of Shakespeare, and BPE pieces of TinyStories. Losses do not depend on the machine's load, so
this may run beside other work; seconds do. What is done in --out is not done again.
"""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base import files
from temaki.study import grid, proxies, suggest, suggestion, sweep
from temaki.study.proxies import Proxy
from temaki.study.sweep import Result, Swept

PARTS = 60
"""Documents that a text is cut into, so that a tenth can be held out."""
BATCHES = (512, 1024, 2048)
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SEEDS = (1, 2, 3)


def recipes(texts: Mapping[str, Path], steps: int) -> dict[str, dict[str, Any]]:
    """The two recipes, small enough that a run takes seconds."""
    mixer = {"kind": "attention", "heads": 2, "qk_norm": True}
    model = {"width": 64, "depth": 2, "tied": False, "init": "zero-out", "pattern": [{"mixer": mixer}]}
    common: dict[str, Any] = {"model": model, "parallel": {"threads": 1}}
    return {
        "shakespeare": {
            **common,
            "name": "shakespeare",
            "data": {"text": str(texts["shakespeare"]), "vocabulary": 257},
            "batch": {"tokens": 1024, "context": 64},
            "optim": {"schedule": {"kind": "wsd", "warmup": 20, "decay": 0.5}},
            "stop": {"steps": steps},
        },
        "tinystories": {
            **common,
            "name": "tinystories",
            "data": {"text": str(texts["tinystories"]), "vocabulary": 1024},
            "batch": {"tokens": 1024, "context": 128},
            "optim": {"matrix": {"kind": "adamw"}, "schedule": {"kind": "cosine", "warmup": 20}},
            "stop": {"steps": steps},
        },
    }


def cut(data: Path, out: Path) -> dict[str, Path]:
    """The two texts as folders of documents."""
    wanted = {
        "shakespeare": [data / "tinyshakespeare" / "input.txt"],
        "tinystories": [data / "tinystories" / name for name in ("tinystories_a.txt", "tinystories_b.txt")],
    }
    found = {}
    for name, paths in wanted.items():
        found[name] = out / "text" / name
        found[name].mkdir(parents=True, exist_ok=True)
        whole = "\n\n".join(path.read_text(encoding="utf-8") for path in paths)
        pieces = whole.split("\n\n")
        size = -(-len(pieces) // PARTS)
        for i in range(0, len(pieces), size):
            text = "\n\n".join(pieces[i : i + size])
            files.write_text(found[name] / f"{i // size:02d}.txt", text)
    return found


def said(line: str) -> None:
    """Say how far it is."""
    print(line, flush=True)


def told(_which: int, _of: int, result: Result) -> None:
    """Say how a run ended."""
    said(f"  {result.name}: {'diverged' if result.loss is None else f'{result.loss:.4f}'} in {result.seconds:.0f} s")


def full_sweep(recipe: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]], folder: Path) -> Swept:
    """Every batch at every rate, all at the ids of the recipe, then the recommended settings with each seed."""
    config = suggest.checked(recipe)
    combinations = [_flat(proxies.changes(config, Proxy(batch, rate, 1.0))) for batch in BATCHES for rate in RATES]
    points = grid.points({**recipe, "watch": {"validate": 10**6}}, [*combinations, *seeds])
    return sweep.sweep(recipe, points, folder, made=told, light=True)


def _flat(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in found.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


def verify(name: str, recipe: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Recommend, sweep, compare: a row of the table."""
    found, runs = suggest.suggest(recipe, out / f"{name}-suggest", batches=BATCHES, made=told, say=said)
    assert found is not None, "nobody stopped it"
    said(suggestion.text(found))
    seeds = [{**_flat(found.settings), "seed": seed} for seed in SEEDS]
    swept = full_sweep(recipe, seeds, out / f"{name}-sweep")
    sweep.written(out / f"{name}-sweep", swept)
    said(sweep.table(swept))
    single = [each for each in swept.results if "seed" not in each.settings and each.loss is not None]
    best = min(single, key=lambda each: each.loss or 0.0)
    ours = [each.loss for each in swept.results if "seed" in each.settings and each.loss is not None]
    assert best.loss is not None, "picked from those with a loss"
    return {
        "recipe": name,
        "recommended": {"batch": found.batch, "lr": found.rate},
        "loss": ours[0],
        "seeds": [min(ours), max(ours)],
        "deviation": statistics.stdev(ours) / statistics.mean(ours),
        "best": dict(best.settings),
        "best_loss": best.loss,
        "above_best": ours[0] / best.loss - 1,
        "runs": len(runs.results),
        "seconds": sum(each.seconds for each in runs.results),
        "sweep_runs": len(single),
        "sweep_seconds": sum(each.seconds for each in single),
        "ids": sum(each.tokens for each in runs.results) / sum(each.tokens for each in single),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as markdown."""
    lines = [
        "| recipe | recommended | loss | full sweep's best | loss | above it | deviation of 3 seeds | ids read, of the "
        "sweep's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mine, best = row["recommended"], row["best"]
        lines.append(
            f"| {row['recipe']} | {mine['batch']} ids, lr {mine['lr']:g} | {row['loss']:.4f} "
            f"| {best['batch.tokens']} ids, lr {best['optim.lr']:g} | {row['best_loss']:.4f} "
            f"| {row['above_best']:+.2%} | {row['deviation']:.2%} | {row['ids']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Both recipes, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TEMAKI_DATA"), help="folder of texts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400, help="of a run at 1,024 ids a step")
    parser.add_argument("--recipes", default="shakespeare,tinystories")
    parser.add_argument("--sweep-only", action="store_true", help="the full sweep alone, for a process beside another")
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("give --data or set TEMAKI_DATA")
    made = recipes(cut(asked.data, asked.out), asked.steps)
    if asked.sweep_only:
        for name in asked.recipes.split(","):
            full_sweep(made[name], [], asked.out / f"{name}-sweep")
        return
    rows = [verify(name, made[name], asked.out) for name in asked.recipes.split(",")]
    for row in rows:
        files.write_text(asked.out / f"{row['recipe']}.toml", config_door.toml(row))
    said(table(rows))


if __name__ == "__main__":
    main()
