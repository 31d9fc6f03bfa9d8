"""Norms, as functions of tensors and as parts. Letters: D width."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.base.roles import Role
from temaki.model.config import LayerNormConfig, RmsNormConfig
from temaki.model.norm_loops import RmsNormLoop
from temaki.model.part import Part


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """x * gain / sqrt(mean(x^2) + eps) over the last axis, computed in float32 or better: [..., D] -> [..., D].

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0)
    tensor([0.8485, 1.1314])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    gain = gain.to(wide.dtype)
    if torch.compiler.is_compiling():  # the compiler fuses torch's own; uncompiled it is slower, most in many rows
        return F.rms_norm(wide, (x.shape[-1],), gain, eps).to(x.dtype)
    if torch.is_grad_enabled() or wide.numel() > wide.shape[-1]:
        rule = RmsNormLoop if team.serves(wide, gain) else _RmsNorm
        return rule.apply(wide, gain, eps).to(x.dtype)
    shrink = _shrink_one(wide, eps) if wide.numel() and wide.device.type == "cpu" else _shrink(wide, eps)
    return (wide * shrink).mul_(gain).to(x.dtype)


def _shrink(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps): [..., D] -> [..., 1]."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _shrink_one(row: Tensor, eps: float) -> float:
    """`_shrink` of a single row on the host as a number: one operation where it takes five."""
    norm = torch.linalg.vector_norm(row).item()
    square = norm * norm / row.shape[-1] + eps
    return 1 / math.sqrt(square) if square > 0 else math.inf


class _RmsNorm(torch.autograd.Function):
    """The formula and its gradient in few passes over x.

    With s = 1 / rms, t = grad * x, h = grad * gain: dx = s h - x s^3 (t . gain) / D, dgain = sum over places of s t.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # type: ignore[no-untyped-def, override]
        s = _shrink(x, eps)
        ctx.save_for_backward(x, gain, s)
        return (x * s).mul_(gain)

    @staticmethod
    @once_differentiable
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


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean(x)) * gain / sqrt(var(x) + eps) + bias over the last axis, biased variance: [..., D] -> [..., D].

    Computed in float32 or better. Ba, Kiros and Hinton 2016, "Layer Normalization", equation 4.

    >>> layer_norm(torch.tensor([[2.0, 2.0, 3.0], [-5.0, 0.0, 1.0]]), torch.ones(3))
    tensor([[-0.7071, -0.7071,  1.4142],
            [-1.3970,  0.5080,  0.8890]])
    """
    wide = x if x.dtype == torch.float64 else x.float()
    shift = bias if bias is None else bias.to(wide.dtype)
    return F.layer_norm(wide, (x.shape[-1],), gain.to(wide.dtype), shift, eps).to(x.dtype)


class LayerNorm(Part):
    """`layer_norm` with a learned gain and, if configured, a learned bias."""

    def __init__(self, config: LayerNormConfig, width: int):
        super().__init__()
        self.eps = config.eps
        self.gain = self.add("gain", width, role=Role("vector"), filling="ones")
        self.bias = self.add("bias", width, role=Role("vector"), filling="zeros") if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.gain, self.bias, self.eps)
