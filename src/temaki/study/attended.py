"""Where trained attention looks: maps to be drawn, and how many of the weights are exactly zero. Letters: H heads."""

from typing import Any

import torch

from temaki.base import rows
from temaki.batches.shards import Shards
from temaki.model.build import Model
from temaki.model.trace import attention_maps
from temaki.study import held as held_text

SHOWN = 32
"""Ids of the row whose maps are kept."""
STRETCHES = 4
LEVELS = 9
"""Weights are kept as whole numbers up to this: the square root of the weight, so that small ones are seen."""


def measure(model: Model, held: Shards, context: int) -> dict[str, Any]:
    """zeros: the share of exact zeros among the weights of what may be seen, by layer. sums: least and most of a row.

    maps: of the first and the last layer with attention, by head, rows of queries: whole numbers 0..LEVELS.
    """
    found = held_text.stretches(held, context, STRETCHES)
    read = rows.grid(torch.from_numpy(found[:, :-1]))
    seen = torch.ones(context, context, dtype=torch.bool).tril()
    zeros: dict[str, float] = {}
    sums: list[float] = []
    shown: dict[str, list[list[str]]] = {}
    for layer, pieces in attention_maps(model, read).items():
        weights = torch.stack(pieces)  # [W, H, n, n]
        zeros[str(layer)] = float((weights[..., seen] == 0).double().mean())
        sums += [float(weights.sum(-1).min()), float(weights.sum(-1).max())]
        shown[str(layer)] = [_drawn(head) for head in weights[0, :, :SHOWN, :SHOWN]]
    ends = [str(layer) for layer in sorted(map(int, shown))]
    kept = {layer: shown[layer] for layer in dict.fromkeys([ends[0], ends[-1]])} if ends else {}
    return {"zeros": zeros, "sums": [min(sums), max(sums)] if sums else [], "maps": kept}


def _drawn(weights: torch.Tensor) -> list[str]:
    """A digit a weight, a text a query; 0 is an exact zero, anything else at least 1."""
    level = (weights.clamp(0, 1).sqrt() * LEVELS).ceil().long()
    return ["".join(str(int(each)) for each in row) for row in level]
