"""Muon as a pure step: momentum, made orthogonal by Newton-Schulz iterations.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scale of Liu et al. 2025 (Moonlight).
    M <- b M + G;   W <- W - lr s msign(G + b M)   (Nesterov; without: msign(M))
msign(M) = U V^T of the singular value decomposition, approached by X <- a X + (b A + c A^2) X with A = X X^T.
"""

import torch
from torch import Tensor

from temaki.optim.config import MuonConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def newton_schulz(g: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """An approach to msign of a matrix [rows, cols], in its own dtype; a zero matrix gives zeros.

    >>> newton_schulz(torch.diag(torch.tensor([3.0, 0.5]))).diag()
    tensor([0.7136, 1.0420])
    """
    a, b, c = coefficients
    x = g.mT if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if g.shape[0] > g.shape[1] else x


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
def muon_step(theta: Tensor, g: Tensor, m: Tensor, lr: float, config: MuonConfig, parts: tuple[int, ...] = ()) -> None:
    """One update in place of theta [rows, cols] and m; `parts` are the rows of matrices stacked in theta."""
    m.mul_(config.momentum).add_(g)
    update = g.add(m, alpha=config.momentum) if config.nesterov else m
    theta.mul_(1 - lr * config.weight_decay)
    rows = list(parts) or [theta.shape[0]]
    for part, piece in zip(theta.split(rows), update.split(rows), strict=True):
        part.sub_(newton_schulz(piece, config.steps), alpha=lr * scale(*part.shape, config.scale))
