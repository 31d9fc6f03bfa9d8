"""Rows whose segmentation is drawn anew each time they are read: the same text, cut into other ids.

BPE-dropout (Provilkov et al. 2020, "BPE-dropout: Simple and effective subword regularization", section 3.2) for
tokenizers that merge; sampled segmentations (Kudo 2018, "Subword regularization", section 3.2) for those whose pieces
have probabilities. Only training reads so; validation and all later use segment as ever.

A row begins where the plain row of its place begins: the text of the plain ids from there on is segmented with draws
named by the row's place in the run, until there are enough ids. So any row can be reached by seeking, no stream of an
epoch is kept, and several processes read what one would. What the longer segmentation leaves unread at a row's end (of
n times as many ids, a share of 1 - 1 / n) comes in other epochs, which cut at other offsets. A character that the cut
would halve is left out. Letters: T ids a row.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from temaki.base import keys
from temaki.base.errors import ConfigError, TokenizerError
from temaki.base.rows import TokenBatch
from temaki.batches import packing
from temaki.batches.config import BatchConfig, DropoutConfig, SampledConfig, SegmentationConfig
from temaki.batches.loader import Loader
from temaki.batches.shards import Shards
from temaki.tokens.tokenizer import Dropout, Noise, Sampling, Tokenizer


def noise(config: SegmentationConfig, seed: int, place: int) -> Noise:
    """The draws of a text.

    >>> noise(DropoutConfig(drop=0.1), 7, 3)
    Dropout(seed=7, place=3, drop=0.1)
    """
    match config:
        case DropoutConfig():
            return Dropout(seed, place, config.drop)
        case SampledConfig():
            return Sampling(seed, place, config.alpha)


def check(config: SegmentationConfig | None, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a tokenizer that cannot segment so."""
    if config is None:
        return
    try:
        tokenizer.encode("a", noise=noise(config, 0, 0))
    except TokenizerError as error:
        raise ConfigError(
            f'a tokenizer of kind {tokenizer.kind!r} has no batch.segmentation.kind = "{config.kind}"',
            found=error.what,
            allowed='"dropout" for tokenizers that merge, "sampled" for those whose pieces have probabilities',
            do="choose the other kind, or leave batch.segmentation out",
        ) from None


def loader(shards: Shards, tokenizer: Tokenizer, batch: BatchConfig, seed: int) -> Loader:
    """The loader of a run, plain or with drawn segmentations."""
    if batch.segmentation is None:
        return Loader(shards, batch.context, seed)
    return Resegmented(shards, tokenizer, batch.context, seed, batch.segmentation)


class Resegmented(Loader):
    """A loader whose rows are segmented by draws that are a function of (seed, place in the order)."""

    def __init__(self, shards: Shards, tokenizer: Tokenizer, context: int, seed: int, segmentation: SegmentationConfig):
        super().__init__(shards, context, seed)
        self.tokenizer, self.segmentation = tokenizer, segmentation
        self._special = np.array(sorted({*tokenizer.special.values(), shards.manifest.boundary}), np.int64)

    def take(self, position: int, count: int) -> TokenBatch:
        """The batch of rows position..position+count-1 of the order."""
        places = self.places(position, count).tolist()
        rows = [self._row(place, position + i) for i, place in enumerate(places)]
        cuts = [np.append(0, starts) + i * self.context for i, (_, starts) in enumerate(rows)]
        cuts.append(np.array([count * self.context]))
        return packing.batch(np.stack([ids for ids, _ in rows]), np.concatenate(cuts))

    def _row(self, place: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row `number` of the run, from a place of the stream on: ids [T + 1], and where documents begin inside it."""
        length = wanted = self.context + 1
        seed = keys.torch_seed(self.seed, "segmentation", number)
        while True:
            pieces = list(self._pieces(place, length, seed))
            ids = np.concatenate([piece for piece, _ in pieces])
            if len(ids) >= wanted:
                break
            length *= 2  # fewer ids than the plain ones, or text that was cut off
        ends = np.cumsum([len(piece) for piece, _ in pieces])
        starts = np.array(
            [end - len(piece) for end, (piece, begins) in zip(ends, pieces, strict=True) if begins], np.int64
        )
        return ids[:wanted], starts[(starts > 0) & (starts < self.context)]

    def _pieces(self, place: int, length: int, seed: int) -> Iterator[tuple[NDArray[np.int64], bool]]:
        """The stretch of the stream as runs of drawn ids and single special ones; whether a document begins there."""
        plain = self._stretch(place, length)
        special = np.isin(plain, self._special)
        at = (place + np.arange(length)) % len(self.shards)
        begins = self._starts[np.searchsorted(self._starts, at, side="right") - 1] == at
        edges = np.flatnonzero(special | np.append(True, special[:-1]))
        for number, (start, stop) in enumerate(zip(edges, np.append(edges[1:], length), strict=True)):
            if special[start]:
                yield plain[start:stop], bool(begins[start])
            else:
                text = self.tokenizer.decode_bytes(plain[start:stop]).decode("utf-8", "ignore")
                drawn = self.tokenizer.encode(text, noise=noise(self.segmentation, seed, number))
                yield drawn.astype(np.int64), False

    def _stretch(self, place: int, length: int) -> NDArray[np.int64]:
        """Ids of the stream; its beginning comes after its end."""
        found = []
        while length:
            stop = min(place + length, len(self.shards))
            found.append(self.shards.read(place, stop))
            place, length = 0, length - len(found[-1])
        return np.concatenate(found)
