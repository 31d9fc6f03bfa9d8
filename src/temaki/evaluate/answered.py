"""How often a model gives the answers of a task. Letters: V vocabulary, M asked places, D width."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from temaki.base import rows as base_rows
from temaki.base.rows import TokenBatch
from temaki.batches.tasks_loader import Examples, TaskLoader
from temaki.model.build import Model
from temaki.model.maps import cross_entropy

Scored = Callable[[Tensor, Tensor], Tensor]
"""(logits [M, V], targets int64 [M]) -> the loss of each answer [M]."""


@dataclass(frozen=True)
class Answered:
    """What was asked and how it was answered."""

    asked: int
    right: int
    """Answers that are the most probable id."""
    losses: float
    """Of all answers: -log p in nats, unless another loss was asked for."""

    @property
    def accuracy(self) -> float:
        """Share of the answers that are right."""
        return self.right / self.asked

    @property
    def loss(self) -> float:
        """Of an answer."""
        return self.losses / self.asked


def judge(
    model: Model,
    examples: Examples,
    context: int,
    rows: int,
    at_once: int,
    progress: Callable[[int], None] = lambda _: None,
    scored: Scored = cross_entropy,
) -> Answered:
    """The answers of a model in the first `rows` rows of `context` ids, or in all where there are fewer.

    at_once: rows a call; `progress` hears how many are done. The model comes back in the mode it was in.
    """
    loader, count = TaskLoader(examples, context), min(rows, examples.rows or rows)
    device, training = next(model.parameters()).device, model.training
    asked, right, losses = 0, 0, 0.0
    model.eval()
    try:
        for first in range(0, count, at_once):
            batch = base_rows.to(loader.take(first, min(at_once, count - first)), device)
            found = _answered(model, batch, scored)
            asked, right, losses = asked + found.asked, right + found.right, losses + found.losses
            progress(min(first + at_once, count))
    finally:
        model.train(training)
    return Answered(asked, right, losses)


@torch.no_grad()
def _answered(model: Model, batch: TokenBatch, scored: Scored) -> Answered:
    at = batch.weights.nonzero().squeeze(-1)
    hidden, targets = model(batch.rows)[at], batch.targets[at]  # [M, D], [M]
    logits = model.head.logits(hidden)
    right = int((logits.argmax(-1) == targets).sum())
    return Answered(len(at), right, float(scored(logits, targets).double().sum()))
