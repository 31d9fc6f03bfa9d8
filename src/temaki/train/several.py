"""Multi-token prediction: the next ids are learned from every place, several at once, within each piece.

loss = (1/c) sum_i [w_i CE_0(i) + sum_k s_k w_(i+k) CE_k(i)], with CE_k(i) = -log p_k(t_(i+1+k)) of head k at place i
where place i + k is of the same piece, and c = sum_i w_i. All terms are divided by the same count, as DeepSeek-AI 2024,
"DeepSeek-V3", (24) does: what is rare (four ids ahead in short pieces) then weighs little instead of being noise, and
all heads that share a matrix share one call of its loss. Gloeckle et al. 2024 is weight = ids - 1, DeepSeek-V3
weight = 0.3. Letters: N ids, D width.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch
from temaki.model.build import Model
from temaki.model.config import ModelConfig
from temaki.model.several import ahead
from temaki.train.config import FromModelConfig, RunConfig, SeveralConfig


class Several:
    """Predict the next ids. With ids = 1 it is the plain loss."""

    scales: Mapping[str, float] = {"several": 1.0}

    def __init__(self, config: SeveralConfig):
        self.config = config
        self.first = 1 if config.trunk == "frozen" else 0
        """The first of the ids that is learned: a frozen trunk has nothing to learn from the next one."""

    def prepared(self, batch: TokenBatch, place: int) -> TokenBatch:
        return batch

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        return {"several": float(batch.weights.cpu().double().sum())}

    def totals(self, model: Model, batch: TokenBatch) -> Mapping[str, Tensor]:
        smooth, z = self.config.smooth, self.config.z
        if model.heads is None:
            return {"several": model.head.nll(model(batch.rows), batch.targets, batch.weights, smooth, z)}
        hidden = model(batch.rows, ahead=True)  # [ids, N, D]
        targets, weights = places(batch, self.config.ids)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        scaled = weights * torch.tensor(shares(self.config), dtype=dtype, device=weights.device)[:, None]
        learned = slice(self.first, None)
        found = model.heads.nll(model.head, hidden[learned], targets[learned], scaled[learned], smooth, z)
        return {"several": found}


def shares(config: SeveralConfig) -> tuple[float, ...]:
    """What each id weighs beside the next one.

    >>> shares(SeveralConfig(ids=3, weight=0.3, falls=0.5))
    (1.0, 0.2, 0.1)
    """
    falling = [config.falls**k for k in range(config.ids - 1)]
    return (1.0, *(round(config.weight * each / sum(falling), 12) for each in falling))


def places(batch: TokenBatch, ids: int) -> tuple[Tensor, Tensor]:
    """The target of each id from each place, and its weight, 0 beyond the place's piece: [ids, N] each."""
    targets, same = ahead(batch.targets, batch.rows.positions, ids)
    weights, _ = ahead(batch.weights, batch.rows.positions, ids)
    return targets, weights * same


@torch.no_grad()
def agreement(model: Model, batches: Iterable[TokenBatch]) -> tuple[float, ...]:
    """The share of places where the likeliest id of each head is the id that came, the model's own first.

    The true ids are read before it: at most so much of a draft would be taken.
    """
    config = model.config.further
    ids = 1 if config is None else config.ids
    right, of = torch.zeros(ids), torch.zeros(ids)
    for batch in batches:
        hidden = model(batch.rows, ahead=True).reshape(ids, len(batch.targets), -1)
        targets, weights = places(batch, ids)
        for k in range(ids):
            head = model.head if model.heads is None else model.heads.head(k, model.head)
            at = weights[k] > 0
            best = [head.logits(h).argmax(-1) for h in hidden[k][at].split(256)]
            right[k] += (torch.cat(best) == targets[k][at]).sum().cpu() if best else 0
            of[k] += at.sum().cpu()
    return tuple((right / of.clamp(min=1)).tolist())


def check(config: SeveralConfig, model: ModelConfig) -> None:
    """Raise ConfigError for a model whose heads are not those of the objective."""
    if model.further != config.further:
        raise ConfigError(
            "model.further is not what the objective teaches", found=str(model.further), allowed=str(config.further),
            do="leave model.further out: it follows from [objective]",
        )  # fmt: skip


def check_run(task: SeveralConfig, config: RunConfig) -> None:
    """Raise ConfigError for a run whose rows are too short for the objective, or that freezes a random trunk."""
    if task.ids > config.batch.context:
        raise ConfigError(
            "objective.ids looks beyond a row", found=f"ids {task.ids}, batch.context {config.batch.context}",
            allowed=f"1 to {config.batch.context}", do="predict fewer ids, or make the rows longer",
        )  # fmt: skip
    if task.trunk == "frozen" and not isinstance(config.begin, FromModelConfig):
        raise ConfigError(
            'objective.trunk = "frozen" needs a model that has learned', found=f'begin.kind = "{config.begin.kind}"',
            allowed='begin.kind = "model"', do="name the model by --from",
        )  # fmt: skip
