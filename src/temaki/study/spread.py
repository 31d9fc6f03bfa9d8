"""How a decoder without positions can know where it is: the spread of what attention gives falls with the place.

With uniform attention y_n = mean(v_1 .. v_n); where E v = 0 and E v^2 = s^2, E y_n^2 = s^2 / n: the place stands in the
scale of the output. Letters: D width, T ids a row, n a place, counted from 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from temaki.base import rows
from temaki.batches.shards import Shards
from temaki.model.attention import Attention
from temaki.model.build import Model
from temaki.model.config import AttentionConfig, NoPositionConfig
from temaki.model.layout import Layout
from temaki.study import held as held_text

PLACES = (1, 2, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1000)
STRETCHES = 24


def uniform(width: int = 512, places: tuple[int, ...] = PLACES, draws: int = 4, seed: int = 0) -> dict[str, Any]:
    """The mean square of what one layer of attention gives at some places where all its scores are equal.

    Its queries and keys are zero, its values are drawn from N(0, 1): `mean` over the draws, beside 1 / n.
    """
    layer = Attention(AttentionConfig(heads=1, position=NoPositionConfig()), width, 1e-5, None)
    with torch.no_grad():
        layer.qkv.zero_()
        layer.qkv[2 * width :] = torch.eye(width)
        layer.out.copy_(torch.eye(width))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(places), dtype=torch.float64)
    for _ in range(draws):
        values = torch.randn(max(places), width, generator=generator)
        with torch.no_grad():
            y = layer(values, Layout(rows.grid(torch.zeros(1, max(places), dtype=torch.int64))), None, None)
        total += y.double().square().mean(-1)[torch.tensor(places) - 1]
    return {"places": list(places), "mean": (total / draws).tolist(), "said": [1 / n for n in places]}


@torch.no_grad()
def measure(model: Model, held: Shards, context: int, most: int = STRETCHES) -> dict[str, Any]:
    """The mean square of what each layer's attention adds, by place of a row of T, a share of that at place 1."""
    found = held_text.stretches(held, context, most)
    heard: dict[int, Tensor] = {}
    handles = [
        block.mixer.register_forward_hook(_listen(heard, layer))
        for layer, block in enumerate(model.blocks)
        if isinstance(block.mixer, Attention)
    ]
    try:
        model(rows.grid(torch.from_numpy(found[:, :-1])))
    finally:
        for handle in handles:
            handle.remove()
    places = [n for n in PLACES if n <= context]
    made = {}
    for layer, y in heard.items():
        squares = y.double().square().mean(-1).view(len(found), context).mean(0)
        made[str(layer)] = [float(squares[n - 1] / squares[0].clamp_min(1e-30)) for n in places]
    return {"places": places, "layers": made}


def _listen(heard: dict[int, Tensor], layer: int) -> Callable[[object, object, Tensor], None]:
    def hook(_module: object, _given: object, y: Tensor) -> None:
        heard[layer] = y

    return hook
