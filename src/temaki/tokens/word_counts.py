"""Texts -> how often each pre-token occurs, counted by threads in bounded memory.

Each thread fills a table of its own. A table that has no room left to grow is written to a file on disk, in parts by
the words' hashes, and begins anew; at the end each part is added up by itself. So no table is ever sorted, and the
order of the threads leaves no trace in the counts.
"""

import queue
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from typing import BinaryIO

import numpy as np
from numpy import ndarray

from temaki.tokens.chunks import Chunk
from temaki.tokens.kernels import count as kernels
from temaki.tokens.kernels.count import PADDING, Table
from temaki.tokens.room import Room

PARTS = 64
"""Parts of a spilled table; a power of two."""
FIRST = 1 << 15
"""Slots of a new table for short words."""


class Words:
    """One thread's table: words and their counts."""

    def __init__(self, spill: "Spill | None" = None, limit: int = 0):
        """`limit`: bytes that the table may take, also while it grows, where it can `spill` the rest."""
        self._limit = limit
        self._spill = spill
        self._batch = kernels.batch()
        self._clear()

    def _clear(self) -> None:
        self.table = Table(np.zeros(4 * FIRST, np.uint64), np.zeros(4 << 10, np.uint64), np.zeros(1 << 16, np.uint8))
        self._state = np.zeros(5, np.int64)

    @property
    def distinct(self) -> int:
        """How many words the table holds."""
        return int(self._state[kernels.SHORTS] + self._state[kernels.LONGS])

    def count(self, rule: int, text: ndarray, runs: ndarray) -> None:
        """Count the pre-tokens of each run, text[runs[i, 0]:runs[i, 1]] (uint8, PADDING more are readable)."""
        self._start()
        while full := kernels.count(rule, text, runs, self.table, self._batch, self._state):
            self._make_room(full)

    def add(self, text: ndarray, ends: ndarray, counts: ndarray) -> None:
        """Add the words text[ends[i]:ends[i + 1]] counts[i] times (uint8 with PADDING, int64, uint64)."""
        self._start()
        while full := kernels.add(text, ends, counts, self.table, self._batch, self._state):
            self._make_room(full)

    def add_words(self, words: Iterable[tuple[bytes, int]]) -> None:
        """Add words with their counts."""
        pairs = [(word, count) for word, count in words if word and count]
        ends = np.cumsum([0, *(len(word) for word, _ in pairs)], dtype=np.int64)
        text = np.frombuffer(bytearray(b"".join(word for word, _ in pairs) + bytes(PADDING)), np.uint8)
        self.add(text, ends, np.array([count for _, count in pairs], np.uint64))

    def pour(self, other: "Words") -> None:
        """Take over another table's words, whatever the limit."""
        spill, self._spill = self._spill, None
        while self._state[kernels.SHORTS] + other._state[kernels.SHORTS] > len(self.table.short) // 8:
            self._grow(kernels.SHORT_FULL)
        self._state[kernels.SHORTS] += kernels.pour_short(other.table.short, self.table.short)
        slots = other.table.long.reshape(-1, 4)
        slots = slots[slots[:, 3] > 0]
        slots = slots[np.argsort(slots[:, 1])]  # as they lie in the arena, one after another
        ends = np.append(slots[:, 1], other._state[kernels.BYTES]).astype(np.int64)
        self.add(other.table.arena, ends, np.ascontiguousarray(slots[:, 3]))
        self._spill = spill

    def spill(self) -> None:
        """Write all words to disk and begin anew."""
        assert self._spill is not None, "a table without a spill has no limit"
        self._spill.take(self.table)
        run, at = self._state[kernels.RUN], self._state[kernels.AT]
        self._clear()
        self._state[kernels.RUN], self._state[kernels.AT] = run, at

    def _start(self) -> None:
        self._state[kernels.RUN], self._state[kernels.AT] = 0, 0

    @property
    def bytes(self) -> int:
        """What the table takes."""
        return sum(array.nbytes for array in self.table)

    def _make_room(self, full: int) -> None:
        if self._spill is not None and self.bytes + 2 * self.table[full - 1].nbytes > self._limit and self.distinct:
            self.spill()
        else:
            self._grow(full)

    def _grow(self, full: int) -> None:
        """Double what is full."""
        short, long, arena = self.table
        if full == kernels.SHORT_FULL:
            larger = np.zeros(2 * len(short), np.uint64)
            kernels.pour_short(short, larger)
            self.table = self.table._replace(short=larger)
        elif full == kernels.LONG_FULL:
            larger = np.zeros(2 * len(long), np.uint64)
            kernels.move_long(long, larger)
            self.table = self.table._replace(long=larger)
        else:
            self.table = self.table._replace(arena=np.concatenate([arena, np.zeros_like(arena)]))


class Spill:
    """Tables on disk, to be added up part by part, and the line made of them. Gone when it is left."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of tables, written so far."""
        self._lock = threading.Lock()
        self._pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(PARTS)]
        self._files = ExitStack()

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @cached_property
    def _file(self) -> BinaryIO:
        return self._files.enter_context(tempfile.TemporaryFile(prefix="temaki-words-"))

    @cached_property
    def _line(self) -> BinaryIO:
        return self._files.enter_context(tempfile.TemporaryFile(prefix="temaki-line-"))

    def lay(self, places: ndarray) -> None:
        """Write the next places of the line."""
        self._line.write(places.data)

    def line(self, room: Room) -> ndarray:
        """The line, uint32."""
        return room.mapped(self._line, np.uint32)

    def take(self, table: Table) -> None:
        """Write a table. Any thread may."""
        sizes = np.zeros((PARTS, 2), np.int64)
        kernels.part_sizes(table, PARTS, sizes)
        ends = np.zeros((PARTS + 1, 2), np.int64)
        np.cumsum(sizes, axis=0, out=ends[1:])
        words, size = (int(total) for total in ends[-1])
        text, lengths, counts = np.empty(size, np.uint8), np.empty(words, np.int64), np.empty(words, np.uint64)
        word, place = ends[:-1, 0].copy(), ends[:-1, 1].copy()
        kernels.write_out(table, PARTS, word, place, text, lengths, counts)
        with self._lock:
            for part in range(PARTS):
                (first, begin), (last, stop) = ends[part].tolist(), ends[part + 1].tolist()
                if last > first:
                    self._pieces[part].append((self.bytes, last - first, stop - begin))
                    for piece in (lengths[first:last], counts[first:last], text[begin:stop]):
                        self._file.write(piece.data)
                        self.bytes += piece.nbytes
            self._file.flush()

    def part(self, number: int) -> Words:
        """The words of one part, added up."""
        words = Words()
        for place, many, size in self._pieces[number]:
            self._file.seek(place)
            ends, counts = np.zeros(many + 1, np.int64), np.empty(many, np.uint64)
            text = np.zeros(size + PADDING, np.uint8)
            for array in (ends[1:], counts, text[:size]):
                self._file.readinto(array.data)  # type: ignore[attr-defined]
            np.cumsum(ends, out=ends)
            words.add(text, ends, counts)
        return words


class Counts:
    """The words of many chunks with their counts, in `threads` tables."""

    def __init__(self, threads: int, memory: int | None, spill: Spill):
        """`memory`: bytes that all tables together may take, if there is a bound; what is more goes to the spill.

        Where tables of so many threads do not fit, there are fewer.
        """
        if memory is not None:
            threads = max(1, min(threads, memory // (2 * Words().bytes)))
        self._memory = memory
        self._spill = spill
        limit = (0, None) if memory is None else (memory // threads, spill)
        self._words = [Words(limit[1], limit[0]) for _ in range(threads)]

    def count(self, chunks: Iterable[Chunk], rule: int, counted: Callable[[int], None]) -> None:
        """Count the pre-tokens of all chunks; `counted(bytes)` after each. Chunks are made in the calling thread."""
        if len(self._words) == 1:
            for chunk in chunks:
                self._words[0].count(rule, chunk.text, chunk.runs)
                counted(chunk.size)
            return
        free: queue.SimpleQueue[Words] = queue.SimpleQueue()
        for words in self._words:
            free.put(words)

        def work(chunk: Chunk) -> int:
            words = free.get()
            try:
                words.count(rule, chunk.text, chunk.runs)
            finally:
                free.put(words)
            return chunk.size

        under_way: deque[Future[int]] = deque()
        with ThreadPoolExecutor(len(self._words)) as pool:
            try:
                for chunk in chunks:
                    under_way.append(pool.submit(work, chunk))
                    while len(under_way) > 2 * len(self._words):
                        counted(under_way.popleft().result())
                while under_way:
                    counted(under_way.popleft().result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def add(self, words: Iterable[tuple[bytes, int]]) -> None:
        """Add words with their counts."""
        self._words[0].add_words(words)

    def parts(self) -> Iterator[Words]:
        """All words, each in one table only: one table, or where something was spilled, one after another."""
        tables, self._words = self._words, []
        together = sum(words.bytes for words in tables)
        if self._memory is None or (not self._spill.bytes and 3 * together <= self._memory):
            first = tables.pop(0)
            while tables:
                first.pour(tables.pop())
            yield first
            return
        while tables:
            tables.pop().spill()
        for number in range(PARTS):
            yield self._spill.part(number)
