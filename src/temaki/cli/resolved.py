"""From the words of a command to a resolved recipe, printed as such."""

import sys
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.study import dial, recipes


def resolve(
    recipe: Path | None, changes: list[str], text: str | None, minutes: float | None, depth: int | None
) -> dict[str, Any]:
    """The recipe file with the dial, `--text` and the changes laid over it; the dial's line is printed."""
    found = recipes.load(recipe) if recipe is not None else {}
    if text is not None:
        changes = [f"data.text={_toml(text)}", *changes]
    speed = 0.0
    if minutes is not None or depth is not None:
        speed = dial.measure()
        print(f"this machine trains at {speed / 1e9:.0f} GFLOP/s", file=sys.stderr)
    resolved, line = recipes.resolve(found, changes, minutes, depth, speed)
    if line is not None:
        print(line, file=sys.stderr)
    return resolved


def show(found: dict[str, Any]) -> None:
    """Print a resolved recipe."""
    print(
        "resolved recipe:\n" + "".join(f"  {line}\n" for line in config_door.toml(found).splitlines()),
        file=sys.stderr,
    )


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
