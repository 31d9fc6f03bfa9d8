"""What verbs say at their end: a text for a person, JSON for a script; and what they refuse."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temaki.base.errors import RunError


def say(found: Mapping[str, Any], as_json: bool, text: str) -> None:
    """Print the text, or the mapping as one JSON object."""
    print(json.dumps(found, ensure_ascii=False) if as_json else text)


def refuse(out: Path) -> None:
    """Raise RunError if `out` exists: nothing is overwritten."""
    if out.exists():
        raise RunError(f"{out} exists already; nothing was changed", do="choose another --out or remove it")
