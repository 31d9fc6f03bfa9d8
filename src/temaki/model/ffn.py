"""Feed-forward layers, as functions of tensors and as two parts, gated and plain. Letters: D width, F hidden width."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base import team
from temaki.base.roles import Role
from temaki.model.config import (
    GegluConfig,
    GeluConfig,
    PlainFfnConfig,
    ReluConfig,
    SiluConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.model.ffn_loops import Gate, Pointwise
from temaki.model.part import Part

Activation = Callable[[Tensor], Tensor]


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x).

    >>> import torch
    >>> silu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7311])
    """
    return F.silu(x)


def gelu(x: Tensor, form: Literal["tanh", "erf"] = "tanh") -> Tensor:
    """x P(Z <= x) of a standard normal Z; tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as GPT-2 does.

    Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2.

    >>> import torch
    >>> gelu(torch.tensor([[1.0, 2.0], [-2.0, 0.5]]))
    tensor([[ 0.8412,  1.9546],
            [-0.0454,  0.3457]])
    """
    if form == "tanh" and _looped(x):
        return Pointwise.apply(x, False)
    return F.gelu(x, approximate="tanh" if form == "tanh" else "none")


def relu(x: Tensor, power: Literal[1, 2] = 1) -> Tensor:
    """max(x, 0)^power.

    >>> import torch
    >>> relu(torch.tensor([-1.0, 3.0]), power=2)
    tensor([0., 9.])
    """
    if power == 2 and _looped(x):
        return Pointwise.apply(x, True)
    return F.relu(x) if power == 1 else F.relu(x).square()


def _looped(x: Tensor) -> bool:
    """Whether one loop for formula and gradient pays: in training on the host; a compiler fuses by itself."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and x.requires_grad and team.serves(x)


_LOOPS: Mapping[Activation, str] = {silu: "silu", gelu: "gelu"}
"""Activations of gates that have a loop with their gradient, see `ffn_loops`."""


def gated(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = silu,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    """W2 (activation(W1 x) * W3 x) with up = [W1; W3] [2F, D] and down = W2 [D, F]: [..., D] -> [..., D].

    Shazeer 2020, "GLU Variants Improve Transformer", equation 6.

    >>> import torch
    >>> gated(torch.ones(2), torch.ones(2, 2), torch.ones(2, 1), gelu)
    tensor([3.9092, 3.9092])
    """
    both = F.linear(x, up, up_bias)
    kind = _LOOPS.get(activation)
    if kind is not None and _looped(both):
        return F.linear(Gate.apply(both, kind == "silu"), down, down_bias)
    gate, value = both.chunk(2, -1)
    return F.linear(activation(gate) * value, down, down_bias)


def swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`gated` with SiLU: W2 (SiLU(W1 x) * W3 x).

    >>> import torch
    >>> swiglu(torch.ones(2), torch.ones(2, 2), torch.ones(2, 1))
    tensor([3.5232, 3.5232])
    """
    return gated(x, up, down)


def plain(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = gelu,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    """W2 activation(W1 x) with up = W1 [F, D] and down = W2 [D, F]: [..., D] -> [..., D].

    Vaswani et al. 2017, equation 2.

    >>> import torch
    >>> plain(torch.ones(2), torch.ones(1, 2), torch.ones(2, 1), relu)
    tensor([2., 2.])
    """
    return F.linear(activation(F.linear(x, up, up_bias)), down, down_bias)


def activation(config: PlainFfnConfig) -> Activation:
    """What stands between the two matrices of a kind of layer.

    >>> import torch
    >>> activation(ReluConfig(power=2))(torch.tensor(3.0))
    tensor(9.)
    """
    match config:
        case SwigluConfig() | SiluConfig():
            return silu
        case GegluConfig() | GeluConfig():
            return gelu if config.form == "tanh" else partial(gelu, form=config.form)
        case ReluConfig():
            return partial(relu, power=config.power)


def is_gated(config: PlainFfnConfig) -> bool:
    """Whether a kind of layer multiplies by a gate, so that `up` has twice its rows.

    >>> is_gated(SwigluConfig()), is_gated(SiluConfig())
    (True, False)
    """
    return isinstance(config, SwigluConfig | GegluConfig)


class Ffn(Part):
    """`gated` or `plain`, by its configuration, with its matrices and biases."""

    def __init__(self, config: PlainFfnConfig, width: int):
        super().__init__()
        hidden = ffn_width(config, width)
        parts = (hidden, hidden) if is_gated(config) else ()
        rows = 2 * hidden if parts else hidden
        self.formula = gated if parts else plain
        self.activation = activation(config)
        self.up = self.add("up", rows, width, role=Role("matrix", parts), filling="matrix")
        self.down = self.add("down", width, hidden, role=Role("matrix"), filling="out")
        self.up_bias = self.add("up_bias", rows, role=Role("vector"), filling="zeros") if config.bias else None
        self.down_bias = self.add("down_bias", width, role=Role("vector"), filling="zeros") if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.up, self.down, self.activation, self.up_bias, self.down_bias)
