"""Heads that say further ids: the ones after the next. The model's own logits do not know of them.

`ids` hidden vectors stand for each place: the model's own, then one of each head. Head k (1, 2, ..) says the id k
places after the next one. Letters: N ids, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temaki.base.roles import Role
from temaki.base.rows import Rows
from temaki.model.config import FurtherConfig, MedusaHeadsConfig, ParallelHeadsConfig, SequentialHeadsConfig
from temaki.model.heads import Head
from temaki.model.part import Part


@dataclass(frozen=True)
class Trunk:
    """What the model's own path leaves for its heads, and what they borrow of it."""

    rows: Rows
    before: Tensor
    """[N, D]: what the last block read."""
    hidden: Tensor
    """[N, D]: what the model's own head reads."""
    read: Callable[[nn.Module, Tensor], Tensor]
    """A block over the same rows."""
    norm: nn.Module
    """The model's last norm."""
    embedding: Tensor
    """[V, D]."""


class SharingHeads(nn.ModuleList):
    """Heads whose vectors are read by the model's own matrix."""

    def head(self, k: int, own: Head) -> Head:
        """What turns the vectors of head k (0: the model's own) into logits."""
        return own

    def nll(self, own: Head, hidden: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float) -> Tensor:
        """The weighted sum of the losses of the last n of all vectors: hidden [n, N, D], the others [n, N].

        One call over all rows, so that there is one gradient [V, D], however many heads there are.
        """
        return own.nll(hidden.flatten(0, 1), targets.flatten(), weights.flatten(), smooth, z)


class ParallelHeads(SharingHeads):
    """A block each beside the model's last one, under its norm and matrix. Gloeckle et al. 2024, section 2.

    "Better & faster large language models via multi-token prediction": f_h,k(f_s(x)), where the first of these heads
    is the model's own last block.
    """

    def forward(self, trunk: Trunk) -> list[Tensor]:
        """The vectors of each head: [N, D]."""
        return [trunk.norm(trunk.read(block, trunk.before)) for block in self]


class SequentialHeads(SharingHeads):
    """Modules in a chain, each of which reads one id more. DeepSeek-AI 2024, "DeepSeek-V3", section 2.2, (21)-(23)."""

    def forward(self, trunk: Trunk) -> list[Tensor]:
        """The vectors of each head: [N, D]. Where a piece has no such id the vectors mean nothing."""
        h, found = trunk.hidden, []
        for k, module in enumerate(self, 1):
            h = module(h, F.embedding(trunk.rows.ids.roll(-k), trunk.embedding), trunk.read)
            found.append(module.norm(h))  # type: ignore[operator]
        return found


class SequentialHead(Part):
    """block(M [norm(h); norm(e)]): h [N, D] of the module before, e [N, D] of the id that is known by now."""

    def __init__(self, width: int, block: nn.Module, norm: Callable[[], nn.Module]):
        super().__init__()
        self.hidden_norm = norm()
        self.id_norm = norm()
        self.joined = self.add("joined", width, 2 * width, role=Role("matrix"), filling="matrix")
        self.block = block
        self.norm = norm()

    def forward(self, h: Tensor, e: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        joined = torch.cat((self.hidden_norm(h), self.id_norm(e)), -1)
        return read(self.block, F.linear(joined, self.joined))


class MedusaHeads(nn.ModuleList):
    """A residual layer and a matrix each over the model's own vectors. Cai et al. 2024, "Medusa", section 2.1.1."""

    def forward(self, trunk: Trunk) -> list[Tensor]:
        """The vectors of each head: [N, D]."""
        return [head(trunk.hidden) for head in self]

    def head(self, k: int, own: Head) -> Head:
        """What turns the vectors of head k (0: the model's own) into logits."""
        return own if k == 0 else Head(self[k - 1].get_parameter("unembedding"), own.cap)

    def nll(self, own: Head, hidden: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float) -> Tensor:
        """The weighted sum of the losses of the last n of all vectors: hidden [n, N, D], the others [n, N]."""
        first = 1 + len(self) - len(hidden)
        each = zip(hidden, targets, weights, strict=True)
        return torch.stack([self.head(k, own).nll(*row, smooth, z) for k, row in enumerate(each, first)]).sum()


class MedusaHead(Part):
    """SiLU(W1 h) + h, and W2, its unembedding; at first W1 = 0 and W2 is the model's own (`begin`)."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.residual = self.add("residual", width, width, role=Role("matrix"), filling="zeros")
        self.unembedding = self.add("unembedding", vocabulary, width, role=Role("head"), filling="head")

    def forward(self, h: Tensor) -> Tensor:
        return F.silu(F.linear(h, self.residual)) + h


Heads = ParallelHeads | SequentialHeads | MedusaHeads


def heads(
    config: FurtherConfig | None,
    width: int,
    vocabulary: int,
    block: Callable[[], nn.Module],
    norm: Callable[[], nn.Module],
) -> Heads | None:
    """The heads of a model, None where it has none; `block` and `norm` make another of its last kind."""
    if config is None:
        return None
    each = range(config.ids - 1)
    match config.heads:
        case ParallelHeadsConfig():
            return ParallelHeads(block() for _ in each)
        case SequentialHeadsConfig():
            return SequentialHeads(SequentialHead(width, block(), norm) for _ in each)
        case MedusaHeadsConfig():
            return MedusaHeads(MedusaHead(width, vocabulary) for _ in each)


@torch.no_grad()
def begin(heads: Heads | None, own: Head) -> None:
    """Heads with matrices of their own begin with the model's, once that has its values."""
    if isinstance(heads, MedusaHeads):
        for k in range(1, 1 + len(heads)):
            heads.head(k, own).weight.copy_(own.weight)


def ahead(values: Tensor, positions: Tensor, ids: int) -> tuple[Tensor, Tensor]:
    """Each place's value and those of the ids - 1 places after it, and which of these are of its piece: [ids, N] each.

    values [N]; positions [N], from 0 in every piece: k places on is the same piece where the position is k more.

    >>> found, same = ahead(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 0]), 2)
    >>> found.tolist(), same.tolist()
    ([[5, 6, 7], [6, 7, 5]], [[True, True, True], [True, False, False]])
    """
    found = torch.stack([values.roll(-k) for k in range(ids)])
    same = torch.stack([positions.roll(-k) == positions + k for k in range(ids)])
    return found, same
