"""What a recipe costs, counted before anything is built: parameters, FLOPs, bytes, memory, Muon's share of a step."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from temaki.base import device as devices
from temaki.base.errors import ConfigError
from temaki.model import roofline
from temaki.model.count import Count, count, flops_per_token, forward_flops
from temaki.model.presets import PRESETS, preset
from temaki.model.roofline import Machine, Matrix
from temaki.optim.config import MuonConfig
from temaki.optim.cost import muon_flops
from temaki.report.figures import short, size
from temaki.study import further, recipes
from temaki.train import room
from temaki.train.config import RunConfig, freezes

MOST = 0.05
"""Share of a training step's FLOPs that Muon should take at most."""
COPIED = 1 << 26
"""Numbers of the copy that measures memory: far more than any cache holds."""


def named(name: str) -> dict[str, Any]:
    """A recipe for a known shape: one step of at least 2,048 ids, in rows as long as the model was made for."""
    config = preset(name).config
    context = config.context or 1024
    return {
        "name": name,
        "model": {"preset": name, "vocabulary": config.vocabulary},
        "batch": {"context": context, "tokens": max(1, 2048 // context) * context},
        "stop": {"steps": 1},
    }


def completed(found: Mapping[str, Any]) -> RunConfig:
    """A resolved recipe's configuration; one that begins with a model has that model's shape.

    Raises ConfigError for a recipe whose [model] table is missing.
    """
    model = further.opened(found)
    found = further.with_model(found, model) if model is not None else found
    if "model" not in found:
        raise ConfigError(
            "the recipe has no [model] table, so there is nothing to count",
            allowed=f"a recipe with one, or a name: {', '.join(PRESETS)}",
            do="a dial gives it a shape: --depth 6",
        )
    return recipes.complete(found, recipes.vocabulary(recipes.data(found)))


def measured() -> Machine:
    """This machine's matrix product and memory, measured in about a second."""
    device = devices.choose()
    source, target = torch.zeros(2, COPIED, device=device).unbind()
    best = float("inf")
    for _ in range(4):
        devices.synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        devices.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return Machine(devices.matmul_peak(device), 2 * 4 * COPIED / best)


def cost(config: RunConfig, machine: Machine) -> dict[str, Any]:
    """All figures by name, as JSON keeps them."""
    model, batch = config.model, config.batch
    micro, context = batch.micro or batch.tokens, batch.context
    found = count(model)
    moments = (room.room(config).optimizer / room.EACH) / found.total
    works = {
        "forward": roofline.forward(model, context, micro),
        "training": roofline.training(model, context, micro, batch.tokens, moments, freezes(config.objective)),
        "decoding": roofline.decoding(model, context),
    }
    return {
        "name": config.name,
        "context": context,
        "tokens": batch.tokens,
        "micro": micro,
        "parameters": parameters(found),
        "flops_per_token": {name: work.flops for name, work in works.items()},
        "flops_forward_row": forward_flops(model, context),
        "bytes_per_token": {name: work.bytes for name, work in works.items()},
        "intensity": {name: work.intensity for name, work in works.items()},
        "machine": {"peak": machine.peak, "bandwidth": machine.bandwidth, "ridge": machine.ridge},
        "roofline_share": {name: machine.share(work) for name, work in works.items()},
        "most_tokens_per_second": {name: machine.speed(work) for name, work in works.items()},
        "memory": memory(config),
        "muon": muon(config),
    }


def parameters(found: Count) -> dict[str, int]:
    """Parameters by part; "met" are those that an id is multiplied by."""
    parts = ("embedding", "positions", "mixers", "ffns", "norms", "head", "further")
    return {**{name: getattr(found, name) for name in parts}, "total": found.total, "met": found.active}


def memory(config: RunConfig) -> dict[str, float]:
    """Bytes of a training step on one process, by what they are."""
    found = room.room(config)
    names = ("weights", "gradients", "optimizer", "activations", "update", "total")
    return {name: getattr(found, name) for name in names}


def muon(config: RunConfig) -> dict[str, float] | None:
    """Muon's FLOPs a step, their share of the step's, and the ids a step from which that is under MOST.

    None where matrices move by another rule. share = m / (m + t f) for m FLOPs of Muon, t ids of f FLOPs each.
    """
    rule = config.optim.matrix
    if not isinstance(rule, MuonConfig):
        return None
    frozen = freezes(config.objective)
    flops = sum(_muon(matrix, config, rule) for matrix in roofline.matrices(config.model))
    if frozen:  # the trunk does not move
        flops -= sum(_muon(matrix, config, rule) for matrix in roofline.matrices(replace(config.model, further=None)))
    step = config.batch.tokens * flops_per_token(config.model, config.batch.context, frozen)
    enough = flops * (1 - MOST) / MOST / (step / config.batch.tokens)
    return {"flops": flops, "share": flops / (flops + step), "enough_tokens": -(-enough // 1)}


def _muon(matrix: Matrix, config: RunConfig, rule: MuonConfig) -> float:
    """FLOPs of Newton-Schulz for one stack of matrices; `per_head` cuts queries, keys and values into heads."""
    parts = matrix.parts
    if rule.per_head and matrix.head is not None:
        parts = (matrix.head,) * (matrix.rows // matrix.head)
    return matrix.copies * sum(muon_flops(rows, matrix.cols, rule.steps) for rows in parts)


def table(found: Mapping[str, Any]) -> str:
    """The figures as lines."""
    return "\n".join([*_parameters(found), "", *_works(found), "", *_rest(found)])


def _parameters(found: Mapping[str, Any]) -> list[str]:
    parts = {name: value for name, value in found["parameters"].items() if name not in ("total", "met") and value}
    total = found["parameters"]["total"]
    lines = [f"{found['name']}: {total:,} parameters; an id is multiplied by {found['parameters']['met']:,}"]
    words = {"ffns": "feed-forward", "further": "heads of further ids"}
    return lines + [f"  {words.get(name, name):<22}{value:>16,}  {value / total:6.1%}" for name, value in parts.items()]


def _works(found: Mapping[str, Any]) -> list[str]:
    kinds = {
        "forward": f"forward, {found['micro']:,} ids",
        "training": f"training, {found['tokens']:,} ids a step",
        "decoding": f"decoding alone, {found['context']:,} ids before",
    }
    lines = [f"{'an id':<32}{'FLOPs':>9}{'bytes':>9}{'FLOPs/byte':>12}{'of the peak':>13}{'ids/s':>10}"]
    for kind, words in kinds.items():
        flops, moved = found["flops_per_token"][kind], found["bytes_per_token"][kind]
        share, speed = found["roofline_share"][kind], found["most_tokens_per_second"][kind]
        costs = f"{words:<32}{short(flops):>9}{short(moved):>9}{found['intensity'][kind]:>12.1f}"
        lines.append(f"{costs}{share:>12.0%} {short(speed):>10}")
    machine = found["machine"]
    return [
        *lines,
        f"at most, by the roofline of {size(machine['peak'], 'FLOP/s')} and {size(machine['bandwidth'], 'B/s')} (they "
        f"meet at {machine['ridge']:.1f} FLOPs/byte), where all but the products is fused",
        f"forward of a row of {found['context']:,} by 2mnp, masked places too: "
        f"{size(found['flops_forward_row'], 'FLOP')}",
    ]


def _rest(found: Mapping[str, Any]) -> list[str]:
    held = found["memory"]
    parts = ", ".join(f"{name} {size(value)}" for name, value in held.items() if name != "total")
    lines = [f"memory of a training step: about {size(held['total'])} ({parts})"]
    share = found["muon"]
    if share is None:
        return [*lines, "Muon: not used"]
    return [
        *lines,
        f"Muon: {share['share']:.1%} of a step's FLOPs at {found['tokens']:,} ids; at most {MOST:.0%} from "
        f"{share['enough_tokens']:,.0f} ids a step on",
    ]
