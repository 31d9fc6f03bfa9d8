"""Grouped-query attention: the function, the part that holds its weights.

Letters: N ids, n pieces, D width, H heads, G heads of keys and values, K head size.
Vaswani et al. 2017, section 3.2; Ainslie et al. 2023 (GQA).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temaki.base import team
from temaki.base.errors import GenerationError
from temaki.base.roles import Role
from temaki.model import attention_products as products
from temaki.model.attention_state import AttentionState
from temaki.model.config import AlibiConfig, AttentionConfig, RopeConfig
from temaki.model.dense import attention
from temaki.model.kernels import documents_attention
from temaki.model.layout import Layout, Memory
from temaki.model.mapped_attention import mapped_attention
from temaki.model.mapped_scores import MappedScores, fused
from temaki.model.norm import rms_norm
from temaki.model.part import Filling, Part
from temaki.model.positions import alibi_slopes, rotate
from temaki.model.sight import Sight

__all__ = ["Attention", "AttentionState", "attention", "split_heads"]


def split_heads(x: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut stacked projections [N, (H + 2G) K] into q [N, H, K], k and v [N, G, K].

    >>> [tuple(x.shape) for x in split_heads(torch.zeros(5, 32), heads=4, groups=2)]
    [(5, 4, 4), (5, 2, 4), (5, 2, 4)]
    """
    stacked = x.unflatten(-1, (heads + 2 * groups, -1))
    q, k, v = stacked.split((heads, groups, groups), -2)
    return q, k, v


class Attention(Part):
    """Queries, keys and values from one stacked matrix; attention a document; one output projection."""

    uncompiled = ("by_map",)

    def __init__(self, config: AttentionConfig, width: int, eps: float, angles: str | None):
        """eps: of the norm of queries and keys; angles: the name of the table that turns them, None for none."""
        super().__init__()
        self.config = config
        self.eps = eps
        self.angles = angles
        self.size = config.head_size(width)
        self.heads, self.groups = config.heads, config.groups
        self.sight = sight(config)
        self.mapped = None if fused(config) else MappedScores(config, self.sight)
        """What makes the attention weights; None: the fused path."""
        self.looped = team.open()
        """Whether whole rows may go by products; asked here, because a compiler cannot."""
        parts = (self.heads * self.size, self.groups * self.size, self.groups * self.size)
        self.qkv = self.add("qkv", sum(parts), width, role=Role("matrix", parts, self.size), filling="matrix")
        self.out = self.add("out", width, parts[0], role=Role("matrix"), filling="out")
        self.qkv_bias = self._vector("qkv_bias", sum(parts), "zeros") if config.bias != "none" else None
        self.out_bias = self._vector("out_bias", width, "zeros") if config.bias == "all" else None
        self.q_gain = self._vector("q_gain", self.size, "ones") if config.qk_norm else None
        self.k_gain = self._vector("k_gain", self.size, "ones") if config.qk_norm else None

    def _vector(self, name: str, size: int, filling: Filling) -> nn.Parameter:
        return self.add(name, size, role=Role("vector"), filling=filling)

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D] -> q [N, H, K], k and v [N, G, K]: normalised and turned, ready for scores."""
        stacked = self._stacked(x).unflatten(-1, (-1, self.size))  # [N, H + 2G, K]
        turned, v = stacked.split((self.heads + self.groups, self.groups), -2)  # queries and keys are turned in one
        if self.q_gain is not None and self.k_gain is not None:
            q, k = turned.split((self.heads, self.groups), -2)
            turned = torch.cat((rms_norm(q, self.q_gain, self.eps), rms_norm(k, self.k_gain, self.eps)), -2)
        if self.angles is not None and isinstance(self.config.position, RopeConfig):
            turned = rotate(turned, *layout.angles[self.angles], self.config.position.pairs)
        q, k = turned.split((self.heads, self.groups), -2)
        return q, k, v

    def _stacked(self, x: Tensor) -> Tensor:
        """All projections [N, (H + 2G) K], in the weights' own type under torch's mixed precision too."""
        return F.linear(x, self.qkv, self.qkv_bias).to(self.qkv.dtype)

    def forward(self, x: Tensor, layout: Layout, state: AttentionState | None, memory: Memory | None) -> Tensor:
        if state is None and self._framed(layout):
            return F.linear(self._by_frames(x, layout), self.out, self.out_bias)
        q, k, v = self.project(x, layout)
        if state is None:
            y = self._by_kernel(q, k, v, layout) if self.mapped is None else self.by_map(q, k, v, layout)
        else:
            y = state.attend(q, k, v, layout)
        return F.linear(y.flatten(1), self.out, self.out_bias)

    def _by_kernel(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        return documents_attention(q, k, v, layout.rows.cuts, self.sight, self.prefix(layout))

    def by_map(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Attention under any map: [N, H, K]."""
        assert self.mapped is not None
        rows = layout.rows
        return mapped_attention(q, k, v, rows.cuts, self.mapped, self.prefix(layout), rows.draws)

    def prefix(self, layout: Layout) -> Tensor | None:
        """int64 [n]: how many ids at each piece's start see each other both ways; None for none."""
        return layout.rows.prefix if self.config.mask == "prefix" else None

    def _framed(self, layout: Layout) -> bool:
        """Whether whole rows go by products: see `attention_products`."""
        shape, position = layout.rows.shape, self.config.position
        plain = self.mapped is None and self.sight.plain and self.config.mask != "prefix"
        halves = not isinstance(position, RopeConfig) or position.pairs == "half"
        host = self.looped and self.qkv.device.type == "cpu" and self.qkv.dtype == torch.float32
        return host and plain and halves and shape is not None and shape[1] <= products.LONGEST

    def _by_frames(self, x: Tensor, layout: Layout) -> Tensor:
        """x [N, D] -> [N, H K], the same as by `project` and `documents_attention`."""
        gains = None if self.q_gain is None or self.k_gain is None else (self.q_gain, self.k_gain)
        angles = None if self.angles is None else layout.angles[self.angles]
        shape = products.Shape(self.heads, self.groups, self.sight.causal, self.sight.scale, self.eps)
        spans = layout.seen(self.sight.causal)
        return products.framed_attention(self._stacked(x), gains, angles, spans, shape)

    def new_state(self, slots: int, room: int, spare: int) -> AttentionState:
        """Empty keys and values. Raises GenerationError for bidirectional attention: it has no step form."""
        if self.config.mask == "bidirectional":
            raise GenerationError(
                "this model sees both ways (mask = bidirectional), so it cannot write id after id",
                do="fill masked places with it, or generate with a model whose mask is causal or prefix",
            )
        places = room if self.config.window is None else min(room, self.config.window + spare - 1)
        store = self.qkv.new_zeros(2, slots, self.groups, places, self.size)
        return AttentionState(store, self.sight, self.config.mask == "prefix", self.mapped)


def sight(config: AttentionConfig) -> Sight:
    """What an attention layer sees, and how.

    >>> sight(AttentionConfig(heads=2, window=5))
    Sight(causal=True, scale=None, window=5, slopes=None, cap=None)
    """
    return Sight(
        causal=config.mask != "bidirectional",
        scale=config.scale,
        window=config.window,
        slopes=alibi_slopes(config.heads) if isinstance(config.position, AlibiConfig) else None,
        cap=config.cap,
    )
