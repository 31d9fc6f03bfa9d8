"""An exponential moving average of the weights.

    w <- d w + (1 - d) theta after update t = 1, 2, ..,  d = min(decay, (1 + t) / (10 + t))
Polyak and Juditsky 1992, with exponential weights. d begins low, so that the random start is soon forgotten.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from temaki.optim.config import AverageConfig


def decay_at(t: int, decay: float) -> float:
    """d of update t = 1, 2, ..

    >>> decay_at(1, 0.999), decay_at(10**6, 0.999)
    (0.18181818181818182, 0.999)
    """
    return min(decay, (1 + t) / (10 + t))


class Average:
    """The averaged weights of some parameters; while `swapped`, the parameters hold them and this the raw ones."""

    def __init__(self, config: AverageConfig, parameters: Mapping[str, Tensor]):
        self.config = config
        self.parameters = parameters
        self.held = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        """The averaged weights; the raw ones while swapped."""
        self.is_swapped = False

    @torch.no_grad()
    def begin(self) -> None:
        """The average of one: the weights as they are."""
        for name, parameter in self.parameters.items():
            self.held[name].copy_(parameter)

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take in the weights after update t."""
        assert not self.is_swapped, "training goes on with the raw weights"
        share = 1 - decay_at(t, self.config.decay)
        for name, parameter in self.parameters.items():
            self.held[name].lerp_(parameter, share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters hold the averaged weights, in place; also within itself."""
        if self.is_swapped:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            raw = parameter.detach().clone()
            parameter.copy_(self.held[name])
            self.held[name].copy_(raw)
        self.is_swapped = not self.is_swapped

    def raw(self) -> Mapping[str, Tensor]:
        """The weights that training goes on with."""
        return self.held if self.is_swapped else self.parameters
