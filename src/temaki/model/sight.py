"""`Sight`: which places a query of an attention layer sees, and what its scores become; as masks, as additive biases.

Letters: P pieces of one length, H heads, T queries, S keys, all places counted from their piece's start.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
"""Most queries that share one additive bias, so that its memory is linear in the length of a piece."""
SCORES = 1 << 24
"""Most scores that the plain path makes at once, and most biases where every piece and head has its own."""


@dataclass(frozen=True)
class Sight:
    """What one attention layer sees, and how: plain values, the same for every row.

    Symbols: query at place i, key at place j; score s.
    """

    causal: bool = True
    """j <= i."""
    scale: float | None = None
    """s = scale q.k; None: 1 / sqrt(K)."""
    window: int | None = None
    """j > i - window, the own place included; None: no limit."""
    slopes: tuple[float, ...] | None = None
    """s - slope |i - j|, one slope a head."""
    cap: float | None = None
    """cap tanh(s / cap), before slopes and masks."""

    @property
    def plain(self) -> bool:
        """Only causal or not: what the fused kernel does without a bias."""
        return self.window is None and self.slopes is None and self.cap is None


CAUSAL = Sight()
"""The past and itself, by softmax of q.k / sqrt(K)."""


def visible(sight: Sight, queries: Tensor, keys: Tensor, prefix: Tensor | None = None) -> Tensor:
    """True where the query at a place may attend to the key at a place: [T], [S] -> bool [T, S].

    With `prefix` int64 [P], also where both lie in the first prefix[p] places of piece p: bool [P, 1, T, S].

    >>> visible(Sight(window=2), torch.arange(3), torch.arange(3)).int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    >>> visible(Sight(), torch.arange(3), torch.arange(3), torch.tensor([2])).int().tolist()
    [[[[1, 1, 0], [1, 1, 0], [1, 1, 1]]]]
    """
    back = queries[:, None] - keys[None, :]
    seen = back >= 0 if sight.causal else torch.ones_like(back, dtype=torch.bool)
    if sight.window is not None:
        seen = seen & (back < sight.window)
    if prefix is not None:
        end = prefix[:, None, None, None]
        seen = seen | ((queries[:, None] < end) & (keys[None, :] < end))
    return seen


def slopes_bias(slopes: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """-slope |i - j|: slopes [..], [T], [S] -> [.., T, S].

    >>> slopes_bias(torch.tensor([0.5]), torch.tensor([2]), torch.arange(3)).tolist()
    [[[-1.0, -0.5, -0.0]]]
    """
    return -slopes[..., None, None] * (queries[:, None] - keys[None, :]).abs().to(slopes.dtype)


@dataclass(frozen=True)
class Block:
    """Queries first..stop-1 and all keys that any of them may see, low..high-1."""

    first: int
    stop: int
    low: int
    high: int

    def bias(self, sight: Sight, heads: int, like: Tensor, prefix: Tensor | None = None) -> Tensor | None:
        """What is added to these scores, -inf where a place is hidden: [1 or P, 1 or heads, T, S]; None for nothing.

        prefix int64 [P]; the result has the dtype and the device of `like`.

        >>> Block(0, 2, 0, 2).bias(Sight(), 1, torch.zeros(1)).exp()
        tensor([[[[1., 0.],
                  [1., 1.]]]])
        >>> Block(1, 2, 0, 2).bias(Sight(), 1, torch.zeros(1))
        """
        single = self.stop - self.first == 1 and self.high == self.stop
        every = single or (not sight.causal and sight.window is None)
        if every and sight.slopes is None:
            return None
        queries = torch.arange(self.first, self.stop, device=like.device)
        keys = torch.arange(self.low, self.high, device=like.device)
        far = like.new_zeros(1, 1)
        if sight.slopes is not None:
            far = (queries[:, None] - keys[None, :]).abs().to(like.dtype)
        if not every:
            ends = None if prefix is None else prefix.to(like.device)
            far = far.masked_fill(~visible(sight, queries, keys, ends), float("inf"))
        slopes = like.new_ones(1, 1) if sight.slopes is None else like.new_tensor(sight.slopes).view(-1, heads)
        return far * -slopes[..., None, None]


def blocks(
    sight: Sight, length: int, reach: int = 0, rows: int = 1, start: int = 0, scores: int | None = None
) -> Iterator[Block]:
    """The queries start..length-1 of pieces in runs, each with the keys it needs.

    reach: the longest prefix; rows: P * H, which bounds a run by SCORES where scores or biases are made for each;
    scores: bounds it in any case.

    >>> [(b.first, b.stop, b.low, b.high) for b in blocks(Sight(window=3), 257)]
    [(0, 128, 0, 128), (128, 256, 126, 256), (256, 257, 254, 257)]
    """
    most = BLOCK
    if sight.cap is not None or (reach and sight.slopes is not None):
        most = max(1, min(BLOCK, SCORES // (rows * length)))
    if scores is not None:
        most = max(1, min(most, scores // (rows * length)))
    for first in range(start, length, most):
        stop = min(first + most, length)
        low = 0 if sight.window is None or first < reach else max(0, first - sight.window + 1)
        high = length if not sight.causal else max(stop, min(reach, length) if first < reach else 0)
        yield Block(first, stop, low, high)
