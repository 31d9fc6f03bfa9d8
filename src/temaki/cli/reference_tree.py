"""An opened model -> what `reference/` takes: a function of the page, its tree of parameters, its settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.formats import openai_tf, parity
from temaki.formats.opened import Opened
from temaki.formats.weights import Weight
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    LearnedConfig,
    RmsNormConfig,
    RopeConfig,
    SwigluConfig,
)
from temaki.reference.gpt import Array, Tree, gpt2, llama


@dataclass(frozen=True)
class Page:
    """A model as the page has it: `model(ids, **params, **settings)` are its logits."""

    model: Callable[..., Array]
    params: Tree
    settings: Mapping[str, Any]


def page(opened: Opened) -> Page:
    """The model as plain functions take it. Raises FormatError for one that is neither a GPT-2 nor a Llama."""
    if opened.format == "openai":  # their tree is the page's, so nothing is copied
        params, found = openai_tf.params(opened.folder)
        return Page(gpt2, params, {"n_head": found["n_head"]})
    return of(opened.config, opened.weights())


def of(config: DecoderConfig, weights: Mapping[str, Weight]) -> Page:
    """The same, of a configuration and weights by our names."""
    arrays = {name: _floats(weight) for name, weight in weights.items()}
    wanted = openai_tf.gpt2(openai_tf.hparams(config)) if _learned(config) else _llama(config)
    unlike = parity.unlike(config, wanted)
    if unlike:
        found, allowed = parity.sides(unlike)
        raise FormatError(
            "the reference has GPT-2 and Llama alone, and this model is neither",
            found=found,
            allowed=allowed,
            do="temaki generate runs every model",
        )
    return _gpt2_page(config, arrays) if _learned(config) else _llama_page(config, arrays)


def _learned(config: DecoderConfig) -> bool:
    return isinstance(config.input_position, LearnedConfig)


def _llama(config: DecoderConfig) -> DecoderConfig:
    """The Llama that is nearest to a configuration."""
    first = config.pattern[0]
    heads, groups, size, theta, bias = 1, 1, None, 10_000.0, "none"
    if isinstance(first.mixer, AttentionConfig):
        heads, groups, size, bias = first.mixer.heads, first.mixer.groups, first.mixer.size, first.mixer.bias
        if isinstance(first.mixer.position, RopeConfig):
            theta = first.mixer.position.theta
    mixer = AttentionConfig(heads=heads, kv_heads=groups, size=size, position=RopeConfig(theta=theta), bias=bias)
    ffn = SwigluConfig(width=first.ffn.width) if isinstance(first.ffn, SwigluConfig) else SwigluConfig()
    block = BlockConfig(mixer=mixer, ffn=ffn, norm=RmsNormConfig(eps=first.eps))
    return DecoderConfig(
        vocabulary=config.vocabulary,
        width=config.width,
        depth=config.depth,
        pattern=(block,),
        tied=config.tied,
        context=config.context,
    )


def _gpt2_page(config: DecoderConfig, arrays: Mapping[str, ndarray]) -> Page:
    def norm(name: str) -> Tree:
        return {"g": arrays[f"{name}.gain"], "b": arrays[f"{name}.bias"]}

    def affine(name: str) -> Tree:
        return {"w": arrays[name].T, "b": arrays[f"{name}_bias"]}

    def block(name: str) -> Tree:
        return {
            "ln_1": norm(f"{name}.mixer_norm"),
            "attn": {"c_attn": affine(f"{name}.mixer.qkv"), "c_proj": affine(f"{name}.mixer.out")},
            "ln_2": norm(f"{name}.ffn_norm"),
            "mlp": {"c_fc": affine(f"{name}.ffn.up"), "c_proj": affine(f"{name}.ffn.down")},
        }

    tree = {
        "wte": arrays["embedding"],
        "wpe": arrays["input_position.table"],
        "blocks": [block(f"blocks.{i}") for i in range(config.depth)],
        "ln_f": norm("norm"),
    }
    return Page(gpt2, tree, {"n_head": openai_tf.hparams(config)["n_head"]})


def _llama_page(config: DecoderConfig, arrays: Mapping[str, ndarray]) -> Page:
    mixer = config.pattern[0].mixer
    assert isinstance(mixer, AttentionConfig), "`of` has compared it"
    rope = mixer.position
    assert isinstance(rope, RopeConfig), "`of` has compared it"
    heads, groups, size = mixer.heads, mixer.groups, mixer.head_size(config.width)
    cuts = [heads * size, (heads + groups) * size]  # of the rows of qkv: queries, keys, values

    def attention(name: str) -> Tree:
        tree = {key: {"w": rows.T} for key, rows in zip("qkv", np.split(arrays[f"{name}.qkv"], cuts), strict=True)}
        tree["o"] = {"w": arrays[f"{name}.out"].T}
        if mixer.bias != "none":
            for key, rows in zip("qkv", np.split(arrays[f"{name}.qkv_bias"], cuts), strict=True):
                tree[key]["b"] = rows
        if mixer.bias == "all":
            tree["o"]["b"] = arrays[f"{name}.out_bias"]
        return tree

    def block(name: str) -> Tree:
        gate, up = np.split(arrays[f"{name}.ffn.up"], 2)
        return {
            "attn_norm": {"g": arrays[f"{name}.mixer_norm.gain"]},
            "attn": attention(f"{name}.mixer"),
            "ffn_norm": {"g": arrays[f"{name}.ffn_norm.gain"]},
            "mlp": {"gate": {"w": gate.T}, "up": {"w": up.T}, "down": {"w": arrays[f"{name}.ffn.down"].T}},
        }

    tree: Tree = {
        "wte": arrays["embedding"],
        "blocks": [block(f"blocks.{i}") for i in range(config.depth)],
        "norm": {"g": arrays["norm.gain"]},
    }
    if not config.tied:
        tree["head"] = {"w": arrays["unembedding"].T}
    settings = {"n_head": heads, "n_kv_head": groups, "eps": config.pattern[0].eps}
    return Page(llama, tree, settings | {"theta": rope.theta, "pairs": rope.pairs})


def _floats(weight: Weight) -> ndarray:
    """The numbers as float32 or float64."""
    array = weight.array()
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
