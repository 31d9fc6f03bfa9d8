"""A loss of the head's logits, any that judges places one by one, without ever holding all logits.

As `heads.linear_nll` does it: the gradient is made chunk by chunk in the forward pass. Letters: N places, D width,
V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.model.maps import wide

CHUNK = 1 << 20
"""Logits held at a time; a map that sorts keeps some ten tensors of that size."""

Scored = Callable[[Tensor, Tensor], Tensor]
"""(logits [n, V], targets int64 [n]) -> the loss of each place [n], differentiable."""


def linear_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, scored: Scored, cap: float | None = None
) -> Tensor:
    """sum_i w_i scored(l_i, target_i) with logits l = hidden weight^T, capped if there is a cap.

    hidden [N, D], weight [V, D], targets int64 [N], weights [N]. A scalar in float32 or better; [N, V] never exists.
    A place of weight 0 adds nothing, whatever its loss.

    >>> from temaki.model.map_losses import sparsemax_loss
    >>> linear_loss(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 1]), torch.ones(2), sparsemax_loss)
    tensor(0.7500)
    """
    needs = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _Loss.apply(hidden, weight, targets, weights, scored, cap, needs)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), or the logits as they are. Gemma Team 2024, "Gemma 2", section 2.

    >>> capped(torch.tensor([0.0, 3.0, 300.0]), 30.0), capped(torch.tensor([300.0]), None)
    (tensor([ 0.0000,  2.9900, 30.0000]), tensor([300.]))
    """
    return logits if cap is None else cap * (logits / cap).tanh()


def _made(logits: Tensor, targets: Tensor, weights: Tensor, scored: Scored, cap: float | None, needs: bool):  # type: ignore[no-untyped-def]
    """(the weighted sum of a chunk, its gradient by the logits before the cap or None)."""
    with torch.set_grad_enabled(needs):
        logits = wide(logits.detach()).requires_grad_(needs)
        each = scored(capped(logits, cap), targets)
        loss = (weights.to(each.dtype) * each).sum()
    return loss.detach(), torch.autograd.grad(loss, logits)[0] if needs else None


class _Loss(torch.autograd.Function):
    """The sum, with both gradients made in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, scored: Scored, cap: float | None,
        needs: bool,
    ) -> Tensor:  # fmt: skip
        kept = weights != 0
        size = max(1, CHUNK // len(weight))
        into_hidden, into_weight = (torch.zeros_like(x if needs else x[:0]) for x in (hidden, weight))
        total = wide(hidden.new_zeros(()))
        with torch.autocast(hidden.device.type, enabled=False):
            for at in kept.nonzero()[:, 0].split(size):
                h = hidden[at].to(weight.dtype)
                loss, grad = _made(F.linear(h, weight), targets[at], weights[at], scored, cap, needs)
                total += loss
                if grad is not None:
                    grad = grad.to(weight.dtype)
                    into_hidden[at] = (grad @ weight).to(hidden.dtype)
                    into_weight.addmm_(grad.mT, h)
        ctx.save_for_backward(into_hidden, into_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        into_hidden, into_weight = ctx.saved_tensors
        return grad.to(into_hidden.dtype) * into_hidden, grad.to(into_weight.dtype) * into_weight, *(None,) * 5
