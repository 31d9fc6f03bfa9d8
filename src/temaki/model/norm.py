"""Norms, as functions of tensors and as parts. Letters: D width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.model.config import RmsNormConfig
from temaki.base.roles import Role
from temaki.model.part import Part


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """x * gain / sqrt(mean(x^2) + eps) over the last axis, computed in float32 or better: [..., D] -> [..., D].

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0)
    tensor([0.8485, 1.1314])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    return F.rms_norm(wide, (x.shape[-1],), gain.to(wide.dtype), eps).to(x.dtype)


class RmsNorm(Part):
    """`rms_norm` with a learned gain."""

    def __init__(self, config: RmsNormConfig, width: int):
        super().__init__()
        self.eps = config.eps
        self.gain = self.add("gain", width, role=Role("vector"), filling="ones")

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gain, self.eps)
