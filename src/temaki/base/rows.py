"""Rows, what a model reads, and the batches made of them.

N ids of a call are flat and lie in n pieces, each a run of one document. Padding is never in it.
Letters: B rows, T ids a row, N ids, n pieces, E examples, C classes, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Anything = TypeVar("Anything", bound="Rows | TokenBatch | LabelBatch | PreferenceBatch")


@dataclass(frozen=True)
class Rows:
    """N flat ids in n pieces."""

    ids: Tensor
    """int64 [N]: B rows of T ids, flat."""
    cuts: Tensor
    """int64 [n+1] on the host, 0..N ascending; piece i is ids[cuts[i]:cuts[i+1]], a run of one document."""
    positions: Tensor
    """int64 [N]; 0 at each piece's start in training; from the slot's length on in decoding."""
    shape: tuple[int, int] | None = None
    """(B, T) if the N ids fill a rectangle, for kernels that want one."""
    prefix: Tensor | None = None
    """int64 [n] on the host: how many first ids of each piece see each other both ways (mask = prefix); None: none."""
    draws: Tensor | None = None
    """int64 [N]: a number an id that dropout and noise draw by, see `model/dropout.py`; None: nothing is drawn."""


@dataclass(frozen=True)
class TokenBatch:
    """Language modelling: what is read, what is to be said next, and how much each place counts."""

    rows: Rows
    targets: Tensor
    """int64 [N], each in 0..V-1 even where the weight is 0."""
    weights: Tensor
    """float32 [N]; 0 = not learned."""
    source: Rows | None = None
    """An encoder's rows; piece i of `rows` reads piece i of `source`."""


@dataclass(frozen=True)
class LabelBatch:
    """Classification: one label an example, or several at once."""

    rows: Rows
    at: Tensor
    """int64 [E], places in 0..N-1: the last real token of each example."""
    labels: Tensor
    """int64 [E], or float32 [E, C] for several labels at once."""


@dataclass(frozen=True)
class PreferenceBatch:
    """Pieces 2p (chosen) and 2p+1 (rejected) of `tokens` are pair p."""

    tokens: TokenBatch
    reference: Tensor | None = None
    """float32 [P, 2]: log-probabilities of the fixed model, made beforehand."""


Batch = TokenBatch | LabelBatch | PreferenceBatch


def rows(
    pieces: Sequence[Sequence[int] | Tensor],
    starts: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
) -> Rows:
    """Rows of the given pieces of ids.

    starts: the position of each piece's first id (0 by default); prefix: see `Rows.prefix`.

    >>> rows([[5, 6, 7], [8]]).positions.tolist()
    [0, 1, 2, 0]
    """
    flat = [torch.as_tensor(piece, dtype=torch.int64).reshape(-1) for piece in pieces]
    lengths = torch.tensor([0] + [len(piece) for piece in flat])
    first = [0] * len(flat) if starts is None else starts
    positions = [torch.arange(start, start + len(piece)) for start, piece in zip(first, flat, strict=True)]
    empty = torch.zeros(0, dtype=torch.int64)
    same = len({len(piece) for piece in flat}) == 1
    return Rows(
        ids=torch.cat(flat) if flat else empty,
        cuts=lengths.cumsum(0),
        positions=torch.cat(positions) if positions else empty,
        shape=(len(flat), len(flat[0])) if same else None,
        prefix=None if prefix is None else torch.tensor(prefix, dtype=torch.int64),
    )


def grid(ids: Tensor, prefix: Tensor | None = None) -> Rows:
    """Rows of a rectangle of ids [B, T], each row one piece; prefix int64 [B]: see `Rows.prefix`.

    >>> grid(torch.tensor([[1, 2], [3, 4]])).cuts.tolist()
    [0, 2, 4]
    """
    b, t = ids.shape
    return Rows(ids.reshape(-1), torch.arange(b + 1) * t, torch.arange(t).repeat(b), (b, t), prefix)


def to(item: Anything, device: torch.device) -> Anything:
    """A batch or its rows on a device; `cuts` and `prefix` stay on the host."""
    changes: dict[str, Any] = {}
    for name, value in vars(item).items():
        if isinstance(value, Tensor) and name not in ("cuts", "prefix"):
            changes[name] = value.to(device, non_blocking=True)
        elif isinstance(value, Rows | TokenBatch):
            changes[name] = to(value, device)
    return replace(item, **changes)
