"""Trackers: metric lines go to TensorBoard, trackio or wandb too. Each is a door to a package that need not be here.

metrics.jsonl stays the log; a tracker that fails on the way is let go with a warning, and training goes on.
"""

import hashlib
import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import ConfigError, RunError
from temaki.train.hooks import Hook
from temaki.train.loop import Run

PROJECT = "temaki"
"""What trackers file a run under."""


class Tracker(Hook):
    """Hands on the numbers of each metric line: a step's by their names, others' as "validate/loss" and the like."""

    def begin(self, run: Run) -> None:
        """Raises RunError where the tracker cannot begin: a run that should be seen there is not begun unseen."""
        if not run.world.main:
            return
        try:
            self.open(run)
        except Exception as error:  # whatever the package raises: no network, no account, no room
            raise RunError(
                f"{self.name} cannot begin", found=f"{type(error).__name__}: {error}",
                do=f"mend that, or take {self.name} out of watch.trackers",
            ) from error  # fmt: skip
        self._run = run
        run.log.listeners.append(self.hear)

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take one metric line."""
        found = numbers(line)
        try:
            if line["kind"] == "rollback":
                self.back(int(line["step"]))
            elif found:
                self.send(int(line["step"]), found)
        except Exception as error:  # whatever the package raises: a lost tracker is no reason to stop training
            self._run.log.listeners.remove(self.hear)
            what = f"{self.name} gets no more numbers: {type(error).__name__}: {error}"
            self._run.log.write({"kind": "warning", "step": self._run.step, "message": what})

    def end(self, run: Run, reason: str) -> None:
        if self.hear in run.log.listeners:
            run.log.listeners.remove(self.hear)
            self.close()

    @abstractmethod
    def open(self, run: Run) -> None:
        """Begin, or go on with a run that is resumed."""

    @abstractmethod
    def send(self, step: int, found: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def back(self, step: int) -> None:
        """The run went back to a step; where a tracker cannot take back what it was told, later steps come twice."""

    @abstractmethod
    def close(self) -> None:
        """Let nothing be lost."""


class TensorBoard(Tracker):
    """Event files in `tensorboard/` of the run's folder; later steps than a run was resumed at or went back to do not
    count."""

    name = "tensorboard"

    def open(self, run: Run) -> None:
        self._folder = run.folder / "tensorboard"
        self._writer = self._after(run.step)
        self._writer.add_text("recipe", f"```toml\n{config_door.toml(config_door.mapping(run.config))}\n```", run.step)

    def _after(self, step: int) -> Any:
        return import_module("torch.utils.tensorboard").SummaryWriter(str(self._folder), purge_step=step + 1)

    def back(self, step: int) -> None:
        self._writer.close()
        self._writer = self._after(step)

    def send(self, step: int, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb(Tracker):
    """Weights & Biases; offline where WANDB_MODE says so."""

    name = "wandb"

    def open(self, run: Run) -> None:
        wandb = import_module("wandb")
        self._told = wandb.init(
            project=PROJECT, name=run.config.name, id=identity(run), resume="allow", dir=str(run.folder),
            config=config_door.mapping(run.config), settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self._told.define_metric("*", step_metric="step")  # a run that went back counts its steps again

    def send(self, step: int, found: Mapping[str, float]) -> None:
        self._told.log({**found, "step": step})

    def close(self) -> None:
        self._told.finish()


class Trackio(Tracker):
    """trackio: a local dashboard (`trackio show`), or a space of one's own."""

    name = "trackio"

    def open(self, run: Run) -> None:
        self._trackio = import_module("trackio")
        self._trackio.init(project=PROJECT, name=identity(run), config=config_door.mapping(run.config), resume="allow")

    def send(self, step: int, found: Mapping[str, float]) -> None:
        self._trackio.log(dict(found), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: Mapping[str, type[Tracker]] = {each.name: each for each in (TensorBoard, Trackio, Wandb)}


def check(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"watch.trackers names {name}, and the package {name} is not installed",
                do=f"pip install 'temaki[{name}]', or leave {name} out; metrics.jsonl and report.html need nothing",
            )


def trackers(names: Sequence[str]) -> list[Hook]:
    """A hook for each name, once."""
    check(names)
    return [TRACKERS[name]() for name in dict.fromkeys(names)]


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw of a metric line, by name.

    >>> numbers({"kind": "step", "step": 3, "loss": 2.5, "grad_norm/matrix": 1.0})
    {'loss': 2.5, 'grad_norm/matrix': 1.0}
    >>> numbers({"kind": "validate", "step": 3, "loss": 2.5}), numbers({"kind": "save", "step": 3, "path": "x"})
    ({'validate/loss': 2.5}, {})
    """
    if line["kind"] not in ("step", "validate"):
        return {}
    front = "" if line["kind"] == "step" else f"{line['kind']}/"
    found = {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}
    return {f"{front}{name}": float(value) for name, value in found.items()}


def identity(run: Run) -> str:
    """A name that is the same when the run is resumed, and another one for another folder."""
    where = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:8]
    return f"{run.config.name}-{where}"
