"""The optimizer of a run: groups of parameters, the rule of each, and the moments they keep."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from temaki.base.errors import CheckpointError
from temaki.base.roles import Role
from temaki.optim.adamw import adamw_fused, adamw_step
from temaki.optim.average import Average
from temaki.optim.config import (
    AdamWConfig,
    AverageConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
    SgdConfig,
    SignumConfig,
)
from temaki.optim.groups import Group
from temaki.optim.lion import lion_foreach
from temaki.optim.muon import parts
from temaki.optim.muon_batched import Batched, Moved
from temaki.optim.sgd import sgd_fused, signum_foreach
from temaki.optim.spread import ALONE, Spread


def moments(rule: OptimizerConfig) -> tuple[str, ...]:
    """The names of what a rule keeps for each parameter.

    >>> moments(AdamWConfig()), moments(SgdConfig(momentum=0.0))
    (('m', 'v'), ())
    """
    match rule:
        case AdamWConfig():
            return ("m", "v")
        case MuonConfig() | LionConfig():
            return ("m",)
        case SignumConfig() | SgdConfig():
            return ("m",) if rule.momentum else ()


class Optimizer:
    """Moves the given parameters by their groups' rules; its state is tensors named "<parameter>/<moment>" and "t".

    Moments lie as their parameters do. With an average of the weights the state holds "<parameter>/raw" too: the
    weights that training goes on with, because those of a checkpoint's model are the averaged ones.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        roles: Mapping[str, Role],
        groups: Sequence[Group],
        lr: float,
        average: AverageConfig | None = None,
        spread: Spread = ALONE,
    ):
        self.parameters = dict(parameters)
        self.roles = roles
        self.groups = tuple(groups)
        self.lr = lr
        self.spread = spread
        self.t = 0
        """Updates made."""
        names = [name for group in self.groups for name in group.names]
        assert sorted(names) == sorted(self.parameters), "each trainable parameter belongs to exactly one group"
        self.moments = {
            f"{name}/{moment}": torch.zeros_like(self.parameters[name])
            for group in self.groups
            for name in group.names
            for moment in moments(group.rule)
        }
        self.average = None if average is None else Average(average, self.parameters)
        self._muons = {group.kind: Batched(group.rule) for group in self.groups if isinstance(group.rule, MuonConfig)}

    @torch.no_grad()
    def norms(self, of: Literal["gradient", "weight"]) -> dict[str, float]:
        """The L2 norm of the gradients or parameters of each role, over all processes."""
        found = {}
        for group in self.groups:
            names = list(group.names) if of == "weight" else self._with_gradient(group.names)
            tensors = [self.parameters[name] if of == "weight" else self._gradient(name) for name in names]
            found[group.kind] = self.spread.norm(names, tensors).item()
        return found

    @torch.no_grad()
    def clip(self, limit: float | None) -> float:
        """The global L2 norm of the gradients; above `limit` they are scaled in place by limit / (norm + 1e-6)."""
        names = self._with_gradient(self.parameters)
        gradients = [self._gradient(name) for name in names]
        norm = self.spread.norm(names, gradients).item()
        if limit is not None and norm > limit:
            torch._foreach_mul_([self.spread.local(g) for g in gradients], limit / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def step(self, factor: float, norms: bool = False) -> dict[str, float]:
        """One update of every parameter that has a gradient; `factor` is the schedule's value in 0..1.

        Gives the L2 norm of what was added, by role, where `norms` are asked for; a copy of one role's parameters is
        held for that.
        """
        if self.average is not None and self.t == 0:
            self.average.begin()
        self.t += 1
        found = {}
        for group in self.groups:
            before = [self._local(name).clone() for name in group.names] if norms else []
            self._move(group, self.lr * group.rule.rate * factor)
            if norms:
                torch._foreach_sub_(before, [self._local(name) for name in group.names])
                found[group.kind] = self.spread.norm(group.names, before).item()
        if self.average is not None:
            self.average.update(self.t)
        return found

    def swapped(self) -> AbstractContextManager[None]:
        """Inside, the parameters hold the averaged weights, for validation, samples and saving."""
        if self.average is None:
            return nullcontext()
        if self.t == 0:
            self.average.begin()
        return self.average.swapped()

    def _move(self, group: Group, lr: float) -> None:
        names = self._with_gradient(group.names)
        if isinstance(group.rule, MuonConfig):
            moved = [self._moved(name, group.rule) for name in names]
            self._muons[group.kind].step(moved, lr, self.spread)
            return
        names = [name for name in names if self._local(name).numel()]  # of a shard there may be nothing here
        if not names:
            return
        thetas = [self._local(name) for name in names]
        gs = [self.spread.local(self._gradient(name)) for name in names]
        kept = [[self.spread.local(self.moments[f"{name}/{each}"]) for name in names] for each in moments(group.rule)]
        match group.rule:
            case AdamWConfig() as rule if rule.order == "torch":
                adamw_fused(thetas, gs, kept[0], kept[1], self.t, lr, rule)
            case AdamWConfig() as rule:
                for theta, g, m, v in zip(thetas, gs, *kept, strict=True):
                    adamw_step(theta, g, m, v, self.t, lr, rule)
            case LionConfig() as rule:
                lion_foreach(thetas, gs, kept[0], lr, rule)
            case SignumConfig() as rule:
                signum_foreach(thetas, gs, kept[0] if kept else [], lr, rule)
            case SgdConfig() as rule:
                sgd_fused(thetas, gs, kept[0] if kept else [], lr, rule)

    def _moved(self, name: str, rule: MuonConfig) -> Moved:
        local = self.spread.local
        assert self.parameters[name].ndim > 1, f"{name} is no matrix, and Muon moves matrices alone"
        rows = parts(self.roles[name], rule.per_head)
        return Moved(name, self._local(name), local(self._gradient(name)), local(self.moments[f"{name}/m"]), rows)

    def _local(self, name: str) -> Tensor:
        return self.spread.local(self.parameters[name].detach())

    def _gradient(self, name: str) -> Tensor:
        gradient = self.parameters[name].grad
        assert gradient is not None, f"{name} has no gradient"
        return gradient

    def _with_gradient(self, names: Sequence[str] | Mapping[str, Tensor]) -> list[str]:
        return [name for name in names if self.parameters[name].grad is not None]

    def state(self) -> dict[str, Tensor]:
        """All moments, the raw weights where there is an average, and the count of updates."""
        raw = {} if self.average is None else {f"{name}/raw": x for name, x in self.average.raw().items()}
        return {**self.moments, **raw, "t": torch.tensor(self.t)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take a saved state of whole tensors, after the model took the checkpoint's weights.

        Raises CheckpointError if it is another optimizer's.
        """
        kept = {**self.moments}
        if self.average is not None:
            self.average.begin()  # what the model's file says is the average
            kept |= {f"{name}/raw": parameter for name, parameter in self.parameters.items()}
        wanted = {*kept, "t"}
        if wanted != set(state):
            odd = sorted(wanted ^ set(state))
            raise CheckpointError(
                "the optimizer's state belongs to another recipe",
                found=", ".join(odd[:4]),
                do="resume with the run's own recipe",
            )
        for key, tensor in kept.items():
            name = key.rpartition("/")[0]
            piece = self.spread.piece(name, state[key])
            own = self.spread.local(tensor.detach())
            if own.shape != piece.shape:
                raise CheckpointError(
                    f"the optimizer's state of {name} has another shape",
                    found=str(tuple(state[key].shape)), allowed=str(tuple(tensor.shape)),
                )  # fmt: skip
            own.copy_(piece)
        self.t = int(state["t"])
