"""One dial: minutes or depth fixes width, heads, batch, rate and steps from this machine's measured speed.

A budget of C FLOPs is spent on a model of n matrix parameters and about RATIO n ids: C = 6 n RATIO n. The ratio is far
below what is best at scale, because a run of minutes must also have learned enough words; see `docs/log.md`.
"""

import math
from dataclasses import dataclass
from typing import Any

from temaki.base import config as config_door
from temaki.model.config import DecoderConfig
from temaki.model.count import count, flops_per_token

RATIO = 0.5
"""Ids a matrix parameter."""
SHARE = 0.8
"""Of the matrix peak that a training step reaches."""
HEAD = 64
"""Head size."""
DEEPEST = 48


@dataclass(frozen=True)
class Dialed:
    """What the dial fixed, as tables of a recipe, and a line that says so."""

    recipe: dict[str, Any]
    line: str


def by_minutes(minutes: float, peak: float, vocabulary: int) -> Dialed:
    """The deepest model whose budget of `minutes` at `peak` FLOP/s holds RATIO ids a matrix parameter."""
    budget = minutes * 60 * peak * SHARE
    depth = 2
    while depth < DEEPEST and budget >= _cost(depth + 1, vocabulary):
        depth += 1
    recipe, tokens = _tables(depth)
    model = _model(recipe, vocabulary)
    steps = max(40, int(budget / flops_per_token(model, recipe["batch"]["context"]) / tokens))
    recipe["stop"] = {"steps": steps, "minutes": minutes}
    recipe["optim"]["schedule"] = _schedule(steps)
    return Dialed(recipe, _line(recipe, vocabulary, steps * tokens, minutes, f"--minutes {minutes:g}"))


def by_depth(depth: int, peak: float, vocabulary: int) -> Dialed:
    """The model of this depth, and the steps that give it RATIO ids a matrix parameter."""
    recipe, tokens = _tables(depth)
    model = _model(recipe, vocabulary)
    steps = max(40, math.ceil(RATIO * count(model).matrix / tokens))
    recipe["stop"] = {"steps": steps}
    recipe["optim"]["schedule"] = _schedule(steps)
    minutes = steps * tokens * flops_per_token(model, recipe["batch"]["context"]) / (peak * SHARE) / 60
    return Dialed(recipe, _line(recipe, vocabulary, steps * tokens, minutes, f"--depth {depth}"))


def _tables(depth: int) -> tuple[dict[str, Any], int]:
    """Recipe tables of a depth, and the ids of its step."""
    heads = max(3, depth)
    mixer = {"kind": "attention", "heads": heads, "kv_heads": _kv_heads(heads), "qk_norm": True}
    tokens = 512 * 2 ** max(1, round(math.log2(depth)) - 1)
    recipe: dict[str, Any] = {
        "model": {"width": HEAD * heads, "depth": depth, "tied": False, "pattern": [{"mixer": mixer}]},
        "batch": {"tokens": tokens, "context": 512},
        "optim": {"lr": float(f"{0.02 / math.sqrt(heads / 3):.2g}"), "embedding": {"rate": 20.0}},
    }
    return recipe, tokens


def _schedule(steps: int) -> dict[str, Any]:
    return {"kind": "wsd", "warmup": max(1, min(20, steps // 20)), "decay": 0.5, "floor": 0.02}


def _kv_heads(heads: int) -> int:
    """About a third as many heads of keys and values."""
    return max(g for g in range(1, heads) if heads % g == 0 and g <= max(1, heads // 2))


def _cost(depth: int, vocabulary: int) -> float:
    """FLOPs of training a model of this depth on RATIO ids a matrix parameter."""
    recipe, _ = _tables(depth)
    model = _model(recipe, vocabulary)
    return RATIO * count(model).matrix * flops_per_token(model, recipe["batch"]["context"])


def _model(recipe: dict[str, Any], vocabulary: int) -> DecoderConfig:
    return config_door.read(DecoderConfig, {**recipe["model"], "vocabulary": vocabulary})


def _line(recipe: dict[str, Any], vocabulary: int, tokens: int, minutes: float, dial: str) -> str:
    model = _model(recipe, vocabulary)
    heads = recipe["model"]["pattern"][0]["mixer"]["heads"]
    return (
        f"{dial} fixes: depth {model.depth}, width {model.width}, {heads} heads, "
        f"{count(model).total / 1e6:.2f}M parameters, {recipe['batch']['tokens']} ids a step, "
        f"lr {recipe['optim']['lr']:g}, "
        f"about {recipe['stop']['steps']} steps, {tokens / 1e6:.2f}M ids, {minutes:.1f} minutes"
    )
