"""Time to loss on character-level Shakespeare: two recipes of ours beside the plain GPT-2 of nanoGPT's recipe for CPUs.

    python benchmarks/shakespeare.py [TEXT] [--seeds 3] [--quick] [--slice] [--curves curves.json]

TEXT is tinyshakespeare's input.txt. The first nine tenths train, the last tenth is scored, whole. `--slice` is for
choosing settings: it knows the training part alone, and scores the last tenth of that. `--quick` makes a tenth of the
steps, to see that all works. The peer: 4 layers, 4 heads, width 128, context 64, 12 rows a step, 2,000 steps, AdamW
(torch's fused kernel) at 1e-3 with 100 steps of warmup and a cosine to 1e-4, betas 0.9 and 0.99, decay 0.1, clip 1.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import race
import torch
from race import Contestant, Course

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.batches import prepare
from temaki.batches.config import DataConfig
from temaki.batches.prepare import Prepared

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
GOAL = 1.886
"""Where the peer's recipe ends."""
SOON, LOW = 12.0, 1.62
"""How many times sooner the goal is to be reached, and what is to be reached in the peer's whole time."""
WIDTH, DEPTH, HEADS, CONTEXT, ROWS, STEPS = 128, 4, 4, 64, 12, 2000


def contestants(quick: bool) -> list[Contestant]:
    """The peer, the sprint, and the recipe that takes the peer's whole time."""
    peer = race.gpt2(WIDTH, DEPTH, HEADS, CONTEXT, 1e-3, 100, 0.99)
    peer |= {"name": "gpt2", "batch": {"tokens": ROWS * CONTEXT, "context": CONTEXT}, "stop": {"steps": STEPS}}
    found = [
        Contestant("GPT-2 by AdamW", peer, 100, race.gpt2_values),
        Contestant("sprint.toml", config_door.read_toml(RECIPES / "sprint.toml"), 10),
        Contestant("shakespeare.toml", config_door.read_toml(RECIPES / "shakespeare.toml"), 100),
    ]
    return [shorter(each) for each in found] if quick else found


def shorter(contestant: Contestant) -> Contestant:
    """A tenth of the steps and of the warmup, two scores."""
    recipe = contestant.recipe
    schedule = recipe["optim"]["schedule"]
    changes = {
        "stop": {"steps": recipe["stop"]["steps"] // 10},
        "optim": {"schedule": {"kind": schedule["kind"], "warmup": schedule["warmup"] // 10}},
    }
    return replace(contestant, recipe=config_door.merge(recipe, changes), every=recipe["stop"]["steps"] // 20)


def data(text: Path, folder: Path, sliced: bool) -> Prepared:
    """The text's characters as ids, or those of its training part alone."""
    if sliced:
        whole = text.read_text(encoding="utf-8")
        text = folder / "slice.txt"
        text.write_text(whole[: int(len(whole) * 0.9)], encoding="utf-8")
    config = DataConfig(text=str(text), kind="characters", held="tail", held_out=0.1)
    return prepare.prepare(config, folder / "data", lambda *_: None)


def transformers_step(vocabulary: int) -> Callable[[], float]:
    """Seconds of one step of `transformers`' GPT-2 of the peer's shape, its optimizer the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=vocabulary, n_positions=CONTEXT, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    ids = torch.randint(vocabulary, (ROWS, CONTEXT))

    def step() -> float:
        clock = time.perf_counter()
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - clock

    return step


def table(courses: Sequence[Course], theirs: float | None) -> str:
    """The race as a table of markdown, and what it says of the goals."""
    by_name: dict[str, list[Course]] = {}
    for course in courses:
        by_name.setdefault(course.name, []).append(course)
    peer = next(iter(by_name.values()))
    whole = race.median(peer, lambda course: course.seconds[-1])
    lines = [
        "| | parameters | steps | ms a step | training s | loss at the end | s to "
        f"{GOAL} | times sooner than the peer's end | apart: start-up s, scoring s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in by_name.items():
        found = race.until(each, GOAL)
        reached = f"{found[1]:.2f} (step {found[0]:.0f})" if found else "never"
        lines.append(
            f"| {name} | {each[0].parameters:,} | {each[0].steps[-1]:,} "
            f"| {race.median(each, lambda course: course.step_seconds) * 1e3:.1f} "
            f"| {race.median(each, lambda course: course.seconds[-1]):.1f} "
            f"| {race.spread(each, lambda course: course.losses[-1])} | {reached} "
            f"| {f'{whole / found[1]:.1f}' if found else ''} "
            f"| {race.median(each, lambda course: course.apart['start-up']):.1f}, "
            f"{race.median(each, lambda course: course.apart['scoring']):.1f} |"
        )
    if theirs is not None:
        lines.append(f"| transformers' GPT-2 of the peer's shape | | | {theirs * 1e3:.1f} | | | | | |")
    return "\n".join([*lines, "", *verdicts(by_name, whole)])


def verdicts(by_name: dict[str, list[Course]], whole: float) -> list[str]:
    """The two goals, met or not; `whole`: the peer's whole seconds."""
    peer, sprint, long = by_name.values()
    end = race.median(peer, lambda course: course.losses[-1])
    at_end, low = race.until(sprint, end), race.until(long, LOW)
    sooner = f"{whole / at_end[1]:.1f}x sooner" if at_end else "never"
    there = f"after {low[1] / whole:.2f} of the peer's time" if low else "never"
    spent = race.median(long, lambda course: course.seconds[-1]) / whole
    return [
        f"The peer's own end, {end:.3f}: the sprint is there {sooner} (goal: {SOON:.0f}x).",
        f"{LOW} (goal: within the peer's time): {there}; it ends at "
        f"{race.median(long, lambda course: course.losses[-1]):.3f} after {spent:.2f} of it.",
    ]


def main() -> None:
    """Run everything and print."""
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    root = os.environ.get("TEMAKI_DATA", "data")
    given.add_argument("text", nargs="?", type=Path, default=Path(root) / "tinyshakespeare" / "input.txt")
    given.add_argument("--seeds", type=int, default=3)
    given.add_argument("--quick", action="store_true")
    given.add_argument("--slice", action="store_true")
    given.add_argument("--curves", type=Path)
    asked = given.parse_args()
    courses: list[Course] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ready = data(asked.text, Path(folder), asked.slice)
        for seed in range(1, asked.seeds + 1):
            for contestant in contestants(asked.quick):
                courses.append(race.run(contestant, ready, seed))
                last = courses[-1]
                print(f"seed {seed}, {last.name}: {last.losses[-1]:.4f} in {last.seconds[-1]:.1f} s", flush=True)
                race.keep(asked.curves, courses)
            step = transformers_step(ready.tokenizer.size)
            theirs.append(statistics.median([step() for _ in range(60)][10:]))
    threads, peak = torch.get_num_threads(), devices.matmul_peak(torch.device("cpu"), 2048) / 1e9
    where = "the last tenth of the training part" if asked.slice else "the last tenth"
    print(f"\n{threads} threads, matrix product {peak:.0f} GFLOP/s; seeds {asked.seeds}, medians; scored on {where}\n")
    print(table(courses, statistics.median(theirs)))


if __name__ == "__main__":
    main()
