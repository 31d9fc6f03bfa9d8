"""One step: counts, accumulate, check finite, clip, update. The weights change last, and only if all was finite."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from temaki.base.dist import ALONE, World
from temaki.base.errors import NonFiniteError
from temaki.base.rows import TokenBatch
from temaki.model import experts, norm_batch
from temaki.model.build import Model
from temaki.optim import spread as spreads
from temaki.optim.optimizer import Optimizer
from temaki.optim.spread import Spread
from temaki.train.noise import Norms
from temaki.train.objectives import Objective


@dataclass(frozen=True)
class Told:
    """What a step says of itself."""

    loss: float
    """Before the update, nats for each unit of weight."""
    grad_norm: float
    """Before clipping."""
    noise: Norms | None = None
    """Of the first micro-batch and the whole step; None where the step was read at once."""
    gradients: Mapping[str, float] = field(default_factory=dict)
    """L2 norm of the gradient by role, before clipping; empty unless asked for."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """L2 norm of the parameters by role, before the update; empty unless asked for."""
    updates: Mapping[str, float] = field(default_factory=dict)
    """L2 norm of what the update added, by role; empty unless asked for."""


@dataclass(frozen=True)
class Gathered:
    """The gradient of a whole step, which lies in the parameters, and what was seen on the way."""

    loss: float
    count: float
    """Units of weight of the whole step, over all processes."""
    first: tuple[float, float] | None
    """(units of weight, squared norm of the mean gradient) of the first micro-batch of several."""


def gradients(
    model: Model,
    objective: Objective,
    batches: Sequence[TokenBatch],
    world: World = ALONE,
    spread: Spread = spreads.ALONE,
) -> Gathered:
    """Add the gradient of the whole step's loss to the parameters, micro-batch by micro-batch.

    Each process reads its share of every micro-batch; the counts are added over processes first, so that gradients are
    then only summed. A term that counts nothing in the whole step is left out.
    """
    each = [objective.counts(batch) for batch in batches]
    counts = _summed(objective.scales, each, world)
    loss, first = 0.0, None
    for i, batch in enumerate(batches):
        held = world.hold is not None and i < len(batches) - 1
        with world.hold() if world.hold is not None and held else nullcontext():
            totals = objective.totals(model, batch)
            parts = [scale * totals[name] / counts[name] for name, scale in objective.scales.items() if counts[name]]
            if parts:
                part = torch.stack(parts).sum()
                part.backward()
                loss += part.item()
        if i == 0 and len(batches) > 1:
            norm = _norm(model, spread)
            first = _first(norm, _summed(each[0], each[:1], world), each[0], sum(counts.values()), world)
    (loss,) = world.total([loss])
    return Gathered(loss, sum(counts.values()), first)


def _summed(names: Iterable[str], each: Sequence[Mapping[str, float]], world: World) -> dict[str, float]:
    names = list(names)
    return dict(zip(names, world.total([sum(count[name] for count in each) for name in names]), strict=True))


def _first(
    norm: float, summed: Mapping[str, float], own: Mapping[str, float], total: float, world: World
) -> tuple[float, float] | None:
    """(units, squared norm of the mean gradient) of the first micro-batch, whose gradient is all there is so far.

    Where gradients are not yet summed over processes, each has one of its own: E |g|^2 = |G|^2 + S / units is linear in
    1 / units, so squares and 1 / units are averaged.
    """
    if world.hold is None:
        size = sum(summed.values())
        return (size, (norm * total / size) ** 2) if size else None
    size = sum(own.values())
    square, inverse = ((norm * total / size) ** 2, 1 / size) if size else (0.0, 0.0)
    empty, square, inverse = world.total([float(not size), square, inverse])
    return None if empty else (world.replicas / inverse, square / world.replicas)


def _grads(model: Model) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _norm(model: Model, spread: Spread) -> float:
    grads = _grads(model)
    return spread.norm(list(grads), list(grads.values())).item()


def update(
    model: Model,
    objective: Objective,
    optimizer: Optimizer,
    batches: Sequence[TokenBatch],
    factor: float,
    clip: float | None,
    world: World = ALONE,
    norms: bool = False,
) -> Told:
    """One whole step. Raises NonFiniteError, weights and moments untouched, if loss or gradient is not finite.

    All processes decide alike: one that sees it is enough. `norms`: say the norms by role too.
    """
    model.zero_grad(set_to_none=True)
    found = gradients(model, objective, batches, world, optimizer.spread)
    by_role = optimizer.norms("gradient") if norms else {}
    norm = optimizer.clip(clip)
    if world.any(not (math.isfinite(found.loss) and math.isfinite(norm))):
        backward = _last_not_finite(_grads(model), world)
        model.zero_grad(set_to_none=True)
        experts.forget(model)
        norm_batch.forget(model)
        where = culprit(model, lambda: [objective.totals(model, batch) for batch in batches], backward, world)
        raise NonFiniteError(
            f"{'the loss' if not math.isfinite(found.loss) else 'the gradient'} is not finite",
            found=f"loss {found.loss}, gradient norm {norm}; first in {where}",
            do="lower optim.lr, lengthen the warmup or look at the data; nothing was changed by this step",
        )
    weights = optimizer.norms("weight") if norms else {}
    updates = optimizer.step(factor, norms)
    experts.settle(model, world.data)
    norm_batch.settle(model)
    noise = Norms(found.first[0], found.count, found.first[1], norm**2) if found.first is not None else None
    return Told(found.loss, norm, noise, by_role, weights, updates)


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
def culprit(model: nn.Module, forward: Callable[[], object], backward: str | None = None, world: World = ALONE) -> str:
    """The first parameter, or the first layer in a rerun of the forward pass, that is not finite.

    backward: the parameter whose gradient was the first that was not, named where the forward is finite. All processes
    look, since a forward may need them all, and all say the same.
    """
    found = _least(world, (i for i, (_, p) in enumerate(model.named_parameters()) if not _finite(p)))
    if found is not None:
        return f"parameter {[name for name, _ in model.named_parameters()][found]}"
    names = [name for name, _ in model.named_modules() if name]
    seen: list[int] = []

    def watch(place: int) -> Callable[[nn.Module, object, object], None]:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not _finite(output):
                seen.append(place)

        return look

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(watch(i)) for i, name in enumerate(names)]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    layer = _least(world, iter(seen))
    if layer is not None:
        return f"layer {names[layer]}"
    gradient = "" if backward is None else f": the gradient of {backward}"
    return f"the loss or the backward pass (all layers gave finite values){gradient}"


def _finite(x: Tensor) -> bool:
    return bool((x.to_local() if isinstance(x, DTensor) else x).isfinite().all())


def _least(world: World, places: Iterator[int]) -> int | None:
    """The first place of this process's, and of these the least of all processes; None where no process has one."""
    found = world.least(next(places, math.inf))
    return int(found) if math.isfinite(found) else None


def _last_not_finite(grads: Mapping[str, Tensor], world: World) -> str | None:
    """The parameter nearest to the loss, where the backward pass begins, whose gradient is not finite."""
    names = list(grads)[::-1]
    found = _least(world, (i for i, name in enumerate(names) if not _finite(grads[name])))
    return None if found is None else names[found]
