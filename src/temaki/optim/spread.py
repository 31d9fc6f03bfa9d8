"""How the processes of a run hold its parameters, seen from one of them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Spread:
    """One process: each parameter is here, whole, so every word is the identity. `shards.Shards` is the other one."""

    rank: int = 0
    size: int = 1
    """Processes, which share the work of Muon."""

    def local(self, x: Tensor) -> Tensor:
        """What this process holds of a parameter, moment or gradient, as a plain tensor that shares its memory."""
        return x

    def whole(self, name: str, x: Tensor) -> Tensor:
        """The whole of parameter `name`, or of a tensor laid out as it is; all processes ask together."""
        return x

    def piece(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of `whole`, a tensor of the shape of the whole parameter `name`."""
        return whole

    def gathered(self, own: Tensor) -> Tensor:
        """The tensors `own` [n, ..] of all processes, in their order: [size n, ..]."""
        return own

    @torch.no_grad()
    def norm(self, names: Sequence[str], tensors: Sequence[Tensor]) -> Tensor:
        """The L2 norm over all entries of tensors laid out as the parameters `names` are, each entry counted once.

        >>> Spread().norm(["w"], [torch.tensor([3.0, 4.0])])
        tensor(5.)
        """
        assert len(names) == len(tensors), "each tensor has a name"
        if not tensors:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


ALONE = Spread()
"""One process."""
