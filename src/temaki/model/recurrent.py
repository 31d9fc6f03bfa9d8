"""What all mixers with a state of fixed size share: the three forms of one recurrence, and its decoding state.

A recurrence carries a few tensors of fixed size from id to id. It is computed in three forms that agree: `whole` (every
piece of a training call from an empty state, in parallel), `chunk` (some ids of one slot on from its state) and `step`
(one id of many slots). Letters: N ids of a call, L ids of a chunk, n slots of a step, D width, E channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from temaki.model.layout import Layout, Memory
from temaki.model.part import Part

Given = tuple[Tensor, ...]
"""All that a recurrence reads of its ids, each [N, ..] (of a chunk [L, ..], of a step [n, ..])."""
Carried = tuple[Tensor, ...]
"""What a recurrence carries: of one slot, or with all slots in front [R, ..]."""


class Recurrent(Part, ABC):
    """A mixer with a state of fixed size. A kind says what is read of x, the recurrence, what is made of its output.

    `system` is what one call derives from the parameters alone (discretised matrices, decays); every form is given it.
    """

    channels: int
    """E: numbers an id that the recurrence gives."""
    uncompiled: ClassVar[tuple[str, ...]] = ("recur",)
    """Pieces of any length: the compiler would start anew for each."""
    chunk_ids: ClassVar[int] = 64
    """Ids that a call with state takes at a time."""

    @abstractmethod
    def project(self, x: Tensor, layout: Layout) -> Given:
        """x [N, D] -> all that the recurrence reads of it, position by position."""

    @abstractmethod
    def system(self) -> Any:
        """What follows from the parameters alone."""

    @abstractmethod
    def begin(self, slots: int) -> Carried:
        """The empty state of so many slots: zeros [slots, ..] each."""

    @abstractmethod
    def chunk(self, system: Any, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        """L >= 1 ids of one slot: (y [L, E], the state after them)."""

    @abstractmethod
    def finish(self, y: Tensor, given: Given) -> Tensor:
        """y [N, E] -> [N, D], position by position."""

    def step(self, system: Any, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        """One id of each of n slots: (y [n, E], the states after them)."""
        one = [
            self.chunk(system, tuple(each[i] for each in past), tuple(each[i : i + 1] for each in given))
            for i in range(len(given[0]))
        ]
        return torch.cat([y for y, _ in one]), tuple(
            torch.stack(each) for each in zip(*(s for _, s in one), strict=True)
        )

    def whole(self, system: Any, given: Given, layout: Layout) -> Tensor:
        """Every piece from an empty state, N >= 1: y [N, E]. Here piece by piece, chunk by chunk; kinds are faster."""
        found = []
        for start, stop in layout.pieces:
            if stop > start:
                empty = tuple(each[0] for each in self.begin(1))
                found.append(Recurrent.run(self, system, empty, _cut(given, start, stop))[0])
        return torch.cat(found)

    def run(self, system: Any, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        """Any number of ids of one slot, for decoding: here by chunks."""
        found: list[Tensor] = []
        for low in range(0, len(given[0]), self.chunk_ids):
            y, past = self.chunk(system, past, _cut(given, low, low + self.chunk_ids))
            found.append(y)
        return torch.cat(found), past

    def forward(self, x: Tensor, layout: Layout, state: "RecurrentState | None", memory: Memory | None) -> Tensor:
        given = self.project(x, layout)
        return self.finish(self.recur(given, layout, state), given)

    def recur(self, given: Given, layout: Layout, state: "RecurrentState | None") -> Tensor:
        """The recurrence alone: y [N, E]."""
        if not len(given[0]):
            return given[0].new_zeros(0, self.channels)
        if state is None:
            return self.whole(self.system(), given, layout)
        return state.read(given, layout)

    def new_state(self, slots: int, room: int, spare: int) -> "RecurrentState":
        return RecurrentState(self, self.begin(slots))


class RecurrentState:
    """What all slots carry. A mark copies it and starts a log of what the recurrence is given, for `rewind` to run."""

    def __init__(self, mixer: Recurrent, carried: Carried):
        self.mixer = mixer
        self.carried = carried
        """[R, ..] each."""
        self.marks: dict[int, tuple[Carried, list[Given]]] = {}

    @torch.no_grad()
    def read(self, given: Given, layout: Layout) -> Tensor:
        """Run each piece on from its slot's state: y [N, E]. Nothing is learned through a state."""
        slots, system = layout.slots, self.mixer.system()
        assert slots is not None
        for slot, (start, stop) in zip(slots, layout.pieces, strict=True):
            if slot in self.marks:
                self.marks[slot][1].append(tuple(each[start:stop].clone() for each in given))
        if layout.single:
            y, after = self.mixer.step(system, tuple(each[layout.slots_index] for each in self.carried), given)
            for each, new in zip(self.carried, after, strict=True):
                each[layout.slots_index] = new
            return y
        found = [given[0].new_zeros(0, self.mixer.channels)]
        for slot, (start, stop) in zip(slots, layout.pieces, strict=True):
            if stop > start:
                y, after = self.mixer.run(system, self._of(slot), _cut(given, start, stop))
                self._put(slot, after)
                found.append(y)
        return torch.cat(found)

    def _of(self, slot: int) -> Carried:
        return tuple(each[slot] for each in self.carried)

    def _put(self, slot: int, carried: Carried) -> None:
        for each, new in zip(self.carried, carried, strict=True):
            each[slot] = new

    def mark(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.marks[slot] = (tuple(each.clone() for each in self._of(slot)), [])

    @torch.no_grad()
    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        system = self.mixer.system()
        for slot, kept in zip(slots, keep, strict=True):
            carried, log = self.marks.pop(slot)
            if kept:
                _, carried = self.mixer.run(
                    system, carried, tuple(torch.cat(each)[:kept] for each in zip(*log, strict=True))
                )
            self._put(slot, carried)

    def fork(self, source: int, target: int) -> None:
        self._put(target, self._of(source))
        self.marks.pop(target, None)

    def save(self, slot: int, length: int) -> dict[str, Tensor]:
        return {str(i): _real(each).clone() for i, each in enumerate(self._of(slot))}

    def load(self, slot: int, saved: Mapping[str, Tensor]) -> None:
        for i, each in enumerate(self.carried):
            _real(each)[slot] = saved[str(i)]

    def clear(self, slots: Sequence[int]) -> None:
        for each in self.carried:
            each[list(slots)] = 0.0
        for slot in slots:
            self.marks.pop(slot, None)


def _cut(given: Given, start: int, stop: int) -> Given:
    return tuple(each[start:stop] for each in given)


def _real(x: Tensor) -> Tensor:
    """A complex tensor as a real view [.., 2]; a real one as it is."""
    return torch.view_as_real(x) if x.is_complex() else x
