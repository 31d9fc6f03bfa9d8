"""What the mixers with a matrix a head share: heads beside each other, pieces as rectangles, norms of heads.

Letters: N ids, L ids, P pieces, n slots, H heads, K size of a key, V of a value, E = H V.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from temaki.model.layout import Layout
from temaki.model.rectangles import in_rectangles
from temaki.model.recurrent import Carried, Given, Recurrent
from temaki.model.short_conv import short_convolution, short_convolution_on, short_convolution_step


class MemoryMixer(Recurrent):
    """A recurrent mixer whose state is a window of a short convolution and a matrix [H, K, V] a slot.

    What is given begins with what is convolved [N, X]; a kind says what its memory reads of the result.
    """

    heads: int
    keys: int
    """K."""

    @abstractmethod
    def filters(self) -> Tensor:
        """The short convolution's filters [X, W], the newest place first."""

    @abstractmethod
    def remember(self, seen: Tensor, rest: Given, system: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        """L ids: convolved [.., L, X], the rest of what is given [.., L, ..], S [.., H, K, V] -> (y [.., L, E], S)."""

    @abstractmethod
    def remember_one(self, seen: Tensor, rest: Given, system: Any, s: Tensor) -> tuple[Tensor, Tensor]:
        """One id: convolved [.., X], the rest [.., ..], S [.., H, K, V] -> (y [.., E], S)."""

    def begin(self, slots: int) -> Carried:
        filters = self.filters()
        zeros = filters.new_zeros(1, dtype=_wide(filters))
        window = zeros.new_zeros(slots, filters.shape[1] - 1, filters.shape[0])
        return window, zeros.new_zeros(slots, self.heads, self.keys, self.channels // self.heads)

    def whole(self, system: Any, given: Given, layout: Layout) -> Tensor:
        seen = short_convolution(given[0], self.filters().to(given[0].dtype), layout.ages)

        def read(seen: Tensor, *rest: Tensor) -> Tensor:
            return self.remember(seen, rest, system, self.begin(len(seen))[1])[0]

        return in_rectangles([seen, *given[1:]], layout.pieces, read)

    def chunk(self, system: Any, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        window, s = past
        seen, window = short_convolution_on(window, given[0], self.filters().to(given[0].dtype))
        y, s = self.remember(seen, given[1:], system, s)
        return y, (window, s)

    def step(self, system: Any, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        window, s = past
        seen, window = short_convolution_step(window, given[0], self.filters().to(given[0].dtype))
        y, s = self.remember_one(seen, given[1:], system, s)
        return y, (window, s)


def by_head(x: Tensor, heads: int) -> Tensor:
    """[.., L, H X] -> [.., H, L, X].

    >>> by_head(torch.arange(4).view(1, 4), 2).tolist()
    [[[0, 1]], [[2, 3]]]
    """
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def from_heads(x: Tensor) -> Tensor:
    """[.., H, L, X] -> [.., L, H X], the inverse of `by_head`.

    >>> from_heads(by_head(torch.arange(8).view(2, 4), 2)).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    return x.transpose(-2, -3).flatten(-2)


def head_norm(y: Tensor, heads: int, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """Each head by its root mean square, then a gain a channel: y [.., E], gain [E] -> [.., E].

    >>> head_norm(torch.tensor([3.0, 4.0, 0.0, 2.0]), 2, torch.ones(4))
    tensor([0.8485, 1.1314, 0.0000, 1.4142])
    """
    parts = y.unflatten(-1, (heads, -1))
    return (parts * (parts.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2) * gain


def wide(x: Tensor) -> Tensor:
    """In float32 or better, as recurrences are computed.

    >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
