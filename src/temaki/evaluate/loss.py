"""Loss of a model on documents, in units that do not depend on the tokenizer: bits per byte of text.

Letters: n ids of a document, c ids of context, s stride, N ids of a call, D width, M wanted places.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from temaki.base import rows
from temaki.base.errors import ConfigError, DataError
from temaki.evaluate.windows import Score as Score
from temaki.evaluate.windows import windows as windows
from temaki.model.build import Model
from temaki.model.config import AttentionConfig


def score(
    model: Model,
    documents: Iterable[NDArray[np.integer]],
    bytes: int,
    context: int,
    stride: int | None = None,
    batch_tokens: int = 8192,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The model's loss over `documents`, each an array [E, d1..] of ids whose text is `bytes` long in all.

    The targets of a document are its ids but the first, and then E again: n ids give n targets. Each is
    counted once, in windows of `context` ids moving by `stride` (half a context by default), at most
    `batch_tokens` ids a call unless one window is longer. `device` is where the model's weights are by
    default; `progress` is told the targets counted so far. The model comes back in the mode it was in.
    Raises DataError for documents that cannot be scored, ConfigError for windows that leave gaps.

    >>> from temaki.model import build, config
    >>> block = config.BlockConfig(mixer=config.AttentionConfig(heads=1))
    >>> model = build.build(config.DecoderConfig(vocabulary=8, width=4, depth=1, pattern=(block,)))
    >>> score(model, [np.array([0, 5, 6])], bytes=2, context=4).tokens
    3
    """
    if bytes < 1:
        raise DataError("text of no bytes has no bits per byte", found=str(bytes), do="give documents that hold text")
    if any(isinstance(b.mixer, AttentionConfig) and b.mixer.mask == "bidirectional" for b in model.config.pattern):
        raise ConfigError(
            "a model that reads both ways sees its answer: it has no loss of the next id",
            do="judge it by its own loss on held-out rows: temaki report RUN",
        )
    where = next(model.parameters()).device if device is None else device
    step = max(1, context // 2) if stride is None else stride
    training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in _batches(_pieces(documents, model.config.vocabulary, context, step), context, batch_tokens):
            each = _each(model, batch, where)
            nats += float(each.sum())
            tokens += len(each)
            if progress is not None:
                progress(tokens)
    finally:
        model.train(training)
    if not tokens:
        raise DataError("no documents to score", do="hold out at least one document")
    return Score(nats, tokens, bytes)


@dataclass(frozen=True)
class _Piece:
    ids: Tensor
    """int64 [c]."""
    targets: Tensor
    """int64 [c]."""
    skip: int
    """Places before the first counted one."""


def _pieces(documents: Iterable[NDArray[np.integer]], vocabulary: int, context: int, stride: int) -> Iterator[_Piece]:
    for i, document in enumerate(documents):
        if not len(document):
            raise DataError(f"document {i} is empty", allowed="arrays that begin with the special token")
        ids = torch.from_numpy(np.asarray(document).astype(np.int64))
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            raise DataError(
                f"document {i} holds an id the model does not know",
                found=str(int(ids.max()) if int(ids.max()) >= vocabulary else int(ids.min())),
                allowed=f"0 to {vocabulary - 1}",
                do="score with the tokenizer the model was trained with",
            )
        targets = torch.cat([ids[1:], ids[:1]])
        for w in windows(len(ids), context, stride):
            yield _Piece(ids[w.start : w.stop], targets[w.start : w.stop], w.counted - w.start)


def _batches(pieces: Iterable[_Piece], context: int, batch_tokens: int) -> Iterator[list[_Piece]]:
    """The pieces of each call: whole windows, which fill a rectangle, apart from shorter ones."""
    whole: list[_Piece] = []
    short: list[_Piece] = []
    for piece in pieces:
        batch = whole if len(piece.ids) == context else short
        if batch and sum(len(p.ids) for p in batch) + len(piece.ids) > batch_tokens:
            yield list(batch)
            batch.clear()
        batch.append(piece)
    yield from (batch for batch in (whole, short) if batch)


@torch.no_grad()
def _each(model: Model, pieces: Sequence[_Piece], device: torch.device) -> Tensor:
    """-log p of each counted target: float64 [M] on the host."""
    read = rows.to(rows.rows([piece.ids for piece in pieces]), device)
    starts = read.cuts.tolist()
    places = torch.cat(
        [torch.arange(start + p.skip, start + len(p.ids)) for start, p in zip(starts, pieces, strict=False)]
    )
    targets = torch.cat([piece.targets[piece.skip :] for piece in pieces])
    hidden = model(read)[places.to(device)]
    return model.head.nll_each(hidden, targets.to(device)).cpu().double()
