"""What is asked of a run from outside while it goes on: signals, and files laid in its folder.

SIGINT, SIGTERM, a file named `stop`: end after this step, all saved. SIGUSR1, a file named `save`: save a checkpoint
and go on. The files are removed when they are heard.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from temaki.base.dist import World

STOP = "stop"
SAVE = "save"


@dataclass(frozen=True)
class Wanted:
    """What all processes have agreed to do before the next step."""

    stop: str | None = None
    """Why: the signal's name, or "stop" for the file."""
    save: bool = False


@dataclass
class Requests:
    """What one process has heard."""

    folder: Path
    stop: str | None = None
    save: bool = False

    def signal(self, number: int, _frame: FrameType | None) -> None:
        """Remember a signal; a second one that ends the run interrupts at once."""
        name = signal.Signals(number).name
        if name == "SIGUSR1":
            self.save = True
            return
        if self.stop is not None:
            raise KeyboardInterrupt
        self.stop = name

    def clear(self) -> None:
        """Remove the files: what lay there before a run is not meant for it, and what a run leaves is heard."""
        for name in (STOP, SAVE):
            (self.folder / name).unlink(missing_ok=True)

    def agreed(self, world: World) -> Wanted:
        """What was asked of any process since the last time; to be called by all at the same step."""
        if world.main:
            self._files()
        stop, save = self.stop, self.save
        if world.size > 1:
            if not world.any(stop is not None or save):
                return Wanted()
            by_file, by_signal = world.any(stop == STOP), world.any(stop not in (None, STOP))
            stop, save = stop or (STOP if by_file else "SIGTERM" if by_signal else None), world.any(save)
        self.save = False
        return Wanted(stop, save)

    def _files(self) -> None:
        for name in (STOP, SAVE):
            place = self.folder / name
            if not place.exists():
                continue
            place.unlink(missing_ok=True)
            if name == SAVE:
                self.save = True
            else:
                self.stop = self.stop or STOP


@contextmanager
def listening(folder: Path, world: World) -> Iterator[Requests]:
    """Collects signals instead of dying from the first; the handlers of before come back at the end."""
    heard = Requests(folder)
    if world.main:
        heard.clear()
    before: dict[int, Any] = {}
    known = signal.Signals.__members__
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if name not in known:
            continue
        try:
            before[known[name]] = signal.signal(known[name], heard.signal)
        except ValueError:  # not the main thread: signals go elsewhere
            break
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
