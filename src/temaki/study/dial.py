"""One dial: minutes or depth fixes width, heads, batch, rate and steps from this machine's measured speed.

A budget of C FLOPs is spent on a model of n matrix parameters and RATIO n ids. The ratio is far below what is best at
scale: in minutes, on little text, a larger model reads fewer ids and still ends lower. See `docs/log.md`.
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base.rows import TokenBatch, grid
from temaki.model import build
from temaki.model.config import DecoderConfig
from temaki.model.count import count, flops_per_token
from temaki.optim.config import OptimConfig
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.train.config import NextConfig
from temaki.train.objectives import Next
from temaki.train.step import update

RATIO = 0.5
"""Ids a matrix parameter."""
HEAD = 64
"""Head size."""
DEEPEST = 48
SHORTEST = 40
"""Steps."""


@dataclass(frozen=True)
class Dialed:
    """What the dial fixed, as tables of a recipe, and a line that says so."""

    recipe: dict[str, Any]
    line: str


def measure(repeats: int = 4) -> float:
    """The FLOP/s that training reaches here: whole steps of a small model, timed; takes about two seconds."""
    recipe, tokens = _tables(4)
    context = recipe["batch"]["context"]
    config, device = _model(recipe, 4096), devices.choose()
    model = build.build(config).to(device)
    roles = model.roles()
    optimizer = Optimizer(dict(model.named_parameters()), roles, groups(OptimConfig(), roles), 1e-3)
    ids = torch.arange(tokens, device=device).reshape(-1, context) % config.vocabulary
    batch = TokenBatch(grid(ids), ids.reshape(-1), torch.ones(tokens, device=device))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        update(model, Next(NextConfig()), optimizer, [batch], 1.0, 1.0)
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return tokens * flops_per_token(config, context) / statistics.median(times[1:])


def by_minutes(minutes: float, speed: float, vocabulary: int) -> Dialed:
    """The deepest model for which `minutes` at `speed` FLOP/s hold RATIO ids a matrix parameter."""
    budget = minutes * 60 * speed
    depth = 2
    while depth < DEEPEST and budget >= _cost(depth + 1, vocabulary):
        depth += 1
    recipe, tokens = _tables(depth)
    model = _model(recipe, vocabulary)
    steps = max(SHORTEST, int(budget / flops_per_token(model, recipe["batch"]["context"]) / tokens))
    _lengthen(recipe, steps)
    recipe["stop"]["minutes"] = minutes
    return Dialed(recipe, _line(recipe, vocabulary, minutes, f"--minutes {minutes:g}"))


def by_depth(depth: int, speed: float, vocabulary: int) -> Dialed:
    """The model of this depth, and the steps that give it RATIO ids a matrix parameter."""
    recipe, tokens = _tables(depth)
    model = _model(recipe, vocabulary)
    steps = max(SHORTEST, math.ceil(RATIO * count(model).matrix / tokens))
    _lengthen(recipe, steps)
    minutes = steps * tokens * flops_per_token(model, recipe["batch"]["context"]) / speed / 60
    return Dialed(recipe, _line(recipe, vocabulary, minutes, f"--depth {depth}"))


def _tables(depth: int) -> tuple[dict[str, Any], int]:
    """Recipe tables of a depth, and the ids of its step."""
    heads = max(3, depth - 1)
    mixer = {"kind": "attention", "heads": heads, "kv_heads": _kv_heads(heads), "qk_norm": True}
    tokens = 512 * 2 ** max(1, round(math.log2(depth)))
    recipe: dict[str, Any] = {
        "model": {"width": HEAD * heads, "depth": depth, "tied": False, "pattern": [{"mixer": mixer}]},
        "begin": {"kind": "bigrams"},
        "batch": {"tokens": tokens, "context": 512},
        "optim": {"lr": float(f"{0.0055 * math.sqrt(3 / heads):.2g}"), "embedding": {"kind": "adamw", "rate": 18.0}},
    }
    return recipe, tokens


def _lengthen(recipe: dict[str, Any], steps: int) -> None:
    """Give the recipe its steps and a schedule that fits them."""
    recipe["stop"] = {"steps": steps}
    recipe["optim"]["schedule"] = {"kind": "wsd", "warmup": max(1, min(20, steps // 20)), "decay": 0.5, "floor": 0.02}


def _kv_heads(heads: int) -> int:
    """As many heads of keys and values as divide the heads and are at most half of them."""
    return max(g for g in range(1, heads) if heads % g == 0 and g <= max(1, heads // 2))


def _cost(depth: int, vocabulary: int) -> float:
    """FLOPs of training a model of this depth on RATIO ids a matrix parameter."""
    recipe, _ = _tables(depth)
    model = _model(recipe, vocabulary)
    return RATIO * count(model).matrix * flops_per_token(model, recipe["batch"]["context"])


def _model(recipe: dict[str, Any], vocabulary: int) -> DecoderConfig:
    return config_door.read(DecoderConfig, {**recipe["model"], "vocabulary": vocabulary})


def _line(recipe: dict[str, Any], vocabulary: int, minutes: float, dial: str) -> str:
    model, tokens, steps = _model(recipe, vocabulary), recipe["batch"]["tokens"], recipe["stop"]["steps"]
    return (
        f"{dial} fixes: depth {model.depth}, width {model.width}, {model.width // HEAD} heads, "
        f"{count(model).total / 1e6:.2f}M parameters, {tokens} ids a step, lr {recipe['optim']['lr']:g}, "
        f"about {steps} steps, {steps * tokens / 1e6:.2f}M ids, {minutes:.1f} minutes"
    )
