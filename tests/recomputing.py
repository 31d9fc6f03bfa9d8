"""An executor that remembers ids alone and recomputes everything: what searches are tested with."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray

from temaki.generate.executor import Answer, Saved, Work


class Recomputing:
    """Slots of ids over a function ids -> (logits [V], hidden [D]) behind the last one.

    `calls` are the slots of each run; `taken` are slots that are not closed.
    """

    whole = False

    def __init__(self, at: Callable[[Sequence[int]], tuple[ndarray, ndarray]], vocabulary: int, slots: int, room: int):
        self.at = at
        self.vocabulary, self.slots, self.room = vocabulary, slots, room
        self.rows: dict[int, list[int]] = {}
        self.calls: list[list[int]] = []

    @property
    def taken(self) -> set[int]:
        return set(self.rows)

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        assert len({each.slot for each in work}) == len(work), "a slot came up twice"
        self.calls.append([each.slot for each in work])
        found = []
        for each in work:
            for place, id in enumerate(each.ids):
                self.rows[each.slot].append(int(id))
                assert len(self.rows[each.slot]) <= self.room, "no room"
                if each.want == "all" or (each.want == "last" and place == len(each.ids) - 1):
                    found.append(self.at(self.rows[each.slot]))
        logits = np.array([one for one, _ in found]).reshape(len(found), self.vocabulary)
        return Answer(logits, np.array([other for _, other in found]) if hidden else None)

    def open(self, slot: int, source: ndarray | None = None) -> None:
        assert slot not in self.rows, f"slot {slot} was not closed"
        self.rows[slot] = []

    def fork(self, source: int, target: int) -> None:
        assert target not in self.rows, f"slot {target} was not closed"
        self.rows[target] = list(self.rows[source])

    def close(self, slot: int) -> None:
        del self.rows[slot]

    def mark(self, slots: Sequence[int]) -> None:
        raise AssertionError("no search marks")

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        raise AssertionError("no search rewinds")

    def save(self, slot: int) -> Saved:
        raise AssertionError("no search saves")

    def load(self, slot: int, saved: Saved) -> None:
        raise AssertionError("no search loads")


def hashed(vocabulary: int, width: int = 6, seed: int = 7) -> Callable[[Sequence[int]], tuple[ndarray, ndarray]]:
    """A function of all ids so far that is no model at all: logits float64, rounded so that ties come up."""

    def at(ids: Sequence[int]) -> tuple[ndarray, ndarray]:
        draw = np.random.default_rng([seed, *ids])
        return draw.normal(0, 2, vocabulary).round(2), draw.normal(0, 1, width)

    return at
