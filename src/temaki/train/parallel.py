"""Parallelism, applied to a finished model of one process, in one order; on one process it is the identity.

1. Tensor parallel: T processes share the heads of each attention and the hidden columns of each feed-forward layer.
   Shoeybi et al. 2019, "Megatron-LM", section 3: between two matrices nothing is said, around them the identity with a
   sum in the backward pass and a sum with the identity in the backward pass. Embedding, head, norms, experts and
   recurrences stay whole on each.
2. Activation checkpointing. 3. torch.compile.
4. The D processes with other rows: DDP (each holds all) or FSDP2 (each holds a share of every parameter). Gradients are
   summed, never averaged: the loss is divided by the counts of all rows before.

Letters: D and T as in `base/dist.py`; N ids, W width.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from temaki.base.dist import World
from temaki.base.errors import ConfigError
from temaki.model.attention import Attention
from temaki.model.block import Block
from temaki.model.build import Model
from temaki.model.config import (
    AttentionConfig,
    BatchNormConfig,
    BucketsConfig,
    ExpertsConfig,
    SoftmaxConfig,
    ffn_width,
)
from temaki.model.ffn import Ffn
from temaki.model.part import leave_uncompiled
from temaki.optim import spread as spreads
from temaki.optim.optimizer import Optimizer
from temaki.optim.shards import Shards
from temaki.optim.spread import Spread
from temaki.train.config import ParallelConfig, RunConfig


@dataclass(frozen=True)
class Cut:
    """How T processes share a parameter: each section of an axis is cut in T equal runs, and process i holds run i.

    >>> cut = Cut(0, (4, 2))
    >>> cut.take(torch.arange(6), 1, 2)
    tensor([2, 3, 5])
    >>> cut.join([cut.take(torch.arange(6), i, 2) for i in range(2)])
    tensor([0, 1, 2, 3, 4, 5])
    """

    axis: int
    sections: tuple[int, ...]
    """Sizes of the whole's sections: rows of q, of k and of v."""

    def take(self, whole: Tensor, at: int, of: int) -> Tensor:
        """What process `at` holds of a whole."""
        return torch.cat([part.chunk(of, self.axis)[at] for part in whole.split(self.sections, self.axis)], self.axis)

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The inverse of `take` on all."""
        sizes = [section // len(pieces) for section in self.sections]
        each = [piece.split(sizes, self.axis) for piece in pieces]
        return torch.cat([run for section in zip(*each, strict=True) for run in section], self.axis)


@dataclass(frozen=True)
class Applied:
    """A model made parallel."""

    forward: Model
    """What a step calls; it shares all parameters with the model."""
    world: World
    cuts: Mapping[str, Cut]
    """How the parameters that are shared by heads and hidden columns were cut, by name."""


def apply(model: Model, config: ParallelConfig, world: World) -> Applied:
    """Make a finished model parallel, in place; parameters keep their names, and become this process's pieces."""
    cuts = {} if world.tensor is None else share(model, world.tensor)
    model.checkpointing = config.checkpoint_activations
    if world.data is not None and config.data == "shard":
        _shard(model, world.data, config.compile)
        return Applied(model, world, cuts)
    forward = _compiled(model) if config.compile else model
    if world.data is not None:
        ddp = _replicated(forward, world.data)
        forward, world = _calling(model, ddp), replace(world, hold=ddp.no_sync)
    return Applied(forward, world, cuts)


def spread(applied: Applied, parameters: Mapping[str, Tensor]) -> Spread:
    """How the processes hold the parameters, for the optimizer and for saves."""
    world, cuts = applied.world, applied.cuts
    if world.size == 1:
        return spreads.ALONE
    mesh = world.tensor
    if mesh is None:
        return Shards(world, dict(parameters))

    def gather(name: str, piece: Tensor) -> Tensor:
        if name not in cuts:
            return piece
        found = [torch.empty_like(piece, memory_format=torch.contiguous_format) for _ in range(mesh.size())]
        dist.all_gather(found, piece.contiguous(), group=mesh.get_group())
        return cuts[name].join(found)

    def scatter(name: str, whole: Tensor) -> Tensor:
        return cuts[name].take(whole, mesh.get_local_rank(), mesh.size()) if name in cuts else whole

    return Shards(world, dict(parameters), cuts, gather, scatter)


def check(config: RunConfig, world: World) -> None:
    """Raise ConfigError for a recipe whose rows, heads or hidden columns cannot be shared by these processes."""
    tensor, batch = config.parallel.tensor, config.batch
    if world.size % tensor:
        raise ConfigError(
            f"parallel.tensor = {tensor} does not go with {world.size} process{'es' if world.size > 1 else ''}",
            allowed=_divisors(world.size),
            do="start the run with torchrun --nproc-per-node N, N a multiple of parallel.tensor",
        )
    replicas, rows = world.size // tensor, batch.micro_rows
    if rows % replicas:
        named = "batch.tokens" if batch.micro is None else "batch.micro"
        raise ConfigError(
            f"{named} = {rows * batch.context} in rows of {batch.context} ids cannot be shared by {replicas} replicas",
            found=f"rows: {rows}",
            allowed=f"replicas: {_divisors(rows)}",
            do=f"set {named} to a multiple of {replicas * batch.context}, or start another number of processes",
        )
    if replicas > 1 and any(isinstance(block.norm, BatchNormConfig) for block in config.model.pattern):
        raise ConfigError(
            "batch norm takes its moments over the rows of one process, so several would learn another model",
            found=f"{replicas} replicas", allowed="1, or norms of the kinds rms, layer, none",
            do="start one process, or choose another model.pattern.norm",
        )  # fmt: skip
    for block in config.model.blocks:
        if isinstance(block.mixer, AttentionConfig):
            _shares(block.mixer, tensor)
            _divides("heads", block.mixer.heads, tensor)
            _divides("kv_heads", block.mixer.kv_heads or block.mixer.heads, tensor)
        if not isinstance(block.ffn, ExpertsConfig):
            _divides("the hidden width", ffn_width(block.ffn, config.model.width), tensor)


def _shares(mixer: AttentionConfig, tensor: int) -> None:
    """Raise ConfigError for parameters a head that are not shared by processes."""
    of_heads = {
        f"the map {mixer.map.kind}": not isinstance(mixer.map, SoftmaxConfig),
        f"positions of kind {mixer.position.kind}": isinstance(mixer.position, BucketsConfig),
    }
    for name, found in of_heads.items():
        if found and tensor > 1:
            raise ConfigError(
                f"parallel.tensor = {tensor} shares the heads of softmax attention alone", found=name,
                allowed="parallel.tensor = 1", do="share rows instead: leave parallel.tensor out",
            )  # fmt: skip


def _divides(name: str, count: int, tensor: int) -> None:
    if count % tensor:
        raise ConfigError(
            f"parallel.tensor = {tensor} does not divide {name}", found=f"{name} = {count}", allowed=_divisors(count),
            do="choose another parallel.tensor, or another shape",
        )  # fmt: skip


def _divisors(count: int) -> str:
    return ", ".join(str(each) for each in range(1, count + 1) if count % each == 0)


# ---- tensor parallel ------------------------------------------------------------------------------------------------


def share(model: nn.Module, mesh: DeviceMesh) -> dict[str, Cut]:
    """Leave each attention and feed-forward layer its share of heads and hidden columns; how parameters were cut."""
    cuts: dict[str, Cut] = {}
    for path, module in model.named_modules():
        if isinstance(module, Attention):
            found = _share_attention(module, mesh)
        elif isinstance(module, Ffn):
            found = _share_ffn(module, mesh)
        else:
            continue
        cuts |= {f"{path}.{name}": cut for name, cut in found.items()}
    return cuts


def _share_attention(module: Attention, mesh: DeviceMesh) -> dict[str, Cut]:
    """Heads [H] and their groups [G] in T runs: rows of q, k and v, columns of the output projection."""
    at, of = mesh.get_local_rank(), mesh.size()
    parts = (module.heads * module.size, module.groups * module.size, module.groups * module.size)
    cuts = {"qkv": Cut(0, parts), "out": Cut(1, parts[:1])}
    if module.qkv_bias is not None:
        cuts["qkv_bias"] = Cut(0, parts)
    _cut(module, cuts, at, of)
    module.heads, module.groups = module.heads // of, module.groups // of
    if module.sight.slopes is not None:
        slopes = module.sight.slopes[at * module.heads : (at + 1) * module.heads]
        module.sight = replace(module.sight, slopes=slopes)
    _surround(module, mesh, whole=("q_gain", "k_gain"), last="out_bias")
    return cuts


def _share_ffn(module: Ffn, mesh: DeviceMesh) -> dict[str, Cut]:
    """Hidden columns in T runs: rows of `up` (of gate and value each), columns of `down`."""
    rows = module.own_roles["up"].parts or (module.up.shape[0],)
    cuts = {"up": Cut(0, rows), "down": Cut(1, (module.down.shape[1],))}
    if module.up_bias is not None:
        cuts["up_bias"] = Cut(0, rows)
    _cut(module, cuts, mesh.get_local_rank(), mesh.size())
    _surround(module, mesh, whole=(), last="down_bias")
    return cuts


@torch.no_grad()
def _cut(module: nn.Module, cuts: Mapping[str, Cut], at: int, of: int) -> None:
    for name, cut in cuts.items():
        old = module.get_parameter(name)
        setattr(module, name, nn.Parameter(cut.take(old, at, of).clone(), old.requires_grad))


def _surround(module: nn.Module, mesh: DeviceMesh, whole: tuple[str, ...], last: str) -> None:
    """Let a layer whose matrices are shared begin and end with the word between its processes.

    whole: parameters that all hold and each uses for its own heads, so that their gradients are to be summed; last: the
    bias added after the sum, once.
    """
    inside, own = module.forward, module._parameters

    def forward(x: Tensor, *rest: Any) -> Tensor:
        bias = own.get(last)
        given: dict[str, Any] = {name: _Enter.apply(own[name], mesh) for name in whole if own.get(name) is not None}
        if bias is not None:
            given[last] = None
        with _holding(own, given):
            y = inside(_Enter.apply(x, mesh), *rest)
        y = _Leave.apply(y, mesh)
        return y if bias is None else y + bias

    module.forward = torch.compiler.disable(forward, recursive=False)


@contextmanager
def _holding(own: dict[str, Any], given: Mapping[str, Any]) -> Iterator[None]:
    """A layer's parameters with some of them replaced."""
    before = {name: own[name] for name in given}
    own.update(given)
    try:
        yield
    finally:
        own.update(before)


class _Enter(torch.autograd.Function):
    """The identity; the backward pass sums over the T processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:  # type: ignore[override]
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _summed(grad, ctx.mesh), None


class _Leave(torch.autograd.Function):
    """The sum over the T processes; the backward pass is the identity."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, mesh: DeviceMesh) -> Tensor:  # type: ignore[override]
        return _summed(y, mesh)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def _summed(x: Tensor, mesh: DeviceMesh) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=mesh.get_group())
    return x


# ---- other rows -----------------------------------------------------------------------------------------------------


def _compiled(model: Model) -> Model:
    """A model that shares all its parts with this one and runs compiled; shapes other than a step's stay with this."""
    leave_uncompiled(model)
    twin = copy.copy(model)
    twin.compile(dynamic=False)
    return twin


def _replicated(model: Model, mesh: DeviceMesh) -> DistributedDataParallel:
    """The model with gradients that are summed over the D processes while the backward pass goes on."""
    group = mesh.get_group()
    ddp = DistributedDataParallel(
        model, process_group=group, forward_sync_buffers=False, gradient_as_bucket_view=True, init_sync=False
    )

    def summed(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        assert work is not None, "an asynchronous call gives what to wait for"
        return work.get_future().then(lambda done: done.value()[0])

    ddp.register_comm_hook(None, summed)
    return ddp


def _calling(model: Model, ddp: DistributedDataParallel) -> Model:
    """A model that shares all its parts with this one and is called through DDP."""
    twin = copy.copy(model)
    twin.forward = lambda *given, **named: ddp(*given, **named)
    return twin


def _shard(model: Model, mesh: DeviceMesh, compiled: bool) -> None:
    """Leave this process a share of each parameter: block by block, then what is left; gradients are summed."""
    if compiled:
        leave_uncompiled(model)
    for module in list(model.modules()):
        if isinstance(module, Block):
            if compiled:
                module.compile()
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the head reads its matrix after the forward
    for module in _shards(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _shards(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def rest(model: nn.Module) -> None:
    """Forget what was gathered of other processes' shares: a forward without a backward leaves the root's."""
    for module in _shards(model):
        module.reshard()


@contextmanager
def speaking(model: Model, optimizer: Optimizer, whole: bool = False) -> Iterator[None]:
    """The model as it is judged and heard, not as it learns: with averaged weights where there are some, not compiled.

    whole: every process holds all of it meanwhile, which writing id after id needs. All processes enter and leave.
    """
    rest(model)
    with optimizer.swapped(), _whole(model) if whole else nullcontext(), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            rest(model)


@contextmanager
def _whole(model: Model) -> Iterator[None]:
    blocks = [module for module in _shards(model) if module is not model]
    for module in blocks:
        module.set_reshard_after_forward(False, recurse=False)
    for module in _shards(model):
        module.unshard()
    try:
        yield
    finally:
        for module in blocks:
            module.set_reshard_after_forward(True, recurse=False)
