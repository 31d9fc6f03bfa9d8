"""Recurrent networks as mixers: Elman's, gated recurrent units, long short-term memory; the baselines of the others.

They cannot be read in parallel over time: training reads all pieces at once, id after id, by torch's fused functions.
Elman 1990; Cho et al. 2014, with the reset gate on what was multiplied, as in cuDNN; Hochreiter and Schmidhuber 1997
with Gers et al.'s forget gate (2000), whose bias begins at 1. Letters: N ids, L ids, P pieces, n slots, D width, H
hidden, G gates.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import GruConfig, LstmConfig, RnnConfig
from temaki.model.layout import Layout
from temaki.model.rectangles import in_rectangles
from temaki.model.recurrent import Carried, Given, Recurrent

GATES: dict[type, int] = {RnnConfig: 1, GruConfig: 3, LstmConfig: 4}
"""Matrices stacked: one; reset, update, new; in, forget, new, out."""
READ: dict[type, Callable[..., tuple[Tensor, ...]]] = {
    RnnConfig: torch.rnn_tanh,
    GruConfig: torch.gru,
    LstmConfig: torch.lstm,
}
"""torch's fused functions: (x, state, matrices, biased, layers, dropout, training, both ways, rows first)."""

System = list[Tensor]
"""Matrices of inputs and of the past, and their biases."""


class Rnn(Recurrent):
    """A recurrent network of one layer and a projection back to the width."""

    def __init__(self, config: RnnConfig | GruConfig | LstmConfig, width: int):
        super().__init__()
        self.config = config
        self.channels = width if config.size is None else config.size
        parts = (self.channels,) * GATES[type(config)]
        rows = sum(parts)
        self.inputs = self.add("inputs", rows, width, role=Role("matrix", parts), filling="matrix")
        self.past = self.add("past", rows, self.channels, role=Role("matrix", parts), filling="matrix")
        bias = torch.zeros(rows)
        if isinstance(config, LstmConfig):
            bias[self.channels : 2 * self.channels] = 1.0
        self.bias = self.add("bias", rows, role=Role("vector"), filling="given", value=bias)
        self.out = self.add("out", width, self.channels, role=Role("matrix"), filling="out")

    def project(self, x: Tensor, layout: Layout) -> Given:
        return (x,)

    def system(self) -> System:
        """In float32 or better."""
        found = [each.to(self._wide()) for each in (self.inputs, self.past, self.bias)]
        return [*found, torch.zeros_like(found[-1])]

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.bias.dtype, torch.float32)

    def begin(self, slots: int) -> Carried:
        vectors = 2 if isinstance(self.config, LstmConfig) else 1
        return tuple(self.bias.new_zeros(slots, self.channels, dtype=self._wide()) for _ in range(vectors))

    def whole(self, system: System, given: Given, layout: Layout) -> Tensor:
        return in_rectangles(given, layout.pieces, lambda x: self._read(system, self.begin(len(x)), x)[0])

    def chunk(self, system: System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        y, after = self._read(system, tuple(each[None] for each in past), given[0][None])
        return y[0], tuple(each[0] for each in after)

    def step(self, system: System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        y, after = self._read(system, past, given[0][:, None])
        return y[:, 0], after

    def _read(self, system: System, past: Carried, x: Tensor) -> tuple[Tensor, Carried]:
        """x [P, L, D] on from states [P, H] -> ([P, L, H], the states after)."""
        before = [each[None] for each in past]
        state = before if isinstance(self.config, LstmConfig) else before[0]
        x = x.to(self._wide())
        y, *after = READ[type(self.config)](x, state, system, True, 1, 0.0, self.training, False, True)
        return y, tuple(each[0] for each in after)

    def finish(self, y: Tensor, given: Given) -> Tensor:
        return F.linear(y.to(self.out.dtype), self.out)
