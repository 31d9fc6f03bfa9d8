"""Perturb-max: the probability that a score is the largest once standard Gaussian noise is added to each.

P_i = E over z of phi(z - x_i) prod over j != i of Phi(z - x_j). With h = phi / Phi it is the integral over z of
h(z - x_i) prod over all j of Phi(z - x_j): one pass over a row for each z, not one for each pair. z runs over
a grid from the largest score on; the integrand is smooth and dies out at both ends, so the plain sum converges faster
than any power of the step. Gumbel noise instead of Gaussian gives softmax. Letters: S scores a row, Z points.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.model.maps import HIDDEN, wide

BELOW, ABOVE = 6.0, 8.0
"""Where the grid begins and ends about the largest score: Phi(-6) = 1e-9; 1 - Phi(8) = 6e-16, times S."""


def perturb_max(scores: Tensor, points: int = 32) -> Tensor:
    """P[argmax(x + e) = i] with e standard Gaussian, over the last axis, in float32 or better; 0 for a hidden entry.

    >>> perturb_max(torch.tensor([1.0, 0.8, 0.1, -0.5]))
    tensor([0.4566, 0.3582, 0.1356, 0.0495])
    """
    return _Perturb.apply(wide(scores), points)


def perturb_max_by_quantiles(scores: Tensor, points: int = 1024) -> Tensor:
    """The same by the mean over noise at the quantiles (i + 1/2) / Z, pair by pair: [..., S, S] for each point.

    Source: Su 2024, the article on the relation of perturbation and softmax; slow, kept as the readable twin.

    >>> perturb_max_by_quantiles(torch.tensor([0.0, 0.0, HIDDEN]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    scores = wide(scores)
    hidden = scores == HIDDEN
    apart = scores.masked_fill(hidden, 0.0)[..., :, None] - scores[..., None, :]  # x_i - x_j; hidden j: +inf
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    total = torch.zeros_like(scores)
    for noise in torch.special.ndtri((torch.arange(points, dtype=scores.dtype) + 0.5) / points).tolist():
        total = total + torch.special.ndtr(apart + noise).masked_fill(own, 1.0).prod(-1)
    return (total / points).masked_fill(hidden, 0.0)


def _grid(scores: Tensor, points: int) -> tuple[Tensor, list[float], float]:
    """(max - x [..., S], the points z - max, their distance)."""
    top = scores.amax(-1, keepdim=True)
    step = (BELOW + ABOVE) / (points - 1)
    return top.masked_fill(top == HIDDEN, 0.0) - scores, [-BELOW + step * i for i in range(points)], step


def _at(distance: Tensor) -> tuple[Tensor, Tensor]:
    """(h = phi / Phi at t, prod Phi(t) [..., 1]) for t = z - x >= -BELOW; at t = inf h is 0 and Phi 1.

    Where so many factors are small that the product is no float any more, the integrand is 0 to every digit.
    """
    below = (distance * -math.sqrt(0.5)).erfc_().mul_(0.5)
    h = (distance.square().mul_(-0.5).exp_() / below).mul_(1 / math.sqrt(2 * math.pi))
    return h, below.prod(-1, keepdim=True)


class _Perturb(torch.autograd.Function):
    """The integral divided by its sum; nothing of size [Z, S] is kept, the backward pass goes over the grid again."""

    @staticmethod
    def forward(ctx, scores: Tensor, points: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        back, grid, step = _grid(scores, points)
        total = torch.zeros_like(scores)
        for z in grid:
            h, mass = _at(back + z)
            total += step * mass * h
        whole = total.sum(-1, keepdim=True)
        whole = whole.masked_fill(whole == 0, 1.0)
        ctx.points = points
        ctx.save_for_backward(scores, whole, p := total / whole)
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        scores, whole, p = ctx.saved_tensors
        back, grid, step = _grid(scores, ctx.points)
        grad = (grad - (grad * p).sum(-1, keepdim=True)) / whole
        out = torch.zeros_like(scores)
        for z in grid:
            h, mass = _at(back + z)
            t = (back + z).masked_fill(scores == HIDDEN, 0.0)  # h is 0 there
            out += step * mass * h * (grad * (t + h) - (grad * h).sum(-1, keepdim=True))
        return out, None
