"""What each map to probabilities keeps, as data: tests hold every line, and studies show the table."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from temaki.model import maps, perturb, sparse_maps


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The properties of one map p(x) over finite scores x."""

    name: str
    turned: Callable[[Tensor], Tensor]
    """Scores [..., S] to weights [..., S]."""
    sums: bool = True
    """The weights sum to 1."""
    orders: bool = True
    """A larger score never gets less."""
    ties: bool = True
    """Equal scores get equal weights."""
    shifts: bool = True
    """p(x + c) = p(x)."""
    sparse: bool = False
    """Finite scores may get exactly 0, however close they are."""


TABLE = (
    Kept(name="softmax", turned=maps.plain_softmax),
    Kept(name="sparsemax", turned=sparse_maps.sparsemax, sparse=True),
    Kept(name="entmax 1.5", turned=sparse_maps.entmax15, sparse=True),
    Kept(name="entmax 1.25", turned=lambda x: sparse_maps.entmax(x, 1.25), sparse=True),
    Kept(name="top-k", turned=lambda x: sparse_maps.top_k_softmax(x, 2), ties=False, sparse=True),
    Kept(name="top-p", turned=lambda x: sparse_maps.top_p_softmax(x, 0.7), ties=False, sparse=True),
    Kept(name="taylor", turned=maps.taylor_softmax, orders=False, shifts=False),
    Kept(name="gumbel, no noise", turned=lambda x: maps.gumbel_softmax(x, None)),
    Kept(name="perturb", turned=perturb.perturb_max),
    Kept(name="sigmoid", turned=maps.counted_sigmoid, sums=False, shifts=False),
    Kept(name="sink", turned=lambda x: maps.softmax_with_sink(x, torch.zeros(1)), sums=False, shifts=False),
    Kept(name="scalable", turned=lambda x: maps.scalable_softmax(x, torch.ones(1))),
)
"""Of equal scores top-k and top-p keep the earliest."""
