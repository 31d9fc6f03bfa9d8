"""The shell of a state space a channel: input and gate projections, skip, output projection; and kernels of one length.

A channel is a linear recurrence of one input and one output, x_t = Abar x_{t-1} + Bbar u_t, y_t = C x_t. `Truncated`
is one whose kernel K_k = C Abar^k Bbar, k < L, follows in closed form from the numerator C~ = C (I - Abar^L), which is
what is learned: the sum over k < L of K_k z^k is C~ (I - Abar z)^-1 Bbar at every z with z^L = 1 (Gu, Goel and Re 2021,
"S4", lemma C.3). Letters: N ids, D width, S real states a channel, L length, P pieces.
"""

from abc import ABC, abstractmethod
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.layout import Layout
from temaki.model.rectangles import in_rectangles
from temaki.model.recurrent import Given, Recurrent
from temaki.model.ssm import causal_convolution


class Truncated(ABC):
    """A system of one call: what the numerator C~ and the rest of the parameters say, made when it is asked for."""

    def __init__(self, numerator: Tensor, length: int):
        self.numerator = numerator
        """C~, real [D, S]: a row vector."""
        self.length = length
        """L."""

    @abstractmethod
    def truncated(self, numerator: Tensor) -> Tensor:
        """K_k, k < L, of a numerator: [D, S] -> [D, L]."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Abar in float64 [D, S, S], in the coordinates of the numerator."""

    @cached_property
    def power(self) -> Tensor:
        """Abar^L in float64: [D, S, S]."""
        return torch.linalg.matrix_power(self.matrix(), self.length)

    @cached_property
    def output(self) -> Tensor:
        """C = C~ (I - Abar^L)^-1, in float64: what the recurrence reads its state with, [D, S]."""
        power = self.power
        eye = torch.eye(power.shape[1], dtype=power.dtype, device=power.device)
        return torch.linalg.solve((eye - power).mT, self.numerator.double())

    def kernel(self, length: int) -> Tensor:
        """K_k, k < length: [D, length]. Its places from j L on are those of the numerator C~ Abar^(j L)."""
        found, numerator = [self.truncated(self.numerator)], self.numerator.double()
        while self.length * len(found) < length:
            numerator = (numerator[:, None] @ self.power)[:, 0]
            found.append(self.truncated(numerator.to(self.numerator.dtype)))
        return torch.cat(found, 1)[:, :length]


class Siso(Recurrent):
    """Input and gate projections, one recurrence a channel, gate, output projection. A kind says the recurrence."""

    def __init__(self, width: int):
        super().__init__()
        self.channels = width
        self.inputs = self.add("inputs", 2 * width, width, role=Role("matrix", (width, width)), filling="matrix")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")
        self.skip = self.add("skip", width, role=Role("vector"), filling="ones")

    def project(self, x: Tensor, layout: Layout) -> Given:
        """What goes into the recurrences and the gate: [N, D] both."""
        u, gate = F.linear(x, self.inputs).chunk(2, -1)
        return u.to(self.wide()).contiguous(), gate

    def finish(self, y: Tensor, given: Given) -> Tensor:
        u, gate = given
        return F.linear((y + self.skip * u).to(gate.dtype) * F.silu(gate), self.out)

    def wide(self) -> torch.dtype:
        """What is computed in: float32 or better."""
        return torch.promote_types(self.skip.dtype, torch.float32)


class Convolved(Siso):
    """A `Siso` of a `Truncated` system: training convolves, decoding steps with the output made from the numerator.

    Making that output costs powers of dense matrices, so without gradients a system is kept until a parameter changes.
    """

    def __init__(self, width: int):
        super().__init__(width)
        self._kept: tuple[list[Tensor], Truncated] | None = None

    @abstractmethod
    def made(self) -> Truncated:
        """The system of the parameters as they are."""

    def system(self) -> Truncated:
        if torch.is_grad_enabled():
            return self.made()
        own = [self.get_parameter(name) for name, role in self.own_roles.items() if role.kind != "matrix"]
        if self._kept is None or not all(map(_same, self._kept[0], own)):
            self._kept = [each.detach().clone() for each in own], self.made()
        return self._kept[1]

    def whole(self, system: Truncated, given: Given, layout: Layout) -> Tensor:
        """Pieces convolved with one kernel, pieces of about one length at a time."""
        longest = max((stop - start for start, stop in layout.pieces), default=0)
        if longest == 0:
            return torch.zeros_like(given[0])
        kernel = system.kernel(longest)

        def read(u: Tensor) -> Tensor:  # [P, L, D]
            return causal_convolution(u.mT, kernel[:, : u.shape[1]]).mT

        return in_rectangles(given[:1], layout.pieces, read)


def _same(kept: Tensor, now: Tensor) -> bool:
    return kept.dtype == now.dtype and kept.device == now.device and torch.equal(kept, now)
