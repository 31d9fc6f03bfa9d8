"""A short causal convolution, one filter a channel, in the two forms that recurrent mixers need.

Letters: N ids, L ids of a chunk, n slots, E channels, W places of the filter, the newest first.
"""

import torch
from torch import Tensor

from temaki.base.lanes import LANES
from temaki.model.scan import looped
from temaki.model.short_conv_loops import ShortConvolution


def short_convolution(x: Tensor, weight: Tensor, ages: Tensor) -> Tensor:
    """y_t = sum over j < W of weight_j x_{t-j} inside each piece: x [N, E], weight [E, W], ages int64 [N] -> [N, E].

    ages: the place of each id in its piece (`Layout.ages`): nothing reaches over a piece's start.

    >>> short_convolution(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0, 0.5]]), torch.tensor([0, 1, 0])).T
    tensor([[1.0000, 2.5000, 4.0000]])
    """
    x = x.contiguous()
    if looped(x) and weight.dtype == torch.float32 and x.shape[1] % LANES == 0:
        return ShortConvolution.apply(x, weight, ages)
    y = x * weight[:, 0]
    for j in range(1, weight.shape[1]):
        back = torch.cat((torch.zeros_like(x[:j]), x[:-j]))[: len(x)] * weight[:, j]
        y = y + back.masked_fill((ages < j)[:, None], 0.0)
    return y


def short_convolution_on(past: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """L ids of one slot on from the W - 1 before them: past [W - 1, E], x [L, E] -> (y [L, E], the new past).

    >>> short_convolution_on(torch.tensor([[1.0]]), torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0, 0.5]]))
    (tensor([[2.5000],
            [5.0000]]), tensor([[4.]]))
    """
    seen = torch.cat((past, x))
    places = seen.unfold(0, weight.shape[1], 1)  # [L, E, W], the oldest first
    return (places * weight.flip(1)).sum(-1), seen[len(seen) - len(past) :]


def short_convolution_step(past: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """One id of each of n slots: past [n, W - 1, E], x [n, E] -> (y [n, E], the new past).

    >>> short_convolution_step(torch.tensor([[[1.0]]]), torch.tensor([[2.0]]), torch.tensor([[1.0, 0.5]]))
    (tensor([[2.5000]]), tensor([[[2.]]]))
    """
    seen = torch.cat((past, x[:, None]), 1)  # [n, W, E], the oldest first
    return (seen * weight.flip(1).T).sum(1), seen[:, 1:]
