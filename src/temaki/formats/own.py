"""What temaki writes itself: a run, a checkpoint, a model folder -> `Opened`, without torch."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from temaki.base import config as config_door
from temaki.base.errors import CheckpointError, ConfigError
from temaki.checkpoint import native
from temaki.checkpoint.speaking import Speaking
from temaki.checkpoint.store import Store
from temaki.formats.opened import Opened
from temaki.formats.weights import Weight, plain
from temaki.model.config import ModelConfig
from temaki.tokens import files as tokenizer_files
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from temaki.tokens.chat import ChatTemplate

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""
GENERATION = "generation"
"""The table of `config.toml` that says how a model wants to be asked."""
SOURCE = ("name", "architecture", "license", "licence")
"""Facts of a foreign file that stay with an imported model."""


def fits(path: Path) -> bool:
    """Whether a path holds a run, a checkpoint or a model folder of ours, whole or not."""
    if (path / CHECKPOINTS).is_dir() or (path / native.MANIFEST).is_file():
        return True
    return (path / native.CONFIG).is_file() and (path / native.WEIGHTS).is_file()


def open(path: Path) -> Opened:
    """Open a run (its newest whole checkpoint), a checkpoint or a model folder.

    Raises CheckpointError for a damaged one, naming the file.
    """
    if not (path / CHECKPOINTS).is_dir():
        return _folder(native.read(path), ())
    newest = Store(path / CHECKPOINTS).newest()
    if newest.checkpoint is None:
        why = ":\n" + "\n".join(newest.damaged) if newest.damaged else ": nothing was saved yet"
        raise CheckpointError(f"{path} is a run without a whole checkpoint{why}")
    return _folder(newest.checkpoint.folder, newest.damaged)


def write(opened: Opened, out: Path) -> None:
    """Write a model folder of ours: float32, or float64 where the weights are; with tokenizer, template, speaking.

    Raises CheckpointError where it cannot be written; nothing is left then.
    """
    said = {"model": config_door.mapping(replace(opened.config, context=opened.context))}
    if opened.speaking != Speaking():
        said[GENERATION] = config_door.mapping(opened.speaking)
    source = {key: value for key, value in opened.facts.items() if key in SOURCE and isinstance(value, str)}
    if source or opened.format != "native":
        said["source"] = {"format": opened.format, **source} if opened.format != "native" else source
    arrays = {name: _whole(weight) for name, weight in opened.weights().items()}
    with tempfile.TemporaryDirectory() as aside:
        place = Path(aside) / "tokenizer"
        if opened.framed is not None:
            tokenizer_files.save(opened.framed[0], place, opened.framed[1])
            if opened.chat is not None:
                opened.chat.save(place)
        native.write(out, said, arrays, place if place.exists() else None, opened.step)


def _whole(weight: Weight) -> ndarray:
    """The numbers as float32 or float64."""
    array = weight.array()
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _folder(folder: native.Folder, warnings: tuple[str, ...]) -> Opened:
    settings = folder.settings()
    source = settings.get("source")
    source = source if isinstance(source, dict) else {}
    return Opened(
        folder=folder.path,
        config=_read(ModelConfig, settings, "model", folder.path / native.CONFIG),
        settings=settings,
        step=folder.contents.step,
        warnings=warnings,
        read_weights=lambda: {name: plain(array) for name, array in folder.weights().items()},
        read_tokenizer=lambda: _tokenizer(folder),
        read_chat=lambda: _chat(folder),
        speaking=_speaking(settings, folder.path / native.CONFIG),
        facts={key: value for key, value in source.items() if isinstance(value, str)},
    )


def _speaking(settings: Mapping[str, Any], where: Path) -> Speaking:
    return _read(Speaking, settings, GENERATION, where) if GENERATION in settings else Speaking()


def _read(kind: type[config_door.T], settings: Mapping[str, Any], name: str, where: Path) -> config_door.T:
    """A table of `config.toml`. Raises CheckpointError naming the file."""
    table = settings.get(name)
    if not isinstance(table, dict):
        raise CheckpointError(f"{where} has no [{name}] table")
    try:
        return config_door.read(kind, table, where=f"{where} [{name}]")
    except ConfigError as error:
        raise CheckpointError(error.what) from None


def _tokenizer(folder: native.Folder) -> tuple[Tokenizer, Frame] | None:
    place = folder.tokenizer()
    if place is None:
        return None
    tokenizer, frame = tokenizer_files.load_framed(place)
    if folder.contents.tokenizer not in (None, tokenizer.fingerprint):
        raise CheckpointError(
            f"{place} is not the tokenizer the model was trained with",
            found=f"fingerprint {tokenizer.fingerprint}",
            allowed=f"fingerprint {folder.contents.tokenizer}",
        )
    return tokenizer, frame


def _chat(folder: native.Folder) -> "ChatTemplate | None":
    """The template beside the tokenizer; what reads it loads the template engine, which others need not wait for."""
    from temaki.tokens import chat

    place = folder.tokenizer()
    return chat.read(place) if place is not None else None
