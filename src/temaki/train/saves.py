"""Saving and loading a run: whole tensors under the names of a model of one process, whoever holds which piece.

Several processes share the writing: each writes the tensors that fall to it, whole, into a file of its own. Any number
of processes opens what any number wrote: each takes its pieces of the memory-mapped wholes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from temaki.base import config as config_door
from temaki.base.dist import World
from temaki.base.errors import NonFiniteError, RunError
from temaki.checkpoint.store import Checkpoint, Facts, Store
from temaki.model import build, part
from temaki.model.build import Model
from temaki.optim.optimizer import Optimizer
from temaki.train import loop, parallel
from temaki.train.loop import Run


@torch.no_grad()
def save(
    run: Run, store: Store, tokenizer: str, shards: str, machine: Mapping[str, str | int | bool], files: Path
) -> Path:
    """Save a checkpoint; all processes call it together. tokenizer, shards: fingerprints; files: the tokenizer's.

    Raises NonFiniteError on all where the weights are not finite, CheckpointError where it cannot be written.
    """
    with parallel.speaking(run.model, run.optimizer):
        tensors = part.tensors(run.model)
        _check_finite(run, tensors)
        facts = Facts(
            step=run.step,
            tokens=run.tokens,
            healthy=run.guard.healthy,
            position=run.position,
            tokenizer=tokenizer,
            shards=shards,
            hooks=loop.numbers(run),
            machine=machine,
        )
        path = store.save(
            facts,
            config_door.toml(config_door.mapping(run.config)),
            _own(run, {name: (name, tensor) for name, tensor in tensors.items()}),
            _own(run, {key: (key.rpartition("/")[0], tensor) for key, tensor in run.optimizer.state().items()}),
            files,
            next((score for hook in run.hooks if (score := hook.score(run)) is not None), None),
            run.world,
        )
    run.log.write({"kind": "save", "step": run.step, "path": path.relative_to(run.folder).as_posix()})
    return path


def _own(run: Run, named: Mapping[str, tuple[str, Tensor]]) -> dict[str, np.ndarray]:
    """Of tensors by key, each laid out as a parameter, the whole ones that fall to this process."""
    spread, parameters = run.optimizer.spread, {name for name, _ in run.model.named_parameters()}
    keepers = falls([tensor.numel() for _, tensor in named.values()], run.world.size)
    found = {}
    for keeper, (key, (name, tensor)) in zip(keepers, named.items(), strict=True):
        whole = spread.whole(name, tensor.detach()) if name in parameters else tensor
        if keeper == run.world.rank:
            found[key] = whole.cpu().numpy()
    return found


def falls(sizes: Sequence[int], processes: int) -> list[int]:
    """Which process writes each tensor, so that all write about as much: the largest first, to who has least.

    >>> falls([3, 9, 4, 5], 2)
    [0, 0, 1, 1]
    """
    load, to = [0] * processes, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        to[i] = load.index(min(load))
        load[to[i]] += sizes[i]
    return to


def _check_finite(run: Run, tensors: Mapping[str, Tensor]) -> None:
    local = run.optimizer.spread.local
    odd = (float(i) for i, x in enumerate(tensors.values()) if not bool(local(x.detach()).isfinite().all()))
    first = run.world.least(next(odd, math.inf))
    if math.isfinite(first):
        raise NonFiniteError(
            f"step {run.step}: the update made {list(tensors)[int(first)]} not finite",
            do="lower optim.lr; the last checkpoint is untouched",
        )


@torch.no_grad()
def load(checkpoint: Checkpoint, model: Model, optimizer: Optimizer) -> None:
    """Weights and moments from a checkpoint. Raises RunError or CheckpointError if they are another recipe's."""
    weights, spread = checkpoint.weights(), optimizer.spread
    parameters = {name for name, _ in model.named_parameters()}
    with torch.device("meta"):
        wanted = part.tensors(build.empty(model.config))
    for name, tensor in wanted.items():
        if name not in weights or weights[name].shape != tuple(tensor.shape):
            raise RunError(
                f"{checkpoint.folder.path} holds another model: {name} is missing or of another shape",
                do="resume with the recipe of the run (its config.toml)",
            )
    parallel.rest(model)
    for name, tensor in part.tensors(model).items():
        whole = torch.from_numpy(weights[name])
        spread.local(tensor.detach()).copy_(spread.piece(name, whole) if name in parameters else whole)
    optimizer.load({name: torch.from_numpy(array) for name, array in (checkpoint.optimizer() or {}).items()})


def healthy(store: Store, world: World, before: int) -> Checkpoint | None:
    """The newest healthy checkpoint, of a step up to `before` if there is one; the same on all processes."""
    found = store.healthy(before) if world.main else None
    step = world.agreed(-1.0 if found is None else float(found.manifest.step))
    if step < 0:
        return None
    return found if found is not None else store.open(int(step))
