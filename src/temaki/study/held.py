"""Stretches of held-out text, and what a model pays for each of their ids. Letters: W stretches, n ids of each."""

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from temaki.base import rows
from temaki.base.errors import DataError
from temaki.batches.shards import Shards
from temaki.model.build import Model

AT_ONCE = 8192
"""Ids that are read in one call, unless one stretch is longer."""


def stretches(held: Shards, length: int, most: int) -> NDArray[np.int64]:
    """At most `most` stretches of `length` ids and the id after them, each inside one document: [W, length + 1].

    They lie evenly over all that there are. Where no document is long enough they run over the ends of documents.
    Raises DataError where all of the text is shorter.
    """
    ends = held.offsets.tolist()
    spans = [(a, b) for a, b in itertools.pairwise(ends) if b - a > length] or [(0, len(held))]
    starts = [s for a, b in spans for s in range(a, b - length, length)]
    if not starts:
        raise DataError("the held-out text is too short to be read in long rows", found=f"{len(held)} ids",
                        allowed=f"at least {length + 1}", do="give more text, or a smaller batch.context")  # fmt: skip
    picked = [starts[i * len(starts) // most] for i in range(most)] if len(starts) > most else starts
    return np.stack([held.read(start, start + length + 1) for start in picked])


@torch.no_grad()
def losses(model: Model, found: NDArray[np.int64]) -> Tensor:
    """-log p of each id after the first, each stretch [n + 1] read as one piece: float64 [W, n], nats."""
    n = found.shape[1] - 1
    step = max(1, AT_ONCE // n)
    made = []
    for low in range(0, len(found), step):
        ids = torch.from_numpy(found[low : low + step])
        hidden = model(rows.grid(ids[:, :-1]))
        each = model.head.nll_each(hidden, ids[:, 1:].reshape(-1))
        made.append(each.double().view(len(ids), n))
    return torch.cat(made)
