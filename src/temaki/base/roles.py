"""Roles: what a parameter is to an optimizer. The model declares them, optimizers are chosen by them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Role:
    """What a parameter is to an optimizer."""

    kind: Literal["matrix", "embedding", "head", "vector", "dynamics"]
    """dynamics: a recurrence's A, B or step: own rate, no decay."""
    parts: tuple[int, ...] = ()
    """Rows of stacked matrices (q, k, v), each its own matrix to Muon."""
    head: int | None = None
    """Rows of a head, where the parts are stacks of heads."""
