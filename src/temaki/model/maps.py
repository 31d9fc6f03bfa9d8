"""Maps from scores to probabilities that need no sorting, and what is read off them, as functions of tensors.

Every map works over the last axis, in float32 or better. Scores may be minus infinity: such an entry gets exactly 0,
and a row that has nothing else is zeros. What each map keeps (the sum, the order, shifts) stands in `map_properties`.
Letters: V classes, S scores a row.
"""

import torch
from torch import Tensor

HIDDEN = float("-inf")
"""The score of an entry that must get nothing."""


def softmax(x: Tensor, temperature: float = 1.0) -> Tensor:
    """exp(x_i / t) / sum_j exp(x_j / t) over the last axis, the maximum taken off first; temperature t > 0.

    >>> softmax(torch.tensor([[2.0, 10.0], [-1.0, 0.0]]))
    tensor([[3.3535e-04, 9.9966e-01],
            [2.6894e-01, 7.3106e-01]])
    """
    return log_softmax(x / temperature).exp()


def log_softmax(x: Tensor) -> Tensor:
    """x - logsumexp(x) over the last axis, never the logarithm of a softmax.

    >>> log_softmax(torch.tensor([0.0, -1e4]))
    tensor([     0., -10000.])
    """
    top = x.amax(-1, keepdim=True)
    shifted = x - top.masked_fill(top == HIDDEN, 0.0)
    total = shifted.exp().sum(-1, keepdim=True)
    return shifted - total.masked_fill(total == 0, 1.0).log()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) where x >= 0, e^x / (1 + e^x) elsewhere: no overflow on either side.

    >>> sigmoid(torch.tensor([-1e4, 0.0, 1e4]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    small = (-x.abs()).exp()
    return torch.where(x >= 0, 1.0, small) / (1.0 + small)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 or better.

    >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype, wide(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x if x.dtype == torch.float64 else x.float()


def plain_softmax(scores: Tensor) -> Tensor:
    """softmax, by torch's own operator: the map of plain attention.

    >>> plain_softmax(torch.tensor([[0.0, 0.0, HIDDEN], [HIDDEN, HIDDEN, HIDDEN]]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    scores = wide(scores)
    empty = scores.amax(-1, keepdim=True) == HIDDEN
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def softmax_with_sink(scores: Tensor, sink: Tensor) -> Tensor:
    """exp(s_i) / (exp(sink) + sum_j exp(s_j)): a score more, whose weight goes nowhere; sums to less than 1.

    sink [..., 1] is broadcast to the scores. Source: OpenAI 2025, "gpt-oss model card", section 2.2; a sink of 0 is
    Miller 2023, "Attention is off by one".

    >>> softmax_with_sink(torch.tensor([0.0, 0.0]), torch.zeros(1))
    tensor([0.3333, 0.3333])
    """
    scores = wide(scores)
    beside = sink.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, beside), -1).softmax(-1)[..., :-1]


def scalable_softmax(scores: Tensor, gain: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(gain log(seen) s): as sharp over many as over few; gain and seen [..., 1] are broadcast to the scores.

    seen: how many entries the row has; None: those that are not hidden are counted. Source: Nakanishi 2025,
    "Scalable-softmax is superior for attention", equation 2.

    >>> scalable_softmax(torch.tensor([1.0, 0.0, HIDDEN]), torch.ones(1))
    tensor([0.6667, 0.3333, 0.0000])
    """
    scores = wide(scores)
    factor = gain.to(scores.dtype) * _logs(scores, seen)
    hidden = scores == HIDDEN
    return plain_softmax((factor * scores.masked_fill(hidden, 0.0)).masked_fill(hidden, HIDDEN))


def counted_sigmoid(scores: Tensor, seen: Tensor | None = None) -> Tensor:
    """sigmoid(s - log(seen)): each entry by itself, so it does not sum to 1; seen as in `scalable_softmax`.

    Source: Ramapuram et al. 2024, "Theory, analysis, and best practices for sigmoid self-attention", section 3.2.

    >>> counted_sigmoid(torch.tensor([0.0, 0.0, HIDDEN]))
    tensor([0.3333, 0.3333, 0.0000])
    """
    scores = wide(scores)
    return (scores - _logs(scores, seen)).sigmoid()


def _logs(scores: Tensor, seen: Tensor | None) -> Tensor:
    """log(how many entries of a row are seen) [..., 1], at least 0."""
    if seen is None:
        seen = (scores.detach() > HIDDEN).sum(-1, keepdim=True)
    return seen.to(scores.dtype).clamp(min=1).log()


def taylor_softmax(scores: Tensor, order: int = 2) -> Tensor:
    """f(s_i) / sum_j f(s_j) with f(s) = sum over m <= order of s^m / m!, positive for an even order.

    Neither monotone nor invariant under shifts: f_2(-4) = 5 > f_2(0) = 1. All powers are taken relative to the
    largest score's, which the quotient does not feel, so nothing overflows. Source: de Brebisson and Vincent 2016,
    "An exploration of softmax alternatives belonging to the spherical loss family", section 3.2.

    >>> taylor_softmax(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    tensor([0.8605, 0.0465, 0.0465, 0.0465])
    """
    assert order % 2 == 0, f"a Taylor polynomial is positive for an even order, found {order}"
    scores = wide(scores)
    hidden = scores == HIDDEN
    values = taylor(scores.masked_fill(hidden, 0.0), order)[0].masked_fill(hidden, 0.0)
    total = values.sum(-1, keepdim=True)
    return values / total.masked_fill(total == 0, 1.0)


def taylor(scores: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """(f(s) / c^order, c) with f(s) = sum over m <= order of s^m / m! and c >= 1 the row's largest |s|, or 1.

    >>> taylor(torch.tensor([1.0, -1.0]), 2)
    (tensor([2.5000, 0.5000]), tensor([1.]))
    """
    size = scores.detach().abs().amax(-1, keepdim=True).clamp(min=1)
    small, unit = scores / size, 1 / size
    term, value = torch.ones_like(scores), torch.ones_like(scores)
    for m in range(1, order + 1):
        term = term * small / m
        value = value * unit + term
    return value, size


def gumbel(uniform: Tensor) -> Tensor:
    """-log(-log u): Gumbel noise of uniform numbers; 0 and 1 are moved to the nearest ones that stay finite.

    >>> gumbel(torch.tensor([0.0, 0.5, 1.0])).isfinite().all()
    tensor(True)
    """
    numbers = torch.finfo(uniform.dtype)
    return -(-uniform.clamp(numbers.tiny, 1 - numbers.eps / 2).log()).log()


def gumbel_softmax(scores: Tensor, noise: Tensor | None, temperature: float = 1.0) -> Tensor:
    """softmax((s + g) / t), a smooth draw from softmax(s) where g is Gumbel noise; without noise softmax(s / t).

    Source: Jang, Gu and Poole 2017, "Categorical reparameterization with Gumbel-softmax", equation 2.

    >>> gumbel_softmax(torch.tensor([0.0, 1.0]), None, temperature=0.5)
    tensor([0.1192, 0.8808])
    """
    scores = wide(scores)
    return plain_softmax((scores if noise is None else scores + noise) / temperature)


def gumbel_max(scores: Tensor, noise: Tensor) -> Tensor:
    """argmax(s + g) over the last axis: with Gumbel noise g it is a draw from softmax(s). int64 [...].

    >>> gumbel_max(torch.tensor([0.0, 3.0, HIDDEN]), torch.tensor([4.0, 0.5, 9.0]))
    tensor(0)
    """
    return (wide(scores) + noise).argmax(-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], in nats: [..., V], int64 [...] -> [...]. Reduced by nobody.

    >>> cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor(1))
    tensor(0.6931)
    """
    return -log_softmax(wide(logits)).gather(-1, targets[..., None]).squeeze(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last axis, in nats, with 0 log 0 = 0.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0]))
    tensor(0.6931)
    """
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def linear_normalised(scores: Tensor) -> Tensor:
    """s_i / sum_j s_j, which is no map to probabilities: a negative score gives a negative one, a sum of 0 none.

    >>> linear_normalised(torch.tensor([3.0, -1.0, 2.0]))
    tensor([ 0.7500, -0.2500,  0.5000])
    """
    scores = wide(scores)
    return scores / scores.sum(-1, keepdim=True)
