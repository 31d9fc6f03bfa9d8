"""Any model path -> `Opened`, told by what is in it, never by its name; torch is loaded by `.model()` alone."""

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from temaki.base.errors import CheckpointError
from temaki.formats.opened import Opened as Opened
from temaki.formats.weights import some

DOORS = ("own", "hf", "cs336", "gguf", "openai_tf", "llama2c")
"""Modules beside this one, in the order they are asked; each is loaded when those before it have said no."""
ACCEPTED = (
    "a run, checkpoint (step-XXXXXXXX) or model folder of ours, a Hugging Face folder (config.json, safetensors), "
    "a .gguf file, OpenAI's GPT-2 folder, a llama2.c .bin file, a folder of the CS336 names"
)


class Door(Protocol):
    """What a module of `DOORS` gives."""

    def fits(self, path: Path) -> bool:
        """Whether it is for this door; cheap, and by content."""
        ...

    def open(self, path: Path) -> Opened:
        """The model. Raises FormatError, CheckpointError or TokenizerError for a damaged one."""
        ...


def open(path: str | Path) -> Opened:
    """Open a model in any known format.

    Raises CheckpointError for a path that is none; the door's own error for a damaged one, naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no such file or folder: {path}", allowed=ACCEPTED)
    found = door(path)
    if found is None:
        raise CheckpointError(f"{path} is nothing that can be opened", found=_kind(path), allowed=ACCEPTED)
    return found.open(path)


def door(path: Path) -> Door | None:
    """The door that a path is for; None where there is none."""
    for name in DOORS:
        found = cast(Door, import_module(f"temaki.formats.{name}"))
        if found.fits(path):
            return found
    return None


def _kind(path: Path) -> str:
    if not path.is_dir():
        with path.open("rb") as file:
            start = file.read(8)
        return f"a file that begins with {start!r}" if start else "an empty file"
    names = sorted(inner.name for inner in path.iterdir())
    return f"a folder with {some(names)}" if names else "an empty folder"
