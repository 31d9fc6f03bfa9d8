"""Words and their counts -> the merges of byte-level BPE, in the order learned."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.kernels import line as kernels
from temaki.tokens.kernels import merge
from temaki.tokens.kernels.line import Logs, Pairs, Spelling
from temaki.tokens.room import AROUND, Room
from temaki.tokens.word_counts import Counts, Spill

FALL = 64
"""How far the weight of the pairs worth a look falls from one gathering to the next."""
MOST_PLACES = (1 << 32) - 1
"""Places that a line may have: their numbers are uint32."""
LEAST_TABLES = 1 << 12
"""Pairs that the tables hold at first."""
BYTES_A_PAIR = 128
"""What the tables take for a pair, at most, while they grow."""


@dataclass(frozen=True)
class Found:
    """What there is to learn from."""

    words: int
    """Different words."""
    total: int
    """Words, each as often as it occurs."""
    pruned: int
    """Different words left out because they occur too rarely."""
    pruned_total: int
    """How often those occur together."""


@dataclass(frozen=True)
class Line:
    """All words in one line of places, as `kernels.line` has it."""

    places: ndarray
    """uint32 [2 P]: symbol and weight; an edge comes first."""
    heaviest: int
    """The weight of the heaviest pair."""
    found: Found


def line(counts: Counts, number: ndarray, prune: int, spill: Spill, room: Room) -> Line:
    """The line of all words counted. `number` (uint8 [256]): the symbol of each byte. Raises TokenizerError for more
    words than a line can hold."""
    found, pairs = np.zeros(5, np.int64), np.zeros(1 << 16, np.int64)
    places = np.empty(0, np.uint32)
    for words in counts.parts():
        before = int(found[0])
        kernels.measure(words.table, prune, found)
        if found[0] >= MOST_PLACES:
            raise TokenizerError(
                "the different words are too many bytes to learn from",
                found=f"{found[0]} with what ends each",
                allowed=f"below {MOST_PLACES}",
                do="leave out rare ones with prune, or give less text",
            )
        places = np.empty(2 * (int(found[0]) - before + 1), np.uint32)
        places[0] = kernels.EDGE
        kernels.lay_out(words.table, prune, number, places[2:], pairs)
        if spill.bytes:
            spill.lay(places[2:] if before else places)
    return Line(spill.line(room) if spill.bytes else places, int(pairs.max()), Found(*found[1:].tolist()))


class Learner:
    """Learns merges from a line, which it uses up."""

    def __init__(
        self, line: Line, order: ndarray, until: int, by_bytes: bool, room: Room, most_pairs: int | None = None
    ):
        """`order` (uint8 [256]): the byte of each of the first symbols; `until`: how many symbols to learn.

        Ties go to the greatest pair of bytes, or else to the smallest pair of symbols. `most_pairs`: how many pairs are
        kept at a time, if that can be; more are looked for more often.
        """
        self._room = room
        self._most_pairs = most_pairs
        self._line = line.places
        self._used = len(line.places) // 2
        self._until = min(until, 256 + self._used)  # each merge leaves a symbol less
        self._by_bytes = by_bytes
        self._least = line.heaviest + 1
        self._state = np.zeros(11, np.int64)
        self._state[kernels.SYMBOLS], self._state[kernels.CURRENT] = 256, -1
        self.made = np.zeros((self._until - 256, 2), np.uint32)
        """The parts of each symbol from 256 on."""
        self.spelling = Spelling(
            np.zeros(16 * self._until, np.uint8), np.zeros(self._until + 1, np.int64), np.zeros(self._until, np.uint64)
        )
        merge.begin_spelling(self.spelling, order)
        self._logs = Logs(
            np.empty((2, 1024), np.uint32),
            np.empty((2, 1024), np.uint32),
            np.zeros((2, self._until, 2), np.int64),
            np.empty((2, self._until), np.uint32),
        )
        self._arena = np.empty(0, np.uint32)
        self._index = np.zeros(1, np.int32)
        self._no_pairs(LEAST_TABLES)

    def tokens(self) -> list[bytes]:
        """The bytes of each symbol."""
        text, offset = self.spelling.text.tobytes(), self.spelling.offset[: self.symbols + 1].tolist()
        return [text[begin:end] for begin, end in pairwise(offset)]

    @property
    def symbols(self) -> int:
        """How many there are now."""
        return int(self._state[kernels.SYMBOLS])

    def step(self) -> bool:
        """Learn for a fraction of a second; False when all is learned or no pair is left."""
        why = kernels.OVER
        if self._state[kernels.QUEUED]:
            why = merge.learn(
                self._line, self._arena, self._pairs, self._index, self._queue, self.spelling, self._logs, self.made,
                self._by_bytes, self._least, self._until, *self._pace(), self._state,
            )  # fmt: skip
            self._room.release()
        if why == kernels.GROW:
            self._grow()
        elif why == kernels.OVER:
            if self.symbols == self._until or self._least <= 1:
                return False
            above, self._least = self._least, self._next_least()
            while not self._gather(self._most_pairs):
                if self._least == above - 1:
                    self._gather(None)
                    break
                self._least = min(2 * self._least, above - 1)
        return True

    def _pace(self) -> tuple[int, int]:
        """How many places are looked at before Python is asked whether to go on, and what a far one counts for."""
        return self._room.span(8), AROUND // 8 if self._room.crowded else 1

    def _next_least(self) -> int:
        """Low enough that few gatherings are needed, and not lower than the last merge is likely to need.

        Counts fall about as fast as their ranks rise, the more so the less of the vocabulary there is.
        """
        likely = int(self._least * (self.symbols / self._until) ** 2)
        return max(1, self._least // FALL, min(likely, self._least - 1))

    def _gather(self, most: int | None) -> bool:
        """Pack the line and find the pairs that weigh `least`; False if there are more than `most`."""
        symbols = self.symbols
        ends = self._pack(symbols)
        longest = int(ends.max())
        np.cumsum(ends, out=ends)
        self._arena = np.empty(0, np.uint32)  # let go of the old one first
        self._arena = self._room.empty(int(ends[-1]), np.uint32)
        span = self._room.span(8)
        for place in range(1, self._used - 1, span):
            kernels.sort_places(self._line, place, min(place + span, self._used - 1), ends, self._arena)
            self._room.release()
        self._make_logs(longest)
        self._no_pairs(LEAST_TABLES)
        self._state[[kernels.KEPT, kernels.USED, kernels.QUEUED, kernels.CURSOR, kernels.KINDS]] = 0
        symbol, why = 0, kernels.SLICE
        while symbol < symbols:
            symbol, why = kernels.gather(
                self._line, symbol, symbols, ends, self._arena, self._pairs, self._logs, self._least, *self._pace(),
                self._state,
            )  # fmt: skip
            self._room.release()
            if why == kernels.GROW:
                if most is not None and len(self._queue) >= most:
                    self._logs.near[:] = 0
                    return False
                self._make_tables(2 * len(self._queue))
        self._fill_index()
        merge.order(self._queue, self._pairs, self.spelling, self._by_bytes, self._state)
        return True

    def _pack(self, symbols: int) -> ndarray:
        """Pack the line; int64 [V+1]: how many pairs begin with symbol s, at s + 1."""
        packing, lefts = np.ones(3, np.int64), np.zeros(symbols + 1, np.int64)
        while packing[0] < self._used:
            kernels.pack(self._line, min(int(packing[0]) + self._room.span(16), self._used), packing, lefts)
            self._room.release()
        self._used = int(packing[1])
        return lefts

    def _grow(self) -> None:
        """Make room for the best pair's merge in all tables."""
        pair = self._queue[0, 2]
        length = int(self._pairs.length[pair])
        needed = int(self._state[kernels.KEPT]) + 2 * min(length, self.symbols) + 1
        if needed > len(self._queue):
            self._make_tables(max(needed, 2 * len(self._queue)))
            self._fill_index()
        self._make_logs(length)
        needed = int(self._state[kernels.USED]) + 2 * length
        if needed > len(self._arena):
            self._arena = self._room.longer(self._arena, needed + len(self._arena) // 4)
        offset = self.spelling.offset
        both = int(self._pairs.both[pair])
        needed = int(offset[self.symbols] + sum(offset[s + 1] - offset[s] for s in (both >> 32, both & kernels.LOW)))
        if needed > len(self.spelling.text):
            self.spelling = self.spelling._replace(text=self._room.longer(self.spelling.text, 2 * needed))

    def _make_logs(self, length: int) -> None:
        """Let the logs hold `length` places a side."""
        if length > self._logs.symbol.shape[1]:
            size = (2, 5 * length // 4)
            symbol, place = self._room.empty(size, np.uint32), self._room.empty(size, np.uint32)
            self._logs = self._logs._replace(symbol=symbol, place=place)

    def _no_pairs(self, size: int) -> None:
        """Empty tables for `size` pairs."""
        self._pairs = Pairs(*(np.zeros(0, np.int64) for _ in range(4)))
        self._queue = np.zeros((0, 3), np.int64)
        self._make_tables(size)

    def _make_tables(self, size: int) -> None:
        """Let the tables hold `size` pairs."""
        self._pairs = Pairs(*(self._room.longer(array, size) for array in self._pairs))
        self._queue = self._room.longer(self._queue, size)

    def _fill_index(self) -> None:
        """Enter all pairs into an index with room for as many as the tables hold."""
        self._index = np.zeros(1 << (2 * len(self._queue) - 1).bit_length(), np.int32)
        merge.fill_index(self._index, self._pairs, self._state)
