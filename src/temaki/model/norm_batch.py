"""Batch normalisation over the places of a call, and no norm: contrasts to the norms of `norm.py`.

Ioffe and Szegedy 2015, "Batch normalization", algorithms 1 and 2. Letters: N places of a micro-batch, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from temaki.base.roles import Role
from temaki.model.config import BatchNormConfig, NoNormConfig
from temaki.model.part import Part

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance of every coordinate: [D] both."""


def moments(x: Tensor) -> Moments:
    """Mean and biased variance over all places: x [N, D], N >= 1.

    >>> moments(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    (tensor([2., 2.]), tensor([1., 0.]))
    """
    variance, mean = torch.var_mean(x, 0, correction=0)
    return mean, variance


def batch_norm(x: Tensor, seen: Moments, gain: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) * gain / sqrt(var + eps) + bias with the moments given: [N, D] -> [N, D].

    >>> x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]])
    >>> batch_norm(x, moments(x), torch.ones(3), torch.zeros(3))
    tensor([[-1.0000, -1.0000, -1.0000],
            [ 1.0000,  1.0000,  1.0000]])
    """
    mean, variance = seen
    return (x - mean) * (gain * (variance + eps).rsqrt()) + bias


class BatchNorm(Part):
    """`batch_norm` by the moments of the call in training, by running ones elsewhere.

    The running moments follow those of a whole step, its micro-batches pooled: what a forward saw is counted in its
    backward, so that activations computed anew count once and a forward that teaches nothing does not count.
    """

    mean: Tensor
    variance: Tensor
    uncompiled = ("forward",)  # it writes down what it has seen

    def __init__(self, config: BatchNormConfig, width: int):
        super().__init__()
        self.eps, self.momentum = config.eps, config.momentum
        self.gain = self.add("gain", width, role=Role("vector"), filling="ones")
        self.bias = self.add("bias", width, role=Role("vector"), filling="zeros")
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        self.register_buffer("variance", torch.ones(width, dtype=torch.float32))
        self.seen = Seen()

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        gain, bias = self.gain.to(wide.dtype), self.bias.to(wide.dtype)
        if not (self.training and torch.is_grad_enabled() and len(x)):
            running = (self.mean.to(wide.dtype), self.variance.to(wide.dtype))
            return batch_norm(wide, running, gain, bias, self.eps).to(x.dtype)
        found = moments(wide)
        y = batch_norm(wide, found, gain, bias, self.eps)
        return _Counted.apply(y, len(x), found[0].detach(), found[1].detach(), self.seen).to(x.dtype)

    @torch.no_grad()
    def settle(self) -> None:
        """Move the running moments towards those seen since the last update, and forget these."""
        found = self.seen.take()
        if found is not None:
            self.mean.lerp_(found[0].to(self.mean), self.momentum)
            self.variance.lerp_(found[1].to(self.variance), self.momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BatchNorm":
        """`.to` moves the running moments with the rest, but they stay float32: they move by small steps."""
        mean, variance = self.mean, self.variance
        super()._apply(fn, recurse)
        self.mean, self.variance = mean.to(self.mean.device), variance.to(self.variance.device)
        return self


class NoNorm(Part):
    """x as it is."""

    def __init__(self, config: NoNormConfig, width: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Seen:
    """Sums over the places read since the last update: how many, of x, of x^2."""

    def __init__(self) -> None:
        self.sums: tuple[int, Tensor, Tensor] | None = None

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """`count` places with these moments."""
        more = (count, count * mean.double(), count * (variance.double() + mean.double() ** 2))
        old = self.sums
        self.sums = more if old is None else (old[0] + more[0], old[1] + more[1], old[2] + more[2])

    def take(self) -> Moments | None:
        """The moments of all of them together, which are forgotten; None where nothing was read."""
        sums, self.sums = self.sums, None
        if sums is None:
            return None
        mean = sums[1] / sums[0]
        return mean, (sums[2] / sums[0] - mean**2).clamp(min=0)


def settle(model: nn.Module) -> None:
    """After an update: every batch norm of the model moves its running moments."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.settle()


def forget(model: nn.Module) -> None:
    """After an update that was refused: what was seen in it does not count."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.seen.take()


class _Counted(torch.autograd.Function):
    """The identity; its backward writes down what was seen."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, count: int, mean: Tensor, variance: Tensor, into: Seen) -> Tensor:  # type: ignore[override]
        ctx.count, ctx.mean, ctx.variance, ctx.into = count, mean, variance, into
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        ctx.into.add(ctx.count, ctx.mean, ctx.variance)
        return grad, None, None, None, None
