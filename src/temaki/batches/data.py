"""What a run reads, text or a task: how it is made, opened and cut into rows."""

from pathlib import Path
from typing import Protocol

from temaki.base import config as config_door
from temaki.base.errors import DataError
from temaki.base.rows import TokenBatch
from temaki.batches import prepare, stochastic, tasks_data
from temaki.batches.config import BatchConfig, DataConfig
from temaki.batches.prepare import Prepared, Progress, Words
from temaki.batches.tasks_data import Exercises
from temaki.batches.tasks_loader import TaskLoader

Data = Prepared | Exercises


class Takes(Protocol):
    """Rows in an order, any of them by its place."""

    def take(self, position: int, count: int) -> TokenBatch:
        """The batch of rows position..position+count-1 of the order."""
        ...


def make(config: DataConfig, folder: Path, progress: Progress, anew: bool = False, given: Words | None = None) -> Data:
    """All that a run needs to read, in `folder`; see `prepare.prepare`. A task has its own tokenizer, never `given`."""
    if config.task is None:
        return prepare.prepare(config, folder, progress, anew, given)
    return tasks_data.make(config, folder, progress, anew)


def size(config: DataConfig) -> int:
    """How many ids the data will have, where no tokenizer is there yet that says it."""
    return config.vocabulary if config.task is None else tasks_data.size(config.task)


def open_data(folder: Path) -> Data:
    """A folder that `make` made. Raises DataError naming what is missing, damaged or does not match."""
    path = folder / prepare.SETTINGS
    if path.exists() and config_door.read(DataConfig, config_door.read_toml(path), where=str(path)).task is not None:
        return tasks_data.open_exercises(folder)
    return prepare.open_prepared(folder)


def text(data: Data) -> Prepared:
    """Data that are text. Raises DataError for a task."""
    if isinstance(data, Exercises):
        raise DataError("a task has no text", found=f'data.task.kind = "{data.task.kind}"', do="leave data.task out")
    return data


def loader(data: Data, batch: BatchConfig, seed: int) -> Takes:
    """The rows that a run learns from."""
    if isinstance(data, Exercises):
        return TaskLoader(data.examples(batch.context, seed), batch.context)
    return stochastic.loader(data.train, data.tokenizer, batch, seed)
