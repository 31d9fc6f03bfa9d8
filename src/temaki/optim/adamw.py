"""AdamW as a pure step: m and v are moving averages of the gradient g and its square.

Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    torch:    theta <- theta (1 - lr d);  theta <- theta - lr mhat / (sqrt(vhat) + eps)
    handout:  theta <- theta - lr_t m / (sqrt(v) + eps);  theta <- theta (1 - lr d)
              with lr_t = lr sqrt(1 - b2^t) / (1 - b1^t)
with mhat = m / (1 - b1^t), vhat = v / (1 - b2^t), update number t = 1, 2, .. and weight decay d.
"""

import torch
from torch import Tensor

from temaki.optim.config import AdamWConfig


@torch.no_grad()
def adamw_step(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, config: AdamWConfig) -> None:
    """One update in place of theta, m and v, all of one shape.

    >>> theta, m, v = torch.ones(1).double(), torch.zeros(1).double(), torch.zeros(1).double()
    >>> rule = AdamWConfig(beta2=0.999, weight_decay=0.01)
    >>> adamw_step(theta, torch.tensor([0.5]).double(), m, v, 1, 1e-3, rule)
    >>> round(theta.item(), 11)
    0.99899000002
    """
    b1, b2 = config.beta1, config.beta2
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    c1, c2 = 1 - b1**t, 1 - b2**t
    if config.order == "torch":
        theta.mul_(1 - lr * config.weight_decay)
        theta.addcdiv_(m, (v / c2).sqrt_().add_(config.eps), value=-lr / c1)
    else:
        theta.addcdiv_(m, v.sqrt().add_(config.eps), value=-lr * c2**0.5 / c1)
        theta.mul_(1 - lr * config.weight_decay)


@torch.no_grad()
def adamw_fused(
    thetas: list[Tensor],
    gs: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    t: int,
    lr: float,
    config: AdamWConfig,
) -> None:
    """`adamw_step` of many tensors by torch's fused kernel: the torch order, float32 or float64.

    >>> theta, m, v = torch.ones(1), torch.zeros(1), torch.zeros(1)
    >>> adamw_fused([theta], [torch.tensor([0.5])], [m], [v], 1, 0.1, AdamWConfig())
    >>> theta
    tensor([0.9000])
    """
    steps = [torch.tensor(float(t), device=theta.device) for theta in thetas]
    torch._fused_adamw_(
        thetas, gs, ms, vs, [], steps, lr=lr, beta1=config.beta1, beta2=config.beta2,
        weight_decay=config.weight_decay, eps=config.eps, amsgrad=False, maximize=False,
    )  # fmt: skip
