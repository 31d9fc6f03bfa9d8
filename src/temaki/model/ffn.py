"""Feed-forward layers, as functions of tensors and as parts. Letters: D width, F hidden width."""

import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config import SwigluConfig, ffn_width
from temaki.model.part import Part


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x).

    >>> import torch
    >>> silu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7311])
    """
    return F.silu(x)


def swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W2 (SiLU(W1 x) * W3 x) with up = [W1; W3] of shape [2F, D] and down = W2 of shape [D, F]: [..., D] -> [..., D].

    Shazeer 2020, "GLU Variants Improve Transformer", equation 6.

    >>> import torch
    >>> swiglu(torch.ones(2), torch.ones(2, 2), torch.ones(2, 1))
    tensor([3.5232, 3.5232])
    """
    gate, value = F.linear(x, up).chunk(2, -1)
    return F.linear(F.silu(gate) * value, down)


class Swiglu(Part):
    """`swiglu` with W1 and W3 stacked in one matrix."""

    def __init__(self, config: SwigluConfig, width: int):
        super().__init__()
        hidden = ffn_width(config, width)
        self.up = self.add("up", 2 * hidden, width, role=Role("matrix", (hidden, hidden)), filling="matrix")
        self.down = self.add("down", width, hidden, role=Role("matrix"), filling="out")

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, self.up, self.down)
