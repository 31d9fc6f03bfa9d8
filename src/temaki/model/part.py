"""`Part`: a module whose every parameter has a role (what it is to an optimizer) and a filling (its initial values).

The role and the filling are said once, where the parameter is made; `roles` collects them for a whole model.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from temaki.base.roles import Role

Filling = Literal["matrix", "out", "embedding", "tied", "head", "ones", "zeros", "given"]


class Part(nn.Module):
    """A module that declares role and filling with each parameter."""

    uncompiled: ClassVar[tuple[str, ...]] = ()
    """Methods that `torch.compile` is to leave alone, see `leave_uncompiled`."""

    def __init__(self) -> None:
        super().__init__()
        self.own_roles: dict[str, Role] = {}
        self.fillings: dict[str, Filling] = {}

    def add(self, name: str, *shape: int, role: Role, filling: Filling, value: Tensor | None = None) -> nn.Parameter:
        """Make and register the parameter `name`; `value` goes with the filling "given"."""
        parameter = nn.Parameter(torch.empty(shape) if value is None else value)
        self.register_parameter(name, parameter)
        self.own_roles[name] = role
        self.fillings[name] = filling
        return parameter


def leave_uncompiled(model: nn.Module) -> None:
    """Before a model is compiled: keep the compiler out of the methods that say so.

    Said by name and not by a decorator, because torch loads its compiler (0.9 s) to decorate.
    """
    for module in model.modules():
        if isinstance(module, Part):
            for name in module.uncompiled:
                setattr(module, name, torch.compiler.disable(getattr(module, name)))


def roles(model: nn.Module) -> Mapping[str, Role]:
    """The role of every parameter of a model, each once; a tied one under its first name."""
    found = {
        f"{path}.{name}" if path else name: role
        for path, module in model.named_modules()
        if isinstance(module, Part)
        for name, role in module.own_roles.items()
    }
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in names if name not in found]
    assert not missing, f"parameters without a role: {missing}"
    return {name: found[name] for name in names}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model: every parameter once, and the buffers that belong to its state."""
    saved = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}
