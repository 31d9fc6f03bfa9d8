"""Gated DeltaNet: a memory that overwrites what a key held. Yang et al. 2024, "Gated delta networks", section 3.

S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, y_t = S_t^T q_t with unit keys and queries; b_t is a sigmoid of
the input, a_t = exp(-A softplus(.)) as in Mamba-2; then a norm a head and a gate. Letters: N ids, L ids, D width, H
heads, K head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import DeltaNetConfig
from temaki.model.layout import Layout
from temaki.model.linear_memory import delta, delta_step
from temaki.model.mamba2 import step_bias
from temaki.model.memory_mixer import MemoryMixer, by_head, from_heads, head_norm, wide
from temaki.model.recurrent import Given

System = tuple[Tensor, Tensor]
"""(A, the step's bias) of each head [H]."""


class DeltaNet(MemoryMixer):
    """Queries, keys, values, gate and two scalars a head from one stacked matrix; convolution; memory; norm; gate."""

    def __init__(self, config: DeltaNetConfig, width: int):
        super().__init__()
        self.config, self.channels = config, width
        self.heads, self.keys = config.heads, width // config.heads
        parts = (width,) * 4 + (self.heads,) * 2
        vector, dynamics = Role("vector"), Role("dynamics")
        self.inputs = self.add("inputs", sum(parts), width, role=Role("matrix", parts), filling="matrix")
        filters = torch.randn(3 * width, config.conv) * config.conv**-0.5
        self.conv = self.add("conv", 3 * width, config.conv, role=vector, filling="given", value=filters)
        self.log_decay = self.add(
            "log_decay", self.heads, role=dynamics, filling="given", value=torch.empty(self.heads).uniform_(1, 16).log()
        )
        steps = step_bias(1e-3, 1e-1, self.heads)
        self.step_bias = self.add("step_bias", self.heads, role=dynamics, filling="given", value=steps)
        self.gain = self.add("gain", width, role=vector, filling="ones")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")

    def filters(self) -> Tensor:
        return self.conv

    def project(self, x: Tensor, layout: Layout) -> Given:
        """What is convolved [N, 3 D], rates of writing and steps before their functions [N, H] each, gate [N, D]."""
        d, h = self.channels, self.heads
        read, gate, rates, steps = F.linear(x, self.inputs).split((3 * d, d, h, h), -1)
        return wide(read), wide(rates), wide(steps), gate

    def system(self) -> System:
        return wide(self.log_decay).exp(), wide(self.step_bias)

    def _rates(self, rest: Given, system: System) -> tuple[Tensor, Tensor]:
        """(log a, b)."""
        return -F.softplus(rest[1] + system[1]) * system[0], rest[0].sigmoid()

    def remember(self, seen: Tensor, rest: Given, system: System, s: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (by_head(each, self.heads) for each in F.silu(seen).chunk(3, -1))
        log_a, b = (each.transpose(-1, -2) for each in self._rates(rest, system))
        y, s = delta(_unit(q), _unit(k), v, log_a, b, s)
        return from_heads(y), s

    def remember_one(self, seen: Tensor, rest: Given, system: System, s: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in F.silu(seen).chunk(3, -1))
        y, s = delta_step(_unit(q), _unit(k), v, *self._rates(rest, system), s)
        return y.flatten(-2), s

    def finish(self, y: Tensor, given: Given) -> Tensor:
        gate = given[3]
        return F.linear(head_norm(y, self.heads, wide(self.gain)).to(gate.dtype) * F.silu(gate), self.out)


def _unit(x: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6): nothing is divided by zero."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
