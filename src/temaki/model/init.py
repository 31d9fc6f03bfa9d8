"""Initial values: one table, filling by filling. A matrix is the last two axes: experts are stacked."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from temaki.base import keys
from temaki.model.part import Filling, Part

Rule = Callable[[Tensor, torch.Generator], Tensor]


def _normal(deviation: Callable[[Tensor], float]) -> Rule:
    """N(0, s^2) cut at three deviations."""

    def rule(x: Tensor, generator: torch.Generator) -> Tensor:
        s = deviation(x)
        return nn.init.trunc_normal_(x, 0.0, s, -3 * s, 3 * s, generator=generator)

    return rule


def _constant(value: float) -> Rule:
    return lambda x, _: x.fill_(value)


_fan = _normal(lambda x: (2 / sum(x.shape[-2:])) ** 0.5)
_unit = _normal(lambda _: 1.0)
_small = _normal(lambda _: 0.02)

_SHARED: dict[Filling, Rule] = {
    "matrix": _fan,
    "embedding": _unit,
    "tied": _small,
    "ones": _constant(1.0),
    "zeros": _constant(0.0),
    "given": lambda x, _: x,
}
TABLE: dict[str, dict[Filling, Rule]] = {
    # Stanford CS336, assignment 1: every matrix by its fans.
    "cs336": {**_SHARED, "out": _fan, "head": _fan},
    # Blocks begin as the identity and an untied head as the uniform distribution.
    "zero-out": {**_SHARED, "out": _constant(0.0), "head": _constant(0.0)},
}


@torch.no_grad()
def fill(model: nn.Module, scheme: str, seed: int) -> None:
    """Give every parameter of the model its initial value; each draws from a generator of its own name."""
    for path, module in model.named_modules():
        if isinstance(module, Part):
            for name, filling in module.fillings.items():
                generator = torch.Generator().manual_seed(keys.torch_seed(seed, f"init:{path}.{name}"))
                TABLE[scheme][filling](module.get_parameter(name), generator)
