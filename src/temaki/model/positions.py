"""Rotary positions in both pair conventions, as functions of tensors and as a module of tables. Letters: K head size.

Su et al. 2021, "RoFormer", equation 15. Coordinate pair t of a head is turned by the angle m * theta^(-2t/K) at
position m; pair 0 turns fastest. The two conventions differ in which coordinates make a pair, and agree after the
permutation `interleaved_to_half`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from temaki.model.config import RopeConfig

Pairs = Literal["half", "interleaved"]


def rope_angles(positions: Tensor, size: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of m * theta^(-2t/K): positions [...] -> two float64 tensors [..., K/2].

    Raises ValueError for an odd head size.

    >>> rope_angles(torch.tensor(1), 4)[0]
    tensor([0.5403, 1.0000], dtype=torch.float64)
    """
    if size % 2:
        raise ValueError(f"rotary positions turn pairs: the head size must be even, found {size}")
    speeds = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = positions.to(torch.float64)[..., None] * speeds
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs = "half") -> Tensor:
    """Turn each pair (a, b) of x [..., K] to (a cos - b sin, b cos + a sin); cos and sin broadcast as [..., K/2].

    >>> cos, sin = rope_angles(torch.tensor(1), 4)
    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos.float(), sin.float(), "interleaved")
    tensor([-1.1426,  1.9221,  2.9599,  4.0298])
    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), cos.float(), sin.float(), "half")
    tensor([-1.9841,  1.9599,  2.4624,  4.0198])
    """
    if torch.compiler.is_compiling():  # the compiler fuses the formula by itself
        a, b = _pairs(x, pairs)
        turned = (a * cos - b * sin, b * cos + a * sin)
        return torch.cat(turned, -1) if pairs == "half" else torch.stack(turned, -1).flatten(-2)
    return _Turn.apply(x, cos, sin, pairs)


class _Turn(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: nothing of x is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(cos, sin)
        ctx.pairs = pairs
        return _turned(x, cos, sin, pairs)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin, ctx.pairs), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    (a, b), (y, z) = (_pairs(each, pairs) for each in (x, out))
    torch.mul(a, cos, out=y).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=z).addcmul_(a, sin)
    return out


def _pairs(x: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The two coordinates of every pair: views [.., K/2]."""
    if pairs == "half":
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]
    return x[..., 0::2], x[..., 1::2]


def interleaved_to_half(size: int) -> Tensor:
    """The permutation (0, 2, 4, .., 1, 3, 5, ..) int64 [K]: x[p] rotated by halves is x rotated interleaved, then [p].

    >>> interleaved_to_half(6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return torch.arange(size).reshape(-1, 2).T.reshape(-1)


class Rotary(nn.Module):
    """Tables of cosine and sine by position: buffers, neither trained nor saved, moved by `.to`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: RopeConfig, size: int, room: int = 2048):
        super().__init__()
        self.theta = config.theta
        self.size = size
        self.register_buffer("cos", torch.empty(0, size // 2, dtype=torch.float64), persistent=False)
        self.register_buffer("sin", torch.empty(0, size // 2, dtype=torch.float64), persistent=False)
        self.extend(room)

    def extend(self, room: int) -> None:
        """Make the tables serve positions 0..room-1; they only grow."""
        if room > len(self.cos):
            cos, sin = rope_angles(torch.arange(room), self.size, self.theta)
            self.cos, self.sin = (
                cos.to(self.cos.dtype).to(self.cos.device),
                sin.to(self.sin.dtype).to(self.sin.device),
            )

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[N] -> cos, sin [N, 1, K/2], ready to broadcast over heads."""
        return self.cos[positions].to(dtype)[:, None], self.sin[positions].to(dtype)[:, None]
