"""The model of Stanford's CS336, assignment 1: model.safetensors by its state-dict keys, and a config.json.

config.json holds vocab_size, context_length, d_model, num_layers, num_heads, d_ff and rope_theta. Rotary pairs are
(2t, 2t + 1), the norm's eps is 1e-5, nothing has a bias, the head is a matrix of its own.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from temaki.base import config as config_door
from temaki.base import files
from temaki.base.config import settings
from temaki.base.errors import ConfigError, FormatError
from temaki.checkpoint import arrays
from temaki.formats import hf_safetensors, weights
from temaki.formats import tokenizer as tokenizer_door
from temaki.formats.hf_said import different
from temaki.formats.opened import Opened
from temaki.formats.weights import SAME, Change, Entry, Source, Weight, interleaved, some
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    RmsNormConfig,
    RopeConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.tokens import gpt2_files
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LIMIT = 1 << 20
"""Bytes up to which config.json is read."""
MARKS = frozenset({"vocab_size", "d_model", "num_layers", "num_heads"})
"""Keys that tell this config.json from others."""
Size = Annotated[int, Field(ge=1, le=1 << 31)]


@settings
class Keys:
    """The assignment's arguments of its model."""

    vocab_size: Size
    context_length: Size
    d_model: Size
    num_layers: Annotated[int, Field(ge=1, le=1 << 12)]
    num_heads: Size
    d_ff: Size
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0


def fits(path: Path) -> bool:
    """Whether a folder holds a config.json with the assignment's names."""
    try:
        found = files.read_json(path / CONFIG, FormatError, LIMIT)
    except FormatError:
        return False
    return found.keys() >= MARKS and "model_type" not in found


def open(path: Path) -> Opened:
    """Open a folder. Raises FormatError for keys that are missing, unknown or out of range."""
    where = path / CONFIG
    try:
        keys = config_door.read(Keys, files.read_json(where, FormatError, LIMIT))
        config = _config(keys)
    except (ConfigError, ValueError) as error:
        raise FormatError(f"{where} is not understood: {error}") from None
    return Opened(
        folder=path,
        config=config,
        settings={},
        step=None,
        warnings=(),
        read_weights=lambda: _weights(path, config),
        read_tokenizer=lambda: _tokenizer(path),
        format="cs336",
        facts={"architecture": "cs336"},
    )


def write(opened: Opened, out: Path) -> None:
    """Write the folder in float32; `out` must not exist, and is whole or absent. Raises FormatError, OSError."""
    if out.exists():
        raise FormatError(f"{out} exists; nothing was written", do="choose another name or remove it")
    told = said(opened.config, opened.context)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        files.write_json(aside / CONFIG, told)
        table = entries(opened.config)
        shapes = [(source.name, source.shape) for entry in table for source in entry.sources]
        hf_safetensors.write(aside / WEIGHTS, shapes, "float32", weights.write(table, opened.weights()))
        if opened.tokenizer is not None:
            gpt2_files.save(opened.tokenizer, aside)
        aside.chmod(0o755)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def entries(config: DecoderConfig) -> Sequence[Entry]:
    """The table of a configuration of this shape."""
    return tuple(_entries(config))


def _entries(config: DecoderConfig) -> Iterator[Entry]:
    v, d = config.vocabulary, config.width
    yield _one("embedding", "token_embeddings.weight", v, d)
    for i, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{i}.", f"layers.{i}."
        assert isinstance(block.mixer, AttentionConfig), "this model is made of attention"
        assert isinstance(block.ffn, SwigluConfig), "this model's layers have gates"
        turned, f = _pairs(block.mixer), ffn_width(block.ffn, d)
        yield _one(f"{ours}mixer_norm.gain", f"{theirs}ln1.weight", d)
        rows = (("q", turned), ("k", turned), ("v", SAME))
        sources = tuple(Source(f"{theirs}attn.{name}_proj.weight", (d, d), change) for name, change in rows)
        yield Entry(f"{ours}mixer.qkv", (3 * d, d), sources)
        yield _one(f"{ours}mixer.out", f"{theirs}attn.output_proj.weight", d, d)
        yield _one(f"{ours}ffn_norm.gain", f"{theirs}ln2.weight", d)
        gated = tuple(Source(f"{theirs}ffn.{name}.weight", (f, d)) for name in ("w1", "w3"))
        yield Entry(f"{ours}ffn.up", (2 * f, d), gated)
        yield _one(f"{ours}ffn.down", f"{theirs}ffn.w2.weight", d, f)
    yield _one("norm.gain", "ln_final.weight", d)
    yield _one("unembedding", "lm_head.weight", v, d)


def _one(ours: str, theirs: str, *shape: int) -> Entry:
    return Entry(ours, shape, (Source(theirs, shape),))


def _pairs(mixer: AttentionConfig) -> Change:
    """Theirs are always (2t, 2t + 1)."""
    halves = isinstance(mixer.position, RopeConfig) and mixer.position.pairs == "half"
    return interleaved(mixer.heads) if halves else SAME


def _config(keys: Keys) -> DecoderConfig:
    block = BlockConfig(
        mixer=AttentionConfig(heads=keys.num_heads, position=RopeConfig(theta=keys.rope_theta, pairs="interleaved")),
        ffn=SwigluConfig(width=keys.d_ff),
        norm=RmsNormConfig(eps=1e-5),
    )
    return DecoderConfig(
        vocabulary=keys.vocab_size,
        width=keys.d_model,
        depth=keys.num_layers,
        pattern=(block,),
        tied=False,
        context=keys.context_length,
        init="cs336",
    )


def said(config: DecoderConfig, context: int | None) -> dict[str, Any]:
    """config.json of a model of this shape. Raises FormatError naming the parts that are of another."""
    mixer, ffn = config.blocks[0].mixer, config.blocks[0].ffn
    if not isinstance(mixer, AttentionConfig) or not isinstance(ffn, SwigluConfig) or context is None:
        raise FormatError("this is not a model of CS336's shape", allowed="attention, SwiGLU, a context that is known")
    told = {
        "vocab_size": config.vocabulary,
        "context_length": context,
        "d_model": config.width,
        "num_layers": config.depth,
        "num_heads": mixer.heads,
        "d_ff": ffn_width(ffn, config.width),
        "rope_theta": mixer.position.theta if isinstance(mixer.position, RopeConfig) else 10_000.0,
    }
    try:
        parts = different(config, _config(config_door.read(Keys, told)))
    except (ConfigError, ValueError) as error:
        parts = [str(error)]
    if parts:
        raise FormatError("this is not a model of CS336's shape", found=some(parts))
    return told


def _weights(path: Path, config: DecoderConfig) -> Mapping[str, Weight]:
    stored = arrays.stored(path / WEIGHTS)
    if config.depth > len(stored):
        raise FormatError(f"{path / CONFIG} describes a model far larger than its {len(stored)} arrays")
    return weights.read(entries(config), stored, str(path))


def _tokenizer(path: Path) -> tuple[Tokenizer, Frame] | None:
    return tokenizer_door.open_framed(path) if gpt2_files.found_in(path) is not None else None
