"""The Hugging Face folder, in and out: config.json, safetensors, tokenizer.json, chat template, generation_config.json.

Nothing in such a folder is ever run: no pickle, no code of the model's own.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temaki.base import config as config_door
from temaki.base import files
from temaki.base.errors import FormatError
from temaki.formats import hf_config, hf_names, hf_safetensors, hf_said, hf_speaking, weights
from temaki.formats import tokenizer as tokenizer_door
from temaki.formats.hf_keys import Family
from temaki.formats.hf_safetensors import NAMES, Dtype
from temaki.formats.opened import Opened
from temaki.formats.weights import Entry, Weight
from temaki.model.config import DecoderConfig
from temaki.model.quantise import Blocks, Stored, floats
from temaki.tokens import gpt2_files, hf_json
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from temaki.tokens.chat import ChatTemplate

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
LIMIT = 1 << 24
"""Bytes up to which a JSON file of settings is read."""
SAID = ("dtype", "torch_dtype", "license", "bos_token_id", "pad_token_id")
"""Keys of config.json that are shown."""


def fits(path: Path) -> bool:
    """Whether a folder holds a config.json that names a family of models."""
    try:
        return "model_type" in files.read_json(path / CONFIG, FormatError, LIMIT)
    except FormatError:
        return False


def open(path: Path) -> Opened:
    """Open a Hugging Face folder.

    Raises FormatError for a configuration that is not understood; for weights, when they are asked for.
    """
    where = path / CONFIG
    found = files.read_json(where, FormatError, LIMIT)
    read = hf_config.read(found, str(where))
    return Opened(
        folder=path,
        config=read.config,
        settings={},
        step=None,
        warnings=read.warnings,
        read_weights=lambda: _weights(path, read.config, read.family),
        read_tokenizer=lambda: _tokenizer(path, read.config, read.family),
        read_chat=lambda: _chat(path),
        speaking=hf_speaking.read(path, found),
        format="hf",
        facts={"architecture": read.family.name, **{key: found[key] for key in SAID if found.get(key) is not None}},
    )


def write(opened: Opened, out: Path, dtype: Dtype = "float32") -> None:
    """Write a folder that `transformers` opens; `out` must not exist, and is whole or absent.

    Raises FormatError for a shape that no family can say, TokenizerError for a tokenizer that tokenizer.json cannot,
    OSError.
    """
    if dtype not in NAMES:
        raise FormatError("unknown type of numbers", found=f"{dtype!r:.40}", allowed=", ".join(NAMES))
    if out.exists():
        raise FormatError(f"{out} exists; nothing was written", do="choose another name or remove it")
    before = opened.facts.get("architecture")
    context = {} if opened.context is None else {"context": opened.context}
    config = config_door.read(DecoderConfig, config_door.mapping(opened.config) | context)
    told, family = hf_said.said(config, before if isinstance(before, str) else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _fill(opened, aside, told, hf_names.entries(config, family), dtype, config.context)
        aside.chmod(0o755)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files.sync_folder(out.parent)


# ---- in -------------------------------------------------------------------------------------------------------------


def _weights(path: Path, config: DecoderConfig, family: Family) -> Mapping[str, Weight]:
    stored = _prefixed(hf_safetensors.read(path), family)
    if hf_names.arrays(config) > len(stored):
        raise FormatError(
            f"{path / CONFIG} describes a model far larger than its weights",
            found=f"{len(stored)} arrays",
            allowed=f"{hf_names.arrays(config)} or more",
        )
    table = hf_names.entries(config, family)
    if config.tied and "lm_head.weight" in stored:
        _check_tied(stored, table[0].sources[0].name, path)
        del stored["lm_head.weight"]
    return weights.read(table, stored, str(path), hf_names.ignored)


def _prefixed(stored: dict[str, Stored], family: Family) -> dict[str, Stored]:
    """The names of a whole model, where the file holds its body alone."""
    prefix = "transformer." if family.name == "gpt2" else "model."
    if any(name.startswith(prefix) for name in stored):
        return stored
    return {name if name == "lm_head.weight" else prefix + name: array for name, array in stored.items()}


def _check_tied(stored: Mapping[str, Stored], embedding: str, path: Path) -> None:
    """Refuse a head of its own where the configuration says that there is none."""
    head, table = stored["lm_head.weight"], stored.get(embedding)
    if table is not None and head.shape == table.shape and _equal(head, table):
        return
    raise FormatError(
        f"{path / CONFIG} says tie_word_embeddings, but lm_head.weight is another matrix than {embedding}",
        do="set tie_word_embeddings to false to use both",
    )


def _equal(one: Stored, other: Stored) -> bool:
    if isinstance(one, Blocks) and isinstance(other, Blocks):
        return np.array_equal(one.data, other.data)
    return np.array_equal(floats(one), floats(other))


def _tokenizer(path: Path, config: DecoderConfig, family: Family) -> tuple[Tokenizer, Frame] | None:
    file = next((path / name for name in TOKENIZERS if (path / name).is_file()), None)
    if file is None and (family.name != "gpt2" or gpt2_files.found_in(path) is None):
        return None  # others' merges do not say how text is split
    found = tokenizer_door.open_framed(file or path)
    if found[0].size > config.vocabulary:
        raise FormatError(
            f"{path}: the tokenizer has ids that the model has not",
            found=f"{found[0].size} ids",
            allowed=f"{config.vocabulary}",
        )
    return found


def _chat(path: Path) -> "ChatTemplate | None":
    """What reads a template loads the template engine, which others need not wait for."""
    from temaki.tokens import chat

    return chat.read(path)


# ---- out ------------------------------------------------------------------------------------------------------------


def _fill(
    opened: Opened, folder: Path, told: Mapping[str, Any], table: Sequence[Entry], dtype: Dtype, context: int | None
) -> None:
    """Write every file."""
    speaking = hf_speaking.completed(opened)
    ids = hf_speaking.ids(opened, speaking)
    types = {"dtype": dtype, "torch_dtype": dtype}  # new and old style
    files.write_json(folder / CONFIG, {**told, **types, "use_cache": True, **hf_speaking.in_config(ids)})
    files.write_json(folder / hf_speaking.GENERATION, hf_speaking.generation(ids, speaking))
    shapes = [(source.name, source.shape) for entry in table for source in entry.sources]
    arrays = weights.write(table, opened.weights())
    hf_safetensors.write(folder / hf_safetensors.WEIGHTS, shapes, dtype, arrays)
    if opened.framed is None:
        return
    tokenizer, frame = opened.framed
    frame = hf_speaking.framed(frame, speaking, tokenizer.special)
    hf_json.save(tokenizer, folder, frame, opened.chat)
    hf_speaking.name_tokens(folder, ids, tokenizer.special, context)
