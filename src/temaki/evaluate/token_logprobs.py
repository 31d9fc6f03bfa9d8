"""What a model says of each token of a text. No torch; letters: n ids."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.base.errors import DataError
from temaki.evaluate.perplexity import nll
from temaki.evaluate.windows import windows
from temaki.generate.executor import Executor


@dataclass(frozen=True)
class Judged:
    """A text as the model sees it."""

    logprobs: ndarray
    """float64 [n - 1], in nats: of each id but the first, behind those before it."""
    windows: int
    """1: all was read together; more: each id is judged behind at least half a window, but for the first ones."""


def token_logprobs(
    executor: Executor, ids: ndarray, context: int, progress: Callable[[int], None] | None = None
) -> Judged:
    """log p of each of ids [n], n >= 1, but the first, read in windows of `context` that move by half of it.

    progress: told the ids judged so far. Raises DataError for an id that the model does not know, GenerationError where
    a window is longer than the slot's room.
    """
    ids = np.asarray(ids).astype(np.int32)
    if not len(ids) or not 0 <= ids.min() <= ids.max() < executor.vocabulary:
        raise DataError(
            "the text is empty or holds an id that the model does not know", allowed=f"0 to {executor.vocabulary - 1}"
        )
    parts = windows(len(ids) - 1, context, max(1, context // 2)) if len(ids) > 1 else []
    found = []
    for part in parts:
        read, wanted = ids[part.start : part.stop], ids[part.start + 1 : part.stop + 1]
        found.append(-nll(executor, read, wanted, part.counted - part.start))
        if progress is not None:
            progress(part.stop)
    return Judged(np.concatenate([np.zeros(0), *found]), len(parts))
