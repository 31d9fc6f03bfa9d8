"""Muon as a pure step: momentum, made orthogonal by Newton-Schulz iterations.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scale of Liu et al. 2025 (Moonlight).
    M <- b M + G;   W <- W - lr s msign(G + b M)   (Nesterov; without: msign(M))
msign(M) = U V^T of the singular value decomposition, approached by X <- a X + (b A + c A^2) X with A = X X^T.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from temaki.optim.config import MuonConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def newton_schulz(g: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """An approach to msign of matrices [.., rows, cols], in their own dtype; a zero matrix gives zeros.

    >>> newton_schulz(torch.diag(torch.tensor([3.0, 0.5]))).diag()
    tensor([0.7136, 1.0420])
    """
    a, b, c = coefficients
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).reshape(-1, min(g.shape[-2:]), max(g.shape[-2:]))
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(g.shape)


def scale(rows: int, cols: int, kind: str) -> float:
    """The factor on msign by the shape [rows, cols] = [out, in].

    >>> scale(512, 128, "rows-over-columns"), scale(100, 25, "moonlight")
    (2.0, 2.0)
    """
    match kind:
        case "plain":
            return 1.0
        case "rows-over-columns":
            return max(1.0, rows / cols) ** 0.5
        case "moonlight":
            return 0.2 * max(rows, cols) ** 0.5
        case "mup":
            return (rows / cols) ** 0.5
    raise AssertionError(f"unknown scale {kind}")


@torch.no_grad()
def muon_step(
    thetas: Sequence[Tensor],
    gs: Sequence[Tensor],
    ms: Sequence[Tensor],
    lr: float,
    config: MuonConfig,
    parts: Sequence[tuple[int, ...]],
) -> None:
    """One update in place of each theta [.., rows, cols] and its m; parts[i] are the rows of matrices stacked in it.

    Axes before the last are rows too, so experts are a stack of matrices. Matrices of one shape, lying or standing,
    share the products of one batch.

    >>> theta, m = torch.zeros(2, 2), torch.zeros(2, 2)
    >>> muon_step([theta], [torch.eye(2)], [m], 1.0, MuonConfig(scale="plain"), [()])
    >>> theta.diag().round(decimals=2)
    tensor([-1.1100, -1.1100])
    """
    alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for theta, g, m, rows in zip(thetas, gs, ms, parts, strict=True):
        m.mul_(config.momentum).add_(g)
        update = g.add(m, alpha=config.momentum) if config.nesterov else m
        theta.mul_(1 - lr * config.weight_decay)
        theta, update = theta.view(-1, theta.shape[-1]), update.view(-1, theta.shape[-1])
        split = list(rows) or [theta.shape[0]]
        for part, piece in zip(theta.split(split), update.split(split), strict=True):
            alike[min(piece.shape), max(piece.shape)].append((part, piece))
    for (short, _), pairs in alike.items():
        lying = torch.stack([piece if piece.shape[0] == short else piece.mT for _, piece in pairs])
        for (part, _), update in zip(pairs, newton_schulz(lying, config.steps), strict=True):
            size = lr * scale(part.shape[0], part.shape[1], config.scale)
            part.sub_(update if part.shape[0] == short else update.mT, alpha=size)
