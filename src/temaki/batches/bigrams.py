"""How often each id follows each other in the shards. Letters: V vocabulary."""

import numpy as np
from numpy.typing import NDArray

from temaki.batches.shards import Shards

CHUNK = 1 << 22
"""Ids read at a time."""


def count(shards: Shards) -> NDArray[np.float32]:
    """float32 [V, V]: how often y follows x, the boundary included on both sides."""
    v = shards.manifest.vocabulary
    found = np.zeros(v * v, np.int64)
    for start in range(0, len(shards) - 1, CHUNK):
        ids = shards.read(start, min(start + CHUNK + 1, len(shards)))
        found += np.bincount(ids[:-1] * v + ids[1:], minlength=v * v)
    return found.reshape(v, v).astype(np.float32)
