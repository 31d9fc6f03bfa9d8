"""What a process does for `test_distributed_runs.py`: train as one process would, and say how far it is off.

Started with a folder, once a process, with torchrun's variables in the environment. Last it is `temaki train` with the
folder's recipe, since a process of its own would cost as much again to start.
"""

import atexit
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import variants
from temaki.base import dist
from temaki.base.dist import ALONE, ElsewhereError, World
from temaki.base.errors import NonFiniteError
from temaki.base.rows import TokenBatch, grid
from temaki.cli import main as cli
from temaki.model import part
from temaki.optim.config import AdamWConfig, AverageConfig, MuonConfig, OptimConfig
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.train import parallel
from temaki.train.config import NextConfig, ParallelConfig
from temaki.train.objectives import Next
from temaki.train.step import Told, update

MUON = OptimConfig(lr=0.02, matrix=MuonConfig(products="float32"), average=AverageConfig(decay=0.9))
ADAMW = OptimConfig(lr=0.01, matrix=AdamWConfig())
SHARD = ParallelConfig(data="shard", checkpoint_activations=True)
WAYS: list[tuple[str, str, bool, OptimConfig, ParallelConfig]] = [
    ("replicate", "grouped", True, MUON, ParallelConfig()),
    ("replicate, other", "experts", False, ADAMW, ParallelConfig(checkpoint_activations=True)),
    ("replicate, states", "hybrid", True, ADAMW, ParallelConfig()),
    ("shard", "grouped", True, MUON, SHARD),
    ("shard, other", "hybrid", False, ADAMW, ParallelConfig(data="shard")),
    ("shard, experts", "experts", False, MUON, SHARD),
    ("tensor", "grouped", True, MUON, ParallelConfig(tensor=2)),
    ("tensor, biases", "qwen", False, ADAMW, ParallelConfig(tensor=2, checkpoint_activations=True)),
    ("tensor, learned positions", "gpt2", False, MUON, ParallelConfig(tensor=2)),
    ("tensor, slopes", "alibi-window", False, MUON, ParallelConfig(tensor=2)),
]
"""(name, variant, tied, optimizer, parallelism)."""
FOUR: list[tuple[str, str, bool, OptimConfig, ParallelConfig]] = [
    ("replicate and tensor", "grouped", True, MUON, ParallelConfig(tensor=2)),
    ("replicate and tensor, experts", "experts", False, MUON, ParallelConfig(tensor=2)),
    ("shard and tensor", "grouped", True, MUON, ParallelConfig(data="shard", tensor=2, checkpoint_activations=True)),
    ("shard and tensor, other", "qwen", False, ADAMW, ParallelConfig(data="shard", tensor=2)),
]
"""The same for four processes."""


class Made:
    """A model that trains on the rows of its process."""

    def __init__(self, variant: str, tied: bool, optim: OptimConfig, config: ParallelConfig, world: World):
        self.model = variants.model(variant, torch.float64, tied)
        roles = self.model.roles()
        self.applied = parallel.apply(self.model, config, world)
        named = dict(self.model.named_parameters())
        spread = parallel.spread(self.applied, named)
        self.optimizer = Optimizer(named, roles, groups(optim, roles), optim.lr, optim.average, spread)

    def step(self, number: int) -> Told:
        """A step of two micro-batches of four rows, the same rows however many processes read them."""
        world = self.applied.world
        generator = torch.Generator().manual_seed(number)
        micro = [_batch(generator, world) for _ in range(2)]
        return update(self.applied.forward, OBJECTIVE, self.optimizer, micro, 1.0, 0.5, world, norms=True)

    def whole(self) -> dict[str, Tensor]:
        """Everything a save holds: weights and moments."""
        spread, named = self.optimizer.spread, set(self.optimizer.parameters)
        parallel.rest(self.model)
        tensors = {**part.tensors(self.model), **self.optimizer.state()}
        owner = {key: key if key in named else key.rpartition("/")[0] for key in tensors}
        return {
            key: (spread.whole(owner[key], x.detach()) if owner[key] in named else x.detach()).clone()
            for key, x in tensors.items()
        }


OBJECTIVE = Next(NextConfig())


def _batch(generator: torch.Generator, world: World) -> TokenBatch:
    ids = torch.randint(variants.VOCABULARY, (4, 16), generator=generator)
    weights = (torch.rand(4, 16, generator=generator) > 0.3).double()
    own = slice(world.replica * 4 // world.replicas, (world.replica + 1) * 4 // world.replicas)
    return TokenBatch(grid(ids[own]), ids.roll(-1, 1)[own].reshape(-1), weights[own].reshape(-1))


def numbers(told: Told) -> list[float]:
    """All that a step says but the noise, which replicas measure at another size."""
    return [told.loss, told.grad_norm, *told.gradients.values(), *told.weights.values(), *told.updates.values()]


def far(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest relative difference of any tensor; what is zero but for rounding (a key's bias) counts by size."""
    assert set(found) == set(wanted)
    pairs = [(found[name].detach().double(), x.detach().double()) for name, x in wanted.items()]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in pairs)


def equal(met: World) -> list[dict[str, object]]:
    """Each way beside one process."""
    found = []
    for tensor in (1, 2):
        world = dist.join(met, "cpu", tensor)
        for name, variant, tied, optim, config in WAYS if met.size == 2 else FOUR:
            if config.tensor != tensor:
                continue
            one, two = Made(variant, tied, optim, ParallelConfig(), ALONE), Made(variant, tied, optim, config, world)
            told = [(one.step(i), two.step(i)) for i in range(3)]
            pairs = [(a, b) for x, y in told for a, b in zip(numbers(x), numbers(y), strict=True)]
            off = max(abs(a - b) / max(abs(a), 1e-9) for a, b in pairs)
            with parallel.speaking(one.model, one.optimizer), parallel.speaking(two.model, two.optimizer, whole=True):
                ids = torch.arange(20) % variants.VOCABULARY
                said = far({"": two.model(grid(ids[None]))}, {"": one.model(grid(ids[None]))})
            noise = [told[-1][1].noise.small, told[-1][1].noise.small_square] if told[-1][1].noise else []
            weights = far(two.whole(), one.whole())
            found.append({"way": name, "told": off, "weights": weights, "said": said, "noise": noise})
        dist.leave()
    return found


def faults(met: World) -> list[str]:
    """A weight that one process alone holds is not finite: what each process says, and whether anything moved."""
    world, said = dist.join(met, "cpu"), []
    for config in (ParallelConfig(), ParallelConfig(data="shard")):
        made = Made("grouped", False, ADAMW, config, world)
        made.step(0)
        name = "blocks.1.ffn.down"
        with torch.no_grad():
            own = made.optimizer.spread.local(made.optimizer.parameters[name].detach())
            kept = own.clone()
            if not world.main:
                own[0, 0] = float("nan")
        before = made.optimizer.t
        try:
            made.step(1)
        except NonFiniteError as error:
            said.append(f"{error.found.partition('first in ')[2]}, {made.optimizer.t - before} updates")
        with torch.no_grad():
            own.copy_(kept)
        made.step(1)
    dist.leave()
    return [*said, alone(met)]


def alone(met: World) -> str:
    """One gradient that both processes hold is not finite on one of them."""
    made = Made("grouped", False, ADAMW, ParallelConfig(tensor=2), dist.join(met, "cpu", 2))
    if not met.main:
        made.optimizer.parameters["norm.gain"].register_hook(lambda grad: grad * float("nan"))
    try:
        made.step(0)
    except NonFiniteError as error:
        return f"{error.found.rpartition(': ')[2]}, {made.optimizer.t} updates"
    finally:
        dist.leave()
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    met = dist.meet()
    found = {"equal": equal(met), "faults": faults(met), "elsewhere": elsewhere(met)}
    (folder / f"{met.rank}.json").write_text(json.dumps(found))
    sys.argv = ["temaki", "train", str(folder / "recipe.toml"), 'parallel.data="shard"', "--out", str(folder / "two")]
    atexit.register(os._exit, 6)  # after the last word nothing is taken down, since that may abort
    cli.main()


def elsewhere(met: World) -> str:
    """What the other process hears where the main one fails."""

    def fails() -> None:
        raise ValueError("no data")

    try:
        met.first(fails)
    except (ElsewhereError, ValueError) as error:
        return type(error).__name__
    return "nothing"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
