"""The head: hidden vectors to logits, and the loss that never holds all logits at once.

Letters: N places, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.model import heads_loops
from temaki.model.map_head import Scored, capped, linear_loss

CHUNK = 1 << 21
"""Logits held at a time."""


def linear_nll(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    smooth: float = 0.0,
    z: float = 0.0,
    cap: float | None = None,
) -> Tensor:
    """sum_i w_i (logsumexp(l_i) - sum_v q_iv l_iv + z logsumexp(l_i)^2) with logits l = hidden weight^T, in chunks.

    hidden [N, D], weight [V, D], targets int64 [N], weights [N]; q = (1 - smooth) onehot(target) + smooth / V (the
    smoothed mass is spread over all classes). With a cap, l = cap * tanh(hidden weight^T / cap). Returns a scalar in
    float32 or better; [N, V] never exists: the gradient is made chunk by chunk together with the sum.

    >>> linear_nll(torch.zeros(3, 2), torch.ones(4, 2), torch.tensor([0, 1, 2]), torch.tensor([1.0, 1.0, 0.0]))
    tensor(2.7726)
    """
    needs = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(weight.dtype)
    if needs and not torch.compiler.is_compiling() and team.serves(hidden, weight):
        return _Nll.apply(hidden, weight, targets, weights, smooth, z, cap)
    return _linear_nll(hidden, weight, targets, weights, smooth, z, cap, needs)[0]


def linear_nll_each(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """-log softmax(hidden weight^T)[target] of each place, without gradient: [N] in float32 or better.

    >>> linear_nll_each(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 1]))
    tensor([1.3863, 1.3863])
    """
    with torch.no_grad():
        parts = [
            F.cross_entropy(capped(_wide(F.linear(h, weight)), cap), t, reduction="none")
            for h, t in zip(*_chunks(weight.shape[0], hidden, targets), strict=True)
        ]
    return torch.cat(parts) if parts else _wide(hidden.new_zeros(0))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _chunks(vocabulary: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [x.split(max(1, CHUNK // vocabulary)) for x in tensors]


@torch.library.custom_op("temaki::linear_nll", mutates_args=())
def _linear_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float, cap: float | None,
    needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(sum, gradient of hidden, gradient of weight); the gradients are empty where not needed."""
    return _made(hidden, weight, targets, weights, smooth, z, cap, needs)


def _made(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float, cap: float | None,
    needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    total = _wide(hidden.new_zeros(()))
    into_hidden = torch.empty_like(hidden) if needs else hidden.new_empty(0)
    into_weight = weight.new_empty(weight.shape if needs else 0)
    if not len(hidden):
        into_weight.zero_()
    start = 0
    with torch.autocast(hidden.device.type, enabled=False):
        for h, t, w in zip(*_chunks(weight.shape[0], hidden, targets, weights), strict=True):
            logits = _wide(F.linear(h, weight))
            loss, grad = _loss_and_slope(logits, t, w.to(logits.dtype), smooth, z, cap, needs)
            total += loss
            if grad is not None:
                grad = grad.to(weight.dtype)
                torch.mm(grad, weight, out=into_hidden[start : start + len(h)])
                into_weight.addmm_(grad.mT, h, beta=1 if start else 0)  # 0: what stands there is not read
            start += len(h)
    return total, into_hidden, into_weight


def _loss_and_slope(
    logits: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float, cap: float | None, needs: bool
) -> tuple[Tensor, Tensor | None]:
    """(weighted sum of the losses, its gradient by the logits before the cap); the logits are used up."""
    if needs and cap is None and team.serves(logits, weights):
        return heads_loops.nll_(logits, targets, weights, smooth, z).sum(), logits
    size = logits.shape[1]
    logits = capped(logits, cap)
    slope = None if cap is None or not needs else 1 - (logits / cap).square()
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, targets[:, None]).squeeze(-1)
    nll = lse - (1 - smooth) * picked + z * lse.square()
    if smooth:
        nll = nll - smooth * logits.mean(-1)
    loss = (weights * nll).sum()
    if not needs:
        return loss, None
    grad = logits.sub_(lse[:, None]).exp_().mul_((weights * (1 + 2 * z * lse))[:, None])
    if smooth:
        grad -= (weights * smooth / size)[:, None]
    at = torch.arange(len(targets), device=targets.device)
    grad[at, targets] -= weights * (1 - smooth)
    return loss, grad if slope is None else grad.mul_(slope)


class _Nll(torch.autograd.Function):
    """The operator without the dispatcher, for float32 on the host; its gradients are handed over, not copied."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float,
        cap: float | None,
    ) -> Tensor:  # fmt: skip
        total, *ctx.made = _made(hidden, weight, targets, weights, smooth, z, cap, needs=True)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        assert ctx.made, "the gradient of a loss in float32 can be asked for once"
        into_hidden, into_weight = (made.mul_(grad) for made in ctx.made)
        ctx.made = []
        return into_hidden, into_weight, *(None,) * 5


@_linear_nll.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    smooth: float,
    z: float,
    cap: float | None,
    needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    empty = (
        (torch.empty_like(hidden), torch.empty_like(weight)) if needs else (hidden.new_empty(0), weight.new_empty(0))
    )
    return (hidden.new_empty((), dtype=wide), *empty)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, into_hidden, into_weight = output
    ctx.save_for_backward(into_hidden, into_weight)
    ctx.mark_non_differentiable(into_hidden, into_weight)


def _backward(ctx, grad: Tensor, _hidden: Tensor, _weight: Tensor):  # type: ignore[no-untyped-def]
    into_hidden, into_weight = ctx.saved_tensors
    return (
        grad.to(into_hidden.dtype) * into_hidden,
        grad.to(into_weight.dtype) * into_weight,
        *(None,) * 6,
    )


_linear_nll.register_autograd(_backward, setup_context=_save)


class Head(nn.Module):
    """Logits from hidden vectors by one matrix [V, D], which may be the embedding's, and a cap if there is one."""

    def __init__(self, weight: nn.Parameter, cap: float | None = None):
        super().__init__()
        self.weight = weight
        self.cap = cap

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, D] -> [n, V]."""
        return capped(F.linear(hidden, self.weight), self.cap)

    def nll(self, hidden: Tensor, targets: Tensor, weights: Tensor, smooth: float = 0.0, z: float = 0.0) -> Tensor:
        """The weighted sum of the losses of all places, see `linear_nll`."""
        return linear_nll(hidden, self.weight, targets, weights, smooth, z, self.cap)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor, scored: Scored) -> Tensor:
        """The weighted sum of the losses of all places by another map than softmax, see `map_head.linear_loss`."""
        return linear_loss(hidden, self.weight, targets, weights, scored, self.cap)

    def nll_each(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Each place's -log probability of its target, in nats, without gradient: [N]."""
        return linear_nll_each(hidden, self.weight, targets, self.cap)
