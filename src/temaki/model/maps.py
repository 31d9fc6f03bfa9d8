"""Maps from scores to probabilities, and the losses on them, as functions of tensors. Letters: V classes."""

import torch
from torch import Tensor


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
    shifted = x - x.amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) where x >= 0, e^x / (1 + e^x) elsewhere: no overflow on either side.

    >>> sigmoid(torch.tensor([-1e4, 0.0, 1e4]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    small = (-x.abs()).exp()
    return torch.where(x >= 0, 1.0, small) / (1.0 + small)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], in nats: [..., V], int64 [...] -> [...]. Reduced by nobody.

    >>> cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor(1))
    tensor(0.6931)
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return -log_softmax(wide).gather(-1, targets[..., None]).squeeze(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last axis, in nats, with 0 log 0 = 0.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0]))
    tensor(0.6931)
    """
    return -torch.xlogy(probabilities, probabilities).sum(-1)
