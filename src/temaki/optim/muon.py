"""Muon as a pure step: momentum, made orthogonal by Newton-Schulz iterations. `muon_batched` is its fast form.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; scale of Liu et al. 2025 (Moonlight).
    M <- b M + G;   W <- W (1 - lr d) - lr s msign(G + b M)   (Nesterov; without: msign(M))
msign(M) = U V^T of the singular value decomposition, approached by X <- a X + (b A + c A^2) X with A = X X^T.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from temaki.base.roles import Role
from temaki.optim.config import MuonConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's."""


@torch.no_grad()
def newton_schulz(g: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """An approach to msign of matrices [.., rows, cols], in their own dtype; a zero matrix gives zeros.

    >>> newton_schulz(torch.diag(torch.tensor([3.0, 0.5]))).diag()
    tensor([0.7136, 1.0420])
    """
    a, b, c = coefficients
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def scale(rows: int, cols: int, kind: str) -> float:
    """The factor s on msign by the shape [rows, cols] = [out, in].

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


def parts(role: Role, per_head: bool = False) -> tuple[int, ...]:
    """The rows of each matrix that is stacked in a parameter; empty where it is one matrix.

    >>> parts(Role("matrix", (8, 4), head=4)), parts(Role("matrix", (8, 4), head=4), per_head=True)
    ((8, 4), (4, 4, 4))
    """
    return (role.head,) * (sum(role.parts) // role.head) if per_head and role.head is not None else role.parts


def matrices(x: Tensor, parts: Sequence[int]) -> tuple[Tensor, ...]:
    """The matrices stacked in x [.., rows, cols], the same memory; axes before the last are rows too.

    >>> [tuple(each.shape) for each in matrices(torch.zeros(2, 3, 4), (4, 2))]
    [(4, 4), (2, 4)]
    """
    flat = x.view(-1, x.shape[-1])
    return flat.split(list(parts) or flat.shape[0])


@torch.no_grad()
def muon_step(theta: Tensor, g: Tensor, m: Tensor, lr: float, config: MuonConfig, parts: Sequence[int]) -> None:
    """One update in place of theta [.., rows, cols] and its m; `parts` as in `matrices`.

    >>> theta, m = torch.zeros(2, 2), torch.zeros(2, 2)
    >>> muon_step(theta, torch.eye(2), m, 1.0, MuonConfig(scale="plain"), ())
    >>> theta.diag().round(decimals=2)
    tensor([-1.1100, -1.1100])
    """
    m.mul_(config.momentum).add_(g)
    update = g.add(m, alpha=config.momentum) if config.nesterov else m
    theta.mul_(1 - lr * config.weight_decay)
    for piece, towards in zip(matrices(theta, parts), matrices(update, parts), strict=True):
        size = lr * scale(piece.shape[0], piece.shape[1], config.scale)
        piece.sub_(newton_schulz(towards, config.steps, config.coefficients or COEFFICIENTS), alpha=size)
