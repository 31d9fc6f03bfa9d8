"""The decoder: embedding, blocks, norm, head. Letters: N ids, D width, V vocabulary."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from temaki.base.roles import Role
from temaki.base.rows import Rows
from temaki.model import dropout
from temaki.model.block import Block
from temaki.model.config import DecoderConfig
from temaki.model.heads import Head
from temaki.model.layout import Layout, Memory
from temaki.model.part import Part, roles
from temaki.model.positions import Rotary, input_position
from temaki.model.several import Heads, MedusaHeads, Trunk
from temaki.model.state import ModelState, Seats, State


class Decoder(Part):
    """Rows of ids -> hidden vectors [N, D]; `head.logits` turns those into logits."""

    def __init__(
        self,
        config: DecoderConfig,
        blocks: Sequence[Block],
        norm: nn.Module,
        rotaries: Mapping[str, Rotary],
        heads: Heads | None = None,
    ):
        super().__init__()
        self.config = config
        filling = "tied" if config.tied else "embedding"
        self.embedding = self.add("embedding", config.vocabulary, config.width, role=Role("embedding"), filling=filling)
        self.input_position = input_position(config.input_position, config.width)
        self.dropout = dropout.dropout(config.dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.rotaries = nn.ModuleDict(rotaries)
        self.checkpointing = False
        """Recompute each block's activations in the backward pass instead of keeping them."""
        if config.tied:
            self.head = Head(self.embedding, config.cap)
        else:
            weight = self.add("unembedding", config.vocabulary, config.width, role=Role("head"), filling="head")
            self.head = Head(weight, config.cap)
        self.heads = heads
        """What says further ids; None: nothing does."""
        dropout.number(self)

    def forward(
        self, rows: Rows, state: Seats | None = None, memory: Memory | None = None, ahead: bool = False
    ) -> Tensor:
        """`ahead`: the vectors of the further heads too, after the model's own: [ids, N, D]."""
        layout, before, hidden = self._through(rows, state, memory)
        if not ahead or self.heads is None:
            return hidden
        assert state is None or isinstance(self.heads, MedusaHeads), "decoding, heads with blocks have their own state"
        trunk = Trunk(
            rows, before, hidden, lambda block, x: self._read(block, x, layout, None, memory), self.norm, self.embedding
        )
        return torch.stack([hidden, *self.heads(trunk)])

    def decoded(self, rows: Rows, state: Seats) -> tuple[Tensor, Tensor]:
        """(what the last block read, what the head reads) in decoding: [N, D] both."""
        _, before, hidden = self._through(rows, state, None)
        return before, hidden

    def beside(self, layer: Callable[..., Tensor], x: Tensor, rows: Rows, state: Seats) -> Tensor:
        """x [N, D] read by a layer that is none of the model's own, with a state of its own."""
        angles = {name: rotary(rows.positions, x.dtype) for name, rotary in self.rotaries.items()}
        (own,) = state.state.layers
        found = layer(x, self._layout(rows, angles, state), own, None)
        state.state.advance(state.slots, rows.cuts.diff().tolist())
        return found

    def _through(self, rows: Rows, state: Seats | None, memory: Memory | None) -> tuple[Layout, Tensor, Tensor]:
        """All blocks and the last norm: (layout, what the last block read, what the head reads)."""
        if not torch.compiler.is_compiling() and len(rows.ids):
            self.extend(int(rows.positions.max()) + 1)
        x = F.embedding(rows.ids, self.embedding)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        x = self.dropout(self.input_position(x, rows.positions), rows)
        angles = {name: rotary(rows.positions, x.dtype) for name, rotary in self.rotaries.items()}
        layout = self._layout(rows, angles, state)
        layers = [None] * len(self.blocks) if state is None else state.state.layers
        before = x
        for block, layer in zip(self.blocks, layers, strict=True):
            before, x = x, self._read(block, x, layout, layer, memory)
        if state is not None:
            state.state.advance(state.slots, rows.cuts.diff().tolist())
        return layout, before, self.norm(x)

    def _layout(self, rows: Rows, angles: Mapping[str, tuple[Tensor, Tensor]], state: Seats | None) -> Layout:
        if state is None:
            return Layout(rows, angles)
        lengths = state.state.lengths
        return Layout(rows, angles, state.slots, tuple(lengths[slot] for slot in state.slots))

    def _read(self, block: nn.Module, x: Tensor, layout: Layout, layer: State | None, memory: Memory | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, layout, layer, memory, use_reentrant=False)
        return block(x, layout, layer, memory)

    def extend(self, room: int) -> None:
        """Make the position tables serve `room` positions. Raises ConfigError if fewer were learned."""
        self.input_position.extend(room)
        for rotary in self.rotaries.values():
            rotary.extend(room)  # type: ignore[operator]

    def roles(self) -> Mapping[str, Role]:
        """The role of every parameter, each once; a tied one under its first name."""
        return roles(self)

    def new_state(self, slots: int, room: int, spare: int = 1) -> ModelState:
        """Empty state for `slots` slots of `room` ids; `spare` is the longest draft + 1, for windows."""
        layers = [block.mixer.new_state(slots, room, spare) for block in self.blocks]  # type: ignore[operator, union-attr]
        return ModelState(layers, slots, room)
