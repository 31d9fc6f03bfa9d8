"""Objectives: what a batch teaches, as named sums and the counts they are divided by.

loss = sum over terms of scale * total / count. Counts come from the batches alone, before any forward, so that the
step can add them over micro-batches and processes first; then accumulated = one big batch by construction.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from temaki.base.rows import TokenBatch
from temaki.model.build import Model
from temaki.train.config import NextConfig, ObjectiveConfig


class Objective(Protocol):
    """What a batch teaches."""

    scales: Mapping[str, float]

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        """Per term, the sum of the weights, from the batch alone."""
        ...

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Per term, the weighted sum of losses: float32 or better scalars, differentiable."""
        ...


class Next:
    """Predict the next id: the plain language-model loss."""

    scales: Mapping[str, float] = {"next": 1.0}

    def __init__(self, config: NextConfig):
        self.config = config

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        return {"next": float(batch.weights.cpu().double().sum())}

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        hidden = model(batch.rows)
        return {"next": model.head.nll(hidden, batch.targets, batch.weights, self.config.smooth, self.config.z)}


def objective(config: ObjectiveConfig) -> Objective:
    """The objective of a configuration."""
    return Next(config)
