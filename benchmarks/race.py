"""A race to a loss: every contestant is a recipe, runs through the one loop, and is scored at a fixed cadence.

Time is that of training steps, and of a begin from counts where there is one, since it is work done on the text;
start-up and scoring stand apart. The held-out ids are scored in consecutive windows that know nothing of each other.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from temaki.base import config as config_door
from temaki.base import keys
from temaki.base.rows import grid
from temaki.batches.prepare import Prepared
from temaki.batches.shards import Shards
from temaki.model.build import Model
from temaki.model.count import count
from temaki.study import recipes
from temaki.train import run as runs
from temaki.train.hooks import Hook
from temaki.train.loop import Run

Recipe = dict[str, Any]
Fill = Callable[[Model, int], None]
"""Gives a model its initial values by a seed."""


@dataclass(frozen=True)
class Contestant:
    """Who runs."""

    name: str
    recipe: Recipe
    every: int
    """Steps between two scores."""
    fill: Fill | None = None
    """None: the recipe's own initial values."""


@dataclass(frozen=True)
class Course:
    """One contestant's run: scores by step, and the training seconds spent until each."""

    name: str
    seed: int
    parameters: int
    every: int
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    """Seconds of every step."""
    apart: dict[str, float] = field(default_factory=dict)
    """Seconds that are not training: start-up and scoring."""

    @property
    def best(self) -> float:
        """The lowest loss of all scores."""
        return min(self.losses)

    @property
    def step_seconds(self) -> float:
        """Of the median step."""
        return statistics.median(self.each)

    def reached(self, loss: float) -> tuple[int, float] | None:
        """(step, training seconds) of the first score at or below a loss; None where there is none."""
        found = (i for i, each in enumerate(self.losses) if each <= loss)
        return next(((self.steps[i], self.seconds[i]) for i in found), None)


class Judge(Hook):
    """Scores a run on its cadence and keeps its clock."""

    name = "judge"

    def __init__(self, course: Course, held: Shards | None, context: int, fill: Fill | None, began: float):
        super().__init__()
        self.course, self.held, self.context, self.fill, self.began = course, held, context, fill, began

    def begin(self, run: Run) -> None:
        if self.fill is not None:
            self.fill(run.model, run.config.seed)
        self.counted = run.seconds
        self.course.apart["start-up"] = time.perf_counter() - self.began - self.counted
        self.course.apart["scoring"] = 0.0

    def step(self, run: Run, line: Mapping[str, float]) -> None:
        course = self.course
        course.each.append(run.config.batch.tokens / line["tokens_per_second"])
        if self.held is None or (run.step % course.every and run.step != run.plan.steps):
            return
        clock = time.perf_counter()
        course.steps.append(run.step)
        course.seconds.append(self.counted + sum(course.each))
        course.losses.append(loss(run.model, self.held, self.context))
        course.apart["scoring"] += time.perf_counter() - clock


@torch.no_grad()
def loss(model: Model, held: Shards, context: int, at_once: int = 16_384) -> float:
    """The mean loss of held-out ids in whole windows of `context`, each read alone: nats an id."""
    windows = (len(held) - 1) // context
    ids = torch.from_numpy(held.read(0, windows * context + 1))
    read, said = ids[:-1].view(windows, context), ids[1:].view(windows, context)
    rows, total = max(1, at_once // context), 0.0
    training = model.training
    model.eval()
    for i in range(0, windows, rows):
        hidden = model(grid(read[i : i + rows]))
        total += float(model.head.nll_each(hidden, said[i : i + rows].reshape(-1)).double().sum())
    model.train(training)
    return total / said.numel()


def run(contestant: Contestant, data: Prepared, seed: int, scored: bool = True) -> Course:
    """Train one contestant on prepared data; not `scored`: for the time of its steps alone."""
    found = config_door.merge(contestant.recipe, {"seed": seed, "data": {"shards": str(data.folder)}})
    config = recipes.complete(found, data.tokenizer.size)
    course = Course(contestant.name, seed, count(config.model).total, contestant.every)
    with tempfile.TemporaryDirectory() as folder:
        held = data.held if scored else None
        judge = Judge(course, held, config.batch.context, contestant.fill, time.perf_counter())
        outcome = runs.start(config, Path(folder) / "run", data, [judge])
    if outcome.reason != "finished":
        raise SystemExit(f"{contestant.name} was stopped by {outcome.reason}: no race")
    return course


def gpt2(width: int, depth: int, heads: int, context: int, lr: float, warmup: int, beta2: float) -> Recipe:
    """The plain GPT-2 without biases that peers are, under fused AdamW: decay 0.1 of matrices, cosine to a tenth."""
    mixer = {"kind": "attention", "heads": heads, "position": {"kind": "none"}}
    norm = {"kind": "layer", "bias": False}
    rule = {"kind": "adamw", "beta1": 0.9, "beta2": beta2}
    decayed = {**rule, "weight_decay": 0.1}
    return {
        "model": {
            "width": width, "depth": depth, "tied": True, "input_position": {"kind": "learned", "room": context},
            "pattern": [{"mixer": mixer, "ffn": {"kind": "gelu"}, "norm": norm}],
        },
        "optim": {
            "lr": lr, "matrix": decayed, "embedding": decayed, "head": decayed, "vector": rule, "clip": 1.0,
            "schedule": {"kind": "cosine", "warmup": warmup, "floor": 0.1},
        },
    }  # fmt: skip


@torch.no_grad()
def gpt2_values(model: Model, seed: int) -> None:
    """N(0, 0.02^2) for every matrix and table, residual projections by 1 / sqrt(2 depth). Radford et al. 2019, 2.3."""
    generator = torch.Generator().manual_seed(keys.torch_seed(seed, "gpt2"))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            last = name.endswith((".out", ".down"))
            parameter.normal_(0.0, 0.02 / math.sqrt(2 * len(model.blocks)) if last else 0.02, generator=generator)


def median(courses: Sequence[Course], of: Callable[[Course], float]) -> float:
    """Of several seeds."""
    return statistics.median(of(course) for course in courses)


def until(courses: Sequence[Course], goal: float) -> tuple[float, float] | None:
    """Median (steps, training seconds) of several seeds to a loss; None where half of them or more never reach it."""
    found = [course.reached(goal) or (math.inf, math.inf) for course in courses]
    steps, seconds = (statistics.median(each) for each in zip(*found, strict=True))
    return (steps, seconds) if math.isfinite(steps) else None


def spread(courses: Sequence[Course], of: Callable[[Course], float]) -> str:
    """The median, and the smallest and largest of several seeds."""
    values = [of(course) for course in courses]
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def keep(path: Path | None, courses: Sequence[Course]) -> None:
    """Write all courses as JSON, for a page that draws them."""
    if path is not None:
        path.write_text(json.dumps([asdict(course) for course in courses]), encoding="utf-8")
