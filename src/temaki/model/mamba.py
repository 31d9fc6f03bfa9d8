"""Mamba: a selective state space behind a short convolution, with a gate. Gu and Dao 2023, "Mamba", section 3.4.

[x; z] = W_in x, u = SiLU(conv(x)), [r; B; C] = W_reads u, d = softplus(W_step r + bias), and for each channel
h_t = e^(d_t A) h_{t-1} + d_t u_t B_t, y_t = C_t h_t + skip u_t; the layer gives W_out (y SiLU(z)). Letters: N ids, n
slots, D width, E channels, S states a channel, R rank of the step's projection, W places of the convolution.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import MambaConfig
from temaki.model.layout import Layout
from temaki.model.recurrent import Carried, Given, Recurrent
from temaki.model.selective import selective_on, selective_scan, selective_step
from temaki.model.short_conv import short_convolution, short_convolution_on, short_convolution_step


class Mamba(Recurrent):
    """Projections, short convolution, selective scan, gate."""

    chunk_ids = 1024

    def __init__(self, config: MambaConfig, width: int):
        super().__init__()
        self.channels = config.expand * width
        self.rank, self.states = config.step_rank(width), config.states
        e, vector = self.channels, Role("vector")
        self.inputs = self.add("inputs", 2 * e, width, role=Role("matrix", (e, e)), filling="matrix")
        self.conv = self.add("conv", e, config.conv, role=vector, filling="given", value=_even(e, config.conv))
        self.conv_bias = self.add("conv_bias", e, role=vector, filling="zeros")
        parts = (self.rank, self.states, self.states)
        self.reads = self.add("reads", sum(parts), e, role=Role("matrix", parts), filling="matrix")
        self.step_out = self.add(
            "step_out", e, self.rank, role=Role("matrix"), filling="given", value=_even(e, self.rank)
        )
        low, high = math.log(config.step_min), math.log(config.step_max)
        steps = (torch.rand(e) * (high - low) + low).exp()
        self.step_bias = self.add(
            "step_bias", e, role=Role("dynamics"), filling="given", value=steps.expm1().log()
        )  # softplus undone
        rates = torch.arange(1.0, self.states + 1).log().repeat(e, 1)
        self.log_decay = self.add("log_decay", e, self.states, role=Role("dynamics"), filling="given", value=rates)
        self.skip = self.add("skip", e, role=vector, filling="ones")
        self.out = self.add("out", width, e, role=Role("matrix"), filling="out")

    def system(self) -> Tensor:
        """A [E, S], negative, in float32 or better."""
        return -self.log_decay.to(self._wide()).exp()

    def project(self, x: Tensor, layout: Layout) -> Given:
        """What the convolution reads, and the gate: [N, E] both."""
        inner, gate = F.linear(x, self.inputs).chunk(2, -1)
        return inner, gate

    def begin(self, slots: int) -> Carried:
        """What the convolution looks back on [slots, W - 1, E], and the states [slots, E, S]."""
        window = self.conv.new_zeros(slots, self.conv.shape[1] - 1, self.channels)
        return window, self.log_decay.new_zeros(slots, self.channels, self.states, dtype=self._wide())

    def whole(self, system: Tensor, given: Given, layout: Layout) -> Tensor:
        u, d, bc = self._read(short_convolution(given[0], self.conv, layout.ages))
        return selective_scan(u, d, system, bc, layout.rows.cuts) + self.skip * u

    def chunk(self, system: Tensor, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        found, window = short_convolution_on(past[0], given[0], self.conv)
        u, d, bc = self._read(found)
        y, h = selective_on(u, d, system, bc, past[1])
        return y + self.skip * u, (window, h)

    def step(self, system: Tensor, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        found, window = short_convolution_step(past[0], given[0], self.conv)
        u, d, bc = self._read(found)
        y, h = selective_step(past[1], u, d, system, bc[:, 0], bc[:, 1])
        return y + self.skip * u, (window, h)

    def finish(self, y: Tensor, given: Given) -> Tensor:
        gate = given[1]
        return F.linear(y.to(gate.dtype) * F.silu(gate), self.out)

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.skip.dtype, torch.float32)

    def _read(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of what the convolution gave [N, E]: inputs u and steps d [N, E], B and C [N, 2, S]."""
        u = F.silu(convolved + self.conv_bias)
        low, bc = F.linear(u, self.reads).split((self.rank, 2 * self.states), -1)
        wide = self._wide()
        d = F.softplus(F.linear(low, self.step_out).to(wide) + self.step_bias)
        return u.to(wide), d, bc.to(wide).reshape(-1, 2, self.states)


def _even(rows: int, columns: int) -> Tensor:
    """Evenly between +-1/sqrt(columns), as torch begins a linear layer and a convolution."""
    return (2 * torch.rand(rows, columns) - 1) * columns**-0.5
