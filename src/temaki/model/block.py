"""The block is the formula, in three orders. Letters: N ids, D width."""

from torch import Tensor, nn

from temaki.model import dropout
from temaki.model.layout import Layout, Memory
from temaki.model.state import State


class Block(nn.Module):
    """pre: x + mixer(norm(x)), then x + ffn(norm(x)): [N, D] -> [N, D].

    `hidden`: the share of what a branch adds that dropout hides in training.
    """

    def __init__(
        self, mixer: nn.Module, ffn: nn.Module, mixer_norm: nn.Module, ffn_norm: nn.Module, hidden: float = 0.0
    ):
        super().__init__()
        self.mixer_norm = mixer_norm
        self.mixer = mixer
        self.ffn_norm = ffn_norm
        self.ffn = ffn
        self.mixer_dropout = dropout.dropout(hidden)
        self.ffn_dropout = dropout.dropout(hidden)

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        x = x + self.mixer_dropout(self.mixer(self.mixer_norm(x), layout, state, memory), layout.rows)
        return x + self.ffn_dropout(self.ffn(self.ffn_norm(x)), layout.rows)


class PostBlock(Block):
    """post: norm(x + mixer(x)), then norm(x + ffn(x)). Vaswani et al. 2017, section 3.1."""

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        x = self.mixer_norm(x + self.mixer_dropout(self.mixer(x, layout, state, memory), layout.rows))
        return self.ffn_norm(x + self.ffn_dropout(self.ffn(x), layout.rows))


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
        hidden: float = 0.0,
    ):
        super().__init__(mixer, ffn, mixer_norm, ffn_norm, hidden)
        self.mixer_after = mixer_after
        self.ffn_after = ffn_after

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        said = self.mixer_after(self.mixer(self.mixer_norm(x), layout, state, memory))
        x = x + self.mixer_dropout(said, layout.rows)
        return x + self.ffn_dropout(self.ffn_after(self.ffn(self.ffn_norm(x))), layout.rows)
