"""Little runs for the laws of training: data, recipes, what two runs have in common."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import variants
from temaki.base import config as config_door
from temaki.base import log
from temaki.base.config import read
from temaki.batches.config import DataConfig
from temaki.batches.prepare import Prepared, prepare
from temaki.checkpoint.store import Store
from temaki.train.hooks import Hook
from temaki.train.loop import Run

WORDS = "the cat saw a dog and then it ran over hills to find some rice rolled by hand äöü 飯".split()  # noqa: SIM905


def prepared_in(folder: Path) -> Prepared:
    """Shards of a small corpus of varied sentences, with a home-made tokenizer."""
    text = folder / "text"
    text.mkdir()
    generator = np.random.default_rng(1)
    for i in range(30):
        lines = [" ".join(generator.choice(WORDS, 9)) for _ in range(12)]
        (text / f"{i:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    config = read(DataConfig, {"text": str(text), "vocabulary": 300, "held_out": 0.2})
    return prepare(config, folder / "data", lambda *_: None)


def recipe(name: str, **changes: object) -> dict[str, Any]:
    """Twelve steps of a tiny variant."""
    found = {
        "name": "test",
        "seed": 5,
        "model": plain(name),
        "batch": {"tokens": 128, "context": 32},
        "stop": {"steps": 12},
        "save": {"every": 5},
        "optim": {"schedule": {"kind": "wsd", "warmup": 2}},
        "watch": {"log": 1},
        "parallel": {"threads": 1},
    }
    return {**found, **changes}


def plain(name: str) -> dict[str, Any]:
    """A variant's configuration as a table."""
    return config_door.mapping(variants.config(name, vocabulary=300))


def lines(folder: Path) -> list[dict[str, Any]]:
    """Step lines without what is measured by the clock or is the machine's."""
    measured = {"seconds", "tokens_per_second", "peak_share", "memory"}
    found = [line for line in log.read(folder / "metrics.jsonl") if line["kind"] == "step"]
    return [{key: value for key, value in line.items() if key not in measured} for line in found]


def same_checkpoints(a: Path, b: Path, step: int) -> None:
    """Weights and moments of a step are the same to the bit."""
    one, two = (Store(folder / "checkpoints").open(step) for folder in (a, b))
    for left, right in ((one.weights(), two.weights()), (one.optimizer() or {}, two.optimizer() or {})):
        assert left
        assert set(left) == set(right)
        assert all(np.array_equal(left[name], right[name]) for name in left)


class At(Hook):
    """Does something once, after a chosen step."""

    name = "at"

    def __init__(self, step: int, act: Callable[[Run], None]):
        super().__init__()
        self.at, self.act = step, act

    def step(self, run: Run, line: Mapping[str, float]) -> None:
        if run.step == self.at:
            self.act(run)
