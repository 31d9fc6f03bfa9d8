"""Packing: rows of T ids cut from the stream of documents, with the cuts between documents and nothing wasted.

Each document begins with the boundary id E, so the stream reads E d1 d2 .. E d1 ..; a row is any T ids of it and its
targets are the ids one place on. The target of a document's last id is E: the end is learned and nothing leaks across.
A piece is a document's run in one row; its positions start at 0. Letters: B rows, T ids a row, N = B T, n pieces.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from temaki.base.rows import Rows, TokenBatch


def next_token(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a run of n ids: n - 1 pairs.

    >>> next_token(torch.tensor([7, 8, 9]))
    (tensor([7, 8]), tensor([8, 9]))
    """
    return ids[:-1], ids[1:]


def cuts(rows: NDArray[np.int64], starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Where pieces begin and end in flat rows: int64 [n + 1].

    rows [B]: the place of each row's first id in the stream; starts: the places where documents begin, ascending;
    length: T.

    >>> cuts(np.array([0, 10]), np.array([0, 3, 12]), 4).tolist()
    [0, 3, 4, 6, 8]
    """
    found: list[NDArray[np.int64]] = []
    for i, row in enumerate(rows):
        low, high = np.searchsorted(starts, [row + 1, row + length])
        found += [np.array([i * length]), starts[low:high] - row + i * length]
    return np.concatenate([*found, np.array([len(rows) * length])]).astype(np.int64)


def positions(cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2, .. within each piece: int64 [N].

    >>> positions(np.array([0, 3, 5])).tolist()
    [0, 1, 2, 0, 1]
    """
    return np.arange(cuts[-1]) - np.repeat(cuts[:-1], np.diff(cuts))


def batch(stretches: NDArray[np.int64], cuts: NDArray[np.int64]) -> TokenBatch:
    """The batch of B stretches of T + 1 ids [B, T + 1], with the cuts of their rows.

    >>> batch(np.array([[7, 8, 9]]), np.array([0, 2])).targets
    tensor([8, 9])
    """
    b, t = stretches.shape[0], stretches.shape[1] - 1
    ids = torch.from_numpy(np.ascontiguousarray(stretches[:, :-1])).reshape(-1)
    targets = torch.from_numpy(np.ascontiguousarray(stretches[:, 1:])).reshape(-1)
    rows = Rows(ids, torch.from_numpy(cuts), torch.from_numpy(positions(cuts)), (b, t))
    return TokenBatch(rows, targets, torch.ones(b * t))
