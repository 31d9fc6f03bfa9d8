"""OpenAI's GPT-2 as it was released: a folder with a TensorFlow checkpoint, read and written without TensorFlow.

    hparams.json               n_vocab, n_ctx, n_embd, n_head, n_layer
    checkpoint, model.ckpt.*   the arrays, `openai_tf_bundle`; their names begin with "model/"
    encoder.json, vocab.bpe    the tokenizer

Source: Radford et al. 2019 and github.com/openai/gpt-2, src/model.py (names, shapes, eps).
"""

import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from temaki.base import files
from temaki.base.errors import FormatError
from temaki.formats import openai_tf_bundle as bundle_door
from temaki.formats import parity
from temaki.formats import weights as exchange
from temaki.formats.openai_tf_bundle import Bundle
from temaki.formats.opened import Opened, Speaking
from temaki.formats.weights import SAME, TRANSPOSED, Change, Entry, Source, Weight
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    NoPositionConfig,
)
from temaki.tokens import gpt2_files
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

HPARAMS = "hparams.json"
KEYS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
FRONT = "model/"
"""What every name begins with."""
END = "<|endoftext|>"
EPS = 1e-5
"""Of every layer norm."""
LARGEST = 1 << 31
"""No number in hparams.json is as large."""
SMALL = 1 << 20
"""Bytes up to which hparams.json is read."""


def fits(path: Path) -> bool:
    """Whether a path is a folder with the released files, as far as can be told from those that are there."""
    return (path / HPARAMS).is_file() and ((path / bundle_door.NAMED).is_file() or any(path.glob("*.ckpt*.index")))


def open(path: Path) -> Opened:
    """The model in a folder. Raises FormatError for files that are missing, damaged or do not fit."""
    config, warnings = _config(path / HPARAMS)
    bundle = _bundle(path, config)
    return Opened(
        folder=path,
        config=config,
        settings={},
        step=None,
        warnings=warnings,
        read_weights=partial(_weights, bundle, config),
        read_tokenizer=partial(_tokenizer, path, config.vocabulary),
        speaking=_speaking(path, config.vocabulary),
        format="openai",
        facts={"architecture": "gpt2"},
    )


def params(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The arrays as the tree that `reference.gpt.gpt2` takes, memory-mapped, and hparams. Raises FormatError.

    "model/h3/attn/c_attn/w" [1, D, 3 D] is `tree["blocks"][3]["attn"]["c_attn"]["w"]` [D, 3 D]: of the axes of one
    only the first of a matrix "w" is dropped, which was the width of a convolution.
    """
    config, _ = _config(path / HPARAMS)
    bundle = _bundle(path, config)
    arrays = bundle.arrays()
    exchange.read(entries(config), arrays, str(bundle.prefix))
    tree: dict[str, Any] = {"blocks": [{} for _ in range(config.depth)]}
    for name, array in arrays.items():
        *way, last = name.removeprefix(FRONT).split("/")
        place: Any = tree
        for step in way:
            numbered = place is tree and step.startswith("h")
            place = tree["blocks"][int(step[1:])] if numbered else place.setdefault(step, {})
        place[last] = array[0] if last == "w" and array.ndim == 3 else array
    return tree, hparams(config)


def write(opened: Opened, out: Path) -> None:
    """Write a model as a folder `out`, which must not exist: float32, or float64 where the weights are.

    It is whole or absent. Raises FormatError for a model that is no GPT-2, TokenizerError for a tokenizer that is not
    of its kind, OSError.
    """
    config = opened.config
    check(config)
    if out.exists():
        raise FormatError(f"{out} exists already; nothing was changed", do="choose another name or remove it")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
        folder = Path(aside) / out.name
        folder.mkdir()
        if opened.tokenizer is not None:
            gpt2_files.save(opened.tokenizer, folder)
        arrays = exchange.write(entries(config), opened.weights())
        held = ((name, array if array.dtype == np.float64 else array.astype(np.float32)) for name, array in arrays)
        bundle_door.write(held, folder)
        files.write_json(folder / HPARAMS, hparams(config))
        os.replace(folder, out)


def check(config: DecoderConfig) -> None:
    """Raise FormatError for a model that is no GPT-2."""
    unlike = parity.unlike(config, gpt2(hparams(config)))
    if unlike:
        found, allowed = parity.sides(unlike)
        raise FormatError("only GPT-2's architecture can be written as OpenAI's files", found=found, allowed=allowed)


def gpt2(found: Mapping[str, int]) -> DecoderConfig:
    """The configuration of GPT-2 with these hparams."""
    mixer = AttentionConfig(heads=found["n_head"], position=NoPositionConfig(), bias="all")
    block = BlockConfig(mixer=mixer, ffn=GeluConfig(bias=True), norm=LayerNormConfig(eps=EPS))
    return DecoderConfig(
        vocabulary=found["n_vocab"],
        width=found["n_embd"],
        depth=found["n_layer"],
        pattern=(block,),
        input_position=LearnedConfig(room=found["n_ctx"]),
        context=found["n_ctx"],
    )


def hparams(config: DecoderConfig) -> dict[str, int]:
    """The numbers of hparams.json, of a model that is a GPT-2; of another, those of the nearest one."""
    mixer, position = config.pattern[0].mixer, config.input_position
    heads = mixer.heads if isinstance(mixer, AttentionConfig) else 1
    room = position.room if isinstance(position, LearnedConfig) else config.context or 1
    return dict(zip(KEYS, (config.vocabulary, room, config.width, heads, config.depth), strict=True))


def entries(config: DecoderConfig) -> list[Entry]:
    """Our weights and their arrays, in the order of the model. D width, P positions, V vocabulary."""
    found = hparams(config)
    V, P, D = found["n_vocab"], found["n_ctx"], found["n_embd"]
    made = [_entry("embedding", "wte", (V, D)), _entry("input_position.table", "wpe", (P, D))]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"h{i}"
        made += _norm(f"{ours}.mixer_norm", f"{theirs}/ln_1", D)
        made += _affine(f"{ours}.mixer.qkv", f"{ours}.mixer.qkv_bias", f"{theirs}/attn/c_attn", D, 3 * D)
        made += _affine(f"{ours}.mixer.out", f"{ours}.mixer.out_bias", f"{theirs}/attn/c_proj", D, D)
        made += _norm(f"{ours}.ffn_norm", f"{theirs}/ln_2", D)
        made += _affine(f"{ours}.ffn.up", f"{ours}.ffn.up_bias", f"{theirs}/mlp/c_fc", D, 4 * D)
        made += _affine(f"{ours}.ffn.down", f"{ours}.ffn.down_bias", f"{theirs}/mlp/c_proj", 4 * D, D)
    return made + _norm("norm", "ln_f", D)


def _entry(ours: str, theirs: str, shape: tuple[int, ...], change: Change = SAME) -> Entry:
    return Entry(ours, shape, (Source(FRONT + theirs, shape, change),))


def _norm(ours: str, theirs: str, D: int) -> list[Entry]:
    return [_entry(f"{ours}.gain", f"{theirs}/g", (D,)), _entry(f"{ours}.bias", f"{theirs}/b", (D,))]


def _affine(matrix: str, bias: str, theirs: str, before: int, after: int) -> list[Entry]:
    """Theirs is [1, in, out], ours [out, in]."""
    source = Source(f"{FRONT}{theirs}/w", (1, before, after), TRANSPOSED, at=0)
    return [Entry(matrix, (after, before), (source,)), _entry(bias, f"{theirs}/b", (after,))]


def _config(path: Path) -> tuple[DecoderConfig, tuple[str, ...]]:
    """The configuration that hparams.json says, and what was passed over. Raises FormatError."""
    found = files.read_json(path, FormatError, SMALL)
    numbers: dict[str, int] = {}
    for key in KEYS:
        value = found.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < LARGEST:
            raise FormatError(f"{path}: {key} is no number of a model", found=repr(value)[:80], allowed="1, 2, 3, ..")
        numbers[key] = value
    extra = [key for key in found if key not in KEYS]
    warnings = (f"{path} also says {exchange.some(extra)}, which was passed over",) if extra else ()
    try:
        return gpt2(numbers), warnings
    except ValueError as error:
        raise FormatError(f"{path} describes no model: {error}") from None


def _bundle(path: Path, config: DecoderConfig) -> Bundle:
    """The checkpoint, with at least an array a block, so that a wrong depth is seen before names are made of it."""
    bundle = bundle_door.open(path)
    if config.depth > len(bundle.places):
        raise FormatError(f"{path / HPARAMS} says {config.depth} blocks, but there are {len(bundle.places)} arrays")
    return bundle


def _weights(bundle: Bundle, config: DecoderConfig) -> dict[str, Weight]:
    return exchange.read(entries(config), bundle.arrays(), str(bundle.prefix))


def _tokenizer(path: Path, vocabulary: int) -> tuple[Tokenizer, Frame] | None:
    if gpt2_files.found_in(path) is None:
        return None
    tokenizer = gpt2_files.load(path)
    if len(tokenizer.tokens) > vocabulary:
        raise FormatError(
            f"the tokenizer in {path} has more ids than the model", found=f"{len(tokenizer.tokens)}, {vocabulary}"
        )
    return tokenizer, Frame()


def _speaking(path: Path, vocabulary: int) -> Speaking:
    """A text ends where the next would begin."""
    encoder = path / "encoder.json"
    if not encoder.is_file():
        return Speaking()
    end = files.read_json(encoder, FormatError, gpt2_files.LIMIT).get(END)
    return Speaking(stop=(end,)) if isinstance(end, int) and 0 <= end < vocabulary else Speaking()
