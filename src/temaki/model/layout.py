"""`Layout`: what all layers of one forward share. Letters: N ids, n pieces."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from temaki.base.rows import Rows
from temaki.model.attention_products import spans


@dataclass(frozen=True)
class Layout:
    """Rows, the tables of their positions, and, in decoding, the slot of each piece and what its state has read."""

    rows: Rows
    angles: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Per rotary table: cos and sin [N, 1, K/2] at the rows' positions."""
    slots: tuple[int, ...] | None = None
    """Decoding: the state slot of piece i; None in training."""
    past: tuple[int, ...] = ()
    """Decoding: how many ids the slot of piece i has read before this call."""

    @cached_property
    def pieces(self) -> list[tuple[int, int]]:
        """(start, stop) of each piece, in 0..N, as host integers."""
        ends = self.rows.cuts.tolist()
        return list(itertools.pairwise(ends))

    @property
    def ages(self) -> Tensor:
        """int64 [N]: the place of each id in its own piece of this call, on the device."""
        cuts = self.rows.cuts
        starts = cuts[:-1].repeat_interleave(cuts.diff())
        return (torch.arange(len(starts)) - starts).to(self.rows.ids.device)

    @cached_property
    def single(self) -> bool:
        """There are pieces, and every one is one id."""
        return 0 < len(self.rows.ids) == len(self.pieces) and all(stop - start == 1 for start, stop in self.pieces)

    def seen(self, causal: bool) -> tuple[Tensor, Tensor]:
        """Where what each id sees of its row begins and ends, causal or both ways: int64 [B, T] both; for whole rows.

        Layers share one; while compiling each asks anew, since Dynamo cannot trace the lock of a cached property.
        """
        if torch.compiler.is_compiling():
            return self._seen(causal)
        return self._seen_past if causal else self._seen_all

    @cached_property
    def _seen_past(self) -> tuple[Tensor, Tensor]:
        return self._seen(causal=True)

    @cached_property
    def _seen_all(self) -> tuple[Tensor, Tensor]:
        return self._seen(causal=False)

    def _seen(self, causal: bool) -> tuple[Tensor, Tensor]:
        assert self.rows.shape is not None, "the rows are no rectangle"
        return spans(self.rows.ids, self.rows.cuts, self.rows.shape[1], causal)

    @cached_property
    def slots_index(self) -> Tensor:
        """int64 [n]: `slots` on the device."""
        return torch.tensor(self.slots, device=self.rows.ids.device)

    @cached_property
    def past_index(self) -> Tensor:
        """int64 [n]: `past` on the device."""
        return torch.tensor(self.past, device=self.rows.ids.device)


@dataclass(frozen=True)
class Memory:
    """An encoder's output for cross-attention: piece i of the rows reads piece i of the memory."""

    hidden: Tensor
    """[M, D], flat."""
    cuts: Tensor
    """int64 [n+1]."""
