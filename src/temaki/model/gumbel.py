"""Gumbel noise for the scores of attention, as a function: of the id that asks, the layer, the head, the key's place.

Letters: P pieces, H heads, T queries, S keys.
"""

import torch
from torch import Tensor

from temaki.model import maps
from temaki.model.dropout import GOLDEN, mix

STREAM = 0x5C4D1B7A9E3F2861
"""Parts these streams from those that hide entries."""
LONGEST = 1 << 24
"""Keys a piece may have before two heads would share draws."""
FINE = {torch.float32: 23, torch.float64: 52}
"""Bits of a draw, such that (bits + 1/2) / 2^fine is exact and never 0 or 1."""


def gumbel_noise(draws: Tensor, site: Tensor, heads: int, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """-log(-log u), u a draw of the stream of each query: [P, H, T, S], the same wherever and whenever it is asked.

    draws: int64 [P, T], a number an id (`Rows.draws`); site: int64 scalar, which layer's; keys: int64 [S], places in
    the piece; dtype: float32 or float64. Gumbel 1954; the streams are those of `dropout`.

    >>> gumbel_noise(torch.tensor([[7]]), torch.tensor(0), 1, torch.arange(100_000), torch.float64).mean()
    tensor(0.5781, dtype=torch.float64)
    """
    streams = mix(draws + STREAM)[:, None, :, None]
    first = (site * heads + torch.arange(heads, device=draws.device)) * LONGEST
    bits = mix(streams + (first[:, None, None] + keys + 1) * GOLDEN)
    fine = FINE[dtype]
    u = (((bits >> (64 - fine)) & ((1 << fine) - 1)).to(dtype) + 0.5).div_(1 << fine)
    return maps.gumbel(u)
