"""Norms, as functions of tensors and as parts. Letters: D width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config import RmsNormConfig
from temaki.model.part import Part


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """x * gain / sqrt(mean(x^2) + eps) over the last axis, computed in float32 or better: [..., D] -> [..., D].

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0)
    tensor([0.8485, 1.1314])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    gain = gain.to(wide.dtype)
    if torch.compiler.is_compiling():  # the compiler fuses the formula by itself
        return F.rms_norm(wide, (x.shape[-1],), gain, eps).to(x.dtype)
    return _RmsNorm.apply(wide, gain, eps).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    """The formula and its gradient in few passes over x.

    With s = 1 / rms, t = grad * x, h = grad * gain: dx = s h - x s^3 (t . gain) / D, dgain = sum over places of s t.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # type: ignore[no-untyped-def, override]
        s = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, s)
        return (x * s).mul_(gain)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        x, gain, s = ctx.saved_tensors
        t = grad * x
        pull = (t @ gain).unsqueeze_(-1).mul_(s.pow(3).div_(-x.shape[-1]))
        width = x.shape[-1]
        into_gain = s.reshape(1, -1) @ t.reshape(-1, width)
        return (grad * gain).mul_(s).addcmul_(x, pull), into_gain.reshape(width), None


class RmsNorm(Part):
    """`rms_norm` with a learned gain."""

    def __init__(self, config: RmsNormConfig, width: int):
        super().__init__()
        self.eps = config.eps
        self.gain = self.add("gain", width, role=Role("vector"), filling="ones")

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gain, self.eps)
