"""Retention: linear attention whose heads forget at fixed rates. Sun et al. 2023, "Retentive network", section 2.

S_t = a_h S_{t-1} + k_t v_t^T, y_t = S_t^T q_t with a_h = 1 - 2^(-5-h), queries and keys turned by their positions; then
a norm a head and a gate. Letters: N ids, L ids, n slots, D width, H heads, K head size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import RetNetConfig
from temaki.model.layout import Layout
from temaki.model.linear_memory import decayed, decayed_step
from temaki.model.memory_mixer import by_head, from_heads, head_norm, wide
from temaki.model.positions import rope_angles, rotate
from temaki.model.rectangles import in_rectangles
from temaki.model.recurrent import Carried, Given, Recurrent


def retention_decays(heads: int) -> Tensor:
    """log a_h of each head, float64 [H]. Equation 8.

    >>> retention_decays(2).exp()
    tensor([0.9688, 0.9844], dtype=torch.float64)
    """
    return torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, dtype=torch.float64))))


class RetNet(Recurrent):
    """Queries, keys, values and gate from one stacked matrix; retention; a norm a head; one output projection."""

    def __init__(self, config: RetNetConfig, width: int):
        super().__init__()
        self.config, self.channels = config, width
        self.heads, self.keys = config.heads, width // config.heads
        self.inputs = self.add("inputs", 4 * width, width, role=Role("matrix", (width,) * 4), filling="matrix")
        self.gain = self.add("gain", width, role=Role("vector"), filling="ones")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")

    def project(self, x: Tensor, layout: Layout) -> Given:
        """Turned queries and keys, values, gate: [N, D] each."""
        q, k, v, gate = F.linear(x, self.inputs).chunk(4, -1)
        cos, sin = (each[:, None] for each in rope_angles(layout.rows.positions, self.keys, self.config.theta))
        turned = [
            rotate(wide(each).unflatten(-1, (self.heads, -1)), cos.to(wide(x)), sin.to(wide(x))).flatten(1)
            for each in (q, k * self.keys**-0.5)
        ]
        return *turned, wide(v), gate

    def system(self) -> Tensor:
        """log a_h [H]."""
        return retention_decays(self.heads).to(wide(self.gain))

    def begin(self, slots: int) -> Carried:
        return (wide(self.gain).new_zeros(slots, self.heads, self.keys, self.keys),)

    def whole(self, system: Tensor, given: Given, layout: Layout) -> Tensor:
        def read(*rows: Tensor) -> Tensor:
            return self._read(system, self.begin(len(rows[0]))[0], rows)[0]

        return in_rectangles(given[:3], layout.pieces, read)

    def chunk(self, system: Tensor, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        y, s = self._read(system, past[0], given[:3])
        return y, (s,)

    def step(self, system: Tensor, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in given[:3])
        y, s = decayed_step(q, k, v, system, past[0])
        return y.flatten(-2), (s,)

    def _read(self, system: Tensor, s: Tensor, given: Any) -> tuple[Tensor, Tensor]:
        q, k, v = (by_head(each, self.heads) for each in given)
        y, s = decayed(q, k, v, system[:, None].expand(q.shape[:-1]), s)
        return from_heads(y), s

    def finish(self, y: Tensor, given: Given) -> Tensor:
        gate = given[3]
        normed = head_norm(y, self.heads, wide(self.gain)).to(gate.dtype)
        return F.linear(normed * F.silu(gate), self.out)
