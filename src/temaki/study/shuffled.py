"""Text whose order is lost, so that one can see what a model makes of order. Letters: T ids a row.

Inside each run of T ids of a document the ids stay in pairs and the pairs change places. The first id of a pair is
still followed by its true successor, so at that place there is something to be learned; all that came before is a bag
of pairs. A model with no idea of order would pay the same for those places in either text.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temaki.base import keys
from temaki.batches import shards
from temaki.batches.prepare import Prepared
from temaki.batches.shards import Shards
from temaki.model.build import Model
from temaki.study import held as held_text
from temaki.tokens import files

SEED = 0
"""Of the order of pairs: one for all runs."""
STRETCHES = 96


def mix(ids: NDArray[np.int64], run: int, key: int) -> NDArray[np.int64]:
    """The ids with the pairs of each whole run of `run` ids (even) in another order; the ids behind stay.

    >>> sorted(mix(np.arange(8), 8, 3).reshape(-1, 2).tolist())
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    """
    assert run % 2 == 0, "pairs fill a run"
    made = ids.copy()
    for i, low in enumerate(range(0, len(ids) - run + 1, run)):
        order = keys.generator(SEED, "pairs", key, i).permutation(run // 2)
        made[low : low + run] = ids[low : low + run].reshape(-1, 2)[order].reshape(-1)
    return made


def prepare(data: Prepared, folder: Path, run: int) -> Path:
    """The prepared data with their pairs mixed, in `folder` unless it is whole there already: the folder."""
    if not (folder / "tokenizer").is_dir():
        for key, (name, split) in enumerate((("train", data.train), ("held", data.held))):
            if not (folder / name).exists():
                _write(split, folder / name, run, key)
        files.save(data.tokenizer, folder / "tokenizer")
    return folder


def _write(split: Shards, folder: Path, run: int, key: int) -> None:
    made = split.manifest
    each = made.bytes // made.documents  # what a mixed text would be in bytes is the same in all
    texts = ((mix(split.document(i)[1:], run, key * 1_000_000 + i), each) for i in range(made.documents))
    documents = ((ids.astype(np.uint32), size) for ids, size in texts)
    shards.write(folder, documents, made.vocabulary, made.boundary, made.tokenizer)


def measure(model: Model, held: Shards, context: int, most: int = STRETCHES) -> dict[str, Any]:
    """What the true successor of a pair's first id costs, nats: in text as it is, and in the same text mixed.

    `held` is the text as it is.
    """
    run = context // 2 * 2
    found = held_text.stretches(held, run - 1, most)
    mixed = np.stack([mix(each, run, i) for i, each in enumerate(found)])
    ordered, shuffled = (float(held_text.losses(model, each)[:, ::2].mean()) for each in (found, mixed))
    return {"ordered": ordered, "shuffled": shuffled, "tokens": len(found) * run // 2}
