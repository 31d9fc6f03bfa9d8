"""One step: counts, accumulate, check finite, clip, update. The weights change last, and only if all was finite."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from temaki.base.errors import NonFiniteError
from temaki.base.rows import TokenBatch
from temaki.model import experts
from temaki.model.build import Model
from temaki.optim.optimizer import Optimizer, clip_
from temaki.train.objectives import Objective


@dataclass(frozen=True)
class Told:
    """What a step says of itself."""

    loss: float
    """Before the update, nats for each unit of weight."""
    grad_norm: float
    """Before clipping."""


def gradients(model: Model, objective: Objective, batches: Sequence[TokenBatch]) -> float:
    """Add the gradient of the whole step's loss to the parameters, micro-batch by micro-batch; returns the loss.

    A term that counts nothing in the whole step is left out.
    """
    counts = {name: sum(objective.counts(batch)[name] for batch in batches) for name in objective.scales}
    loss = 0.0
    for batch in batches:
        totals = objective.totals(model, batch)
        parts = [scale * totals[name] / counts[name] for name, scale in objective.scales.items() if counts[name]]
        if parts:
            part = torch.stack(parts).sum()
            part.backward()
            loss += part.item()
    return loss


def update(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    batches: Sequence[TokenBatch],
    factor: float,
    clip: float | None,
) -> Told:
    """One whole step. Raises NonFiniteError, weights and moments untouched, if loss or gradient is not finite."""
    model.zero_grad(set_to_none=True)
    loss = gradients(model, objective, batches)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = clip_(grads, clip).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        model.zero_grad(set_to_none=True)
        experts.forget(model)
        where = culprit(model, lambda: [objective.totals(model, batch) for batch in batches])
        raise NonFiniteError(
            f"{'the loss' if not math.isfinite(loss) else 'the gradient'} is not finite",
            found=f"loss {loss}, gradient norm {norm}; first in {where}",
            do="lower optim.lr, lengthen the warmup or look at the data; nothing was changed by this step",
        )
    optimizer.step(factor)
    experts.settle(model)
    return Told(loss, norm)


@torch.no_grad()
def measured(model: Model, objective: Objective, batches: Sequence[TokenBatch]) -> float | None:
    """The loss of prepared batches, as `gradients` would give it; None where nothing in them counts.

    The model comes back in the mode it was in.
    """
    counts = {name: sum(objective.counts(batch)[name] for batch in batches) for name in objective.scales}
    if not any(counts.values()):
        return None
    training = model.training
    model.eval()
    try:
        sums = [objective.totals(model, batch) for batch in batches]
    finally:
        model.train(training)
    return sum(
        scale * float(torch.stack([each[name].double() for each in sums]).sum()) / counts[name]
        for name, scale in objective.scales.items()
        if counts[name]
    )


@torch.no_grad()
def culprit(model: nn.Module, forward: Callable[[], object]) -> str:
    """The first parameter, or the first layer in a rerun of the forward pass, that is not finite."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"parameter {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return f"layer {found[0]}" if found else "the loss or the backward pass (all layers gave finite values)"
