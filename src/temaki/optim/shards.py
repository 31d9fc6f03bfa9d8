"""Parameters spread over processes: shards of FSDP2 (DTensors), pieces of tensor parallelism, or copies (DDP).

Only this file of `optim/` knows DTensors.
"""

from collections.abc import Callable, Collection, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from temaki.base.dist import World
from temaki.optim.spread import Spread

Reshape = Callable[[str, Tensor], Tensor]


def _same(_name: str, x: Tensor) -> Tensor:
    return x


class Shards(Spread):
    """The parameters of a model as `train/parallel` laid them out."""

    def __init__(
        self,
        world: World,
        parameters: dict[str, Tensor],
        pieces: Collection[str] = (),
        gather: Reshape = _same,
        scatter: Reshape = _same,
    ):
        """pieces: the parameters of which each process of `world.tensor` holds another part.

        gather(name, part) gives the whole of such a parameter from all the processes of `world.tensor`, scatter(name,
        whole) this process's part of it. Both leave other parameters as they are.
        """
        self.world = world
        self.rank, self.size = world.rank, world.size
        self.parameters = parameters
        self.pieces = frozenset(pieces)
        self.gather, self.scatter = gather, scatter

    def local(self, x: Tensor) -> Tensor:
        return x.to_local() if isinstance(x, DTensor) else x

    @torch.no_grad()
    def whole(self, name: str, x: Tensor) -> Tensor:
        """As in `Spread`; x is a DTensor, or a plain tensor of what this process holds."""
        like = self.parameters[name]
        if isinstance(like, DTensor) and not isinstance(x, DTensor):
            x = DTensor.from_local(
                x, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
        return self.gather(name, x.full_tensor() if isinstance(x, DTensor) else x)

    @torch.no_grad()
    def piece(self, name: str, whole: Tensor) -> Tensor:
        like, part = self.parameters[name], self.scatter(name, whole)
        if not isinstance(like, DTensor):
            return part
        return distribute_tensor(part.contiguous(), like.device_mesh, like.placements, src_data_rank=None).to_local()

    def gathered(self, own: Tensor) -> Tensor:
        """As in `Spread`; the bits travel as integers, which every backend carries."""
        bits = own.contiguous().view(torch.uint8)
        found = [torch.empty_like(bits) for _ in range(self.size)]
        dist.all_gather(found, bits)
        return torch.cat(found).view(own.dtype)

    @torch.no_grad()
    def norm(self, names: Sequence[str], tensors: Sequence[Tensor]) -> Tensor:
        """As in `Spread`: squares in float64, those of shards and pieces summed over who holds the others."""
        sums = torch.zeros(4, dtype=torch.float64)  # by (sharded, piece): 2 sharded + piece
        for name, tensor in zip(names, tensors, strict=True):
            like = self.parameters[name]
            sharded = isinstance(like, DTensor) and any(isinstance(p, Shard) for p in like.placements)
            square = torch.linalg.vector_norm(self.local(tensor)).double().square()
            sums[2 * sharded + (name in self.pieces)] += square.cpu()
        return self._total(sums).sum().sqrt()

    def _total(self, sums: Tensor) -> Tensor:
        world = self.world
        for mesh, rows in ((world.data, [2, 3]), (world.tensor, [1, 3])):
            if mesh is not None:
                part = sums[rows].to(mesh.device_type)
                dist.all_reduce(part, group=mesh.get_group())
                sums[rows] = part.cpu()
        return sums
