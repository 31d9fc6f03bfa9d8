"""From the words of a command to a resolved recipe, printed as such."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.batches.config import DataConfig
from temaki.study import dial, further, recipes


def resuming(word: str) -> Literal["never", "auto"]:
    """The value of --resume. Raises ConfigError for another word."""
    if word == "never" or word == "auto":
        return word
    raise ConfigError("--resume is out of range", found=word, allowed="never, auto")


def begun(folder: Path, changes: list[str], ignored: Mapping[str, object]) -> dict[str, Any]:
    """The recipe of a run that goes on: its config.toml with the changes; words that only a new run takes are named."""
    for name, value in ignored.items():
        if value is not None:
            print(f"warning: {name} is ignored: the run goes on by {folder / 'config.toml'}", file=sys.stderr)
    return config_door.override(config_door.read_toml(folder / "config.toml"), changes)


def resolve(
    recipe: Path | Mapping[str, Any],
    changes: list[str],
    text: str | None,
    minutes: float | None,
    depth: int | None,
    errors: str | None = None,
    share: float = 1.0,
) -> dict[str, Any]:
    """The recipe with the dial, `--text`, `--errors` and the changes laid over it; the dial's line is printed.

    Training may fill `share` of the minutes.
    """
    found = recipes.load(recipe)
    for key, value in (("data.text", text), ("data.errors", errors)):
        if value is not None:
            changes = [f"{key}={_toml(value)}", *changes]
    speed = 0.0
    recipes.check_dial(minutes, depth)
    if further.begins(found) is not None:
        found, minutes = further.dialled(found, changes, minutes, depth, dial.measure), None
    if minutes is not None or depth is not None:
        speed = dial.measure()
        print(f"this machine trains at {speed / 1e9:.0f} GFLOP/s", file=sys.stderr)
    resolved, line = recipes.resolve(found, changes, minutes, depth, speed, share)
    if line is not None:
        print(line, file=sys.stderr)
    return resolved


def data_table(recipe: Path | None, changes: list[str], given: Mapping[str, Any]) -> DataConfig:
    """The [data] table of a recipe with the options given and the changes over it; printed.

    A first word that is no recipe but a change (KEY=VALUE) is taken as one.
    """
    if recipe is not None and "=" in str(recipe) and not recipe.exists():
        recipe, changes = None, [str(recipe), *changes]
    options = {"data": {name: value for name, value in given.items() if value is not None}}
    found = config_door.merge(recipes.load(recipe) if recipe is not None else {}, options)
    settings = recipes.data(config_door.override(found, changes))
    show({"data": config_door.mapping(settings)})
    return settings


def show(found: dict[str, Any]) -> None:
    """Print a resolved recipe."""
    print(
        "resolved recipe:\n" + "".join(f"  {line}\n" for line in config_door.toml(found).splitlines()),
        file=sys.stderr,
    )


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
