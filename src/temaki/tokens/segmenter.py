"""A vocabulary of pieces with scores, ready to segment text: best path, random path, lattice. Loads Numba.

Letters: V ids, N ids of a text, W scratch places.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from temaki.base import compile
from temaki.base.errors import TokenizerError
from temaki.tokens.kernels import trie, viterbi
from temaki.tokens.lattice import Lattice

PART = 1 << 18
"""Bytes of a text that a thread works on at a time, rounded up to whole lines."""

CERTAIN = 1e8
"""From this alpha on, a random path is the best one: paths whose scores differ by 1e-6 nats have odds of e^100."""

STEEPEST = 2.0**35
"""The greatest power of two that a piece may weigh, up or down: sums of 2^27 of them stay within int64."""


@dataclass(frozen=True)
class Reached:
    """How far an open text was segmented."""

    ids: ndarray
    """uint32 [N]."""
    place: int
    score: float
    """The sum of the scores up to there, to be carried on."""


class Segmenting(Protocol):
    """Text in its normal form -> ids of a path through it."""

    def best(self, text: ndarray, threads: int | None = None) -> ndarray:
        """The ids of a whole text, uint8 -> uint32 [N]."""
        ...

    def best_each(self, text: ndarray, bounds: ndarray) -> tuple[ndarray, ndarray]:
        """The ids of texts text[bounds[i]:bounds[i+1]], uint32, and where each one's end, int64."""
        ...

    def reach(self, text: ndarray, score: float, whole: bool) -> Reached:
        """The ids of a text that begins at `score`, as far as they are certain whatever follows."""
        ...


class Automaton:
    """A double array of pieces: what `trie` and `viterbi` read."""

    def __init__(self, pool: ndarray, starts: ndarray, sizes: ndarray, numbers: ndarray):
        """Pieces sorted by their bytes, none twice, none empty: uint8 pool; int64 starts, sizes, numbers. Raises
        TokenizerError for more than the array can address."""
        self.longest = max(4, int(sizes.max(initial=0)))
        self.units = _built(readonly(pool), starts, sizes, numbers)
        head = self.units[trie.ROOT : trie.ROOT + 256] if starts.size else np.zeros(256, np.uint64)
        self.first = np.where(head & 0xFF == np.arange(256), head, np.uint64(0)).astype(np.uint64)


class Segmenter:
    """Segments text by one vocabulary."""

    def __init__(
        self, pieces: Sequence[bytes], numbers: ndarray, scores: ndarray, characters: bool = False, unknown: int = 0
    ):
        """`numbers` int64: the id of each piece, `scores` float64 [V] by id; the rest as in `kernels.viterbi`."""
        order = sorted(range(len(pieces)), key=pieces.__getitem__)
        pool = np.frombuffer(b"".join([pieces[i] for i in order]), np.uint8)
        sizes = np.array([len(pieces[i]) for i in order], np.int64)
        self.automaton = Automaton(pool, np.cumsum(sizes) - sizes, sizes, numbers[np.array(order, np.int64)])
        self.scores = scores
        self._rule = (True if characters else None, unknown, self.automaton.units, self.automaton.first)
        self._weights: tuple[float, ndarray, ndarray] = (1.0, *weights(scores, 1.0))

    def best(self, text: ndarray, threads: int | None = None) -> ndarray:
        """The ids of the best path of a whole text, uint8 -> uint32 [N]; the same with any number of threads."""
        return self._in_parts(lambda begin, stop: self._best(text, begin, stop, True, 0.0).ids, text, threads)

    def best_each(self, text: ndarray, bounds: ndarray) -> tuple[ndarray, ndarray]:
        """The ids of the best paths of texts text[bounds[i]:bounds[i+1]], uint32, and where each one's end, int64."""
        text = readonly(text)
        out, stops = np.empty(text.size, np.uint32), np.empty(bounds.size - 1, np.int64)
        room = int(np.diff(bounds).max(initial=0)) + self.automaton.longest + 8
        scratch = (np.empty(room), np.empty(room, np.int64))
        viterbi.best_each(text, bounds, *self._rule, self.scores, self.automaton.longest, *scratch, out, stops)
        return out[: int(stops[-1]) if stops.size else 0].copy(), stops

    def reach(self, text: ndarray, score: float, whole: bool) -> Reached:
        """The best path of a text that begins at `score`, as far as it is certain whatever follows."""
        return self._best(text, 0, text.size, whole, score)

    def sample(self, text: ndarray, alpha: float, key: int, threads: int | None = None) -> ndarray:
        """The ids of a random path, uint32 [N]: each has a probability in proportion to exp(alpha * its score)."""
        if alpha >= CERTAIN:
            return self.best(text, threads)
        known = self._weights
        if known[0] != alpha:
            known = self._weights = (alpha, *weights(self.scores, alpha))
        return self._in_parts(partial(self._sample, text, known[1:], np.uint64(key)), text, threads)

    def lattice(self, text: ndarray) -> Lattice:
        """All pieces of the vocabulary that are in the text, where they are."""
        text = readonly(text)
        found = np.empty((3, 4 * text.size + 16), np.int64)
        scratch = (self._scratch(), self._scratch())
        count = viterbi.lattice(text, 0, text.size, *self._rule, *scratch, found)
        if count > found.shape[1]:
            found = np.empty((3, count), np.int64)
            viterbi.lattice(text, 0, text.size, *self._rule, *scratch, found)
        begins, ends, ids = found[:, :count]
        return Lattice(text.tobytes(), begins.copy(), ends.copy(), ids.copy(), self.scores[ids])

    def _in_parts(self, segment: Callable[[int, int], ndarray], text: ndarray, threads: int | None) -> ndarray:
        """Lines are independent: they are segmented in parts, on several threads if there are many."""
        cuts = [0, text.size] if self._rule[0] or text.size < 2 * PART else _cuts(text)
        if len(cuts) == 2:
            return segment(0, text.size)
        tasks = [partial(segment, begin, stop) for begin, stop in itertools.pairwise(cuts)]
        return np.concatenate(compile.run(tasks, threads))

    def _best(self, text: ndarray, begin: int, stop: int, whole: bool, score: float) -> Reached:
        text = readonly(text)
        longest = self.automaton.longest
        room = longest + 8 + min(stop - begin, 1 << 14)
        out = np.empty(stop - begin, np.uint32)
        done, full = 0, True
        while full:
            total, via = np.empty(room), np.empty(room, np.int64)
            written, begin, score, full = viterbi.best(
                text, begin, stop, whole, score, *self._rule, self.scores, longest, total, via, out[done:]
            )
            done += written
            room *= 2
        return Reached(out[:done].copy(), begin, score)

    def _sample(
        self, text: ndarray, weights: tuple[ndarray, ndarray], key: np.uint64, begin: int, stop: int
    ) -> ndarray:
        text = readonly(text)
        longest = stop - begin if self._rule[0] else viterbi.longest_segment(text, begin, stop)
        # Not `empty`: a damaged normaliser can write bytes that begin no character, whose places the kernel leaves out.
        after, scales = np.ones(longest + 1), np.zeros(longest + 1, np.int64)
        out = np.empty(stop - begin, np.uint32)
        scratch = (after, scales, self._scratch(), self._scratch())
        count = viterbi.sample(text, begin, stop, key, *self._rule, *weights, *scratch, out)
        return out[:count].copy()

    def _scratch(self) -> ndarray:
        return np.empty(self.automaton.longest + 1, np.int64)


class Flow:
    """A text that comes in pieces, segmented as far as what is still to come cannot change it.

    Holds what lies behind the last place that no piece spans.
    """

    def __init__(self, segmenter: Segmenting):
        self._segmenter = segmenter
        self._rest = b""
        self._score = 0.0

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return len(self._rest)

    def push(self, more: bytes, keep: int = 0, whole: bool = False) -> tuple[ndarray, ndarray]:
        """The ids that are certain now and the bytes that they stand for; the last `keep` bytes are not looked at."""
        text = np.frombuffer(self._rest + more, np.uint8)
        reached = self._segmenter.reach(text[: text.size - keep], self._score, whole)
        self._score = reached.score
        self._rest = text[reached.place :].tobytes()
        return reached.ids, text[: reached.place]


def weights(scores: ndarray, alpha: float) -> tuple[ndarray, ndarray]:
    """exp(alpha * score) of each piece as float64 in 1..2 and int64 powers of two, both [V]."""
    exponents = np.clip(scores * (alpha / np.log(2.0)), -STEEPEST, STEEPEST)
    powers = np.floor(exponents)
    return np.exp2(exponents - powers), powers.astype(np.int64)


def readonly(text: ndarray) -> ndarray:
    """The same array, not to be written: kernels are compiled for one kind."""
    text = text.view()
    text.flags.writeable = False
    return text


def _cuts(text: ndarray) -> list[int]:
    """Ends of lines, about PART bytes apart."""
    cuts = [0]
    while cuts[-1] < text.size:
        at = min(cuts[-1] + PART, text.size)
        cuts.append(viterbi.segment_end(readonly(text), at, text.size))
    return cuts


def _built(pool: ndarray, starts: ndarray, sizes: ndarray, numbers: ndarray) -> ndarray:
    """The slots of a double array, uint64."""
    capacity = 2048 + pool.size + pool.size // 4 & ~255
    while capacity <= 1 << 25:
        arrays: list[Any] = [np.zeros(capacity, np.uint64), np.zeros(capacity, np.uint8)]
        arrays += [np.empty(capacity + 1, np.int64), np.empty(capacity + 1, np.int64)]
        used = trie.build(pool, starts, sizes, numbers, *arrays, np.empty((4, pool.size + 1), np.int64))
        if used:
            return arrays[0][:used].copy()
        capacity *= 2
    raise TokenizerError("the vocabulary is too large", found=f"{starts.size} pieces of {pool.size} bytes")
