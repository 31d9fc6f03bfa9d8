"""What any model pays for any text, by the executor that would speak: torch is loaded only if that one needs it."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from temaki.batches import prepare
from temaki.batches.prepare import Progress
from temaki.compiled.matrix import packed_bytes
from temaki.compiled.plan import Plan
from temaki.corpus import sources
from temaki.evaluate import perplexity
from temaki.evaluate.windows import Score
from temaki.formats.opened import Opened
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.executor import Executor
from temaki.model import roofline
from temaki.study import executing
from temaki.study.asking import tokenizer_of


def documents(opened: Opened, where: Path) -> tuple[list[ndarray], int]:
    """The documents of a file or folder as ids, each behind a boundary, and their text's bytes.

    The boundary is what begins a prompt of the model, else what stands between documents of its tokenizer.
    """
    tokenizer = tokenizer_of(opened)
    frame = opened.framed[1] if opened.framed is not None else None
    between = np.array(opened.speaking.front[:1] or [prepare.boundary(tokenizer, frame)], np.int64)
    texts = [document.text for document in sources.files(where, "strict")]
    ids = tokenizer.encode_batch(texts)
    found = [np.concatenate([between, each]) for each in np.split(ids.ids.astype(np.int64), ids.offsets[1:-1])]
    return found, sum(len(each.encode()) for each in texts)


def score_text(
    opened: Opened,
    where: Path,
    context: int,
    kind: Literal["auto", "torch", "compiled"] = "auto",
    progress: Progress = lambda _what, _done, _of: None,
) -> Score:
    """Loss, perplexity and bits per byte of a model on a text, in windows of `context` that move by half of it."""
    found, size = documents(opened, where)
    total = sum(map(len, found))
    executor = executing.executor_of(opened, 1, context, kind=kind)
    return perplexity.score(executor, found, size, context, progress=lambda done: progress("scoring: ids", done, total))


def moved(executor: Executor, opened: Opened, held: int) -> float:
    """Bytes that writing one id behind `held` others must read: the weights it meets, keys and values."""
    if not isinstance(executor, CompiledExecutor):
        return roofline.decoding(opened.trunk().config, held).bytes
    plan, cache = executor.plan, executor.cache
    read = plan.bytes if opened.config.tied else plan.bytes - _embedding(plan)
    whole = sum(layer.groups * layer.size for layer in cache.layers)
    seen = sum(layer.groups * layer.size * min(held, layer.window or held) for layer in cache.layers)
    return float(read + cache.bytes_per_id * seen / whole)


def _embedding(plan: Plan) -> int:
    """Bytes of a matrix of which one row is read."""
    return packed_bytes(plan.embedding[1], plan.config.vocabulary, plan.config.width)
