"""Initial values: one table, filling by filling. A matrix is the last two axes: experts are stacked."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from temaki.base import keys
from temaki.model.config import ModelConfig
from temaki.model.part import Filling, Part

Rule = Callable[[Tensor, torch.Generator, ModelConfig], Tensor]
"""Gives a parameter of a model its values, in place."""


def _cut(deviation: Callable[[Tensor], float]) -> Rule:
    """N(0, s^2) cut at three deviations."""

    def rule(x: Tensor, generator: torch.Generator, _: ModelConfig) -> Tensor:
        s = deviation(x)
        return nn.init.trunc_normal_(x, 0.0, s, -3 * s, 3 * s, generator=generator)

    return rule


def _normal(deviation: Callable[[Tensor, ModelConfig], float]) -> Rule:
    """N(0, s^2)."""
    return lambda x, generator, config: nn.init.normal_(x, 0.0, deviation(x, config), generator=generator)


def _constant(value: float) -> Rule:
    return lambda x, *_: x.fill_(value)


_fan = _cut(lambda x: (2 / sum(x.shape[-2:])) ** 0.5)
_unit = _cut(lambda _: 1.0)
_small = _cut(lambda _: 0.02)
_fiftieth = _normal(lambda *_: 0.02)
_fan_in = _normal(lambda x, _: x.shape[-1] ** -0.5)

_SHARED: dict[Filling, Rule] = {
    "matrix": _fan,
    "embedding": _unit,
    "tied": _small,
    "ones": _constant(1.0),
    "zeros": _constant(0.0),
    "given": lambda x, *_: x,
}
TABLE: dict[str, dict[Filling, Rule]] = {
    # Stanford CS336, assignment 1: every matrix by its fans.
    "cs336": {**_SHARED, "out": _fan, "head": _fan},
    # Blocks begin as the identity and an untied head as the uniform distribution.
    "zero-out": {**_SHARED, "out": _constant(0.0), "head": _constant(0.0)},
    # Radford et al. 2019, section 2.3: what a branch adds falls with the number of branches, two a layer.
    "gpt2": {
        **_SHARED,
        "matrix": _fiftieth,
        "out": _normal(lambda _, config: 0.02 / (2 * config.depth) ** 0.5),
        "embedding": _fiftieth,
        "tied": _fiftieth,
        "head": _fiftieth,
    },
    # Yang et al. 2021, "Tensor programs V", table 3: by the inputs; the head's also falls with the width, so that
    # logits stay of one size once it has learned. The rates that belong to it are in `optim/transfer.py`.
    "mup": {
        **_SHARED,
        "matrix": _fan_in,
        "out": _normal(lambda x, config: (x.shape[-1] * 2 * config.depth) ** -0.5),
        "head": _normal(lambda x, config: (config.narrower / x.shape[-1]) ** 0.5),
    },
}


@torch.no_grad()
def fill(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give every parameter of the model its initial value; each draws from a generator of its own name."""
    rules = TABLE[config.init]
    for path, module in model.named_modules():
        if isinstance(module, Part):
            for name, filling in module.fillings.items():
                generator = torch.Generator().manual_seed(keys.torch_seed(seed, f"init:{path}.{name}"))
                rules[filling](module.get_parameter(name), generator, config)
