"""How often a model gives the answers of a task. Letters: V vocabulary, M asked places, D width."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from temaki.base import rows as base_rows
from temaki.base.rows import TokenBatch
from temaki.batches.tasks_loader import Examples, TaskLoader
from temaki.model.build import Model


@dataclass(frozen=True)
class Answered:
    """What was asked and how it was answered."""

    asked: int
    right: int
    """Answers that are the most probable id."""
    nats: float
    """-log p of all answers."""

    @property
    def accuracy(self) -> float:
        """Share of the answers that are right."""
        return self.right / self.asked

    @property
    def loss(self) -> float:
        """Nats an answer."""
        return self.nats / self.asked


def judge(
    model: Model,
    examples: Examples,
    context: int,
    rows: int,
    at_once: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Answered:
    """The answers of a model in the first `rows` rows of `context` ids, or in all where there are fewer.

    at_once: rows a call; `progress` hears how many are done. The model comes back in the mode it was in.
    """
    loader, count = TaskLoader(examples, context), min(rows, examples.rows or rows)
    device, training = next(model.parameters()).device, model.training
    asked, right, nats = 0, 0, 0.0
    model.eval()
    try:
        for first in range(0, count, at_once):
            batch = base_rows.to(loader.take(first, min(at_once, count - first)), device)
            found = _answered(model, batch)
            asked, right, nats = asked + found.asked, right + found.right, nats + found.nats
            progress(min(first + at_once, count))
    finally:
        model.train(training)
    return Answered(asked, right, nats)


@torch.no_grad()
def _answered(model: Model, batch: TokenBatch) -> Answered:
    at = batch.weights.nonzero().squeeze(-1)
    hidden, targets = model(batch.rows)[at], batch.targets[at]  # [M, D], [M]
    right = int((model.head.logits(hidden).argmax(-1) == targets).sum())
    return Answered(len(at), right, float(model.head.nll_each(hidden, targets).double().sum()))
