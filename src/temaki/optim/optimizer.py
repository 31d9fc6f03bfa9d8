"""The optimizer of a run: groups of parameters, the rule of each, and the moments they keep."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from temaki.base.errors import CheckpointError
from temaki.base.roles import Role
from temaki.optim.adamw import adamw_fused, adamw_step
from temaki.optim.config import AdamWConfig, MuonConfig
from temaki.optim.groups import Group
from temaki.optim.muon import muon_step

_MOMENTS = {"adamw": ("m", "v"), "muon": ("m",)}


class Optimizer:
    """Moves the given parameters by their groups' rules; its state is tensors named "<parameter>/<moment>" and "t"."""

    def __init__(self, parameters: Mapping[str, Tensor], roles: Mapping[str, Role], groups: Sequence[Group], lr: float):
        self.parameters = dict(parameters)
        self.roles = roles
        self.groups = tuple(groups)
        self.lr = lr
        self.t = 0
        """Updates made."""
        names = [name for group in self.groups for name in group.names]
        assert sorted(names) == sorted(self.parameters), "each trainable parameter belongs to exactly one group"
        self.moments = {
            f"{name}/{moment}": torch.zeros_like(self.parameters[name])
            for group in self.groups
            for name in group.names
            for moment in _MOMENTS[group.rule.kind]
        }

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update of every parameter that has a gradient; `factor` is the schedule's value in 0..1."""
        self.t += 1
        for group in self.groups:
            names = [name for name in group.names if self.parameters[name].grad is not None]
            lr = self.lr * group.rule.rate * factor
            match group.rule:
                case AdamWConfig() as rule:
                    self._adamw(names, lr, rule)
                case MuonConfig() as rule:
                    self._muon(names, lr, rule)

    def _adamw(self, names: Sequence[str], lr: float, rule: AdamWConfig) -> None:
        thetas = [self.parameters[name] for name in names]
        gs = [theta.grad for theta in thetas if theta.grad is not None]
        ms, vs = ([self.moments[f"{name}/{moment}"] for name in names] for moment in ("m", "v"))
        if rule.order == "torch" and thetas:
            adamw_fused(thetas, gs, ms, vs, self.t, lr, rule)
            return
        for theta, g, m, v in zip(thetas, gs, ms, vs, strict=True):
            adamw_step(theta, g, m, v, self.t, lr, rule)

    def _muon(self, names: Sequence[str], lr: float, rule: MuonConfig) -> None:
        thetas = [self.parameters[name] for name in names]
        gs = [theta.grad for theta in thetas if theta.grad is not None]
        ms = [self.moments[f"{name}/m"] for name in names]
        muon_step(thetas, gs, ms, lr, rule, [self.roles[name].parts for name in names])

    def state(self) -> dict[str, Tensor]:
        """All moments and the count of updates."""
        return {**self.moments, "t": torch.tensor(self.t)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take a saved state. Raises CheckpointError if it is another optimizer's."""
        wanted = {*self.moments, "t"}
        if wanted != set(state):
            odd = sorted(wanted ^ set(state))
            raise CheckpointError(
                "the optimizer's state belongs to another recipe",
                found=", ".join(odd[:4]),
                do="resume with the run's own recipe",
            )
        for name, moment in self.moments.items():
            if moment.shape != state[name].shape:
                raise CheckpointError(
                    f"the optimizer's state of {name} has another shape",
                    found=str(tuple(state[name].shape)), allowed=str(tuple(moment.shape)),
                )  # fmt: skip
            moment.copy_(state[name])
        self.t = int(state["t"])


@torch.no_grad()
def clip_(gradients: Sequence[Tensor], limit: float | None) -> Tensor:
    """The global L2 norm of the gradients; above `limit` they are scaled in place by limit / (norm + 1e-6).

    >>> g = torch.tensor([3.0, 4.0]); clip_([g], 1.0), g
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    norms = [torch.linalg.vector_norm(g) for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if limit is not None and bool(norm > limit):
        for g in gradients:
            g.mul_(limit / (norm + 1e-6))
    return norm
