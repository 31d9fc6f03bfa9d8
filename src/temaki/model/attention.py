"""Grouped-query attention: the function, the part that holds its weights, and its decoding state.

Letters: N ids, n pieces, D width, H heads, G heads of keys and values, K head size, R slots.
Vaswani et al. 2017, section 3.2; Ainslie et al. 2023 (GQA).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config import AttentionConfig, RopeConfig
from temaki.model.kernels import attention, documents_attention
from temaki.model.layout import Layout, Memory
from temaki.model.norm import rms_norm
from temaki.model.part import Part
from temaki.model.positions import rotate


def split_heads(x: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut stacked projections [N, (H + 2G) K] into q [N, H, K], k and v [N, G, K].

    >>> [tuple(x.shape) for x in split_heads(torch.zeros(5, 32), heads=4, groups=2)]
    [(5, 4, 4), (5, 2, 4), (5, 2, 4)]
    """
    size = x.shape[-1] // (heads + 2 * groups)
    q, k, v = x.split((heads * size, groups * size, groups * size), -1)
    return q.unflatten(-1, (heads, size)), k.unflatten(-1, (groups, size)), v.unflatten(-1, (groups, size))


__all__ = ["Attention", "AttentionState", "attention", "split_heads"]


class Attention(Part):
    """Queries, keys and values from one stacked matrix; fused attention a document; one output projection."""

    def __init__(self, config: AttentionConfig, width: int, angles: str | None):
        super().__init__()
        self.config = config
        self.angles = angles
        self.size = width // config.heads
        self.heads, self.groups = config.heads, config.groups
        parts = (self.heads * self.size, self.groups * self.size, self.groups * self.size)
        self.qkv = self.add("qkv", sum(parts), width, role=Role("matrix", parts), filling="matrix")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")
        if config.qk_norm:
            self.q_gain = self.add("q_gain", self.size, role=Role("vector"), filling="ones")
            self.k_gain = self.add("k_gain", self.size, role=Role("vector"), filling="ones")

    def forward(self, x: Tensor, layout: Layout, state: "AttentionState | None", memory: Memory | None) -> Tensor:
        q, k, v = split_heads(F.linear(x, self.qkv), self.heads, self.groups)
        if self.config.qk_norm:
            q, k = rms_norm(q, self.q_gain), rms_norm(k, self.k_gain)
        if self.angles is not None and isinstance(self.config.position, RopeConfig):
            cos, sin = layout.angles[self.angles]
            q, k = (rotate(each, cos, sin, self.config.position.pairs) for each in (q, k))
        if state is None:
            y = documents_attention(q, k, v, layout.rows.cuts, self.config.mask == "causal")
        else:
            y = state.attend(q, k, v, layout)
        return F.linear(y.flatten(1), self.out)

    def new_state(self, slots: int, room: int, spare: int) -> "AttentionState":
        assert self.config.mask == "causal", "bidirectional attention has no step form"
        like = self.qkv
        return AttentionState(torch.zeros(2, slots, room, self.groups, self.size, dtype=like.dtype, device=like.device))


class AttentionState:
    """Keys and values of all slots. Forgetting is by length, held by the model state: mark and rewind do nothing."""

    def __init__(self, store: Tensor):
        self.store = store
        """[2, R, room, G, K]: keys, values."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Write each piece's keys and values behind its slot's past, then attend to past and piece: [N, H, K]."""
        assert layout.slots is not None
        spans = list(zip(layout.slots, layout.past, layout.pieces, strict=True))
        for slot, past, (start, stop) in spans:
            self.store[0, slot, past : past + stop - start] = k[start:stop]
            self.store[1, slot, past : past + stop - start] = v[start:stop]
        if len(spans) > 1 and all(stop - start == 1 for _, _, (start, stop) in spans):
            return self._attend_one_id_each(q, layout.slots, layout.past)
        y = torch.empty_like(q)
        for slot, past, (start, stop) in spans:
            keys, values = self.store[:, slot, : past + stop - start].transpose(1, 2)
            y[start:stop] = _attend(q[start:stop].transpose(0, 1), keys, values, past).transpose(0, 1)
        return y

    def _attend_one_id_each(self, q: Tensor, slots: Sequence[int], past: Sequence[int]) -> Tensor:
        longest = max(past) + 1
        keys, values = self.store[:, list(slots), :longest].transpose(2, 3)
        repeat = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
        seen = torch.arange(longest, device=q.device) <= torch.tensor(past, device=q.device)[:, None]
        y = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen[:, None, None])
        return y.squeeze(2)

    def mark(self, slots: Sequence[int]) -> None:
        pass

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        pass

    def fork(self, source: int, target: int) -> None:
        self.store[:, target] = self.store[:, source]

    def save(self, slot: int, length: int) -> dict[str, Tensor]:
        return {"store": self.store[:, slot, :length].clone()}

    def load(self, slot: int, saved: Mapping[str, Tensor]) -> None:
        self.store[:, slot, : saved["store"].shape[1]] = saved["store"]

    def clear(self, slots: Sequence[int]) -> None:
        self.store[:, list(slots)] = 0.0


def _attend(q: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
    """q [H, n, K] over keys and values [G, past + n, K]: the fused kernel, causal from `past` on."""
    repeat = q.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(repeat, 0), values.repeat_interleave(repeat, 0)
    n, total = q.shape[1], keys.shape[1]
    mask = None if past == 0 or n == 1 else torch.ones(n, total, dtype=torch.bool, device=q.device).tril(past)
    causal = past == 0 and n > 1
    return F.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=mask, is_causal=causal)[0]
