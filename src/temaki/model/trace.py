"""Attention maps on request: the weights of any layer and head, by the slow twin beside an untouched forward.

Letters: n ids of a piece, H heads.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from temaki.base.rows import Rows
from temaki.model.attention import Attention
from temaki.model.decoder import Decoder
from temaki.model.dense import mapped_piece_weights, piece_weights

Maps = dict[int, list[Tensor]]


@torch.no_grad()
def attention_maps(
    model: Decoder, rows: Rows, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Maps:
    """Layer -> a piece's attention weights [H, n, n] for each piece, row = query, column = key; each row sums to 1,
    but under maps that do not (sigmoid, sink). Noise of maps that have it in training is left out.

    layers: by default every layer with attention; heads: by default all, else these in this order. Multiplied with the
    layer's values, they are what the fused kernel gives. Raises ValueError for a layer without attention or a head that
    is not there.

    >>> from temaki.base.rows import rows
    >>> from temaki.model import build, config
    >>> block = config.BlockConfig(mixer=config.AttentionConfig(heads=2))
    >>> model = build.build(config.DecoderConfig(vocabulary=11, width=8, depth=1, pattern=(block,)))
    >>> [tuple(each.shape) for each in attention_maps(model, rows([[1, 2, 3], [4]]))[0]]
    [(2, 3, 3), (2, 1, 1)]
    """
    attentions = {i: block.mixer for i, block in enumerate(model.blocks) if isinstance(block.mixer, Attention)}
    wanted = list(attentions) if layers is None else list(layers)
    for layer in wanted:
        _check(layer, attentions, heads)
    found: Maps = {}
    with ExitStack() as hooks:
        for layer in wanted:
            handle = attentions[layer].register_forward_pre_hook(_watch(found, layer, heads))
            hooks.callback(handle.remove)
        model(rows)
    return found


def _check(layer: int, attentions: dict[int, Attention], heads: Sequence[int] | None) -> None:
    if layer not in attentions:
        raise ValueError(f"layer {layer} has no attention; layers with attention: {list(attentions)}")
    strange = [head for head in heads or () if not 0 <= head < attentions[layer].heads]
    if strange:
        raise ValueError(f"layer {layer} has no head {strange[0]}; it has {attentions[layer].heads}, counted from 0")


def _watch(found: Maps, layer: int, heads: Sequence[int] | None) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(mixer: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(mixer, Attention)
        x, layout = given[:2]
        q, k, _ = mixer.project(x, layout)
        prefix = mixer.prefix(layout)
        prefixes = [0] * len(layout.pieces) if prefix is None else prefix.tolist()
        maps = [
            _weights(mixer, q[start:stop], k[start:stop], prefix)
            for (start, stop), prefix in zip(layout.pieces, prefixes, strict=True)
        ]
        found[layer] = maps if heads is None else [each[list(heads)] for each in maps]

    return hook


def _weights(mixer: Attention, q: Tensor, k: Tensor, prefix: int) -> Tensor:
    if mixer.mapped is None:
        return piece_weights(q, k, mixer.sight, prefix)
    return mapped_piece_weights(q, k, mixer.mapped, prefix)
