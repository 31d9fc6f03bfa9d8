"""A mixture of experts: each id is read by a few of many feed-forward layers, chosen by a router.

Shazeer et al. 2017, "Outrageously large neural networks", section 2; Jiang et al. 2024, "Mixtral of experts", section
2.1. Balanced by a bias on the choice that follows the loads: Wang et al. 2024, "Auxiliary-loss-free load balancing",
algorithm 1. Letters: N ids, D width, F hidden width, E experts, k experts an id.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from temaki.base.roles import Role
from temaki.model.config import ExpertsConfig, ffn_width
from temaki.model.ffn import activation, gated, is_gated, plain
from temaki.model.part import Part


def route(x: Tensor, router: Tensor, bias: Tensor, top: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The experts of each id and their weights: x [N, D], router [E, D], bias [E] -> int64 [N, k], [N, k].

    p = softmax(x router^T) over all experts, in float32 or better. Those with the largest p + bias are chosen; the
    weights are their p alone, divided by its sum over the chosen if `renormalise`.

    >>> route(torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0], [1.0]]), torch.zeros(3), 2, True)
    (tensor([[0, 2]]), tensor([[0.7311, 0.2689]]))
    """
    scores = F.linear(x, router)
    p = (scores if scores.dtype == torch.float64 else scores.float()).softmax(-1)
    chosen = (p.detach() + bias).topk(top, -1).indices
    weights = p.gather(-1, chosen)
    return chosen, weights / weights.sum(-1, keepdim=True) if renormalise else weights


def balanced(bias: Tensor, loads: Tensor, step: float) -> Tensor:
    """bias + step * sign(mean load - load): [E]. An expert that is chosen too often gets less.

    >>> balanced(torch.zeros(3), torch.tensor([5, 2, 2]), 0.5)
    tensor([-0.5000,  0.5000,  0.5000])
    """
    loads = loads.to(bias)
    return bias + step * (loads.mean() - loads).sign()


class Experts(Part):
    """Stacked `gated` or `plain` layers behind one router; `settle` moves the bias of the choice.

    What is chosen is counted in the backward pass of training, so that activations computed anew count once and a
    forward that teaches nothing does not count.
    """

    bias: Tensor
    uncompiled = ("forward",)  # how many ids an expert reads is data

    def __init__(self, config: ExpertsConfig, width: int):
        super().__init__()
        self.config = config
        count, hidden, bias = config.experts, ffn_width(config.expert, width), config.expert.bias
        parts = (hidden, hidden) if is_gated(config.expert) else (hidden,)
        rows = sum(parts)
        self.formula = gated if len(parts) == 2 else plain
        self.activation = activation(config.expert)
        self.router = self.add("router", count, width, role=Role("matrix"), filling="matrix")
        self.up = self.add("up", count, rows, width, role=Role("matrix", parts * count), filling="matrix")
        self.down = self.add("down", count, width, hidden, role=Role("matrix", (width,) * count), filling="out")
        self.up_bias = self.add("up_bias", count, rows, role=Role("vector"), filling="zeros") if bias else None
        self.down_bias = self.add("down_bias", count, width, role=Role("vector"), filling="zeros") if bias else None
        self.register_buffer("bias", torch.zeros(count, dtype=torch.float32))
        self.loads = Loads()

    def forward(self, x: Tensor) -> Tensor:
        top = self.config.top
        chosen, weights = route(x, self.router, self.bias, top, self.config.renormalise)  # [N, k]
        flat = chosen.reshape(-1)
        order = flat.argsort(stable=True)  # by expert
        places = order.argsort()
        loads = flat.bincount(minlength=self.config.experts)
        if self.training and torch.is_grad_enabled():
            weights = _Counted.apply(weights, loads, self.loads)
        read = _Spread.apply(x, order, places, top)  # [N k, D], by expert
        said = _Spread.apply(self._each(read, loads.tolist()), places, order, 1)  # [N k, D], by id
        return (weights.to(said.dtype)[:, None] @ said.unflatten(0, (-1, top))).squeeze(1)

    def _each(self, x: Tensor, loads: list[int]) -> Tensor:
        """Every expert on its own ids, which stand together: [M, D] -> [M, D]."""
        no_bias = (None,) * len(loads)
        up_bias = no_bias if self.up_bias is None else self.up_bias.unbind()
        down_bias = no_bias if self.down_bias is None else self.down_bias.unbind()
        weights = zip(x.split(loads), self.up.unbind(), self.down.unbind(), up_bias, down_bias, strict=True)
        return torch.cat([self.formula(part, up, down, self.activation, a, b) for part, up, down, a, b in weights])

    @torch.no_grad()
    def settle(self, others: DeviceMesh | None = None) -> None:
        """Move the bias by the loads since the last update and forget them.

        others: the processes with other rows, whose loads are added; all settle, also one that read nothing.
        """
        total = self.loads.take()
        if others is not None:
            total = torch.zeros_like(self.bias, dtype=torch.int64) if total is None else total
            dist.all_reduce(total, group=others.get_group())
        if total is not None:
            self.bias.copy_(balanced(self.bias, total, self.config.balance))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Experts":
        """`.to` moves the bias with the rest, but it stays float32: it moves by small steps."""
        bias = self.bias
        super()._apply(fn, recurse)
        self.bias = bias.to(self.bias.device)
        return self


class Loads:
    """How often each expert was chosen since the last update."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        """int64 [E]."""

    def add(self, loads: Tensor) -> None:
        self.total = loads if self.total is None else self.total + loads

    def take(self) -> Tensor | None:
        """The sum, which is forgotten."""
        total, self.total = self.total, None
        return total


def settle(model: nn.Module, others: DeviceMesh | None = None) -> None:
    """After an update: every mixture of experts of the model moves the bias of its choice."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.settle(others)


def forget(model: nn.Module) -> None:
    """After an update that was refused: what was chosen in it does not count."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.loads.take()


class _Counted(torch.autograd.Function):
    """The identity; its backward adds the loads to a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loads: Tensor, into: Loads) -> Tensor:  # type: ignore[override]
        ctx.loads, ctx.into = loads, into
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.into.add(ctx.loads)
        return grad, None, None


class _Spread(torch.autograd.Function):
    """Each row of x [N, D] `times` over, row i at places[i * times ..]: [N * times, D], `order` inverse to `places`.

    A gather in both directions: the gradient is summed in the order of the rows, whatever else the call holds.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor, times: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(places)
        ctx.times = times
        return x.index_select(0, order if times == 1 else order // times)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        rows = grad.index_select(0, places)
        return rows if ctx.times == 1 else rows.unflatten(0, (-1, ctx.times)).sum(1), None, None, None
