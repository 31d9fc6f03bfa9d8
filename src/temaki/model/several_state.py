"""Heads of further ids that have blocks, as layers with slots of their own. Letters: D width, V vocabulary, R rows."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base import rows as base_rows
from temaki.model.decoder import Decoder
from temaki.model.several import ParallelHeads, SequentialHead, SequentialHeads
from temaki.model.state import ModelState


class SeveralState:
    """What each head's block has read of every slot of `room` ids; `states[k]` is that of head k (0 the first)."""

    def __init__(self, model: Decoder, slots: int, room: int):
        heads = model.heads
        assert isinstance(heads, ParallelHeads | SequentialHeads), "no heads with blocks"
        self.model, self.heads = model, heads
        self.chained = isinstance(heads, SequentialHeads)
        blocks = [head.block if isinstance(head, SequentialHead) else head for head in heads]
        spare = len(heads) + 1
        layers = [block.mixer.new_state(slots, room, spare) for block in blocks]  # type: ignore[operator, union-attr]
        self.states = [ModelState([layer], slots, room) for layer in layers]

    def read(self, k: int, slots: Sequence[int], vectors: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
        """What head k makes of vectors [m, D] of each slot, at the places from the length of its state on: [m, D].

        ids: int64 [m] of each slot, which heads in a chain read beside the vectors.
        """
        lengths = [len(each) for each in vectors]
        places = [torch.zeros(length, dtype=torch.int64) for length in lengths]
        rows = base_rows.rows(places, [self.states[k].lengths[slot] for slot in slots])
        x = torch.cat(list(vectors))
        layer = self._chained(k, torch.cat(list(ids)).to(x.device)) if self.chained else self.heads[k]
        found = self.model.beside(layer, x, base_rows.to(rows, x.device), self.states[k].at(slots))
        return list(found.split(lengths))

    def _chained(self, k: int, ids: Tensor) -> Callable[..., Tensor]:
        """Head k as a layer over vectors [N, D] with the ids [N] beside them."""
        known = F.embedding(ids, self.model.embedding)
        return lambda x, *rest: self.heads[k](x, known, lambda block, joined: block(joined, *rest))

    def logits(self, k: int, vectors: Tensor) -> Tensor:
        """[R, D] as `read` gives them -> [R, V]."""
        norm = self.heads[k].norm if self.chained else self.model.norm
        return self.model.head.logits(norm(vectors))  # type: ignore[operator]
