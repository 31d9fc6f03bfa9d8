"""Lion as a pure step: the sign of a moving average of the gradient g that is interpolated anew for the update.

Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2:
    c <- b1 m + (1 - b1) g;   theta <- theta (1 - lr d) - lr sign(c);   m <- b2 m + (1 - b2) g
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from temaki.optim.config import LionConfig


@torch.no_grad()
def lion_step(theta: Tensor, g: Tensor, m: Tensor, lr: float, config: LionConfig) -> None:
    """One update in place of theta and m, all of one shape.

    >>> theta, m = torch.ones(2), torch.zeros(2)
    >>> lion_step(theta, torch.tensor([3.0, -0.5]), m, 0.1, LionConfig())
    >>> theta, m
    (tensor([0.9000, 1.1000]), tensor([ 0.0300, -0.0050]))
    """
    c = m.lerp(g, 1 - config.beta1)
    theta.mul_(1 - lr * config.weight_decay).sub_(c.sign_(), alpha=lr)
    m.lerp_(g, 1 - config.beta2)


@torch.no_grad()
def lion_foreach(
    thetas: Sequence[Tensor], gs: Sequence[Tensor], ms: Sequence[Tensor], lr: float, config: LionConfig
) -> None:
    """`lion_step` of many tensors, an operation over all at a time.

    >>> theta, m = torch.ones(1), torch.zeros(1)
    >>> lion_foreach([theta], [torch.tensor([3.0])], [m], 0.1, LionConfig())
    >>> theta, m
    (tensor([0.9000]), tensor([0.0300]))
    """
    c = torch._foreach_lerp(list(ms), list(gs), 1 - config.beta1)
    torch._foreach_sign_(c)
    if config.weight_decay:
        torch._foreach_mul_(list(thetas), 1 - lr * config.weight_decay)
    torch._foreach_sub_(list(thetas), c, alpha=lr)
    torch._foreach_lerp_(list(ms), list(gs), 1 - config.beta2)
