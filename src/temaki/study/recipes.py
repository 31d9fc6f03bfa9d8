"""Recipes: a TOML file, the dial and dotted changes become one resolved mapping, and the tokenizer's size goes in."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.batches import data as batches
from temaki.batches.config import DataConfig
from temaki.model.presets import preset
from temaki.study import dial
from temaki.tokens import files
from temaki.train.config import RunConfig, SeveralConfig


def load(recipe: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as a mapping: a TOML file's, or the mapping itself."""
    return dict(recipe) if isinstance(recipe, Mapping) else config_door.read_toml(Path(recipe))


def check_dial(minutes: float | None, depth: int | None) -> None:
    """Raise ConfigError for two dials at once, or one that is out of range."""
    if minutes is not None and depth is not None:
        raise ConfigError("--minutes and --depth are two dials", do="turn one of them; the other follows")
    if minutes is not None and not 0 < minutes < 1e6:
        raise ConfigError("--minutes is out of range", found=f"{minutes:g}", allowed="above 0")
    if depth is not None and not 1 <= depth <= dial.DEEPEST:
        raise ConfigError("--depth is out of range", found=str(depth), allowed=f"1 to {dial.DEEPEST}")


def resolve(
    recipe: Mapping[str, Any],
    changes: Sequence[str] = (),
    minutes: float | None = None,
    depth: int | None = None,
    speed: float = 0.0,
    share: float = 1.0,
) -> tuple[dict[str, Any], str | None]:
    """The recipe with the dial laid over it and the changes over both, and the dial's line.

    `speed` is what training reaches on this machine in FLOP/s (`dial.measure`), needed for a dial; training may fill
    `share` of the dial's minutes.
    Raises ConfigError for two dials at once.
    """
    check_dial(minutes, depth)
    recipe, changes = _preset_named(recipe, changes)
    if (minutes is not None or depth is not None) and "preset" in _model(recipe):
        raise ConfigError("model.preset and a dial both fix the shape", do="leave out one of them")
    found, line = expanded(recipe), None
    if minutes is not None or depth is not None:
        changed = config_door.override(recipe, changes)
        size = vocabulary(data(changed))
        turned = (
            dial.by_minutes(minutes, speed, size, changed, share)
            if minutes is not None
            else dial.by_depth(depth or 1, speed, size, changed)
        )
        found, line = config_door.merge(found, turned.recipe), turned.line
    return config_door.override(found, changes), line


def expanded(found: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its model's preset, if it names one, laid under the keys beside it.

    The vocabulary is the tokenizer's, never the preset's. Raises ConfigError for an unknown preset.
    """
    model = dict(_model(found))
    if "preset" not in model:
        return dict(found)
    under = config_door.mapping(preset(str(model.pop("preset"))).config)
    under.pop("vocabulary")
    return {**found, "model": config_door.merge(under, model)}


def _preset_named(recipe: Mapping[str, Any], changes: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
    """The recipe with the preset that a change names, and the other changes: those go over the preset's keys."""
    named = [change for change in changes if change.partition("=")[0].strip() == "model.preset"]
    return config_door.override(recipe, named) if named else recipe, [each for each in changes if each not in named]


def _model(found: Mapping[str, Any]) -> Mapping[str, Any]:
    model = found.get("model", {})
    return model if isinstance(model, Mapping) else {}


def data(found: Mapping[str, Any]) -> DataConfig:
    """The data table of a recipe."""
    table = found.get("data", {})
    if not isinstance(table, Mapping):
        raise ConfigError("data: not a table", found=str(table))
    return config_door.read(DataConfig, table, where="[data]")


def vocabulary(table: DataConfig) -> int:
    """How many ids the data will have: those of a tokenizer that is there already, else what the table asks for."""
    if table.task is not None:
        return batches.size(table)
    if table.shards is not None:
        return files.load(Path(table.shards) / "tokenizer").size
    return files.load(Path(table.tokenizer)).size if table.tokenizer is not None else table.vocabulary


def complete(found: Mapping[str, Any], vocabulary: int) -> RunConfig:
    """The run's configuration, with the tokenizer's size and the objective's heads where the recipe leaves them out.

    Raises ConfigError naming each key that is unknown, ill-typed or out of range.
    """
    found = expanded(found)
    model = found.get("model")
    if isinstance(model, Mapping) and "vocabulary" not in model:
        found = {**found, "model": {**model, "vocabulary": vocabulary}}
    read = config_door.read(RunConfig, found)
    if isinstance(read.objective, SeveralConfig) and read.model.further is None:
        return replace(read, model=replace(read.model, further=read.objective.further))
    return read
