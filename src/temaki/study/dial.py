"""One dial: minutes or depth fixes width, heads, batch, rate and steps from this machine's measured speed.

A budget of C FLOPs is spent on a model of n matrix parameters and RATIO n ids. The ratio is far below what is best at
scale: in minutes, on little text, a larger model reads fewer ids and still ends lower. See `docs/log.md`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch, grid
from temaki.batches.config import BatchConfig
from temaki.model import build
from temaki.model.bigrams import LARGEST
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
    """The FLOP/s that training reaches here: the best of a few whole steps of a small model (about two seconds)."""
    recipe, tokens = _tables(4, 4096, {})
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
    return tokens * flops_per_token(config, context) / min(times[1:])


def by_minutes(minutes: float, speed: float, vocabulary: int, recipe: Mapping[str, Any], share: float = 1.0) -> Dialed:
    """The deepest model for which a share of `minutes` at `speed` FLOP/s holds RATIO ids a matrix parameter.

    The kinds of `recipe`'s mixers and its context stay.
    """
    filled = minutes * share
    budget = filled * 60 * speed
    depths = [depth for depth in range(1, DEEPEST + 1) if depth % len(_pattern(recipe)) == 0]
    fitting = [depth for depth in depths if depth >= 2 and _cost(depth, vocabulary, recipe) <= budget]
    made, tokens = _tables(max(fitting, default=depths[0] if depths[0] > 1 else 2), vocabulary, recipe)
    model = _model(made, vocabulary)
    steps = max(SHORTEST, int(budget / flops_per_token(model, made["batch"]["context"]) / tokens))
    _lengthen(made, steps)
    made["stop"]["minutes"] = filled
    return Dialed(made, _line(made, vocabulary, filled, f"--minutes {minutes:g}"))


def by_depth(depth: int, speed: float, vocabulary: int, recipe: Mapping[str, Any]) -> Dialed:
    """The model of this depth, and the steps that give it RATIO ids a matrix parameter.

    The kinds of `recipe`'s mixers and its context stay. Raises ConfigError for a depth that its pattern cannot fill.
    """
    period = len(_pattern(recipe))
    if depth % period:
        allowed = f"a multiple of {period}"
        raise ConfigError("--depth does not fit the recipe's pattern", found=str(depth), allowed=allowed)
    made, tokens = _tables(depth, vocabulary, recipe)
    model = _model(made, vocabulary)
    steps = max(SHORTEST, math.ceil(RATIO * count(model).matrix / tokens))
    _lengthen(made, steps)
    minutes = steps * tokens * flops_per_token(model, made["batch"]["context"]) / speed / 60
    return Dialed(made, _line(made, vocabulary, minutes, f"--depth {depth}"))


def _pattern(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recipe's pattern of blocks; one block of attention where it has none.

    Raises ConfigError for a block that is not a table with a mixer.
    """
    model = recipe.get("model", {})
    found = model.get("pattern") if isinstance(model, Mapping) else None
    if not isinstance(found, list) or not found:
        return [{"mixer": {"kind": "attention", "qk_norm": True}}]
    for i, block in enumerate(found):
        if not isinstance(block, Mapping) or not isinstance(block.get("mixer"), Mapping):
            raise ConfigError(f"model.pattern.{i}: a block is a table with a mixer", found=str(block))
    return found


def _context(recipe: Mapping[str, Any]) -> int:
    """The recipe's ids a row. Raises ConfigError where that is no such number."""
    table = recipe.get("batch", {})
    found = table.get("context", BatchConfig().context) if isinstance(table, Mapping) else table
    if type(found) is not int or found < 1:
        raise ConfigError("batch.context: not a number of ids", found=str(found), allowed="1 or more")
    return found


def _masked(recipe: Mapping[str, Any]) -> bool:
    """Whether what is learned is no next id, which bigrams would begin with."""
    objective = recipe.get("objective", {})
    return isinstance(objective, Mapping) and objective.get("kind") == "masked"


def _tables(depth: int, vocabulary: int, recipe: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Recipe tables of a depth, and the ids of its step."""
    heads = max(3, depth - 1)
    pattern = [dict(block) for block in _pattern(recipe)]
    for block in pattern:
        if block["mixer"].get("kind") == "attention":
            block["mixer"] = {**block["mixer"], "heads": heads, "kv_heads": _kv_heads(heads)}
    context = _context(recipe)
    tokens = context * max(1, 512 * 2 ** max(1, round(math.log2(depth))) // context)
    made: dict[str, Any] = {
        "model": {"width": HEAD * heads, "depth": depth, "tied": False, "init": "zero-out", "pattern": pattern},
        "begin": {"kind": "bigrams" if vocabulary <= LARGEST and not _masked(recipe) else "random"},
        "batch": {"tokens": tokens, "context": context},
        "optim": {"lr": float(f"{0.0055 * math.sqrt(3 / heads):.2g}"), "embedding": {"kind": "adamw", "rate": 9.0}},
    }
    return made, tokens


def _lengthen(recipe: dict[str, Any], steps: int) -> None:
    """Give the recipe its steps and a schedule that fits them."""
    recipe["stop"] = {"steps": steps}
    recipe["optim"]["schedule"] = {"kind": "wsd", "warmup": max(1, min(20, steps // 20)), "decay": 0.5, "floor": 0.02}


def _kv_heads(heads: int) -> int:
    """As many heads of keys and values as divide the heads and are at most half of them."""
    return max(g for g in range(1, heads) if heads % g == 0 and g <= max(1, heads // 2))


def _cost(depth: int, vocabulary: int, recipe: Mapping[str, Any]) -> float:
    """FLOPs of training a model of this depth on RATIO ids a matrix parameter."""
    made, _ = _tables(depth, vocabulary, recipe)
    model = _model(made, vocabulary)
    return RATIO * count(model).matrix * flops_per_token(model, made["batch"]["context"])


def _model(recipe: dict[str, Any], vocabulary: int) -> DecoderConfig:
    return config_door.read(DecoderConfig, {**recipe["model"], "vocabulary": vocabulary})


def _line(recipe: dict[str, Any], vocabulary: int, minutes: float, dial: str) -> str:
    model, tokens, steps = _model(recipe, vocabulary), recipe["batch"]["tokens"], recipe["stop"]["steps"]
    kinds = "+".join(dict.fromkeys(block.mixer.kind for block in model.pattern))
    return (
        f"{dial} fixes: depth {model.depth}, width {model.width}, {kinds}, {model.width // HEAD} heads, "
        f"{count(model).total / 1e6:.2f}M parameters, {tokens} ids a step, lr {recipe['optim']['lr']:g}, "
        f"about {steps} steps, {steps * tokens / 1e6:.2f}M ids, {minutes:.1f} minutes"
    )
