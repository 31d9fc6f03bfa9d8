"""Time to loss at subword scale: `recipes/words.toml` beside a plain GPT-2 of its size under AdamW.

    python benchmarks/subword.py [DATA] [--minutes 30] [--share 0.25] [--rates 5e-4 1e-3 2e-3] [--curves curves.json]

DATA holds tinystories, wikitext2 and english_speeches: 7 MB of English, one text, a tenth held out in pieces by their
hash. Both read 2,048 ids a step in rows of 256. The peer's rate is the best of some, each tried for a tenth of its
time with a schedule of its own; then it has all of its minutes, and its lowest score counts. Ours has a share of them.
"""

import argparse
import gzip
import os
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import race
from race import Contestant, Course, Recipe

from temaki.base import config as config_door
from temaki.batches import prepare
from temaki.batches.config import DataConfig
from temaki.batches.prepare import Prepared

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "words.toml"
GOAL = 4.0
"""How many times sooner the peer's lowest loss is to be reached."""
WIDTH, DEPTH, HEADS, CONTEXT, TOKENS = 384, 5, 6, 256, 2048
SCORES = 10
"""How many scores a run has."""


def corpus(root: Path) -> str:
    """All English texts of a folder of data, one after the other."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((root / "tinystories").glob("*.txt"))]
    for path in sorted((root / "wikitext2").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts.append(file.read())
    for path in sorted((root / "english_speeches").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
            texts += [archive.read(name).decode("utf-8", "replace") for name in names]
    return "\n\n".join(texts)


def peer(rate: float, warmup: int = 200) -> Recipe:
    """The plain GPT-2 at a peak rate."""
    return race.gpt2(WIDTH, DEPTH, HEADS, CONTEXT, rate, warmup, 0.95) | {
        "name": "gpt2", "batch": {"tokens": TOKENS, "context": CONTEXT}, "stop": {"steps": 1},
    }  # fmt: skip


def lasting(contestant: Contestant, data: Prepared, seconds: float) -> Contestant:
    """The contestant with as many steps as fit into its training seconds, by the median of a dozen steps."""
    few = {"stop": {"steps": 12}, "optim": {"schedule": {**contestant.recipe["optim"]["schedule"], "warmup": 1}}}
    trial = replace(contestant, recipe=config_door.merge(contestant.recipe, few), every=1_000_000)
    steps = max(20, round(seconds / race.run(trial, data, 1, scored=False).step_seconds))
    schedule = contestant.recipe["optim"]["schedule"]
    fitting = {**schedule, "warmup": min(schedule["warmup"], steps // 5)}
    recipe = config_door.merge(contestant.recipe, {"stop": {"steps": steps}, "optim": {"schedule": fitting}})
    return replace(contestant, recipe=recipe, every=max(1, steps // SCORES))


def tuned(rates: list[float], data: Prepared, seconds: float) -> float:
    """The rate whose run of a tenth of the seconds ends lowest."""
    if len(rates) == 1:
        return rates[0]
    found: dict[float, float] = {}
    for rate in rates:
        tried = lasting(Contestant("trial", peer(rate), 1, race.gpt2_values), data, seconds / 10)
        found[rate] = race.run(replace(tried, every=1_000_000), data, 1).losses[-1]
        print(f"the peer's rate {rate:g}: {found[rate]:.4f} after a tenth of its time", flush=True)
    return min(found, key=lambda rate: found[rate])


def table(theirs: Course, ours: Course) -> str:
    """Both as a table of markdown, and how much sooner."""
    lines = [
        "| | parameters | steps | ms a step | training s | lowest loss | s to the peer's lowest |",
        "|" + "---|" * 7,
    ]
    for course in (theirs, ours):
        found = course.reached(theirs.best)
        lines.append(
            f"| {course.name} | {course.parameters:,} | {course.steps[-1]:,} | {course.step_seconds * 1e3:.0f} "
            f"| {course.seconds[-1]:.0f} | {course.best:.4f} | {f'{found[1]:.0f}' if found else 'never'} |"
        )
    at, their = ours.reached(theirs.best), theirs.reached(theirs.best)
    assert their is not None, "a course reaches its own lowest loss"
    sooner = f"{their[1] / at[1]:.1f}x sooner" if at else "never"
    lines += ["", f"Ours is at the peer's lowest loss {sooner} (goal: {GOAL:.0f}x)."]
    for course in (theirs, ours):
        pairs = ", ".join(f"{s:.0f}: {x:.3f}" for s, x in zip(course.seconds, course.losses, strict=True))
        lines.append(f"{course.name}, seconds: loss: {pairs}")
    return "\n".join(lines)


def main() -> None:
    """Run both and print."""
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given.add_argument("data", nargs="?", type=Path, default=Path(os.environ.get("TEMAKI_DATA", "data")))
    given.add_argument("--minutes", type=float, default=30.0)
    given.add_argument("--share", type=float, default=0.25)
    given.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    given.add_argument("--curves", type=Path)
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "english.txt"
        text.write_text(corpus(asked.data), encoding="utf-8")
        recipe = config_door.read_toml(RECIPE)
        found = DataConfig(text=str(text), vocabulary=recipe["data"]["vocabulary"])
        data = prepare.prepare(found, Path(folder) / "data", lambda *_: None)
        seconds = asked.minutes * 60
        ours = race.run(lasting(Contestant("words.toml", recipe, 1), data, seconds * asked.share), data, 1)
        print(f"ours: {ours.best:.4f} after {ours.seconds[-1]:.0f} s", flush=True)
        rate = tuned(asked.rates, data, seconds)
        name = f"GPT-2 by AdamW, rate {rate:g}"
        theirs = race.run(lasting(Contestant(name, peer(rate), 1, race.gpt2_values), data, seconds), data, 1)
        race.keep(asked.curves, [theirs, ours])
    print(table(theirs, ours))


if __name__ == "__main__":
    main()
