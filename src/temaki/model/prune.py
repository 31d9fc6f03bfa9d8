"""Attention heads taken out of a model, for good. Michel et al. 2019, "Are sixteen heads really better than one?".

Letters: D width, H heads, G heads of keys and values, r = H / G heads a group, K head size.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from temaki.base.errors import ConfigError
from temaki.model import build, part
from temaki.model.build import Model
from temaki.model.config import AlibiConfig, AttentionConfig, DecoderConfig


def prune_heads(model: Model, layer: int, heads: Collection[int]) -> Model:
    """A new model without these heads of a layer: what is left gives what it gave, and the parameters are fewer.

    The same as zeroing the columns of the output projection that read these heads. With grouped queries a group goes
    with its last head, and every group that stays must keep as many heads as the others.
    Raises ConfigError for a layer or head that is not there, and for heads that cannot go.
    """
    config, mixer = model.config, _mixer(model.config, layer)
    kept = _kept(mixer, heads)
    groups = sorted({head // (mixer.heads // mixer.groups) for head in kept})
    size = mixer.head_size(config.width)
    pruned = replace(mixer, heads=len(kept), kv_heads=len(groups), size=size)
    blocks = [replace(block, mixer=pruned) if i == layer else block for i, block in enumerate(config.blocks)]
    old = part.tensors(model)
    shape = replace(config, pattern=tuple(blocks), further=None)
    made = build.empty(shape, model.embedding.dtype).to(model.embedding.device)
    rows = _places([kept, _shifted(groups, mixer.heads), _shifted(groups, mixer.heads + mixer.groups)], size)
    columns = _places([kept], size)
    where = f"blocks.{layer}.mixer."
    with torch.no_grad():
        for name, tensor in part.tensors(made).items():
            source = old[name]
            if name in (where + "qkv", where + "qkv_bias"):
                source = source[rows.to(source.device)]
            elif name == where + "out":
                source = source[:, columns.to(source.device)]
            elif name.startswith(where + "mapped."):  # numbers a head
                source = source[kept]
            tensor.copy_(source)
    return made.train(model.training)


def _mixer(config: DecoderConfig, layer: int) -> AttentionConfig:
    if not 0 <= layer < config.depth:
        raise ConfigError("there is no such layer", found=str(layer), allowed=f"0 to {config.depth - 1}")
    mixer = config.blocks[layer].mixer
    if not isinstance(mixer, AttentionConfig):
        raise ConfigError(f"layer {layer} has no heads to prune", found=mixer.kind, allowed="attention")
    if isinstance(mixer.position, AlibiConfig):
        raise ConfigError("ALiBi's slopes go by the number of heads, so none can be taken out", found=f"layer {layer}")
    return mixer


def _kept(mixer: AttentionConfig, heads: Collection[int]) -> list[int]:
    """The heads that stay, ascending."""
    strange = [head for head in heads if not 0 <= head < mixer.heads]
    if strange:
        raise ConfigError("there is no such head", found=str(strange[0]), allowed=f"0 to {mixer.heads - 1}")
    kept = [head for head in range(mixer.heads) if head not in heads]
    if not kept:
        raise ConfigError("a layer keeps at least one head", found=f"all {mixer.heads} were named")
    left = Counter(head // (mixer.heads // mixer.groups) for head in kept)
    if len(set(left.values())) > 1:
        raise ConfigError(
            "heads that share keys and values cannot go unevenly",
            found=", ".join(f"group {group} keeps {count}" for group, count in left.items()),
            allowed=f"as many from each group of {mixer.heads // mixer.groups}, or whole groups",
        )
    return kept


def _shifted(places: list[int], by: int) -> list[int]:
    return [place + by for place in places]


def _places(heads: list[list[int]], size: int) -> Tensor:
    """The rows of heads, K each, one after the other: int64."""
    flat = torch.tensor([head for each in heads for head in each])
    return (flat[:, None] * size + torch.arange(size)).reshape(-1)
