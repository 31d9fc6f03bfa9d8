"""The attention operator under torch.compile and activation checkpointing."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from temaki.model.kernels import documents_attention
from temaki.model.sight import CAUSAL, Sight
from variants import close


class Layer(torch.nn.Module):
    """The least that holds the operator between two matrices."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.sight = sight
        self.qkv = torch.nn.Linear(32, 64, bias=False)

    def forward(self, x: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split((32, 16, 16), -1)
        heads = (q.unflatten(-1, (4, 8)), k.unflatten(-1, (2, 8)), v.unflatten(-1, (2, 8)))
        return x + documents_attention(*heads, cuts, self.sight).flatten(1)


def gradients(forward: Callable[..., torch.Tensor], layer: Layer, cuts: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(2)
    x = torch.randn(48, 32)
    layer.zero_grad()
    out = forward(x, cuts)
    out.square().sum().backward()
    assert layer.qkv.weight.grad is not None
    return [out.detach(), layer.qkv.weight.grad.clone()]


@pytest.mark.parametrize("sight", [CAUSAL, Sight(window=5, slopes=(0.5, 0.2, 0.1, 0.01), cap=2.0)], ids=["", "bent"])
def test_the_operator_compiles_whole_and_survives_checkpointing(sight: Sight) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    layer = Layer(sight)
    compiled = torch.compile(layer, fullgraph=True)
    for cuts in ([0, 48], [0, 5, 5, 12, 48], [0, 1, 47, 48]):
        at = torch.tensor(cuts)
        plain = gradients(layer, layer, at)
        for forward in (
            compiled,
            lambda x, c: checkpoint(layer, x, c, use_reentrant=False),
            lambda x, c: checkpoint(compiled, x, c, use_reentrant=False),
        ):
            for a, b in zip(gradients(forward, layer, at), plain, strict=True):
                close(a, b)
