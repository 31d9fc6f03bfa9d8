"""Mamba-2: a selective state space with one decay a head, computed by products. Dao and Gu 2024, section 7.

S_t = a_t S_{t-1} + B_t (dt_t x_t)^T, y_t = S_t^T C_t + d_h x_t with a_t = exp(-dt_t A_h); B and C serve all heads.
Letters: N ids, L ids, D width, E = expand D channels, H heads, V = E / H, K states.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import Mamba2Config
from temaki.model.layout import Layout
from temaki.model.linear_memory import decayed, decayed_step
from temaki.model.memory_mixer import MemoryMixer, by_head, from_heads, wide
from temaki.model.recurrent import Given

System = tuple[Tensor, Tensor, Tensor]
"""(A, the step's bias, d) of each head [H]."""


def step_bias(low: float, high: float, count: int) -> Tensor:
    """Biases whose softplus lies between low and high, evenly in the logarithm: drawn at random, float32 [count].

    >>> F.softplus(step_bias(0.01, 0.01, 2))
    tensor([0.0100, 0.0100])
    """
    step = torch.exp(torch.rand(count) * (math.log(high) - math.log(low)) + math.log(low))
    return step + torch.log(-torch.expm1(-step))


class Mamba2(MemoryMixer):
    """Gate, values, B, C and steps from one stacked matrix; convolution; memory; gated norm; output projection."""

    def __init__(self, config: Mamba2Config, width: int):
        super().__init__()
        self.config, self.heads, self.keys = config, config.heads, config.states
        e, self.channels = config.expand * width, config.expand * width
        parts = (e, e, self.keys, self.keys, self.heads)
        read = e + 2 * self.keys
        self.inputs = self.add("inputs", sum(parts), width, role=Role("matrix", parts), filling="matrix")
        self.conv = self.add(
            "conv", read, config.conv, role=Role("vector"), filling="given",
            value=torch.randn(read, config.conv) * config.conv**-0.5,
        )  # fmt: skip
        self.conv_bias = self.add("conv_bias", read, role=Role("vector"), filling="zeros")
        dynamics = Role("dynamics")
        self.log_decay = self.add(
            "log_decay", self.heads, role=dynamics, filling="given", value=torch.empty(self.heads).uniform_(1, 16).log()
        )
        self.step_bias = self.add(
            "step_bias", self.heads, role=dynamics, filling="given",
            value=step_bias(config.step_min, config.step_max, self.heads),
        )  # fmt: skip
        self.skip = self.add("skip", self.heads, role=Role("vector"), filling="ones")
        self.gain = self.add("gain", e, role=Role("vector"), filling="ones")
        self.out = self.add("out", width, e, role=Role("matrix"), filling="out")

    def filters(self) -> Tensor:
        return self.conv

    def project(self, x: Tensor, layout: Layout) -> Given:
        """What is convolved [N, E + 2 K], steps before softplus [N, H], gate [N, E]."""
        e, k = self.channels, self.keys
        gate, read, steps = F.linear(x, self.inputs).split((e, e + 2 * k, self.heads), -1)
        return wide(read), wide(steps), gate

    def system(self) -> System:
        return wide(self.log_decay).exp(), wide(self.step_bias), wide(self.skip)

    def _split(self, seen: Tensor, rest: Given, system: System) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(x, B, C, dt, log a)."""
        e, k = self.channels, self.keys
        x, b, c = F.silu(seen + wide(self.conv_bias)).split((e, k, k), -1)
        steps = F.softplus(rest[0] + system[1])
        return x, b, c, steps, -steps * system[0]

    def remember(self, seen: Tensor, rest: Given, system: System, s: Tensor) -> tuple[Tensor, Tensor]:
        x, b, c, steps, log_a = self._split(seen, rest, system)
        values, steps = by_head(x, self.heads), steps.transpose(-1, -2)[..., None]  # [.., H, L, V], [.., H, L, 1]
        shape = (*values.shape[:-1], self.keys)
        b, c = (each.unsqueeze(-3).expand(shape) for each in (b, c))
        y, s = decayed(c, b, values * steps, log_a.transpose(-1, -2), s)
        return from_heads(y + system[2][:, None, None] * values), s

    def remember_one(self, seen: Tensor, rest: Given, system: System, s: Tensor) -> tuple[Tensor, Tensor]:
        x, b, c, steps, log_a = self._split(seen, rest, system)
        values = x.unflatten(-1, (self.heads, -1))
        shape = (*values.shape[:-1], self.keys)
        b, c = (each.unsqueeze(-2).expand(shape) for each in (b, c))
        y, s = decayed_step(c, b, values * steps[..., None], log_a, s)
        return (y + system[2][:, None] * values).flatten(-2), s

    def finish(self, y: Tensor, given: Given) -> Tensor:
        gate = given[2]
        gated = y * wide(F.silu(gate))
        normed = gated * (gated.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * wide(self.gain)
        return F.linear(normed.to(gate.dtype), self.out)
