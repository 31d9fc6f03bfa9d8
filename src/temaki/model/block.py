"""The block is the formula, in three orders. Letters: N ids, D width."""

from torch import Tensor, nn

from temaki.model.layout import Layout, Memory
from temaki.model.state import State


class Block(nn.Module):
    """pre: x + mixer(norm(x)), then x + ffn(norm(x)): [N, D] -> [N, D]."""

    def __init__(self, mixer: nn.Module, ffn: nn.Module, mixer_norm: nn.Module, ffn_norm: nn.Module):
        super().__init__()
        self.mixer_norm = mixer_norm
        self.mixer = mixer
        self.ffn_norm = ffn_norm
        self.ffn = ffn

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), layout, state, memory)
        return x + self.ffn(self.ffn_norm(x))


class PostBlock(Block):
    """post: norm(x + mixer(x)), then norm(x + ffn(x)). Vaswani et al. 2017, section 3.1."""

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        x = self.mixer_norm(x + self.mixer(x, layout, state, memory))
        return self.ffn_norm(x + self.ffn(x))


class SandwichBlock(Block):
    """sandwich: x + norm(mixer(norm(x))), then x + norm(ffn(norm(x))). Ding et al. 2021, "CogView", section 2.4."""

    def __init__(
        self,
        mixer: nn.Module,
        ffn: nn.Module,
        mixer_norm: nn.Module,
        ffn_norm: nn.Module,
        mixer_after: nn.Module,
        ffn_after: nn.Module,
    ):
        super().__init__(mixer, ffn, mixer_norm, ffn_norm)
        self.mixer_after = mixer_after
        self.ffn_after = ffn_after

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        x = x + self.mixer_after(self.mixer(self.mixer_norm(x), layout, state, memory))
        return x + self.ffn_after(self.ffn(self.ffn_norm(x)))
