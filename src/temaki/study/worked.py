"""Pictures worked out on paper that open a study: numbers for the page, from the package's own functions."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from temaki.model import hippo, hippo_memory, map_properties, maps
from temaki.study import spread

SCORES = (2.0, 1.0, -1.0, -1.5)
"""Of the first picture: their sum is small, and some are below 0."""
FROM = -2.5
"""Where the last score begins that is moved."""
MOST = 20.0
"""Weights are drawn while the sum is at least one in so many."""
FOUR = (1.0, 0.8, 0.1, -0.5)
"""Scores that every map is shown at."""
MOVED = 5.0
SAMPLES = 300
"""Of the signal that is remembered."""
WINDOW = 1 / 3
KEYS = 8
"""Of the look-up: angles evenly around the circle, the i-th with the value i."""
SHARPNESS = (1.0, 4.0, 16.0, 256.0)
TURNS = 96
"""Queries of the look-up."""


def pictures(study: str) -> dict[str, Any]:
    """The worked pictures of a study by name; empty where it has none."""
    made: Mapping[str, Callable[[], dict[str, Any]]] = {
        "positions": lambda: {"spread": spread.uniform()},
        "softmax": lambda: {"linear": linear(), "lookup": lookup(), "weights": weights()},
        "mixers": lambda: {"memory": memory()},
        "norms": lambda: {"contrast": contrast()},
    }
    return made[study]() if study in made else {}


def linear() -> dict[str, Any]:
    """Scores divided by their sum, beside softmax; and the first one's weight while the last score grows.

    >>> [round(x, 2) for x in linear()["linear"]]
    [4.0, 2.0, -2.0, -3.0]
    """
    x = torch.tensor(SCORES, dtype=torch.float64)
    grown = [0.02 * i for i in range(101)]
    moved = [torch.tensor([*SCORES[:-1], FROM + each], dtype=torch.float64) for each in grown]
    by_sum = [float(each[0] / each.sum()) if float(each.sum().abs()) > 1 / MOST else None for each in moved]
    return {
        "scores": list(SCORES),
        "linear": (x / x.sum()).tolist(),
        "softmax": maps.softmax(x).tolist(),
        "moved": {
            "from": FROM, "grown": grown, "linear": by_sum, "softmax": [float(maps.softmax(e)[0]) for e in moved],
        },
    }  # fmt: skip


def lookup() -> dict[str, Any]:
    """Attention over keys on a circle whose values are 0..KEYS-1: what a query of each angle is answered.

    score = sharpness * cos(angle of the query - angle of the key); with growing sharpness the answer becomes the value
    of the nearest key, as in a dictionary.
    """
    keys = torch.arange(KEYS, dtype=torch.float64) * 2 * math.pi / KEYS
    values = torch.arange(KEYS, dtype=torch.float64)
    turn = torch.linspace(0, KEYS - 1, TURNS, dtype=torch.float64)
    cosines = (turn[:, None] * 2 * math.pi / KEYS - keys).cos()
    answers = {f"{s:g}": (maps.softmax(s * cosines) @ values).tolist() for s in SHARPNESS}
    return {"turn": turn.tolist(), "answers": answers}


def weights() -> dict[str, Any]:
    """What each map makes of four scores and of the same less five, and what holds of it for any scores.

    >>> [round(x, 6) for x in weights()["rows"][1]["weights"]]
    [0.6, 0.4, 0.0, 0.0]
    """
    x = torch.tensor(FOUR, dtype=torch.float64)
    rows = [
        {
            "map": each.name, "weights": each.turned(x).tolist(), "moved": each.turned(x - MOVED).tolist(),
            "keeps": [each.sums, each.orders, each.shifts, each.sparse],
        }
        for each in map_properties.TABLE
    ]  # fmt: skip
    return {"scores": list(FOUR), "by": MOVED, "rows": rows}


def memory() -> dict[str, Any]:
    """A signal, and what a few coefficients that were updated sample by sample remember of it.

    LegS: of all the past, with 4 and 16 coefficients; LegT: of the last third, with 16.
    """
    time = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)
    u = (6 * time).sin() + time / 2 + 0.3 * (30 * time).sin()
    remembered: dict[str, list[float | None]] = {
        f"LegS, {n} numbers": hippo_memory.legendre_curve(hippo_memory.legs_memory(u, n), time).tolist()
        for n in (4, 16)
    }
    x = hippo_memory.window_memory(*hippo.legt(16, window=WINDOW), u, 1 / (SAMPLES - 1))
    inside = hippo_memory.legendre_curve(x, (time - 1) / WINDOW + 1).tolist()
    remembered["LegT, 16 numbers, the last third"] = [
        y if float(t) >= 1 - WINDOW else None for t, y in zip(time, inside, strict=True)
    ]
    return {"time": time.tolist(), "signal": u.tolist(), "remembered": remembered}


def contrast() -> dict[str, Any]:
    """The same four numbers by LayerNorm, over each row, and by BatchNorm, over each column.

    >>> contrast()["batch"][0][0], round(contrast()["layer"][0][2], 4)
    (-1.0, 1.2247)
    """
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]], dtype=torch.float64)

    def normed(axis: int) -> list[list[float]]:
        mean, var = x.mean(axis, keepdim=True), x.var(axis, unbiased=False, keepdim=True)
        return ((x - mean) / var.sqrt()).tolist()

    return {"x": x.tolist(), "layer": normed(1), "batch": normed(0)}
