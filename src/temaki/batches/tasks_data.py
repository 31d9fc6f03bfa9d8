"""A task made ready for a run: its tokenizer, and for pictures their shards, in a folder like that of text.

A picture is a document [E, pixels, label]. The label's id is the answer and never read.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from temaki.base import config as config_door
from temaki.base import keys
from temaki.base.errors import ConfigError, DataError
from temaki.batches import prepare, shards, tasks
from temaki.batches.config import DataConfig
from temaki.batches.prepare import Progress
from temaki.batches.shards import Shards
from temaki.batches.tasks_config import PixelsConfig, TaskConfig
from temaki.batches.tasks_loader import HELD, Examples, Made, Pictures
from temaki.corpus import pixels
from temaki.tokens import files
from temaki.tokens.tokenizer import Tokenizer

GREYS = "".join(map(chr, range(0x2800, 0x2900)))
"""What grey values are written with: the 256 patterns of Braille."""
LABELS = "0123456789" + tasks.UPPER + tasks.LOWER


@dataclass(frozen=True)
class Exercises:
    """A task that a run can read."""

    folder: Path
    tokenizer: Tokenizer
    task: TaskConfig
    pictures: tuple[Shards, Shards] | None
    """To learn from and held out; None: examples follow from a rule."""

    @property
    def fingerprint(self) -> str:
        """sha256 of all that training can see."""
        said = {key: value for key, value in config_door.mapping(self.task).items() if key != "folder"}
        seen = [said, self.tokenizer.fingerprint, *(each.manifest.fingerprint for each in self.pictures or ())]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    @property
    def answers(self) -> int:
        """How many answers there are."""
        if isinstance(self.task, PixelsConfig):
            return self.tokenizer.size - tasks.FIRST - self.task.levels
        return tasks.task(self.task).answers

    @property
    def longest(self) -> int:
        """Ids of the longest example."""
        if self.pictures is not None:
            return len(self.pictures[0].document(0)) - 2
        assert not isinstance(self.task, PixelsConfig)
        return tasks.task(self.task).longest

    def check(self, context: int) -> None:
        """Raise ConfigError for rows that have no room for an example."""
        if context < self.longest:
            raise ConfigError(
                "a row has no room for an example of the task", found=f"batch.context {context}",
                allowed=f"{self.longest} or more", do=f"set batch.context={self.longest} (and batch.tokens a multiple)",
            )  # fmt: skip

    def examples(self, context: int, seed: int) -> Examples:
        """What a run learns from, in rows of `context` ids."""
        if isinstance(self.task, PixelsConfig):
            assert self.pictures is not None
            return Pictures(self.pictures[0], context, self.task.answers, seed)
        return Made(tasks.task(self.task), seed, "task")

    def held(self, context: int, purpose: str = "held") -> Examples:
        """What no run learns from, the same for all of them."""
        if isinstance(self.task, PixelsConfig):
            assert self.pictures is not None
            return Pictures(self.pictures[1], context, 1, None)
        return Made(tasks.task(self.task), HELD, purpose)


def size(task: TaskConfig) -> int:
    """How many ids a task has; of pictures whose labels are not known yet, ten labels' worth."""
    if isinstance(task, PixelsConfig):
        return tasks.FIRST + task.levels + pixels.LABELS
    return tasks.FIRST + len(tasks.task(task).symbols)


def make(config: DataConfig, folder: Path, progress: Progress, anew: bool = False) -> Exercises:
    """A task's folder, made unless it is there; as `prepare.prepare` does for text. Raises DataError, ConfigError."""
    assert config.task is not None, "the table names a task"
    if config.tokenizer is not None:
        raise ConfigError("a task has its own tokenizer", found="data.tokenizer", do="leave data.tokenizer out")
    if config.shards is None:
        prepare.whole(config, folder, anew, _writing(config.task, progress))
    found = open_exercises(Path(config.shards or folder))
    if found.task != config.task:
        raise DataError(
            f"{found.folder} holds another task", found=str(config_door.mapping(found.task)),
            allowed=str(config_door.mapping(config.task)), do="leave data.shards out, or name the folder of this task",
        )  # fmt: skip
    return found


def _writing(task: TaskConfig, progress: Progress) -> Callable[[Path], None]:
    def write(part: Path) -> None:
        if isinstance(task, PixelsConfig):
            _write_pictures(task, part, progress)
        else:
            files.save(tasks.tokenizer(tasks.task(task).symbols), part / "tokenizer")

    return write


def _write_pictures(task: PixelsConfig, part: Path, progress: Progress) -> None:
    read, apart = pixels.read(Path(task.folder))
    sides = pixels.split(read, apart, task.train, task.test)
    kinds = 1 + int(max(each.labels.max() for each in sides))
    if kinds > len(LABELS):
        raise DataError(f"{task.folder}: too many labels", found=str(kinds), allowed=f"{len(LABELS)} at most")
    tokenizer = tasks.tokenizer(GREYS[: task.levels] + LABELS[:kinds])
    files.save(tokenizer, part / "tokenizer")
    for name, side in zip(("train", "held"), sides, strict=True):
        seen = _seen(task, side.images)
        said = _documents(seen, side.labels + tasks.FIRST + task.levels, progress)
        shards.write(part / name, said, tokenizer.size, 0, tokenizer.fingerprint)


def _seen(task: PixelsConfig, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pictures as ids in the order in which they are read: int64 [n, pixels]."""
    small = images if task.side is None else pixels.shrunk(images, task.side)
    flat = small.reshape(len(small), -1).astype(np.int64) * task.levels // 256 + tasks.FIRST
    if task.order == "permuted":
        flat = flat[:, keys.generator(0, "pixels", flat.shape[1]).permutation(flat.shape[1])]
    return flat


def _documents(
    seen: NDArray[np.int64], labels: NDArray[np.int64], progress: Progress
) -> Iterator[tuple[NDArray[np.uint32], int]]:
    for i, (ids, label) in enumerate(zip(seen, labels, strict=True)):
        yield np.append(ids, label).astype(np.uint32), len(ids)
        if i % 1000 == 999:
            progress("pictures", i + 1, len(seen))


def open_exercises(folder: Path) -> Exercises:
    """Open a folder that `make` made. Raises DataError naming what is missing or damaged."""
    path = folder / prepare.SETTINGS
    if not path.exists():
        raise DataError(f"{folder} holds no task", do="leave data.shards out: what a task needs is made for each run")
    task = config_door.read(DataConfig, config_door.read_toml(path), where=str(path)).task
    if task is None:
        raise DataError(f"{folder} holds text and no task", do="leave data.shards or data.task out")
    tokenizer = files.load(folder / "tokenizer")
    if not isinstance(task, PixelsConfig):
        return Exercises(folder, tokenizer, task, None)
    train, held = (shards.open_shards(folder / name, tokenizer.fingerprint) for name in ("train", "held"))
    return Exercises(folder, tokenizer, task, (train, held))
