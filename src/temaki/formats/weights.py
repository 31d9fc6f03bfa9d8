"""Between our weights and a foreign file's: one table of entries, read in either direction.

An entry says which of their arrays, stacked along rows, make one of ours. Nothing is read before it is asked for, and
then straight into the place where it is wanted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.model.quantise import Stored, floats

LISTED = 3
"""Names shown of those that do not fit."""

Turn = Callable[[ndarray], ndarray]


@dataclass(frozen=True)
class Change:
    """How one of their arrays becomes rows of ours, and back."""

    ours: Turn
    theirs: Turn


SAME = Change(lambda x: x, lambda x: x)
TRANSPOSED = Change(np.transpose, np.transpose)
PLUS_ONE = Change(lambda x: np.add(x, 1, dtype=np.promote_types(x.dtype, np.float32)), lambda x: x - 1)
"""A gain kept as its difference from one; added in float32, whatever it is kept in."""


def interleaved(heads: int) -> Change:
    """Rows of a projection whose rotary pairs are (2t, 2t + 1) there and (t, t + K/2) here.

    >>> interleaved(1).ours(np.arange(6)[:, None]).ravel().tolist()
    [0, 2, 4, 1, 3, 5]
    """

    def ours(x: ndarray) -> ndarray:
        return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    def theirs(x: ndarray) -> ndarray:
        return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return Change(ours, theirs)


@dataclass(frozen=True)
class Source:
    """One of their arrays, or one place of its first axis."""

    name: str
    shape: tuple[int, ...]
    """Of their array."""
    change: Change = SAME
    at: int | None = None
    """Which place of the first axis; None: the whole array."""

    @property
    def size(self) -> int:
        """Numbers it gives."""
        return math.prod(self.shape if self.at is None else self.shape[1:])


@dataclass(frozen=True)
class Entry:
    """One of our weights and what makes it: the sources' numbers one after the other, in our shape.

    Without sources it is all zeros, and written only if it is.
    """

    ours: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        found = sum(source.size for source in self.sources)
        assert not self.sources or found == math.prod(self.shape), f"{self.ours}: {found} numbers for {self.shape}"


@dataclass(frozen=True)
class Weight:
    """One of our weights on disk."""

    shape: tuple[int, ...]
    parts: tuple[tuple[Stored, Change], ...]
    """Stored arrays and what is done to each; their numbers one after the other."""
    wide: bool = field(default=False)
    """Whether any part holds float64."""

    def fill(self, out: ndarray) -> None:
        """Write the numbers to `out`, of our shape, C-contiguous, any float type."""
        assert out.shape == self.shape, f"{out.shape}, wanted {self.shape}"
        assert out.flags.c_contiguous, "numbers are written in order"
        flat = out.reshape(-1)
        if not self.parts:
            flat[:] = 0
        start = 0
        for stored, change in self.parts:
            size = math.prod(stored.shape)
            place = flat[start : start + size]
            if change is SAME:
                floats(stored, place.reshape(stored.shape))
            else:
                place[:] = change.ours(floats(stored)).reshape(-1)
            start += size

    def array(self) -> ndarray:
        """The numbers: the stored array itself where it is ours as it is, else a new one (float32, or float64)."""
        if len(self.parts) == 1 and isinstance(self.parts[0][0], ndarray) and self.parts[0][1] is SAME:
            return self.parts[0][0].reshape(self.shape)
        out = np.empty(self.shape, np.float64 if self.wide else np.float32)
        self.fill(out)
        return out

    def blocks(self) -> list[tuple[Stored, ndarray | None]] | None:
        """The stored matrices whose rows, one after the other, are ours: each with its row order, int64 (None: as is).

        None where one of them is no matrix, or is changed otherwise than in the order of its rows.
        """
        found: list[tuple[Stored, ndarray | None]] = []
        for stored, change in self.parts:
            if len(stored.shape) != 2 or len(self.shape) != 2 or stored.shape[1] != self.shape[1]:
                return None
            order = None if change is SAME else _row_order(change, stored.shape[0])
            if change is not SAME and order is None:
                return None
            found.append((stored, order))
        return found if sum(stored.shape[0] for stored, _ in found) == self.shape[0] else None


def _row_order(change: Change, count: int) -> ndarray | None:
    """Which of `count` rows each row is after a change, seen on numbered rows of two; None if it does more than that.

    >>> _row_order(interleaved(1), 6).tolist(), _row_order(PLUS_ONE, 6), _row_order(TRANSPOSED, 2)
    ([0, 2, 4, 1, 3, 5], None, None)
    """
    numbered = np.arange(1, 2 * count + 1).reshape(count, 2)
    turned = change.ours(numbered)
    if turned.shape != numbered.shape or not np.array_equal(np.sort(turned[:, 0]), numbered[:, 0]):
        return None
    order = turned[:, 0].astype(np.int64) // 2
    return order if np.array_equal(numbered[order], turned) else None


def plain(array: ndarray) -> Weight:
    """A weight that is stored as it is."""
    return Weight(array.shape, ((array, SAME),), array.dtype == np.float64)


def read(
    entries: Sequence[Entry], stored: Mapping[str, Stored], where: str, ignored: Callable[[str], bool] = lambda _: False
) -> dict[str, Weight]:
    """Our weights by name.

    Raises FormatError naming the first missing, unexpected and ill-shaped arrays of `where`, and those of integers,
    which are codes of some quantisation: their scales are not here.
    """
    sources = [source for entry in entries for source in entry.sources]
    known = {source.name for source in sources}
    missing = list(dict.fromkeys(source.name for source in sources if source.name not in stored))
    unexpected = [name for name in stored if name not in known and not ignored(name)]
    shaped = list(
        dict.fromkeys(
            f"{source.name} {stored[source.name].shape}, wanted {source.shape}"
            for source in sources
            if source.name in stored and tuple(stored[source.name].shape) != source.shape
        )
    )
    whole = [name for name, array in stored.items() if name in known and not _floating(array)]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shaped, "of whole numbers": whole}
    said = [f"{len(names)} {kind}: {some(names)}" for kind, names in wrong.items() if names]
    if said:
        raise FormatError(f"the weights in {where} are not those of its configuration; " + "; ".join(said))
    return {
        entry.ours: Weight(
            entry.shape,
            tuple((_picked(stored[source.name], source.at), source.change) for source in entry.sources),
            any(_wide(stored[source.name]) for source in entry.sources),
        )
        for entry in entries
    }


def write(entries: Sequence[Entry], weights: Mapping[str, Weight]) -> Iterator[tuple[str, ndarray]]:
    """Their arrays by name, made from ours one entry at a time; an array of several places comes when it is whole."""
    gathering: dict[str, ndarray] = {}
    left: dict[str, int] = {}
    for entry in entries:
        for source in entry.sources:
            if source.at is not None:
                left[source.name] = left.get(source.name, 0) + 1
    for entry in entries:
        flat = weights[entry.ours].array().reshape(-1)
        if not entry.sources and flat.any():
            raise FormatError(f"{entry.ours} has no place in this format and is not zero")
        start = 0
        for source in entry.sources:
            numbers = flat[start : start + source.size]
            start += source.size
            if source.at is None:
                yield source.name, _back(source, numbers, source.shape)
                continue
            whole = gathering.setdefault(source.name, np.empty(source.shape, flat.dtype))
            whole[source.at] = _back(source, numbers, source.shape[1:])
            left[source.name] -= 1
            if not left[source.name]:
                yield source.name, gathering.pop(source.name)


def some(names: Sequence[str]) -> str:
    """The first few of a list of names."""
    return ", ".join(names[:LISTED]) + (", .." if len(names) > LISTED else "")


def _back(source: Source, numbers: ndarray, shape: tuple[int, ...]) -> ndarray:
    """Numbers of ours as their array: `theirs` is given the shape that `change.ours` gives for one of theirs."""
    turned = source.change.ours(np.broadcast_to(np.float32(0), shape)).shape
    return source.change.theirs(numbers.reshape(turned))


def _picked(stored: Stored, at: int | None) -> Stored:
    return stored if at is None else stored[at]


def _floating(stored: Stored) -> bool:
    return not isinstance(stored, ndarray) or stored.dtype.kind == "f"


def _wide(stored: Stored) -> bool:
    return isinstance(stored, ndarray) and stored.dtype == np.float64
