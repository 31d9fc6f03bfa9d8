"""Maps to probabilities that give exact zeros: sparsemax, entmax of any alpha, softmax over the largest few.

Over the last axis, in float32 or better; an entry of minus infinity gets exactly 0, a row of them alone is zeros.
With the largest score taken off, entmax is p_i = e(x_i - c), e(y) = max(0, 1 + b y)^(1/b), b = alpha - 1, where c >= 0
makes the sum 1. e is the exponential at b = 0 (softmax), and max(0, 1 + y) at b = 1 (sparsemax); written so, nothing
is lost as alpha nears 1. Derivatives follow from s_i = de/dy = p_i^(2 - alpha) on the support, 0 elsewhere.
Letters: S scores a row, k of them in the support.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import team
from temaki.model.maps import HIDDEN, plain_softmax, wide
from temaki.model.sparse_maps_loops import EntmaxLoop

STEPS = 60
"""Most steps to c: halvings leave float64 no number between the ends; Newton needs about ten."""


def sparsemax(scores: Tensor) -> Tensor:
    """max(0, x_i - t) with t such that the sum is 1: the nearest point of the simplex.

    Sorted, t_k = (x_(1) + .. + x_(k) - 1) / k, and k is the largest with x_(k) > t_k. Source: Martins and Astudillo
    2016, "From softmax to sparsemax", algorithm 1; its Jacobian: equation 9.

    >>> sparsemax(torch.tensor([1.0, 0.8, 0.1, -0.5]))
    tensor([0.6000, 0.4000, 0.0000, 0.0000])
    """
    return _by_rows(wide(scores), 2.0, _sparsemax)


def entmax15(scores: Tensor) -> Tensor:
    """max(0, x_i / 2 - t)^2 with t such that the sum is 1, exactly: entmax of alpha = 1.5.

    With z = x / 2 sorted, m_k and v_k mean and variance of the first k, t_k = m_k - sqrt(max(1/k - v_k, 0)), and k is
    the number of those with z_(k) >= t_k. Source: Peters, Niculae and Martins 2019, "Sparse sequence-to-sequence
    models", algorithm 2.

    >>> entmax15(torch.tensor([1.0, 2.0, 3.0]))
    tensor([0.0000, 0.1693, 0.8307])
    """
    return _by_rows(wide(scores), 1.5, _entmax15)


def entmax(scores: Tensor, alpha: float | Tensor) -> Tensor:
    """max(0, (alpha - 1) x_i - t)^(1 / (alpha - 1)) with t such that the sum is 1; alpha from 1 (softmax) on.

    A tensor alpha is broadcast to the scores (one a head: [H, 1, 1]) and gets its gradient. t is found by Newton's
    steps from max - 1 up, for alpha > 2 by halving [max - 1, max); what rounding leaves is divided out. Source:
    Blondel, Martins and Niculae 2019, "Learning classifiers with Fenchel-Young losses", algorithm 1; the gradient of
    alpha: Correia, Niculae and Martins 2019, "Adaptively sparse transformers", proposition 1.

    >>> entmax(torch.tensor([1.0, 0.8, 0.1, -0.5]), 1.25)
    tensor([0.4655, 0.3626, 0.1305, 0.0414])
    """
    return _by_rows(wide(scores), alpha, None)


def top_k_softmax(scores: Tensor, k: int) -> Tensor:
    """softmax over the k largest scores, 0 elsewhere; of equal ones the earliest.

    >>> top_k_softmax(torch.tensor([0.0, 1.0, 1.0, 1.0]), 2)
    tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    scores = wide(scores)
    return plain_softmax(scores.masked_fill(~largest(scores.detach(), k), HIDDEN))


def top_p_softmax(scores: Tensor, p: float) -> Tensor:
    """softmax over the fewest entries that hold the mass p together, 0 elsewhere; of equal ones the earliest.

    >>> top_p_softmax(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6)
    tensor([0.6250, 0.3750, 0.0000])
    """
    scores = wide(scores)
    order = torch.sort(scores.detach(), stable=True, dim=-1, descending=True).indices
    mass = plain_softmax(scores.detach()).gather(-1, order)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, mass.cumsum(-1) - mass < p)
    return plain_softmax(scores.masked_fill(~kept, HIDDEN))


def largest(scores: Tensor, k: int) -> Tensor:
    """Whether an entry is among the k largest of its row, of equal ones the earliest: bool [..., S].

    >>> largest(torch.tensor([3.0, 5.0, 3.0]), 2)
    tensor([ True,  True, False])
    """
    if k >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.topk(k, -1).values[..., -1:]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def _by_rows(scores: Tensor, alpha: float | Tensor, solved: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Entmax by the compiled loop where that serves, alpha being 1..2 and one a row; by the twin elsewhere."""
    if (
        not torch.compiler.is_compiling()
        and scores.numel()
        and scores.ndim
        and team.serves(dense := scores.contiguous())
    ):
        at = torch.as_tensor(alpha, dtype=scores.dtype, device=scores.device)
        a_row = at.ndim == 0 or (at.shape[-1] == 1 and at.ndim <= scores.ndim)
        if a_row and bool(((at >= 1) & (at <= 2)).all()):
            return EntmaxLoop.apply(dense, (at - 1).expand(*scores.shape[:-1], 1).contiguous())
    return _Entmax.apply(scores, alpha, solved)


# ---- what makes the sum 1 -------------------------------------------------------------------------------------------


def _shifted(scores: Tensor) -> Tensor:
    """Scores minus the row's largest; a row of nothing stays minus infinity."""
    top = scores.amax(-1, keepdim=True)
    return scores - top.masked_fill(top == HIDDEN, 0.0)


def _ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(scores - max in float64, at least -1, sorted downwards; 1, 2, .. of the same kind). None below -1 can stay."""
    x = _shifted(scores).double().clamp(min=-1.0).sort(-1, descending=True).values
    return x, torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)


def _sparsemax(scores: Tensor) -> Tensor:
    x, ks = _ranked(scores)
    thresholds = (x.cumsum(-1) - 1) / ks
    k = (x > thresholds).sum(-1, keepdim=True).clamp(min=1)
    t = thresholds.gather(-1, k - 1).clamp(min=-1.0)
    return (_shifted(scores) - t).clamp(min=0).to(scores.dtype)


def _entmax15(scores: Tensor) -> Tensor:
    x, ks = _ranked(scores / 2)
    mean = x.cumsum(-1) / ks
    variance = x.square().cumsum(-1) / ks - mean.square()
    thresholds = mean - (1 / ks - variance).clamp(min=0).sqrt()
    k = (x >= thresholds).sum(-1, keepdim=True).clamp(min=1)
    t = thresholds.gather(-1, k - 1).clamp(min=-1.0)
    return (_shifted(scores / 2) - t).clamp(min=0).square().to(scores.dtype)


def _raised(y: Tensor, b: Tensor) -> Tensor:
    """e(y) = max(0, 1 + b y)^(1/b), which is exp(y) at b = 0; accurate for small b too."""
    inside = (b * y).clamp_(min=-1.0)  # -1: nothing
    power = inside.log1p_().div_(b.masked_fill(b == 0, 1.0))
    return torch.where(b == 0, y, power).exp_() if bool((b == 0).any()) else power.exp_()


def _bracket(scores: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(0 [..., 1], where the largest alone has 1 already; (1 - S^-b) / b, where none has more than 1/S)."""
    low = torch.zeros_like(scores[..., :1])
    size = low.new_tensor(float(scores.shape[-1])).log()
    return low, low + torch.where(b == 0, size, -(-b * size).expm1() / b.masked_fill(b == 0, 1.0))


def _solved(scores: Tensor, alpha: Tensor) -> Tensor:
    """p with c found by `_newton` where sum e(x - c) is convex in c, by `_halved` elsewhere; rounding divided out."""
    convex = bool((alpha <= 2).all())
    x = _shifted(scores) if convex else _shifted(scores).double()
    x, b = x.clamp(min=-torch.finfo(x.dtype).max), alpha.to(x.dtype) - 1  # so that 0 * infinity is never met
    c = _newton(x, b) if convex else _halved(x, b)
    p = _raised(x - c, b).masked_fill(scores == HIDDEN, 0.0)
    total = p.sum(-1, keepdim=True)
    return (p / total.masked_fill(total == 0, 1.0)).to(scores.dtype)


def _newton(x: Tensor, b: Tensor) -> Tensor:
    """c by Newton's steps from 0 on: for b <= 1 they never go beyond it and end at it."""
    c, high = _bracket(x, b)
    near = 4 * torch.finfo(x.dtype).eps
    for _ in range(STEPS):
        p = _raised(x - c, b)
        beyond = p.sum(-1, keepdim=True) - 1
        step = beyond / _slopes(p, b + 1).sum(-1, keepdim=True)
        step = step.masked_fill(~(step > near * (1 + c)), 0.0)  # a row that has arrived stays, whoever is beside it
        c = torch.minimum(c + step, high)
        if not bool(step.any()):
            break
    return c


def _halved(x: Tensor, b: Tensor) -> Tensor:
    """c by halving the interval that holds it."""
    low, high = _bracket(x, b)
    for _ in range(STEPS):
        middle = (low + high) / 2
        above = _raised(x - middle, b).sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low


# ---- derivatives ----------------------------------------------------------------------------------------------------


def _slopes(p: Tensor, alpha: Tensor) -> Tensor:
    """s = p^(2 - alpha) on the support, 0 elsewhere."""
    return p.pow(2 - alpha).masked_fill_(p == 0, 0.0)


def _centred(grad: Tensor, slopes: Tensor) -> Tensor:
    """grad - sum(s grad) / sum(s), about the entry with the largest slope: slopes grow without bound if alpha > 2."""
    grad = grad - grad.gather(-1, slopes.argmax(-1, keepdim=True))
    total = slopes.sum(-1, keepdim=True)
    return grad - (slopes * grad).sum(-1, keepdim=True) / total.masked_fill(total == 0, 1.0)


def _by_alpha(p: Tensor, alpha: Tensor) -> Tensor:
    """The derivative of e(y) by alpha at fixed y = ((p^b - 1) / b): p (u / (1 + u) - log(1 + u)) / b^2, u = b y."""
    b = (alpha - 1).expand_as(p)
    logs = torch.where(p > 0, p, 1.0).log()
    inside = b * logs
    u = inside.expm1()
    near = inside.abs() < (0.05 if p.dtype == torch.float32 else 1e-3)
    safe = torch.where(near, 1.0, b)
    far = (torch.where(near, 0.0, u / (1 + u) - inside)) / safe.square()
    # with w = log(1 + u) = b log p, u / (1 + u) - w = 1 - e^-w - w = -w^2/2 + w^3/6 - w^4/24 + ..
    w = torch.where(near, inside, 0.0)
    series = logs.square() * (-1 / 2 + w / 6 - w.square() / 24 + w**3 / 120 - w**4 / 720)
    return torch.where(p > 0, p * torch.where(near, series, far), 0.0)


class _Entmax(torch.autograd.Function):
    """p, and p's Jacobian diag(s) - s s^T / sum(s) from p alone."""

    @staticmethod
    def forward(ctx, scores: Tensor, alpha: float | Tensor, solved) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.given = torch.as_tensor(alpha, dtype=scores.dtype, device=scores.device)
        p = _solved(scores, ctx.given) if solved is None else solved(scores)
        ctx.save_for_backward(p)
        ctx.learned = isinstance(alpha, Tensor) and alpha.requires_grad
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (p,) = ctx.saved_tensors
        slopes = _slopes(p, ctx.given)
        centred = _centred(grad, slopes)
        by_alpha = (_by_alpha(p, ctx.given) * centred).sum_to_size(ctx.given.shape) if ctx.learned else None
        return slopes * centred, by_alpha, None
