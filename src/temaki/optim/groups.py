"""From the roles a model declares to groups of parameters, each trainable parameter exactly once."""

from collections.abc import Mapping
from dataclasses import dataclass

from temaki.base.roles import Role
from temaki.optim.config import OptimConfig, OptimizerConfig
from temaki.optim.transfer import carried


@dataclass(frozen=True)
class Group:
    """Parameters that move by one rule."""

    kind: str
    """The role they share."""
    rule: OptimizerConfig
    names: tuple[str, ...]


def groups(config: OptimConfig, roles: Mapping[str, Role], narrower: float = 1.0) -> tuple[Group, ...]:
    """One group a role that the model has, in a fixed order of roles and names.

    narrower: the width that the rates were found at, over the model's own; see `transfer.py`.
    """
    rules: dict[str, OptimizerConfig] = {
        "matrix": config.matrix,
        "embedding": config.embedding,
        "head": config.head,
        "vector": config.vector,
        "dynamics": config.dynamics,
    }
    found = tuple(
        Group(kind, carried(rule, kind, narrower), tuple(name for name, role in roles.items() if role.kind == kind))
        for kind, rule in rules.items()
    )
    return tuple(group for group in found if group.names)
