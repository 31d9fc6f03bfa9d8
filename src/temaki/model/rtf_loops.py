"""A rational filter a channel as a compiled loop: v_t = u_t - sum_i a_i v_(t-i), y_t = sum_i c_i v_(t-i+1).

The register is not shifted: all v of a block of 16 channels lie one after the other behind the d carried ones. Sixteen
channels are one vector (`base/lanes`). Letters: N ids, D channels, d order.
"""
# pyright: basic

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base import team
from temaki.base.lanes import LANES, fma, load, settled, spread, store
from temaki.base.team import floats, given, span


@team.task
def _filter_task(data):
    """given: u, y, a, c, v, D, d, N; u, y [N, D]; a, c [D/16, d, 16]; v [D/16, d + N, 16], d carried ones in front."""
    told = given(data)
    width, order, ids = told[5], told[6], told[7]
    u, y = floats(told[0], ids * width), floats(told[1], ids * width)
    part, first, last = span(data)
    while part >= 0:
        for block in range(first, last):
            a = floats(told[2] + 4 * block * order * LANES, order * LANES)
            c = floats(told[3] + 4 * block * order * LANES, order * LANES)
            v = floats(told[4] + 4 * block * (order + ids) * LANES, (order + ids) * LANES)
            for t in range(ids):
                now = order + t
                back0 = back1 = spread(np.float32(0))
                for i in range(0, order - 1, 2):
                    back0 = fma(load(a, i * LANES), load(v, (now - 1 - i) * LANES), back0)
                    back1 = fma(load(a, (i + 1) * LANES), load(v, (now - 2 - i) * LANES), back1)
                if order % 2:
                    back0 = fma(load(a, (order - 1) * LANES), load(v, (now - order) * LANES), back0)
                store(v, now * LANES, settled(load(u, t * width + block * LANES) - (back0 + back1)))
                out = spread(np.float32(0))
                for i in range(order):
                    out = fma(load(c, i * LANES), load(v, (now - i) * LANES), out)
                store(y, t * width + block * LANES, out)
        part, first, last = span(data)


def filtered(u: Tensor, a: Tensor, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The filter of u [N, D] on from registers x [D, d], newest first: (y [N, D], the registers after). No gradient."""
    (channels, order), ids = a.shape, len(u)
    short = -channels % LANES
    wide = F.pad(u, (0, short)) if short else u
    y, blocks = torch.empty_like(wide), wide.shape[1] // LANES
    v = torch.cat((_in_blocks(x.flip(1), short), u.new_empty(blocks, ids, LANES)), 1)
    _filter_task(
        blocks, min(32, blocks), wide, y, _in_blocks(a, short), _in_blocks(c, short), v, wide.shape[1], order, ids
    )
    after = v[:, ids:].transpose(1, 2).flatten(0, 1)[:channels].flip(1)
    return y[:, :channels], after


def _in_blocks(x: Tensor, short: int) -> Tensor:
    """[D, d] -> [D/16, d, 16], channels filled up with zeros."""
    return F.pad(x, (0, 0, 0, short)).reshape(-1, LANES, x.shape[1]).transpose(1, 2).contiguous()
