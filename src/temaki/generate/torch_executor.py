"""Any torch model as an executor: the one file here that loads torch. Letters: V vocabulary, M wanted
places."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from temaki.base import rows
from temaki.base.errors import GenerationError
from temaki.generate.executor import Answer, Saved, Work
from temaki.generate.heads import HeadsState
from temaki.model.build import Model
from temaki.model.several import ParallelHeads, SequentialHeads
from temaki.model.several_state import SeveralState

HEADS = "heads/"
"""What heads of further ids remember, among the names of a saved slot."""


class TorchExecutor:
    """A model and its state for `slots` slots of `room` ids, on the model's own device and in its own dtype.

    The model is used as it is: neither its mode nor its weights are touched, so a run in training may sample
    from it. Where a layer has mask = "prefix", the first ids that a slot reads are its prefix, so they must be all of
    the prompt. spare: the longest draft + 1. ahead: also keep what the model's heads of further ids need to draft.
    All is done in torch's inference mode, which saves a tenth of what a small model's decoding costs beside its
    products; so position tables are made before, for the whole room.

    >>> import numpy as np
    >>> from temaki.model import build, config
    >>> block = config.BlockConfig(mixer=config.AttentionConfig(heads=2))
    >>> model = build.build(config.DecoderConfig(vocabulary=11, width=8, depth=1, pattern=(block,)))
    >>> executor = TorchExecutor(model, slots=2, room=16)
    >>> executor.open(0)
    >>> executor.run([Work(0, np.array([1, 2, 3], np.int32), "last")]).logits.shape
    (1, 11)
    """

    def __init__(self, model: Model, slots: int, room: int, spare: int = 1, ahead: bool = False):
        if slots < 1 or room < 1:
            raise GenerationError("an executor needs a slot and room in it", found=f"{slots} slots of {room} ids")
        self.model = model
        self.slots = slots
        self.room = room
        self.vocabulary: int = model.config.vocabulary
        self.whole = "prefix" in model.config.masks
        self.device = model.head.weight.device
        model.extend(room)
        with torch.no_grad():
            self.state = model.new_state(slots, room, spare)
            self.several = HeadsState(TorchBlocks(model, slots, room), slots) if ahead and _blocks(model) else None
        """What the heads of further ids have read; None where there are none with blocks, or nobody asked."""

    @torch.inference_mode()
    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        """Read all of `work` in one forward; the head sees the wanted places only.

        Raises GenerationError for work that a slot has no room for, and for an adapter: there are none here.
        """
        slots = [each.slot for each in work]
        starts = [self.state.lengths[slot] for slot in slots]
        for each, start in zip(work, starts, strict=True):
            self._check(each, start)
        prefix = [0 if start else len(each.ids) for each, start in zip(work, starts, strict=True)]
        ids = [torch.as_tensor(each.ids) for each in work]
        pieces = rows.rows(ids, starts, prefix if self.whole else None)
        before, found = self.model.decoded(rows.to(pieces, self.device), self.state.at(slots))
        if self.several is not None:
            left = _array(found if self.several.blocks.chained else before)
            for slot, (start, stop) in zip(slots, pairwise(pieces.cuts.tolist()), strict=True):
                self.several.feed(slot, left[start:stop])
        wanted = found[_places(work).to(self.device)]
        logits = self.model.head.logits(wanted)
        return Answer(_array(logits), _array(wanted) if hidden else None)

    def open(self, slot: int, source: ndarray | None = None) -> None:
        """Make an empty slot ready. Raises GenerationError for source ids: this model has no encoder."""
        if source is not None:
            raise GenerationError("this model has no encoder: it cannot read a source", found=f"{len(source)} ids")
        assert self.state.lengths[slot] == 0, f"slot {slot} was not closed"

    @torch.inference_mode()
    def mark(self, slots: Sequence[int]) -> None:
        self.state.mark(slots)

    @torch.inference_mode()
    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        self.state.rewind(slots, keep)
        if self.several is not None:
            for slot in slots:
                self.several.rewind(slot, self.state.lengths[slot])

    @torch.inference_mode()
    def fork(self, source: int, target: int) -> None:
        self.state.fork(source, target)
        if self.several is not None:
            self.several.fork(source, target)

    @torch.inference_mode()
    def save(self, slot: int) -> Saved:
        saved = self.state.save(slot)
        if self.several is not None:
            saved |= {HEADS + name: tensor for name, tensor in self.several.save(slot).items()}
        return Saved(self.state.lengths[slot], saved)

    @torch.inference_mode()
    def load(self, slot: int, saved: Saved) -> None:
        own = {name: tensor for name, tensor in saved.content.items() if not name.startswith(HEADS)}
        self.state.load(slot, own)
        if self.several is not None:
            heads = {name.removeprefix(HEADS): t for name, t in saved.content.items() if name.startswith(HEADS)}
            self.several.load(slot, heads)

    @torch.inference_mode()
    def close(self, slot: int) -> None:
        self.state.clear([slot])
        if self.several is not None:
            self.several.close(slot)

    def _check(self, work: Work, start: int) -> None:
        if start + len(work.ids) > self.room:
            raise GenerationError(
                f"slot {work.slot} has no room for {len(work.ids)} more ids",
                found=f"{start} ids",
                allowed=f"{self.room} ids",
            )
        if work.adapter is not None:
            raise GenerationError("this executor holds no adapters", found=work.adapter)


def _blocks(model: Model) -> bool:
    """Whether the model has heads of further ids that have blocks; others need no state."""
    return isinstance(model.heads, ParallelHeads | SequentialHeads)


def _places(work: Sequence[Work]) -> Tensor:
    """int64 [M]: where the wanted places lie among the flat ids of a call."""
    found: list[int] = []
    stop = 0
    for each in work:
        stop += len(each.ids)
        first = {"none": stop, "last": stop - 1, "all": stop - len(each.ids)}[each.want]
        found += range(first, stop)
    return torch.tensor(found, dtype=torch.int64)


def _array(x: Tensor) -> ndarray:
    """Float32 on the host; float64 stays."""
    return (x if x.dtype == torch.float64 else x.float()).cpu().numpy()


class TorchBlocks:
    """A model's heads with blocks, in arrays; see `heads.Blocks`."""

    def __init__(self, model: Model, slots: int, room: int):
        self.inner = SeveralState(model, slots, room)
        self.count = len(self.inner.heads)
        self.chained = self.inner.chained
        self.nothing = _array(model.head.weight.detach()[:0])
        self.like = model.head.weight

    def length(self, k: int, slot: int) -> int:
        return self.inner.states[k].lengths[slot]

    @torch.inference_mode()
    def read(self, k: int, slots: Sequence[int], vectors: Sequence[ndarray], ids: Sequence[ndarray]) -> list[ndarray]:
        placed = [torch.from_numpy(each).to(self.like) for each in vectors]
        found = self.inner.read(k, slots, placed, [torch.from_numpy(each) for each in ids])
        return [_array(each) for each in found]

    @torch.inference_mode()
    def logits(self, k: int, vectors: ndarray) -> ndarray:
        return _array(self.inner.logits(k, torch.from_numpy(vectors).to(self.like)))

    @torch.inference_mode()
    def mark(self, k: int, slots: Sequence[int]) -> None:
        self.inner.states[k].mark(slots)

    @torch.inference_mode()
    def rewind(self, k: int, slots: Sequence[int], keep: Sequence[int]) -> None:
        self.inner.states[k].rewind(slots, keep)

    @torch.inference_mode()
    def fork(self, k: int, source: int, target: int) -> None:
        self.inner.states[k].fork(source, target)

    @torch.inference_mode()
    def save(self, k: int, slot: int) -> Mapping[str, Any]:
        return self.inner.states[k].save(slot)

    @torch.inference_mode()
    def load(self, k: int, slot: int, saved: Mapping[str, Any]) -> None:
        self.inner.states[k].load(slot, saved)

    @torch.inference_mode()
    def close(self, k: int, slot: int) -> None:
        self.inner.states[k].clear([slot])
