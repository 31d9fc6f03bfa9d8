"""The checkpoints of a run: whole folders `step-XXXXXXXX`, and which of them stay.

A save is whole or absent (see `native.py`). After it, these stay: the last K, the one with the best score,
the last healthy one, and every folder that cannot be read, because what is not understood is not thrown
away.
"""

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AllowInfNan, Field

from temaki.base.config import settings
from temaki.base.errors import CheckpointError
from temaki.base.files import FileMark
from temaki.checkpoint import native
from temaki.checkpoint.native import Among

NAME = re.compile(r"step-([0-9]{8,})")
COUNT = Annotated[int, Field(ge=0)]


@settings
class Facts:
    """What a checkpoint knows beside its arrays; everything that must survive and is no array."""

    step: COUNT
    tokens: COUNT
    """Tokens trained on so far."""
    healthy: bool
    """Its step was made, and its loss was none of a spike: a run can go back to it."""
    position: COUNT
    """Rows taken in the seeded order; epoch and place follow from it."""
    tokenizer: str
    """Fingerprint."""
    shards: str
    """Fingerprint."""
    hooks: Mapping[str, Mapping[str, Annotated[float, AllowInfNan()]]] = field(default_factory=dict)
    """Each hook's own numbers; the name "store" is taken by the score."""
    machine: Mapping[str, str | int | bool] = field(default_factory=dict)
    """What must be the same for a resumed run to give the same bits."""


@settings
class Manifest(Facts):
    """`manifest.json` of a checkpoint."""

    format: int
    files: Mapping[str, FileMark]

    @property
    def score(self) -> float | None:
        """What the run was judged by at this step, lower is better; None where it was not."""
        return self.hooks.get("store", {}).get("score")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file was compared with its checksum."""

    folder: native.Folder
    manifest: Manifest

    def weights(self) -> dict[str, np.ndarray]:
        """The model's arrays by name, memory-mapped."""
        return self.folder.weights()

    def optimizer(self) -> dict[str, np.ndarray] | None:
        """The optimizer's arrays by name, memory-mapped; None where none were saved."""
        return self.folder.optimizer()

    def settings(self) -> dict[str, Any]:
        """The run's whole resolved configuration."""
        return self.folder.settings()


@dataclass(frozen=True)
class Newest:
    """The newest whole checkpoint, and the newer ones that were passed over."""

    checkpoint: Checkpoint | None
    damaged: tuple[str, ...]
    """One message each: which file, and what is wrong with it."""


class Store:
    """The checkpoints in one folder, `runs/<name>/checkpoints`; one process writes, any number read."""

    def __init__(self, folder: Path, keep_last: int = 2, every: int = 1):
        """every: the cadence of saves; a run goes back to none that is off it."""
        assert keep_last >= 1, f"keep_last must be at least 1, found {keep_last}"
        self.folder = folder
        self.keep_last = keep_last
        self.every = every

    def save(
        self,
        facts: Facts,
        config: str,
        weights: Mapping[str, np.ndarray],
        optimizer: Mapping[str, np.ndarray] | None = None,
        tokenizer: Path | None = None,
        score: float | None = None,
        among: Among = native.SINGLE,
    ) -> Path:
        """Write a checkpoint and remove those that need not stay; gives its folder.

        `config` is the text of `config.toml`, `tokenizer` a folder to copy, `score` a number that is lower
        when better (one that is not finite counts as none). A checkpoint of the same step is replaced. The processes
        `among` which the arrays are shared out call it together; what the first says counts.
        Raises CheckpointError if it cannot be written: nothing of it is left, and what was saved before is
        untouched.
        """
        folder = self._place(facts.step)
        hooks = {name: dict(numbers) for name, numbers in facts.hooks.items() if name != "store"}
        if score is not None and math.isfinite(score):
            hooks["store"] = {"score": float(score)}
        said = {**vars(facts), "hooks": hooks, "machine": dict(facts.machine)}
        native.facts_as(Facts, said, folder)
        if among.rank == 0:
            self._recover()
        tensors = {native.WEIGHTS: weights} | ({} if optimizer is None else {native.OPTIMIZER: optimizer})
        native.write_folder(folder, config, tensors, tokenizer, said, among)
        if among.rank == 0:
            self._prune()
        return folder

    def steps(self) -> list[int]:
        """The steps that were saved and not removed, ascending, whole or not."""
        return sorted(self._found())

    def newest(self) -> Newest:
        """The newest whole checkpoint: every file is read, and a damaged one is passed over and reported."""
        damaged = []
        for step in reversed(self.steps()):
            try:
                return Newest(self.open(step), tuple(damaged))
            except CheckpointError as error:
                damaged.append(str(error))
        return Newest(None, tuple(damaged))

    def healthy(self, before: int) -> Checkpoint | None:
        """The newest healthy whole checkpoint of the cadence, of a step up to `before` if there is one; None: there is
        none. Where a run goes back to must not depend on who asked it to save in between.
        """
        found = None
        for step in (step for step in self.steps() if step % self.every == 0):
            with contextlib.suppress(CheckpointError):
                one = self.open(step)
                if one.manifest.healthy and (found is None or step <= before):
                    found = one
        return found

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: those a run went back from."""
        for later in [each for each in self.steps() if each > step]:
            native.remove(self._place(later))

    def open(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises CheckpointError if there is none, or naming its damaged file."""
        place = self._found().get(step)
        if place is None:
            raise CheckpointError(
                f"{self.folder} holds no step {step}",
                allowed=", ".join(map(str, self.steps())) or "nothing is saved",
            )
        checkpoint = open(place)
        if checkpoint.manifest.step != step:
            raise CheckpointError(f"{place} holds step {checkpoint.manifest.step}: the folder was renamed")
        return checkpoint

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _found(self) -> dict[int, Path]:
        """The folder of every step; one that a killed save left under its second name counts."""
        if not self.folder.is_dir():
            return {}
        found = {}
        for path in self.folder.iterdir():
            name = path.name.removeprefix(".").removesuffix(".old")
            match = NAME.fullmatch(name)
            if not match or name != self._place(int(match[1])).name:
                continue
            if path.name == name or (path.name.endswith(".old") and not (self.folder / name).exists()):
                found[int(match[1])] = path
        return found

    def _recover(self) -> None:
        """Remove what dead saves left, and give a checkpoint that one pushed aside its name back."""
        if not self.folder.is_dir():
            return
        try:
            for path in sorted(self.folder.iterdir()):
                name = path.name.removeprefix(".").removesuffix(".part").removesuffix(".old")
                if path.name != name and NAME.fullmatch(name):
                    native.recover(self.folder / name)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be tidied: {error}") from None

    def _prune(self) -> None:
        whole = {}
        for step, path in self._found().items():
            try:
                folder = native.read(path)
                whole[step] = native.facts_as(Manifest, folder.facts, path / native.MANIFEST)
            except CheckpointError:
                continue
        for step in set(whole) - kept(whole, self.keep_last, self.every):
            with contextlib.suppress(OSError):  # held open by another program: it stays until the next save
                native.remove(self._place(step))


def open(path: Path) -> Checkpoint:
    """A checkpoint folder with every file compared with its checksum. Raises CheckpointError naming a
    damaged one."""
    folder = native.read(path)
    manifest = native.facts_as(Manifest, folder.facts, path / native.MANIFEST)
    folder.verify()
    return Checkpoint(folder, manifest)


def kept(saved: Mapping[int, Manifest], last: int, every: int = 1) -> set[int]:
    """The steps that stay: the `last` newest, the best score (the newer of equals), the newest healthy one, and the
    newest healthy one of a multiple of `every`."""
    stay = set(sorted(saved)[-last:])
    scores = [(manifest.score, -step) for step, manifest in saved.items() if manifest.score is not None]
    if scores:
        stay.add(-min(scores)[1])
    healthy = sorted(step for step, manifest in saved.items() if manifest.healthy)
    stay.update(healthy[-1:])
    stay.update([step for step in healthy if step % every == 0][-1:])
    return stay
