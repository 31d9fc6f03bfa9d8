"""What turns scores into attention weights under any map but plain softmax, and the numbers a head that it learns.

Letters: P pieces, H heads, T queries, S keys, K head size; a score is -inf where a key is hidden.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model import maps, perturb, sparse_maps
from temaki.model.buckets import distance_buckets
from temaki.model.config import (
    AttentionConfig,
    BucketsConfig,
    EntmaxConfig,
    GumbelConfig,
    MapConfig,
    PerturbConfig,
    ScalableConfig,
    SigmoidConfig,
    SinkConfig,
    SoftmaxConfig,
    SparsemaxConfig,
    TaylorConfig,
    TopKConfig,
)
from temaki.model.dropout import Site
from temaki.model.part import Part
from temaki.model.sight import Sight

ROW = 1024
"""Ids of a row over which scalable softmax begins, on average, as softmax."""

Turn = Callable[[Any, Tensor, Tensor], Tensor]
"""(config, scores [P, H, T, S], the number a head [H, 1, 1], 0 where none is learned) -> attention weights."""

TURNS: dict[type, Turn] = {
    SoftmaxConfig: lambda _config, scores, _own: scores.softmax(-1),
    SparsemaxConfig: lambda _config, scores, _own: sparse_maps.sparsemax(scores),
    EntmaxConfig: lambda config, scores, own: sparse_maps.entmax(
        scores, 1 + own.sigmoid() if config.learned else config.alpha
    ),
    TopKConfig: lambda config, scores, _own: sparse_maps.top_k_softmax(scores, config.k),
    TaylorConfig: lambda config, scores, _own: maps.taylor_softmax(scores, config.order),
    GumbelConfig: lambda config, scores, _own: (scores / config.temperature).softmax(-1),
    PerturbConfig: lambda config, scores, _own: perturb.perturb_max(scores, config.points),
    SigmoidConfig: lambda _config, scores, _own: maps.counted_sigmoid(scores),
    SinkConfig: lambda _config, scores, own: maps.softmax_with_sink(scores, own),
    ScalableConfig: lambda _config, scores, own: maps.scalable_softmax(scores, own),
}
"""Every query sees itself, so that no row is hidden whole."""


def learned_begin(config: MapConfig) -> tuple[str, float] | None:
    """(name, value it begins at) of the number a head that a map learns; None where it learns none.

    alpha: 1 + sigmoid of it is the exponent. gain: such that gain log(n) is 1 on average over n = 1..ROW.

    >>> learned_begin(EntmaxConfig(alpha=1.5, learned=True)), learned_begin(TopKConfig())
    (('alpha', 0.0), None)
    """
    match config:
        case EntmaxConfig(learned=True):
            return "alpha", math.log((config.alpha - 1) / (2 - config.alpha))
        case SinkConfig():
            return "sink", 0.0
        case ScalableConfig():
            return "gain", ROW / math.lgamma(ROW + 1)
        case _:
            return None


def fused(config: AttentionConfig) -> bool:
    """Whether the fused path serves it: softmax, without a learned bias, since that kernel gives it no gradient.

    >>> fused(AttentionConfig(heads=2)), fused(AttentionConfig(heads=2, map=SparsemaxConfig()))
    (True, False)
    """
    return isinstance(config.map, SoftmaxConfig) and not isinstance(config.position, BucketsConfig)


class MappedScores(Part):
    """Scores of a layer, the bias of its buckets, and its map."""

    def __init__(self, config: AttentionConfig, sight: Sight):
        super().__init__()
        self.config = config.map
        self.sight = sight
        self.heads = config.heads
        self.both = config.mask != "causal"
        self.of_distance = config.position if isinstance(config.position, BucketsConfig) else None
        if self.of_distance is not None:
            self.buckets = self.add("buckets", self.heads, self.of_distance.count, role=Role("vector"), filling="zeros")
        begin = learned_begin(config.map)
        self.named = None if begin is None else begin[0]
        """The number a head that the map learns."""
        if begin is not None:
            value = torch.full((self.heads,), begin[1])
            self.add(begin[0], self.heads, role=Role("vector"), filling="given", value=value)
        self.noise = Site() if isinstance(config.map, GumbelConfig) else None
        """Where noise is drawn: one of the model's sites; None: nowhere."""

    @property
    def learned(self) -> tuple[Tensor | None, Tensor | None]:
        """(the table of buckets [H, B], the number a head of the map [H])."""
        return (
            None if self.of_distance is None else self.buckets,
            None if self.named is None else self.get_parameter(self.named),
        )

    def weights(
        self,
        q: Tensor,
        k: Tensor,
        back: Tensor,
        hidden: Tensor | None,
        noise: Tensor | None = None,
        learned: tuple[Tensor | None, Tensor | None] | None = None,
    ) -> Tensor:
        """Attention weights [P, H, T, S] in float32 or better; exactly 0 where hidden.

        q [P, H, T, K], k [P, H, S, K]; back: int64 [T, S] or [P, 1, T, S], the query's place minus the key's; hidden:
        bool, the same or None for nothing; noise [P, H, T, S]; learned: stands for the layer's own.
        """
        table, number = self.learned if learned is None else learned
        scale = q.shape[-1] ** -0.5 if self.sight.scale is None else self.sight.scale
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = ((q * scale) @ k.mT).to(wide)
        if self.sight.cap is not None:
            scores = self.sight.cap * (scores / self.sight.cap).tanh()
        if self.sight.slopes is not None:
            scores = scores - scores.new_tensor(self.sight.slopes)[:, None, None] * back.abs().to(wide)
        if self.of_distance is not None and table is not None:
            places = distance_buckets(back, self.of_distance, self.both)
            bias = F.embedding(places, table.to(wide).T)  # [T, S, H] or [P, 1, T, S, H]
            scores = scores + (bias.permute(2, 0, 1) if bias.ndim == 3 else bias[:, 0].permute(0, 3, 1, 2))
        if noise is not None:
            scores = scores + noise
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        own = scores.new_zeros(1, 1, 1) if number is None else number.to(wide)[:, None, None]
        return TURNS[type(self.config)](self.config, scores, own)
