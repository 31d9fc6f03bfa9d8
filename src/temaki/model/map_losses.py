"""Losses from scores and a target id, one for each map to probabilities; but for Taylor's, the gradient is p - e_t.

e_t is the one-hot vector of the target. scores [..., V] in float32 or better, targets int64 [...]; each gives [...],
reduced by nobody. A Fenchel-Young loss L(x; t) = W*(x) + W(e_t) - x_t, with W the map's regulariser and W* its
conjugate, is convex, and 0 exactly where the map gives the target all the mass. It is computed as
<p, x> - W(p) + W(e_t) - x_t with p = map(x) held still: at the maximum p that gives both the value and, by the envelope
theorem, the gradient p - e_t. (The inner product <p - e_t, x> alone, p held still, has the same gradient; its value
has no meaning.) Taylor softmax, margin and top-p have no such regulariser; perturb-max has one, but no closed form.
Source: Blondel, Martins and Niculae 2020, "Learning with Fenchel-Young losses", section 3. Letters: V classes,
a = alpha.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from temaki.model.maps import HIDDEN, cross_entropy, taylor, wide
from temaki.model.sparse_maps import entmax, entmax15, largest, sparsemax

Map = Callable[[Tensor], Tensor]
"""Scores [..., V] to probabilities [..., V]."""


def fenchel_young(scores: Tensor, targets: Tensor, turned: Map, regulariser: Map) -> Tensor:
    """W*(x) + W(e_t) - x_t of a map p = argmax <p, x> - W(p) over the simplex; W(e_t) is 0 for all of ours.

    >>> fenchel_young(torch.tensor([1.0, 0.8, 0.1, -0.5]), torch.tensor(1), sparsemax, lambda p: tsallis(p, 2.0))
    tensor(0.3600)
    """
    scores = wide(scores)
    with torch.no_grad():
        p = turned(scores)
    hidden = scores == HIDDEN
    reached = (p * scores.masked_fill(hidden, 0.0)).sum(-1) - regulariser(p)
    return reached - _at(scores, targets)


def tsallis(p: Tensor, alpha: float) -> Tensor:
    """(sum p^a - 1) / (a (a - 1)), the regulariser of entmax: sum p log p at a = 1, (sum p^2 - 1) / 2 at a = 2.

    >>> tsallis(torch.tensor([0.5, 0.5]), 1.0), tsallis(torch.tensor([0.5, 0.5]), 2.0)
    (tensor(-0.6931), tensor(-0.2500))
    """
    if alpha == 1:
        return torch.xlogy(p, p).sum(-1)
    logs = torch.where(p > 0, p, 1.0).log()
    return (p * ((alpha - 1) * logs).expm1()).sum(-1) / (alpha * (alpha - 1))


def sparsemax_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """1/2 - x_t + 1/2 sum over the support of (x^2 - threshold^2). Martins and Astudillo 2016, equation 17.

    >>> x = torch.tensor([1.0, 0.8, 0.1, -0.5])
    >>> sparsemax_loss(x.expand(3, 4), torch.tensor([0, 1, 3]))
    tensor([0.1600, 0.3600, 1.6600])
    """
    return fenchel_young(scores, targets, sparsemax, lambda p: tsallis(p, 2.0))


def entmax_loss(scores: Tensor, targets: Tensor, alpha: float = 1.5) -> Tensor:
    """The Fenchel-Young loss of entmax. Peters, Niculae and Martins 2019, equation 10.

    >>> entmax_loss(torch.tensor([3.0, 0.0]), torch.tensor(0)), entmax_loss(torch.tensor([0.0, 0.0]), torch.tensor(0))
    (tensor(0.), tensor(0.3905))
    """
    if alpha == 1:
        return cross_entropy(scores, targets)
    turned = {1.5: entmax15, 2.0: sparsemax}.get(alpha, lambda x: entmax(x, alpha))
    return fenchel_young(scores, targets, turned, lambda p: tsallis(p, alpha))


def top_k_loss(scores: Tensor, targets: Tensor, k: int) -> Tensor:
    """logsumexp over the k largest scores - x_t: the loss of softmax over the k largest.

    A target outside them is only lifted, and the loss may then fall below 0: for fine-tuning, where targets are
    mostly among the largest already. Source: Sun et al. 2021, "Sparse-softmax: a simpler and faster alternative
    softmax transformation", section 3.

    >>> top_k_loss(torch.tensor([3.0, 2.5, 0.5, 0.3, 0.1]), torch.tensor(0), 3)
    tensor(0.5239)
    """
    scores = wide(scores)
    kept = scores.masked_fill(~largest(scores.detach(), k), HIDDEN)
    return kept.logsumexp(-1) - _at(scores, targets)


def taylor_loss(scores: Tensor, targets: Tensor, order: int = 2) -> Tensor:
    """-log of Taylor softmax at the target: log sum f - log f(x_t).

    Its gradient is (p - e_t) f'(x) / f(x), so scores far below 0 are not driven further.

    >>> taylor_loss(torch.tensor([5.0, 0.0, 0.0, 0.0]), torch.tensor(1))
    tensor(3.0681)
    """
    scores = wide(scores)
    hidden = scores == HIDDEN
    values = taylor(scores.masked_fill(hidden, 0.0), order)[0].masked_fill(hidden, 0.0)
    return values.sum(-1).log() - _at(values, targets).log()


def margin_loss(cosines: Tensor, targets: Tensor, temperature: float = 0.1, margin: float = 0.3) -> Tensor:
    """Cross-entropy of (cos - m e_t) / T: the target must lead by a margin. AM-softmax.

    cosines [..., V] of unit vectors with unit class vectors (`cosines`). Source: Wang et al. 2018, "Additive margin
    softmax for face verification", equation 6, with T = 1 / s.

    >>> margin_loss(torch.tensor([0.8, 0.96]), torch.tensor(0))
    tensor(4.6100)
    """
    cosines = wide(cosines)
    lowered = torch.zeros_like(cosines).scatter(-1, targets[..., None], margin)
    return cross_entropy((cosines - lowered) / temperature, targets)


def cosines(vectors: Tensor, classes: Tensor) -> Tensor:
    """Cosines of vectors [..., D] with class vectors [V, D]: [..., V].

    >>> cosines(torch.tensor([3.0, 4.0]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor([0.6000, 0.8000])
    """
    unit = torch.nn.functional.normalize
    return unit(wide(vectors), dim=-1) @ unit(wide(classes), dim=-1).mT


def _at(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(-1, targets[..., None]).squeeze(-1)
