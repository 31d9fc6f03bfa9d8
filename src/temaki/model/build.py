"""The table from a variant's config to its module, and the door that builds a whole model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from temaki.base import keys
from temaki.model import init, several
from temaki.model.attention import Attention
from temaki.model.block import Block, PostBlock, SandwichBlock
from temaki.model.config import (
    AttentionConfig,
    BatchNormConfig,
    BlockConfig,
    DeltaNetConfig,
    ExpertsConfig,
    GegluConfig,
    GeluConfig,
    GruConfig,
    LayerNormConfig,
    LruConfig,
    LstmConfig,
    Mamba2Config,
    MambaConfig,
    ModelConfig,
    NoNormConfig,
    ReluConfig,
    RetNetConfig,
    RmsNormConfig,
    RnnConfig,
    RopeConfig,
    RtfConfig,
    RwkvConfig,
    S4Config,
    S4DConfig,
    S5Config,
    SiluConfig,
    SwigluConfig,
)
from temaki.model.decoder import Decoder
from temaki.model.deltanet import DeltaNet
from temaki.model.experts import Experts
from temaki.model.ffn import Ffn
from temaki.model.mamba import Mamba
from temaki.model.mamba2 import Mamba2
from temaki.model.mimo import S5, Lru
from temaki.model.norm import LayerNorm, RmsNorm
from temaki.model.norm_batch import BatchNorm, NoNorm
from temaki.model.positions import Rotary
from temaki.model.retention import RetNet
from temaki.model.rnn import Rnn
from temaki.model.rtf import Rtf
from temaki.model.rwkv import Rwkv
from temaki.model.s4 import S4
from temaki.model.ssm import S4D

Model = Decoder

Table = tuple[RopeConfig, int]
"""What makes a table of rotary positions: its speeds (not its pairs) and the head size."""

MIXERS: dict[type, Callable[[Any, BlockConfig, int, Mapping[Table, str]], nn.Module]] = {
    AttentionConfig: lambda config, block, width, tables: Attention(
        config, width, block.eps, _name(_table(config, width), tables)
    ),
    S4Config: lambda config, _block, width, _tables: S4(config, width),
    RtfConfig: lambda config, _block, width, _tables: Rtf(config, width),
    S4DConfig: lambda config, _block, width, _tables: S4D(config, width),
    MambaConfig: lambda config, _block, width, _tables: Mamba(config, width),
    RetNetConfig: lambda config, _block, width, _tables: RetNet(config, width),
    Mamba2Config: lambda config, _block, width, _tables: Mamba2(config, width),
    RwkvConfig: lambda config, _block, width, _tables: Rwkv(config, width),
    DeltaNetConfig: lambda config, _block, width, _tables: DeltaNet(config, width),
    S5Config: lambda config, _block, width, _tables: S5(config, width),
    LruConfig: lambda config, _block, width, _tables: Lru(config, width),
    RnnConfig: lambda config, _block, width, _tables: Rnn(config, width),
    GruConfig: lambda config, _block, width, _tables: Rnn(config, width),
    LstmConfig: lambda config, _block, width, _tables: Rnn(config, width),
}
FFNS: dict[type, Callable[[Any, int], nn.Module]] = {
    SwigluConfig: Ffn,
    GegluConfig: Ffn,
    GeluConfig: Ffn,
    SiluConfig: Ffn,
    ReluConfig: Ffn,
    ExpertsConfig: Experts,
}
NORMS: dict[type, Callable[[Any, int], nn.Module]] = {
    RmsNormConfig: RmsNorm,
    LayerNormConfig: LayerNorm,
    BatchNormConfig: BatchNorm,
    NoNormConfig: NoNorm,
}
ORDERS: dict[str, tuple[Callable[..., Block], tuple[str, ...]]] = {
    "pre": (Block, ("mixer_norm", "ffn_norm")),
    "post": (PostBlock, ("mixer_norm", "ffn_norm")),
    "sandwich": (SandwichBlock, ("mixer_norm", "ffn_norm", "mixer_after", "ffn_after")),
}
"""The class of each order of a block, and the norms it has."""


def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model on the host with its initial values, a function of (config, seed).

    >>> from temaki.model import config as c
    >>> block = c.BlockConfig(mixer=c.AttentionConfig(heads=2))
    >>> model = build(c.DecoderConfig(vocabulary=11, width=8, depth=1, pattern=(block,)))
    >>> model.roles()["blocks.0.mixer.qkv"].parts
    (8, 8, 8)
    """
    model = _structure(config, seed)
    init.fill(model, config, seed)
    several.begin(model.heads, model.head)
    return model.to(dtype)


def empty(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Model:
    """A model whose weights will be loaded: their values mean nothing, and their memory is not touched.

    Tables of positions are right, saved buffers are zero. Under `torch.device("meta")` it has shapes alone.
    """
    model = _structure(config, 0)
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = torch.empty_like(parameter, dtype=dtype)
    return model.to(dtype)


def _structure(config: ModelConfig, seed: int) -> Model:
    """A model without initial values but those given where a parameter is made."""
    attentions = [block.mixer for block in config.pattern if isinstance(block.mixer, AttentionConfig)]
    wanted = dict.fromkeys(table for each in attentions if (table := _table(each, config.width)) is not None)
    tables = {table: f"rotary{i}" for i, table in enumerate(wanted)}
    last, width = config.pattern[-1], config.width

    def norm() -> nn.Module:
        return NORMS[type(last.norm)](last.norm, width)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keys.torch_seed(seed, "build"))
        return Decoder(
            config,
            [_block(block, config, tables) for block in config.blocks],
            norm(),
            {name: Rotary(rope, size) for (rope, size), name in tables.items()},
            several.heads(config.further, width, config.vocabulary, lambda: _block(last, config, tables), norm),
        )


def _block(config: BlockConfig, model: ModelConfig, tables: Mapping[Table, str]) -> Block:
    kind, norms = ORDERS[config.order]
    width = model.width
    return kind(
        mixer=MIXERS[type(config.mixer)](config.mixer, config, width, tables),
        ffn=FFNS[type(config.ffn)](config.ffn, width),
        **{name: NORMS[type(config.norm)](config.norm, width) for name in norms},
        hidden=model.dropout,
    )


def _table(config: AttentionConfig, width: int) -> Table | None:
    """The rotary table of a layer; None where it has none. Layers of either pairing share one."""
    if not isinstance(config.position, RopeConfig):
        return None
    return replace(config.position, pairs="half"), config.head_size(width)


def _name(table: Table | None, tables: Mapping[Table, str]) -> str | None:
    return None if table is None else tables[table]
