"""Positions: rotary in both pair conventions and with longer contexts, sines, learned vectors, slopes. K head size.

Su et al. 2021, "RoFormer", equation 15: coordinate pair t of a head is turned by the angle m * theta^(-2t/K) at
position m; pair 0 turns fastest. The two conventions differ in which coordinates make a pair, and agree after the
permutation `interleaved_to_half`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temaki.base.errors import ConfigError
from temaki.base.roles import Role
from temaki.model import angles as tables
from temaki.model.angles import alibi_slopes as alibi_slopes
from temaki.model.config import (
    InputPositionConfig,
    LearnedConfig,
    NoPositionConfig,
    RopeConfig,
    ScalingConfig,
    SinusoidalConfig,
)
from temaki.model.part import Part

Pairs = Literal["half", "interleaved"]
HOST = torch.device("cpu")


# ---- rotary ---------------------------------------------------------------------------------------------------------


def rope_speeds(size: int, theta: float = 10_000.0, scaling: ScalingConfig | None = None) -> tuple[Tensor, float]:
    """Radians a position of every pair, float64 [K/2], and what multiplies cosine and sine: `angles.rope_speeds`.

    Raises ValueError for an odd head size.

    >>> rope_speeds(4)
    (tensor([1.0000, 0.0100], dtype=torch.float64), 1.0)
    >>> from temaki.model.config import LinearScalingConfig
    >>> rope_speeds(4, scaling=LinearScalingConfig(factor=2.0))[0]
    tensor([0.5000, 0.0050], dtype=torch.float64)
    """
    if size % 2:
        raise ValueError(f"rotary positions turn pairs: the head size must be even, found {size}")
    speeds, magnitude = tables.rope_speeds(size, theta, scaling)
    return torch.from_numpy(speeds), magnitude


def rope_angles(
    positions: Tensor, size: int, theta: float = 10_000.0, scaling: ScalingConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of m * theta^(-2t/K): positions [...] -> two float64 tensors [..., K/2].

    Raises ValueError for an odd head size.

    >>> rope_angles(torch.tensor(1), 4)[0]
    tensor([0.5403, 1.0000], dtype=torch.float64)
    """
    speeds, magnitude = rope_speeds(size, theta, scaling)
    angles = positions.to(torch.float64)[..., None] * speeds.to(positions.device)
    return angles.cos() * magnitude, angles.sin() * magnitude


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
    if not torch.is_grad_enabled():
        return _multiplied(x, cos, sin) if pairs == "interleaved" and _complex(x) else _turned(x, cos, sin, pairs)
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


def _complex(x: Tensor) -> bool:
    """Whether x lies so that its interleaved pairs are complex numbers."""
    whole = x.dtype in (torch.float32, torch.float64) and x.stride(-1) == 1 and x.storage_offset() % 2 == 0
    return whole and not any(stride % 2 for stride in x.stride()[:-1])


def _multiplied(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved pairs are complex numbers: the rotation is one product."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2)


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
        self.config = config
        self.size = size
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(0, size // 2, dtype=torch.float64, device=HOST), persistent=False)
        self.extend(room)

    def extend(self, room: int) -> None:
        """Make the tables serve positions 0..room-1; they only grow."""
        if room > len(self.cos):
            places = torch.arange(max(room, 2 * len(self.cos)), device=HOST)
            cos, sin = rope_angles(places, self.size, self.config.theta, self.config.scaling)
            self.cos, self.sin = cos.to(self.cos), sin.to(self.sin)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[N] -> cos, sin [N, 1, K/2], ready to broadcast over heads."""
        cos, sin = (table.index_select(0, positions).to(dtype) for table in (self.cos, self.sin))
        return cos[:, None], sin[:, None]


# ---- what is added to the embeddings --------------------------------------------------------------------------------


def sinusoidal(positions: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """sin(m / base^(2t/D)) in column 2t and its cosine in column 2t + 1: positions [...] -> float64 [..., D].

    Vaswani et al. 2017, section 3.5.

    >>> sinusoidal(torch.tensor(1), 512)[:4]
    tensor([0.8415, 0.5403, 0.8219, 0.5697], dtype=torch.float64)
    """
    speeds = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width)
    angles = positions.to(torch.float64)[..., None] * speeds
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :width]


class Sinusoidal(nn.Module):
    """`sinusoidal` as a table by position: a buffer, neither trained nor saved, moved by `.to`."""

    table: Tensor

    def __init__(self, config: SinusoidalConfig, width: int, room: int = 2048):
        super().__init__()
        self.base = config.base
        self.register_buffer("table", torch.empty(0, width, dtype=torch.float64, device=HOST), persistent=False)
        self.extend(room)

    def extend(self, room: int) -> None:
        """Make the table serve positions 0..room-1; it only grows."""
        if room > len(self.table):
            places = torch.arange(max(room, 2 * len(self.table)), device=HOST)
            self.table = sinusoidal(places, self.table.shape[1], self.base).to(self.table)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [N, D] + the table's rows at the positions [N]."""
        return x + self.table[positions].to(x.dtype)


class Learned(Part):
    """A learned vector a position, added to the embeddings. Radford et al. 2019 (GPT-2)."""

    def __init__(self, config: LearnedConfig, width: int):
        super().__init__()
        self.table = self.add("table", config.room, width, role=Role("embedding"), filling="tied")

    def extend(self, room: int) -> None:
        """Raises ConfigError if there are fewer than `room` positions: they cannot be made up."""
        if room > len(self.table):
            raise ConfigError(
                f"a row of {room} ids is longer than the {len(self.table)} positions that this model has learned",
                found=f"{room} positions",
                allowed=f"at most {len(self.table)}",
                do="use a shorter context, or a model with rotary positions",
            )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [N, D] + the table's rows at the positions [N]."""
        return x + F.embedding(positions, self.table)


class Unplaced(nn.Module):
    """Nothing is added."""

    def extend(self, room: int) -> None:
        pass

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return x


InputPosition = Learned | Sinusoidal | Unplaced


def input_position(config: InputPositionConfig, width: int) -> InputPosition:
    """The part that adds positions to the embeddings [N, D].

    >>> input_position(SinusoidalConfig(), 4)(torch.zeros(1, 4), torch.tensor([0]))
    tensor([[0., 1., 0., 1.]])
    """
    match config:
        case LearnedConfig():
            return Learned(config, width)
        case SinusoidalConfig():
            return Sinusoidal(config, width)
        case NoPositionConfig():
            return Unplaced()
