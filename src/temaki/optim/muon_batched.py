"""Muon for many parameters at a time: matrices of one shape share batched products, processes share the matrices."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor

from temaki.base import device as devices
from temaki.optim.config import MuonConfig
from temaki.optim.muon import COEFFICIENTS, matrices, scale
from temaki.optim.orthogonal import Buffers, orthogonal, stretch
from temaki.optim.spread import Spread


@dataclass(frozen=True)
class Moved:
    """A parameter as Muon sees it: what this process holds of theta, gradient and momentum, and its matrices' rows."""

    name: str
    theta: Tensor
    g: Tensor
    m: Tensor
    parts: tuple[int, ...]
    """Of the whole parameter; empty: it is one matrix."""


@dataclass(frozen=True)
class Batched:
    """A rule with the memory it works in."""

    rule: MuonConfig
    buffers: Buffers = field(default_factory=Buffers)

    @torch.no_grad()
    def step(self, moved: Sequence[Moved], lr: float, spread: Spread) -> None:
        """`muon_step` of each, to the precision of the products."""
        for each in moved:
            if self.rule.weight_decay:
                each.theta.mul_(1 - lr * self.rule.weight_decay)
            torch.add(each.g, each.m, alpha=self.rule.momentum, out=each.m)
        if spread.size == 1:
            self._alone(moved, lr)
        else:
            self._together(moved, lr, spread)

    def _alone(self, moved: Sequence[Moved], lr: float) -> None:
        """Each matrix's update goes from gradient and momentum straight into a batch, from there onto theta."""
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for each in moved:
            stacks = (matrices(x, each.parts) for x in (each.theta, each.g, each.m))
            for matrix in zip(*stacks, strict=True):
                alike[tuple(matrix[0].shape)].append(matrix)
        for (rows, cols), found in alike.items():
            size = lr * self._size(rows, cols)

            def fill(i: int, out: Tensor, found: list[tuple[Tensor, Tensor, Tensor]] = found) -> None:
                self._towards(found[i][1], found[i][2], out)

            for i, update in self._orthogonal(len(found), found[0][0], fill):
                found[i][0].sub_(update, alpha=size)

    def _together(self, moved: Sequence[Moved], lr: float, spread: Spread) -> None:
        """The updates are made whole; each process makes its share of the matrices orthogonal; all get all of them.

        Needs room for the whole updates and results of all the matrices, in the dtype of the products.
        """
        wholes = {each.name: self._whole(each, spread) for each in moved}
        alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for each in moved:
            for matrix in matrices(wholes[each.name], each.parts):
                alike[tuple(matrix.shape)].append(matrix)
        for (rows, cols), found in alike.items():
            self._shared(found, self._size(rows, cols), spread)
        for each in moved:
            each.theta.sub_(spread.piece(each.name, wholes[each.name]), alpha=lr)

    def _whole(self, each: Moved, spread: Spread) -> Tensor:
        own = torch.empty_like(each.m, dtype=products(self.rule, each.m))
        self._towards(each.g, each.m, own)
        return spread.whole(each.name, own).contiguous()

    def _shared(self, found: Sequence[Tensor], size: float, spread: Spread) -> None:
        """Put `size` times what `orthogonal` gives into each of the matrices, which are the same on all processes."""
        n = ceil(len(found) / spread.size)
        mine = range(spread.rank * n, min(len(found), (spread.rank + 1) * n))
        own = found[0].new_zeros(n, *found[0].shape)

        def fill(i: int, out: Tensor) -> None:
            out.copy_(found[mine[i]])

        for i, update in self._orthogonal(len(mine), found[0], fill):
            torch.mul(update, size, out=own[i])
        for matrix, update in zip(found, spread.gathered(own), strict=False):
            matrix.copy_(update)

    def _size(self, rows: int, cols: int) -> float:
        """What makes of the matrices that `orthogonal` gives updates at rate 1."""
        return scale(rows, cols, self.rule.scale) / stretch(self.rule.coefficients or COEFFICIENTS)

    def _towards(self, g: Tensor, m: Tensor, out: Tensor) -> None:
        if self.rule.nesterov:
            torch.add(g, m, alpha=self.rule.momentum, out=out)
        else:
            out.copy_(m)

    def _orthogonal(
        self, count: int, like: Tensor, fill: Callable[[int, Tensor], None]
    ) -> Iterator[tuple[int, Tensor]]:
        rule = self.rule
        dtype = products(rule, like)
        return orthogonal(count, like, fill, rule.steps, rule.coefficients or COEFFICIENTS, dtype, self.buffers)


def products(rule: MuonConfig, like: Tensor) -> torch.dtype:
    """What Newton-Schulz multiplies matrices like this one in.

    >>> products(MuonConfig(products="float32"), torch.zeros(1)), products(MuonConfig(), torch.zeros(1).double())
    (torch.float32, torch.float64)
    """
    if like.dtype != torch.float32 or rule.products == "float32":
        return like.dtype
    return torch.bfloat16 if rule.products == "bfloat16" or devices.fast_bf16(like.device) else torch.float32
