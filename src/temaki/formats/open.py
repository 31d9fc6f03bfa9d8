"""Any path of ours -> configuration, weights and tokenizer; torch is loaded by `.model()` alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temaki.base import config as config_door
from temaki.base.errors import CheckpointError, ConfigError
from temaki.checkpoint import native
from temaki.checkpoint.store import Store
from temaki.model.config import ModelConfig
from temaki.model.count import count
from temaki.tokens import files as tokenizer_files
from temaki.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from temaki.model.build import Model

ACCEPTED = "a run folder, a checkpoint folder (step-XXXXXXXX), or a model folder of ours"
LISTED = 3
"""Names shown of those that do not fit."""


@dataclass(frozen=True)
class Opened:
    """A model on disk; weights and tokenizer are read when asked for."""

    folder: Path
    """Where the files are: for a run, the checkpoint that was chosen."""
    config: ModelConfig
    settings: dict[str, Any]
    """The whole mapping of `config.toml`."""
    step: int | None
    """The training step the weights come from, where that is known."""
    warnings: tuple[str, ...]
    """What the user should know: newer checkpoints that are damaged."""
    read_weights: Callable[[], Mapping[str, np.ndarray]]
    read_tokenizer: Callable[[], Tokenizer | None]

    def weights(self) -> Mapping[str, np.ndarray]:
        """The arrays by name, memory-mapped. Raises CheckpointError if they are damaged."""
        return self.read_weights()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that travels with the model; None where none does."""
        return self.read_tokenizer()

    def model(self, dtype: "torch.dtype | None" = None) -> "Model":
        """The torch module with these weights, on the host, in `dtype` (default: the weights' own).

        Raises CheckpointError naming the first missing, unexpected and ill-shaped weights.
        """
        import torch

        from temaki.model import build

        weights = self.weights()
        _plausible(self.folder, self.config, weights)
        if dtype is None:
            wide = any(array.dtype == np.float64 for array in weights.values())
            dtype = torch.float64 if wide else torch.float32
        model = build.empty(self.config, dtype)
        targets = _tensors(model)
        _fits(self.folder, {name: tuple(tensor.shape) for name, tensor in targets.items()}, weights)
        with torch.no_grad():
            for name, tensor in targets.items():
                tensor.copy_(torch.from_numpy(weights[name]))
        return model


def open(path: str | Path) -> Opened:
    """Open a run (its newest whole checkpoint), a checkpoint or a model folder.

    Raises CheckpointError for a path that is none of these, and for a damaged one, naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no such file or folder: {path}", allowed=ACCEPTED)
    if (path / "checkpoints").is_dir():
        newest = Store(path / "checkpoints").newest()
        if newest.checkpoint is None:
            why = ":\n" + "\n".join(newest.damaged) if newest.damaged else ": nothing was saved yet"
            raise CheckpointError(f"{path} is a run without a whole checkpoint{why}")
        return _folder(newest.checkpoint.folder, newest.damaged)
    if any((path / name).exists() for name in (native.MANIFEST, native.WEIGHTS)):
        return _folder(native.read(path), ())
    raise CheckpointError(f"{path} is nothing that can be opened", found=_kind(path), allowed=ACCEPTED)


def _folder(folder: native.Folder, warnings: tuple[str, ...]) -> Opened:
    settings = folder.settings()
    where = folder.path / native.CONFIG
    if not isinstance(settings.get("model"), dict):
        raise CheckpointError(f"{where} has no [model] table")
    try:
        config = config_door.read(ModelConfig, settings["model"], where=f"{where} [model]")
    except ConfigError as error:
        raise CheckpointError(error.what) from None
    return Opened(
        folder=folder.path,
        config=config,
        settings=settings,
        step=folder.contents.step,
        warnings=warnings,
        read_weights=folder.weights,
        read_tokenizer=lambda: _tokenizer(folder),
    )


def _tokenizer(folder: native.Folder) -> Tokenizer | None:
    place = folder.tokenizer()
    if place is None:
        return None
    tokenizer = tokenizer_files.load(place)
    if folder.contents.tokenizer not in (None, tokenizer.fingerprint):
        raise CheckpointError(
            f"{place} is not the tokenizer the model was trained with",
            found=f"fingerprint {tokenizer.fingerprint}",
            allowed=f"fingerprint {folder.contents.tokenizer}",
        )
    return tokenizer


def _plausible(folder: Path, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> None:
    """Refuse a configuration that is far larger than the weights beside it, before memory is taken for it."""
    held = sum(array.size for array in weights.values())
    if config.depth > len(weights) or count(config).total > 2 * held + 1_000_000:
        raise CheckpointError(f"{folder}: {native.CONFIG} describes a model far larger than its {held} weights")


def _tensors(model: "Model") -> "dict[str, torch.Tensor]":
    """What is saved of a model: every parameter once, and the buffers that belong to its state."""
    saved = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def _fits(folder: Path, wanted: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray]) -> None:
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    shaped = [
        f"{name} {weights[name].shape}, wanted {shape}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    parts = [f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong.items() if names]
    if parts:
        raise CheckpointError(f"{folder / native.WEIGHTS} does not fit {native.CONFIG}; " + "; ".join(parts))


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", .." if len(names) > LISTED else "")


def _kind(path: Path) -> str:
    if not path.is_dir():
        return "a file"
    names = sorted(inner.name for inner in path.iterdir())
    return f"a folder with {_some(names)}" if names else "an empty folder"
