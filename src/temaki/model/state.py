"""Decoding state: what each mixer remembers, for all slots; how long each slot is stands here alone, once.

Letters: R slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class State(Protocol):
    """A mixer's memory for all slots; only its mixer writes ids into it. It has no idea of length."""

    def mark(self, slots: Sequence[int]) -> None:
        """From here on, `rewind` is possible."""
        ...

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        """Slot slots[i] forgets all but the first keep[i] ids read since its mark, and is unmarked."""
        ...

    def fork(self, source: int, target: int) -> None:
        """Copy one slot's memory to another: prefix sharing, beams, n > 1."""
        ...

    def save(self, slot: int, length: int) -> dict[str, Tensor]:
        """One slot's memory of `length` ids, as tensors of its own."""
        ...

    def load(self, slot: int, saved: Mapping[str, Tensor]) -> None:
        """The inverse of `save`, bit for bit."""
        ...

    def clear(self, slots: Sequence[int]) -> None:
        """Write zeros: a stale NaN would leak through masks."""
        ...


@dataclass(frozen=True)
class Seats:
    """The slots that the pieces of one call sit in."""

    state: "ModelState"
    slots: tuple[int, ...]


class ModelState:
    """The states of all layers and, once, each slot's length in ids."""

    def __init__(self, layers: Sequence[State], slots: int, room: int):
        self.layers = list(layers)
        self.lengths = [0] * slots
        self.room = room
        self._marks: dict[int, int] = {}

    def at(self, slots: Sequence[int]) -> Seats:
        """The seats of a call whose piece i reads and writes slot slots[i]; a slot may come up once."""
        assert len(set(slots)) == len(slots), f"a slot is used twice in one call: {list(slots)}"
        return Seats(self, tuple(slots))

    def advance(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Slot slots[i] has read counts[i] more ids."""
        for slot, count in zip(slots, counts, strict=True):
            assert self.lengths[slot] + count <= self.room, f"slot {slot} has room for {self.room} ids"
            self.lengths[slot] += count

    def mark(self, slots: Sequence[int]) -> None:
        """From here on, `rewind` is possible for these slots."""
        for layer in self.layers:
            layer.mark(slots)
        self._marks.update({slot: self.lengths[slot] for slot in slots})

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        """Slot slots[i] forgets all but the first keep[i] ids read since its mark, and is unmarked."""
        for slot, kept in zip(slots, keep, strict=True):
            assert slot in self._marks, f"slot {slot} is not marked"
            read = self.lengths[slot] - self._marks[slot]
            assert 0 <= kept <= read, f"slot {slot} cannot keep {kept} of {read} ids"
        for layer in self.layers:
            layer.rewind(slots, keep)
        for slot, kept in zip(slots, keep, strict=True):
            self.lengths[slot] = self._marks.pop(slot) + kept

    def fork(self, source: int, target: int) -> None:
        """Copy a slot, unmarked."""
        for layer in self.layers:
            layer.fork(source, target)
        self.lengths[target] = self.lengths[source]
        self._marks.pop(target, None)

    def save(self, slot: int) -> dict[str, Tensor]:
        """All of one slot: tensors by "<layer>/<name>", and "length"."""
        length = self.lengths[slot]
        saved = {
            f"{i}/{name}": tensor
            for i, layer in enumerate(self.layers)
            for name, tensor in layer.save(slot, length).items()
        }
        return {**saved, "length": torch.tensor(length)}

    def load(self, slot: int, saved: Mapping[str, Tensor]) -> None:
        """The inverse of `save`, bit for bit."""
        length = int(saved["length"])
        assert length <= self.room, f"{length} ids do not fit a slot of {self.room}"
        self.clear([slot])
        for i, layer in enumerate(self.layers):
            prefix = f"{i}/"
            own = {name.removeprefix(prefix): t for name, t in saved.items() if name.startswith(prefix)}
            layer.load(slot, own)
        self.lengths[slot] = length

    def clear(self, slots: Sequence[int]) -> None:
        """Forget these slots: length 0, memory zeroed, marks gone."""
        for layer in self.layers:
            layer.clear(slots)
        for slot in slots:
            self.lengths[slot] = 0
            self._marks.pop(slot, None)
