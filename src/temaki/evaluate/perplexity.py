"""What an executor's model pays for a text: `loss.score` over the contract of `generate/executor`, whoever computes.

So a quantised model is judged by the arithmetic that will speak. Letters: n ids of a document, V vocabulary.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy import ndarray

from temaki.base.errors import ConfigError, DataError
from temaki.evaluate.windows import Score, windows
from temaki.generate.executor import Executor, Work

CHUNK = 256
"""Ids a call; of each the logits [V] are held in float32."""


def score(
    executor: Executor,
    documents: Iterable[ndarray],
    bytes: int,
    context: int,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The loss over `documents`, as `loss.score` has it: n ids have n targets, the ids but the first, and then that.

    Read in slot 0, in windows of `context` ids moving by `stride` (half a context by default). `progress` is told the
    targets counted so far. Raises DataError for documents that cannot be scored, GenerationError where a window is
    longer than the slot's room.
    """
    step = max(1, context // 2) if stride is None else stride
    nats, tokens = 0.0, 0
    for i, document in enumerate(documents):
        ids = np.asarray(document).astype(np.int32)
        if not len(ids) or not 0 <= ids.min() <= ids.max() < executor.vocabulary:
            raise DataError(
                f"document {i} is empty or holds an id that the model does not know",
                allowed=f"0 to {executor.vocabulary - 1}",
                do="score with the tokenizer that travels with the model",
            )
        targets = np.roll(ids, -1)
        for w in windows(len(ids), context, step):
            found = nll(executor, ids[w.start : w.stop], targets[w.start : w.stop], w.counted - w.start)
            nats += float(found.sum())
            tokens += len(found)
            if progress is not None:
                progress(tokens)
    if not tokens:
        raise DataError("no documents to score", do="give a text")
    return Score(nats, tokens, bytes)


def nll(executor: Executor, ids: ndarray, targets: ndarray, skip: int = 0) -> ndarray:
    """-log p, in nats, of targets[skip:], each behind the ids up to its own place: float64 [n - skip].

    Raises GenerationError where the ids are longer than the slot's room, ConfigError for a model whose prompts see both
    ways.
    """
    if executor.whole:
        raise ConfigError(
            "ids that are read together see each other both ways: the executor of this model cannot score a text",
            do="temaki evaluate, which reads without a prefix",
        )
    executor.open(0)
    found: list[ndarray] = []
    try:
        first = 0
        while first < len(ids):
            counted = first >= skip
            stop = min(len(ids) if counted else skip, first + CHUNK)
            logits = executor.run([Work(0, ids[first:stop], "all" if counted else "none")]).logits
            if counted:
                found.append(_paid(logits, targets[first:stop]))
            first = stop
    finally:
        executor.close(0)
    return np.concatenate(found)


def _paid(logits: ndarray, targets: ndarray) -> ndarray:
    """log sum exp(logits) - logits[target] for each row: [n, V], [n] -> float64 [n].

    >>> _paid(np.zeros((1, 4), np.float32), np.array([2])).round(6).tolist() == [round(float(np.log(4)), 6)]
    True
    """
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    return np.log(total) + top[:, 0].astype(np.float64) - logits[np.arange(len(targets)), targets]
