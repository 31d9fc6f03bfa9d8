"""SGD with momentum, and Signum, as pure steps; decay is decoupled in both.

Loshchilov and Hutter 2019, algorithm 1 (SGDW): b <- u b + g;  theta <- theta (1 - lr d) - lr (g + u b, or b)
with momentum u; the look-ahead g + u b is Nesterov's. Without momentum there is no b, and decay is an L2 penalty.
Bernstein et al. 2018, "signSGD", algorithm 2 (Signum): m <- u m + (1 - u) g;  theta <- theta (1 - lr d) - lr sign(m).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from temaki.optim.config import SgdConfig, SignumConfig


@torch.no_grad()
def sgd_step(theta: Tensor, g: Tensor, b: Tensor | None, lr: float, config: SgdConfig) -> None:
    """One update in place of theta and b, all of one shape; b is None where the momentum is 0.

    >>> theta, b = torch.ones(1), torch.zeros(1)
    >>> for _ in range(2): sgd_step(theta, torch.tensor([0.5]), b, 0.1, SgdConfig(momentum=0.9))
    >>> theta, b
    (tensor([0.8550]), tensor([0.9500]))
    """
    theta.mul_(1 - lr * config.weight_decay)
    if b is None:
        theta.sub_(g, alpha=lr)
        return
    b.mul_(config.momentum).add_(g)
    theta.sub_(g.add(b, alpha=config.momentum) if config.nesterov else b, alpha=lr)


@torch.no_grad()
def sgd_fused(
    thetas: Sequence[Tensor], gs: Sequence[Tensor], bs: Sequence[Tensor], lr: float, config: SgdConfig
) -> None:
    """`sgd_step` of many tensors by torch's fused kernel; bs is empty where the momentum is 0.

    >>> theta = torch.ones(1)
    >>> sgd_fused([theta], [torch.tensor([0.5])], [], 0.1, SgdConfig())
    >>> theta
    tensor([0.9500])
    """
    if config.weight_decay:
        torch._foreach_mul_(list(thetas), 1 - lr * config.weight_decay)
    torch._fused_sgd_(
        list(thetas), list(gs), list(bs), lr=lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=0.0,
        dampening=0.0, maximize=False, is_first_step=False,
    )  # fmt: skip


@torch.no_grad()
def signum_step(theta: Tensor, g: Tensor, m: Tensor | None, lr: float, config: SignumConfig) -> None:
    """One update in place of theta and m, all of one shape; m is None where the momentum is 0 (SignSGD).

    >>> theta, m = torch.ones(2), torch.zeros(2)
    >>> signum_step(theta, torch.tensor([3.0, -1e-3]), m, 0.1, SignumConfig())
    >>> theta
    tensor([0.9000, 1.1000])
    """
    theta.mul_(1 - lr * config.weight_decay)
    towards = g if m is None else m.lerp_(g, 1 - config.momentum)
    theta.sub_(towards.sign(), alpha=lr)


@torch.no_grad()
def signum_foreach(
    thetas: Sequence[Tensor], gs: Sequence[Tensor], ms: Sequence[Tensor], lr: float, config: SignumConfig
) -> None:
    """`signum_step` of many tensors, an operation over all at a time; ms is empty where the momentum is 0.

    >>> theta = torch.ones(1)
    >>> signum_foreach([theta], [torch.tensor([0.5])], [], 0.1, SignumConfig(momentum=0.0))
    >>> theta
    tensor([0.9000])
    """
    if config.weight_decay:
        torch._foreach_mul_(list(thetas), 1 - lr * config.weight_decay)
    if ms:
        torch._foreach_lerp_(list(ms), list(gs), 1 - config.momentum)
    torch._foreach_sub_(list(thetas), torch._foreach_sign(list(ms or gs)), alpha=lr)
