"""The loader: a seeded order of rows in which any place is reached by seeking, never by skipping."""

import numpy as np
from numpy.typing import NDArray

from temaki.base import keys
from temaki.base.errors import DataError
from temaki.base.rows import TokenBatch
from temaki.batches import packing
from temaki.batches.shards import Shards


class Loader:
    """Rows of `context` ids in a seeded order: epoch after epoch, each a permutation of its own.

    Each epoch cuts the stream at another offset, so that rows of different epochs differ. Everything is a function of
    (shards, context, seed) and the place in the order.
    """

    def __init__(self, shards: Shards, context: int, seed: int):
        self.shards, self.context, self.seed = shards, context, seed
        spare = len(shards) - 1 - context
        if spare < 0:
            raise DataError(
                "the text is too short for one row", found=f"{len(shards)} ids in {shards.folder}",
                allowed=f"at least {context + 1}", do="give more text or a smaller batch.context",
            )  # fmt: skip
        self.shifts = min(context, spare + 1)
        """How many offsets an epoch may start at."""
        self.rows = (len(shards) - self.shifts) // context
        """Rows an epoch."""
        self._epoch = -1
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        self._starts = np.asarray(shards.offsets[:-1])

    def places(self, position: int, count: int) -> NDArray[np.int64]:
        """Where rows position..position+count-1 of the order begin in the stream: int64 [count]."""
        found = []
        while count:
            epoch, place = divmod(position, self.rows)
            if epoch != self._epoch:
                self._epoch = epoch
                shift = int(keys.uniform(self.seed, "shift", epoch) * self.shifts)
                order = keys.generator(self.seed, "order", epoch).permutation(self.rows)
                self._order = order.astype(np.int64) * self.context + shift
            piece = self._order[place : place + count]
            found.append(piece)
            position, count = position + len(piece), count - len(piece)
        return np.concatenate(found)

    def take(self, position: int, count: int) -> TokenBatch:
        """The batch of rows position..position+count-1 of the order."""
        places = self.places(position, count)
        stretches = np.stack([self.shards.read(place, place + self.context + 1) for place in places.tolist()])
        return packing.batch(stretches, packing.cuts(places, self._starts, self.context))
