"""Dropout whose masks are a function: the same entry of the same row is hidden wherever and whenever it is computed.

Srivastava et al. 2014. It stands where GPT-2's does (`transformers`' embd_pdrop and resid_pdrop, nanoGPT's): on the
sum of the embeddings and on what each branch adds. Attention weights are not hidden: the fused kernel has no masks.
Gumbel noise in scores is drawn by the same numbers, see `gumbel.py`.

An id of a training row has a number, which is the seed of a SplitMix64 stream (Steele, Lea and Flood 2014, figure 16);
draw c of that stream says, 16 bits each, which four entries are hidden. So a micro-batch, a process, a resumed run and
a recomputed activation hide the same, and rows without numbers (validation, generation) hide nothing.
Letters: B rows, T ids a row, N ids, D width.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from temaki.base import keys
from temaki.base.rows import Rows, TokenBatch

GOLDEN = -0x61C8864680B583EB
"""2^64 / golden ratio, odd, as a signed number: how far a stream goes on at each draw."""
LANES = 4
"""Entries decided by one draw."""
STEPS = 1 << 16
"""Values of a lane."""


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output for states x, int64; in place.

    >>> [found % 2**64 for found in mix(1234567 + GOLDEN * torch.arange(1, 3)).tolist()]
    [6457827717110365317, 3203168211198807973]
    """
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= -0x40A7B892E31B1A47
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= -0x6B2FB644ECCEEE15
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


@torch.library.custom_op("temaki::hidden", mutates_args=())
def hidden(draws: Tensor, site: Tensor, width: int, kept: int) -> Tensor:
    """Which entries are hidden: bool [N, D]; each is kept with probability kept / STEPS.

    draws: int64 [N], the seeds of the streams; site: int64 scalar, which D draws of them.

    >>> hidden(torch.tensor([1, 2]), torch.tensor(0), 6, STEPS // 2).int().tolist()
    [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    """
    each = -(-width // LANES)
    places = (torch.arange(1, each + 1, device=draws.device) + site * each) * GOLDEN
    return mix(draws[:, None] + places).view(torch.int16)[:, :width] >= kept - STEPS // 2


@hidden.register_fake
def _(draws: Tensor, site: Tensor, width: int, kept: int) -> Tensor:
    return draws.new_empty(len(draws), width, dtype=torch.bool)


def dropped(x: Tensor, draws: Tensor, site: Tensor, share: float) -> Tensor:
    """x [N, D] with about `share` of its entries 0 and the others scaled so that the mean stays; draws int64 [N].

    >>> dropped(torch.ones(1, 6), torch.tensor([1]), torch.tensor(0), 0.5)
    tensor([[0., 2., 0., 2., 2., 0.]])
    """
    kept = min(max(round((1 - share) * STEPS), 1), STEPS - 1)
    return x.masked_fill(hidden(draws, site, x.shape[-1], kept), 0.0) * (STEPS / kept)


class Site(nn.Module):
    """A part that draws by the numbers of ids, at a place of its own in the model."""

    site: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("site", torch.tensor(0), persistent=False)
        """Which of the model's it is, from 0; a tensor, so that blocks can share a compiled graph."""


class Dropout(Site):
    """`dropped`, for rows that have numbers."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """[N, D] -> [N, D]."""
        return x if rows.draws is None else dropped(x, rows.draws, self.site, self.share)


class Kept(nn.Module):
    """Nothing is hidden."""

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        return x


def dropout(share: float) -> Dropout | Kept:
    """The part of a share.

    >>> dropout(0.0), dropout(0.1)
    (Kept(), Dropout())
    """
    return Dropout(share) if share else Kept()


def number(model: nn.Module) -> None:
    """Give every part of a model that draws a site of its own, in the order of its modules."""
    sites = (module.site for module in model.modules() if isinstance(module, Site))
    for i, site in enumerate(sites):
        site.fill_(i)


def numbered(batch: TokenBatch, seed: int, place: int) -> TokenBatch:
    """The batch with a number for each id: its rows are place, place + 1, .. of the run's order. Pure."""
    assert batch.rows.shape is not None, "a batch of the loader is a rectangle"
    rows, length = batch.rows.shape
    first = [keys.key(seed, "dropout", place + i) & ((1 << 64) - 1) for i in range(rows)]
    states = np.array(first, np.uint64)[:, None].view(np.int64) + np.arange(1, length + 1) * GOLDEN
    return replace(batch, rows=replace(batch.rows, draws=mix(torch.from_numpy(states.reshape(-1)))))
