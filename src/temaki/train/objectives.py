"""Objectives: what a batch teaches, as named sums and the counts they are divided by.

loss = sum over terms of scale * total / count. Counts come from the batches alone, before any forward, so that the
step can add them over micro-batches and processes first; then accumulated = one big batch by construction. What is
hidden or shown of a row is drawn before that, by `prepared`, from the row's place in the run's order.
Letters: N ids, T ids a row, n pieces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from temaki.base import keys
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch
from temaki.batches.config import DataConfig
from temaki.model import map_losses, maps
from temaki.model.build import Model
from temaki.model.config import AttentionConfig, ModelConfig
from temaki.train import several
from temaki.train.config import (
    CrossEntropyLossConfig,
    EntmaxLossConfig,
    LossConfig,
    MaskedConfig,
    NextConfig,
    ObjectiveConfig,
    PrefixConfig,
    RunConfig,
    SeveralConfig,
    SparsemaxLossConfig,
    TaylorLossConfig,
    TopKLossConfig,
    freezes,
)
from temaki.train.several import Several

MASK = "<|mask|>"
"""The special that stands for a hidden id."""


class Objective(Protocol):
    """What a batch teaches."""

    scales: Mapping[str, float]

    def prepared(self, batch: TokenBatch, place: int) -> TokenBatch:
        """The batch as it is read and learned; its rows are place, place + 1, .. of the order. Pure."""
        ...

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        """Per term, the sum of the weights, from the prepared batch alone."""
        ...

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        """Per term, the weighted sum of losses of a prepared batch: float32 or better scalars, differentiable."""
        ...


class Next:
    """Predict the next id: the plain language-model loss."""

    scales: Mapping[str, float] = {"next": 1.0}

    def __init__(self, config: NextConfig):
        self.config = config

    def prepared(self, batch: TokenBatch, place: int) -> TokenBatch:
        return batch

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        return {"next": float(batch.weights.cpu().double().sum())}

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        hidden, loss = model(batch.rows), self.config.loss
        if isinstance(loss, CrossEntropyLossConfig):
            found = model.head.nll(hidden, batch.targets, batch.weights, self.config.smooth, self.config.z)
        else:
            found = model.head.loss(hidden, batch.targets, batch.weights, scored(loss))
        return {"next": found}


def scored(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of logits [n, V] and targets int64 [n], each place by itself: [n]."""
    match config:
        case CrossEntropyLossConfig():
            return maps.cross_entropy
        case SparsemaxLossConfig():
            return map_losses.sparsemax_loss
        case EntmaxLossConfig(alpha=alpha):
            return partial(map_losses.entmax_loss, alpha=alpha)
        case TopKLossConfig(k=k):
            return partial(map_losses.top_k_loss, k=k)
        case TaylorLossConfig(order=order):
            return partial(map_losses.taylor_loss, order=order)


class Masked:
    """Predict the hidden ids of a row from all that is left of it. Devlin et al. 2019, "BERT", section 3.1.

    Of the chosen places most show the mask, some another id, some their own. Specials are neither chosen nor shown.
    """

    scales: Mapping[str, float] = {"masked": 1.0}

    def __init__(self, config: MaskedConfig, mask: int, ordinary: Sequence[int], seed: int):
        self.config, self.mask, self.seed = config, mask, seed
        self.ordinary = np.asarray(ordinary, np.int64)
        """All ids but the specials, ascending."""

    def prepared(self, batch: TokenBatch, place: int) -> TokenBatch:
        ids = batch.rows.ids.numpy().copy()
        length = _length(batch)
        weights = np.zeros(len(ids), np.float32)
        for i in range(len(ids) // length):
            row = slice(i * length, (i + 1) * length)
            ids[row], weights[row] = self._hidden(ids[row], place + i)
        rows = replace(batch.rows, ids=torch.from_numpy(ids))
        return replace(batch, rows=rows, targets=batch.rows.ids, weights=torch.from_numpy(weights))

    def _hidden(self, ids: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
        """(what is shown, which places are learned) of the row at a place of the order: int64 [T], bool [T]."""
        generator = keys.generator(self.seed, "masked", place)
        choice, kind = generator.random((2, len(ids)))
        others = self.ordinary[generator.integers(len(self.ordinary), size=len(ids))]
        known = np.searchsorted(self.ordinary, ids).clip(max=len(self.ordinary) - 1)
        chosen = (choice < self.config.share) & (self.ordinary[known] == ids)
        hide, change = self.config.hidden, self.config.hidden + self.config.changed
        shown = np.where(kind < hide, self.mask, np.where(kind < change, others, ids))
        return np.where(chosen, shown, ids), chosen

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        return {"masked": float(batch.weights.cpu().double().sum())}

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        return {"masked": model.head.nll(model(batch.rows), batch.targets, batch.weights)}


class Prefix:
    """Predict the rest of a piece, id by id, from a beginning that is read both ways.

    Raffel et al. 2020, "T5", section 3.2.1. Of a piece of n ids a prefix of 1..n ids is drawn; the targets from its
    last place on are learned: those before it stand in the prefix itself.
    """

    scales: Mapping[str, float] = {"prefix": 1.0}

    def __init__(self, config: PrefixConfig, seed: int):
        self.config, self.seed = config, seed

    def prepared(self, batch: TokenBatch, place: int) -> TokenBatch:
        cuts = batch.rows.cuts.numpy()
        lengths, rows = np.diff(cuts), cuts[:-1] // _length(batch)
        drawn = [
            keys.generator(self.seed, "prefix", place + int(row)).random(int(number))
            for row, number in zip(*np.unique(rows, return_counts=True), strict=True)
        ]
        prefix = 1 + np.floor(np.concatenate(drawn) * lengths).astype(np.int64)
        inside = batch.rows.positions.numpy() < np.repeat(prefix - 1, lengths)
        weights = batch.weights.masked_fill(torch.from_numpy(inside), 0.0)
        return replace(batch, rows=replace(batch.rows, prefix=torch.from_numpy(prefix)), weights=weights)

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        return {"prefix": float(batch.weights.cpu().double().sum())}

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        return {"prefix": model.head.nll(model(batch.rows), batch.targets, batch.weights)}


def _length(batch: TokenBatch) -> int:
    """T, of a batch of whole rows."""
    assert batch.rows.shape is not None, "a batch of the loader is a rectangle"
    return batch.rows.shape[1]


def objective(
    config: ObjectiveConfig, vocabulary: int = 0, specials: Mapping[str, int] | None = None, seed: int = 0
) -> Objective:
    """The objective of a configuration, for a tokenizer of so many ids with these specials by name.

    Raises ConfigError if it needs a mask id and there is none.
    """
    match config:
        case NextConfig():
            return Next(config)
        case SeveralConfig():
            return Several(config)
        case MaskedConfig():
            known = dict(specials or {})
            mask = mask_id(config, vocabulary, known)
            ordinary = sorted(set(range(vocabulary)) - {mask, *known.values()})
            return Masked(config, mask, ordinary, seed)
        case PrefixConfig():
            return Prefix(config, seed)


def mask_id(config: MaskedConfig, vocabulary: int, specials: Mapping[str, int]) -> int:
    """The id that hides. Raises ConfigError where there is none."""
    found = specials.get(MASK) if config.mask_id is None else config.mask_id
    if found is None:
        raise ConfigError(
            "objective.mask_id is needed: the tokenizer has no special for a hidden id",
            found=f"specials {', '.join(specials) or 'none'}", allowed=f"0 to {vocabulary - 1}",
            do=f'train the tokenizer with it (data.special = ["{MASK}"]), or name an id that the text does not use',
        )  # fmt: skip
    if not 0 <= found < vocabulary:
        raise ConfigError("objective.mask_id is not an id", found=str(found), allowed=f"0 to {vocabulary - 1}")
    return found


MASKS = {
    "next": ("causal", "prefix"),
    "several": ("causal", "prefix"),
    "masked": ("bidirectional",),
    "prefix": ("prefix",),
}
"""Which attention an objective can be learned with; `next` would see its answer in a bidirectional one."""


def check(config: ObjectiveConfig, model: ModelConfig) -> None:
    """Raise ConfigError for a model whose attention does not fit the objective."""
    allowed = MASKS[config.kind]
    recurrent = [block.mixer.kind for block in model.pattern if not isinstance(block.mixer, AttentionConfig)]
    if recurrent and "causal" not in allowed:
        raise ConfigError(
            f'objective.kind = "{config.kind}" needs layers that see what follows; a recurrence reads the past alone',
            found=f'model.pattern.mixer.kind = "{recurrent[0]}"',
            allowed='mixers of kind "attention"',
            do='choose attention in every layer, or objective.kind = "next"',
        )
    wrong = sorted((model.masks or {"causal"}) - set(allowed))
    if wrong:
        raise ConfigError(
            f'objective.kind = "{config.kind}" does not go with model.pattern.mixer.mask = "{wrong[0]}"',
            allowed=" or ".join(f'mask = "{each}"' for each in allowed),
            do="set the mask of every attention layer, or choose the objective of that mask",
        )
    if isinstance(config, SeveralConfig):
        several.check(config, model)
    elif model.further is not None:
        raise ConfigError(
            f'objective.kind = "{config.kind}" does not teach the heads of model.further',
            do='leave model.further out, or choose objective.kind = "several"',
        )


def check_run(config: RunConfig) -> None:
    """Raise ConfigError for a run that its objective does not fit."""
    check(config.objective, config.model)
    if isinstance(config.objective, SeveralConfig):
        several.check_run(config.objective, config)


def trainable(config: ObjectiveConfig, model: Model) -> dict[str, nn.Parameter]:
    """The parameters that move, by name; the others are frozen, and ask for no gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("heads.") or not freezes(config))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def says_next(config: ObjectiveConfig) -> bool:
    """Whether what moves is judged by how well the model's own head says the next id, in nats by softmax."""
    if isinstance(config, NextConfig) and not isinstance(config.loss, CrossEntropyLossConfig):
        return False
    return isinstance(config, NextConfig | SeveralConfig) and not freezes(config)


def check_mask(config: ObjectiveConfig, data: DataConfig) -> None:
    """Raise ConfigError for data whose tokenizer would be trained without the mask that the objective needs."""
    trained = data.tokenizer is None and data.shards is None
    if isinstance(config, MaskedConfig) and config.mask_id is None and trained and MASK not in (data.special or ()):
        raise ConfigError(
            "the masked objective needs a special that hides ids, and none would be trained",
            found=f"data.special = {list(data.special or ())}", allowed=MASK, do=f'data.special = ["{MASK}"]',
        )  # fmt: skip
