"""The table from a variant's config to its module, and the door that builds a whole model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from temaki.base import keys
from temaki.model import init
from temaki.model.attention import Attention
from temaki.model.block import Block
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    ModelConfig,
    RmsNormConfig,
    RopeConfig,
    S4DConfig,
    SwigluConfig,
)
from temaki.model.decoder import Decoder
from temaki.model.ffn import Swiglu
from temaki.model.norm import RmsNorm
from temaki.model.positions import Rotary
from temaki.model.ssm import S4D

Model = Decoder

MIXERS: dict[type, Callable[[Any, int], nn.Module]] = {
    AttentionConfig: lambda config, width: Attention(config, width, _angles(config, width)),
    S4DConfig: S4D,
}
FFNS: dict[type, Callable[[Any, int], nn.Module]] = {SwigluConfig: Swiglu}
NORMS: dict[type, Callable[[Any, int], nn.Module]] = {RmsNormConfig: RmsNorm}


def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model on the host with its initial values, a function of (config, seed).

    >>> from temaki.model import config as c
    >>> block = c.BlockConfig(mixer=c.AttentionConfig(heads=2))
    >>> model = build(c.DecoderConfig(vocabulary=11, width=8, depth=1, pattern=(block,)))
    >>> model.roles()["blocks.0.mixer.qkv"].parts
    (8, 8, 8)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keys.torch_seed(seed, "build"))
        rotaries = {
            _name(block.mixer, config.width): Rotary(block.mixer.position, config.width // block.mixer.heads)
            for block in config.pattern
            if isinstance(block.mixer, AttentionConfig) and isinstance(block.mixer.position, RopeConfig)
        }
        blocks = [_block(block, config.width) for block in config.blocks]
        model = Decoder(
            config,
            blocks,
            NORMS[type(config.pattern[-1].norm)](config.pattern[-1].norm, config.width),
            rotaries,
        )
    init.fill(model, config.init, seed)
    return model.to(dtype)


def empty(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Model:
    """A model whose weights will be loaded; its values mean nothing."""
    return build(config, 0, dtype)


def _block(config: BlockConfig, width: int) -> Block:
    return Block(
        mixer=MIXERS[type(config.mixer)](config.mixer, width),
        ffn=FFNS[type(config.ffn)](config.ffn, width),
        mixer_norm=NORMS[type(config.norm)](config.norm, width),
        ffn_norm=NORMS[type(config.norm)](config.norm, width),
    )


def _angles(config: AttentionConfig, width: int) -> str | None:
    return _name(config, width) if isinstance(config.position, RopeConfig) else None


def _name(config: AttentionConfig, width: int) -> str:
    """Attention layers of one theta and head size share one table; module names hold no dots."""
    theta = config.position.theta if isinstance(config.position, RopeConfig) else 0.0
    return f"theta{theta:g}_size{width // config.heads}".replace(".", "p")
