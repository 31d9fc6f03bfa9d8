"""The block is the formula."""

from torch import Tensor, nn

from temaki.model.layout import Layout, Memory
from temaki.model.state import State


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)): [N, D] -> [N, D]."""

    def __init__(self, mixer: nn.Module, ffn: nn.Module, mixer_norm: nn.Module, ffn_norm: nn.Module):
        super().__init__()
        self.mixer_norm = mixer_norm
        self.mixer = mixer
        self.ffn_norm = ffn_norm
        self.ffn = ffn

    def forward(self, x: Tensor, layout: Layout, state: State | None, memory: Memory | None) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), layout, state, memory)
        return x + self.ffn(self.ffn_norm(x))
