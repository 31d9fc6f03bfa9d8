"""What a model pays for ids beyond the rows it was trained with. Letters: T ids a row of training, W stretches.

Stretches of 4 T ids are read once whole and once cut into four rows of T. Both readings are asked for the same ids, so
their difference at the far ones is the gain, or the harm, of a past that is longer than any in training.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from temaki.base.errors import ConfigError
from temaki.batches.shards import Shards
from temaki.model.build import Model
from temaki.study import held as held_text

TIMES = (1, 2, 4)
"""Lengths, in rows of training."""
STRETCHES = 24
LAST = 4
"""The last places of a length are this share of T: one in so many."""


def measure(model: Model, held: Shards, context: int, most: int = STRETCHES) -> dict[str, Any]:
    """Loss by length: nats an id.

    short: of all ids, read in rows of T. mean: of all ids of rows of T, 2 T and 4 T. last: of their last T/4 ids; cut:
    of the same ids read in rows of T. places: of runs of T/4 ids along 4 T. `cannot` says why longer rows are refused.
    """
    found = held_text.stretches(held, TIMES[-1] * context, most)
    parts = [found[:, r * context : (r + 1) * context + 1] for r in range(TIMES[-1])]
    cut = held_text.losses(model, np.stack(parts, 1).reshape(-1, context + 1)).view(len(found), -1)  # [W, 4 T]
    made: dict[str, Any] = {"short": float(cut.mean()), "tokens": cut.numel()}
    try:
        long = held_text.losses(model, found)
    except ConfigError as error:
        return {**made, "cannot": error.what, "mean": [float(cut[:, :context].mean()), None, None]}
    return {**made, **_by_length(long, cut, context)}


def _by_length(long: Tensor, cut: Tensor, context: int) -> Mapping[str, list[float]]:
    last = max(1, context // LAST)
    ends = [times * context for times in TIMES]
    return {
        "mean": [float(long[:, :end].mean()) for end in ends],
        "last": [float(long[:, end - last : end].mean()) for end in ends],
        "cut": [float(cut[:, end - last : end].mean()) for end in ends],
        "places": [float(each.mean()) for each in long.split(last, 1)],
    }
