"""A vocabulary of pieces with scores, ready to join characters: tables for `kernels.join`. Loads Numba.

Letters: V ids, S symbols (ids and characters that are no piece), N ids of a text.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.kernels import join
from temaki.tokens.segmenter import Automaton, Reached, readonly

LONGEST = 1024
"""Characters of the longest piece that is accepted."""

PAGE = 256
PAGES = 1 << 13


@dataclass(frozen=True)
class Joinable:
    """A piece that arises by joining, or a character that is one."""

    id: int
    text: str
    score: float
    unused: bool = False
    """It is taken apart again once nothing more is joined."""


class Joiner:
    """Segments text by one vocabulary."""

    def __init__(
        self,
        pieces: Sequence[Joinable],
        fixed: Sequence[tuple[int, str]],
        size: int,
        unknown: int,
        merges: Sequence[tuple[int, int]] | None = None,
    ):
        """`fixed`: id and text of what is one symbol wherever it stands, never joined; `size`: V; `unknown`: the id of
        a character that is no piece; `merges`: the ids that may be joined, the first first (None: what is a piece
        together, by its score). Texts are not empty, none comes twice. Raises TokenizerError for one too long."""
        long = max((len(piece.text) for piece in pieces), default=0)
        if long > LONGEST:
            raise TokenizerError("a piece is too long", found=f"{long} characters", allowed=f"{LONGEST}")
        ids = {piece.text: piece.id for piece in pieces if not piece.unused or len(piece.text) > 1}
        symbols = dict(ids)
        for character in sorted(set("".join(piece.text for piece in pieces))):
            symbols.setdefault(character, size + len(symbols))
        rows = _by_score(pieces, symbols) if merges is None else _by_order(ids, merges)
        made = {joined for _, _, _, joined in rows}
        unused = np.zeros(size, np.bool_)
        unused[[piece.id for piece in pieces if piece.unused and piece.id in made]] = True
        pages, cells = _cells(symbols)
        side_by_side = {pair for piece in pieces for pair in itertools.pairwise(piece.text)}
        neighbours = {(symbols[left], symbols[right]) for left, right in side_by_side}
        fixed = sorted(fixed, key=lambda one: one[1].encode())
        self._symbols = max(symbols.values(), default=0) + 1
        self._rules = join.Rules(
            pages,
            cells,
            _table(np.array(sorted(neighbours), np.int64).reshape(-1, 2))[0],
            *_sided(rows),
            *_trie(fixed),
            unused if unused.any() else np.empty(0, np.bool_),
            size,
            unknown,
        )

    def best(self, text: ndarray, threads: int | None = None) -> ndarray:
        """The ids of a whole text, uint8 -> uint32 [N]."""
        return self._encoded(text, True, 0.0, 0)[0]

    def noisy(self, text: ndarray, drop: float, key: int) -> ndarray:
        """The same with each join left out with probability `drop`."""
        return self._encoded(text, True, drop, key)[0]

    def best_each(self, text: ndarray, bounds: ndarray) -> tuple[ndarray, ndarray]:
        """The ids of texts text[bounds[i]:bounds[i+1]], uint32, and where each one's end, int64."""
        out, stops = np.empty(text.size, np.uint32), np.empty(bounds.size - 1, np.int64)
        desk = self._desk(int(np.diff(bounds).max(initial=0)))
        join.encode_each(readonly(text), bounds, self._rules, desk, out, stops)
        return out[: int(stops[-1]) if stops.size else 0].copy(), stops

    def reach(self, text: ndarray, score: float, whole: bool) -> Reached:
        """The ids of a text as far as they are certain whatever follows; `score` is carried on."""
        ids, place = self._encoded(text, whole, 0.0, 0)
        return Reached(ids, place, score)

    def _encoded(self, text: ndarray, whole: bool, drop: float, key: int) -> tuple[ndarray, int]:
        out = np.empty(text.size, np.uint32)
        desk = self._desk(text.size)
        count, place = join.encode(
            readonly(text), 0, text.size, whole, self._rules, float(drop), np.uint64(key), desk, out
        )
        return out[:count].copy(), place

    def _desk(self, size: int) -> join.Desk:
        split = np.full(2 * self._symbols if self._rules.unused.size else 0, -1, np.int32)
        return join.Desk(np.empty(size, np.int32), np.empty(join.SHORT, np.int64), split)


def _cells(symbols: dict[str, int]) -> tuple[ndarray, ndarray]:
    """Code point -> symbol in two steps: int32 [PAGES], int32."""
    codes = {ord(text): symbol for text, symbol in symbols.items() if len(text) == 1}
    held = sorted({code // PAGE for code in codes})
    pages, cells = np.zeros(PAGES, np.int32), np.full((len(held) + 1) * PAGE, -1, np.int32)
    for number, page in enumerate(held, 1):
        pages[page] = number * PAGE
    for code, symbol in codes.items():
        cells[pages[code // PAGE] + code % PAGE] = symbol
    return pages, cells


def _by_score(pieces: Sequence[Joinable], symbols: dict[str, int]) -> list[tuple[int, int, int, int]]:
    """Left symbol, right symbol, rank and id of all that joins to a piece; equal scores have one rank."""
    lengths = sorted({len(text) for text in symbols})
    order = -np.array([piece.score for piece in pieces], np.float32)
    ranks = np.unique(order, return_inverse=True)[1].reshape(-1).tolist()
    rows: list[tuple[int, int, int, int]] = []
    for piece, rank in zip(pieces, ranks, strict=True):
        text, size = piece.text, len(piece.text)
        for cut in lengths:
            if cut >= size:
                break
            left = symbols.get(text[:cut])
            if left is not None and (right := symbols.get(text[cut:])) is not None:
                rows.append((left, right, rank, piece.id))
    return rows


def _by_order(ids: dict[str, int], merges: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """The same of merges in their order."""
    texts = {id: text for text, id in ids.items()}
    return [(left, right, rank, ids[texts[left] + texts[right]]) for rank, (left, right) in enumerate(merges)]


def _sided(rows: list[tuple[int, int, int, int]]) -> tuple[ndarray, ndarray, ndarray]:
    """Keys of pairs, and beside them rank and id."""
    found = np.array(rows, np.int64).reshape(-1, 4)
    keys, places = _table(found[:, :2])
    sides = np.zeros((2, keys.size), np.int32)
    sides[:, places] = found[:, 2:].T
    return keys, sides[0].copy(), sides[1].copy()


def _table(pairs: ndarray) -> tuple[ndarray, ndarray]:
    """A table of keys, at most half full, and where each pair [n, 2] lies in it."""
    keys = np.full(1 << max(4, (2 * len(pairs)).bit_length()), join.EMPTY, np.uint64)
    places = np.empty(len(pairs), np.int64)
    join.add_all(keys, pairs[:, 0].copy(), pairs[:, 1].copy(), places)
    return keys, places


def _trie(fixed: Sequence[tuple[int, str]]) -> tuple[ndarray, ndarray]:
    if not fixed:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    sizes = np.array([len(text.encode()) for _, text in fixed], np.int64)
    pool = np.frombuffer("".join(text for _, text in fixed).encode(), np.uint8)
    numbers = np.array([id for id, _ in fixed], np.int64)
    automaton = Automaton(pool, np.cumsum(sizes) - sizes, sizes, numbers)
    return automaton.units, automaton.first
