"""Pieces of bytes with their counts: the growing table, and the pruning of a vocabulary of pieces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy import ndarray

from temaki.base import compile
from temaki.tokens.kernels import ngrams
from temaki.tokens.segmenter import Automaton, readonly

Progress = Callable[[str, int, int | None], None]

ONCE = np.empty(0, np.int64)
"""Each piece counts one."""

SHARE = 1 << 14
"""Pieces that a thread segments at a time."""


class PieceTable:
    """A hash table from bytes to counts that grows as needed."""

    def __init__(self) -> None:
        self.used = 0
        self.pool = np.empty(1 << 16, np.uint8)
        self.starts = np.zeros((1 << 12) + 1, np.int64)
        self.counts = np.empty(1 << 12, np.int64)
        self._hashes = np.empty(1 << 12, np.uint64)
        self._slots = np.zeros(1 << 14, np.int64)

    def add(self, text: ndarray, begin: int, ends: ndarray, times: ndarray = ONCE) -> None:
        """Count pieces of a text, uint8 with 8 bytes more: the first begins at `begin`, each ends where the next
        begins."""
        if ends.size:
            self._grow(ends.size, int(ends[-1]) - begin)
            self.used = ngrams.count_pieces(
                text, begin, ends, times, self.pool, self.starts, self.counts, self._slots, self._hashes, self.used
            )

    def _grow(self, pieces: int, size: int) -> None:
        """Make room for so many new pieces of so many bytes."""
        self.pool = _wider(self.pool, int(self.starts[self.used]) + size)
        self.starts = _wider(self.starts, self.used + pieces + 1)
        self.counts = _wider(self.counts, self.used + pieces)
        self._hashes = _wider(self._hashes, self.used + pieces)
        if 2 * (self.used + pieces) > self._slots.size:
            self._slots = np.zeros(1 << (4 * (self.used + pieces)).bit_length(), np.int64)
            ngrams.rehash(self._hashes, self.used, self._slots)


@dataclass(frozen=True)
class Pieces:
    """A table of pieces, each once."""

    pool: ndarray
    """uint8."""
    starts: ndarray
    """int64 [n]."""
    sizes: ndarray
    """int64 [n], bytes."""
    counts: ndarray
    """int64 [n]."""

    def counted(self) -> dict[bytes, int]:
        """Piece -> count, in the order of length, then bytes."""
        raw = self.pool.tobytes()
        rows = zip(self.starts.tolist(), self.sizes.tolist(), self.counts.tolist(), strict=True)
        found = {raw[start : start + size]: count for start, size, count in rows}
        return dict(sorted(found.items(), key=lambda piece: (len(piece[0]), piece[0])))

    def pruned(self, longest: int, least: int, threads: int, told: Progress) -> "Pieces":
        """Without those that are rarer or longer (single bytes always stay), then without the wasted."""
        keep = (self.sizes == 1) | ((self.sizes <= longest) & (self.counts >= least))
        return self.some(np.flatnonzero(keep))._sorted()._with(self.some(np.flatnonzero(~keep)), threads, told)

    def capped(self, most: int, threads: int, told: Progress) -> "Pieces":
        """The `most` that come first: bytes, then by count, length, bytes. For pieces that are sorted by their
        bytes."""
        if self.sizes.size <= most:
            return self
        ranked = np.lexsort((-self.sizes, -self.counts, self.sizes > 1))  # stable: then by bytes
        kept, dropped = np.sort(ranked[:most]), ranked[most:]
        return self.some(kept)._with(self.some(dropped), threads, told)

    def some(self, rows: ndarray) -> "Pieces":
        """The pieces of these rows."""
        return Pieces(self.pool, self.starts[rows], self.sizes[rows], self.counts[rows])

    def _with(self, dropped: "Pieces", threads: int, told: Progress) -> "Pieces":
        """These, sorted, with the counts of dropped ones added to their parts, until none of these is wasted."""
        counts = self.counts + self._parts(dropped, threads, told)
        pieces = Pieces(self.pool, self.starts, self.sizes, counts)
        while True:
            counts = pieces._parts(pieces, threads, told)
            still = np.flatnonzero(counts)
            many = pieces.sizes.size
            pieces = Pieces(pieces.pool, pieces.starts[still], pieces.sizes[still], counts[still])
            if still.size == many:
                return pieces

    def _parts(self, others: "Pieces", threads: int, told: Progress) -> ndarray:
        """How often each of these, sorted, is in the best segmentations of others by these: int64 [n]."""
        pool = readonly(self.pool)
        automaton = Automaton(pool, self.starts, self.sizes, np.arange(self.sizes.size))
        scores = np.log(self.counts) - np.log(float(self.counts.sum()))
        tasks = [partial(_segmented, others, begin, automaton, scores) for begin in range(0, others.sizes.size, SHARE)]
        sums = np.zeros(self.sizes.size, np.int64)
        for number in range(0, len(tasks), threads):
            for found in compile.run(tasks[number : number + threads], threads):
                sums += found
            told("pruning", min((number + threads) * SHARE, others.sizes.size), others.sizes.size)
        return sums

    def _sorted(self) -> "Pieces":
        """In the order of their bytes."""
        raw = self.pool.tobytes()
        places = zip(self.starts.tolist(), self.sizes.tolist(), strict=True)
        texts = [raw[start : start + size] for start, size in places]
        return self.some(np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64))


def joined(tables: Sequence[PieceTable]) -> Pieces:
    """All tables as one, every single byte in it, once at least."""
    whole = tables[0]
    for other in tables[1:]:
        whole.add(_padded(other.pool), 0, other.starts[1 : other.used + 1], other.counts[: other.used])
    sizes = np.diff(whole.starts[: whole.used + 1])
    single = whole.pool[whole.starts[: whole.used][sizes == 1]]
    missing = np.setdiff1d(np.arange(256, dtype=np.uint8), single)
    whole.add(_padded(missing), 0, np.arange(1, missing.size + 1), np.ones(missing.size, np.int64))
    starts = whole.starts[: whole.used + 1]
    return Pieces(whole.pool, starts[:-1].copy(), np.diff(starts), whole.counts[: whole.used].copy())


def _segmented(others: Pieces, begin: int, automaton: Automaton, scores: ndarray) -> ndarray:
    some = others.some(np.arange(begin, min(begin + SHARE, others.sizes.size)))
    room = int(some.sizes.max(initial=0)) + automaton.longest + 8
    sums = np.zeros(scores.size, np.int64)
    ngrams.redistribute(
        readonly(others.pool), some.starts, some.sizes, some.counts, automaton.units, automaton.first, scores,
        automaton.longest, np.empty(room), np.empty(room, np.int64), np.empty(room, np.uint32), sums,
    )  # fmt: skip
    return sums


def _padded(pool: ndarray) -> ndarray:
    """The bytes with 8 more."""
    return readonly(np.concatenate([pool, np.zeros(8, np.uint8)]))


def _wider(array: ndarray, size: int) -> ndarray:
    """The array with room for `size` items."""
    if size <= array.size:
        return array
    wider = np.zeros(max(size, 2 * array.size), array.dtype)
    wider[: array.size] = array
    return wider
