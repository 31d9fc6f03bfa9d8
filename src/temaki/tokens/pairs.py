"""The pair table of the BPE trainer: counts of adjacent symbols, kept up to date merge by merge.

All words lie in one line of places with an edge between two words; the places of a word are linked, so that a
merge touches the occurrences of its pair and nothing else, however long a word is. A merge makes pairs only
with the new symbol; the counts of all others can but fall. So each pair is in the heap once, and an entry
that is found too high when it comes up goes back with its true count. Source: Sennrich et al. 2016, algorithm
1; Gage 1994.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

Pair = tuple[int, int]

NONE = -1
"""The symbol of a place that is an edge or was swallowed by a merge."""


class PairTable:
    """Symbols 0..255 are the bytes unless others are given; each merge adds the next."""

    def __init__(self, words: Iterable[tuple[Iterable[int], int]], tokens: Sequence[bytes] | None = None):
        """`words`: each distinct word, as symbols, and how often it occurs (a word may come several times, too).

        `tokens`: the bytes of each first symbol; the 256 bytes if not given.
        """
        self.tokens: list[bytes] = [bytes([value]) for value in range(256)] if tokens is None else list(tokens)
        """The bytes of each symbol."""
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        """How often each pair occurs, overlaps included, weighted by the words' counts; may hold zeros."""
        self._symbols: list[int] = [NONE]
        self._weights: list[int] = [0]
        for word, count in words:
            symbols = [*word, NONE]
            self._symbols += symbols
            self._weights += [count] * len(symbols)
        self._after = list(range(1, len(self._symbols) + 1))
        self._before = list(range(-1, len(self._symbols) - 1))
        self._places: defaultdict[Pair, list[int]] = defaultdict(list)
        """Where each pair begins, ascending; may hold places where it no longer does."""
        for place, pair in enumerate(pairwise(self._symbols)):
            if NONE not in pair:
                self.counts[pair] += self._weights[place]
                self._places[pair].append(place)
        self._falling = [_falling(token) for token in self.tokens]
        self._heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self._heap)

    def best(self) -> Pair | None:
        """The pair with the highest count; of equals the greatest (bytes, bytes). None if no pair is left."""
        while self._heap:
            entry = self._heap[0]
            pair = entry[3]
            count = self.counts[pair]
            if count == -entry[0] and count > 0:
                return pair
            if count > 0:
                heapq.heapreplace(self._heap, self._entry(pair))
            else:
                heapq.heappop(self._heap)
                del self.counts[pair]
                self._places.pop(pair, None)
        return None

    def merge(self, pair: Pair) -> int:
        """Replace each occurrence of a pair, left to right without overlap, by a new symbol: the result."""
        left, right = pair
        new = len(self.tokens)
        self.tokens.append(self.tokens[left] + self.tokens[right])
        self._falling.append(_falling(self.tokens[new]))
        symbols, before, after, counts = self._symbols, self._before, self._after, self.counts
        made: set[Pair] = set()
        for place in self._places.pop(pair):
            second = after[place]
            if symbols[place] != left or symbols[second] != right:
                continue
            first, third, weight = before[place], after[second], self._weights[place]
            symbols[place], symbols[second] = new, NONE
            after[place], before[third] = third, place
            if (neighbour := symbols[first]) != NONE:
                counts[neighbour, left] -= weight
                self._make((neighbour, new), first, weight, made)
            if (neighbour := symbols[third]) != NONE:
                counts[right, neighbour] -= weight
                self._make((new, neighbour), place, weight, made)
        counts[pair] = 0
        for fresh in made:
            if counts[fresh]:
                heapq.heappush(self._heap, self._entry(fresh))
        return new

    def words(self) -> list[tuple[list[int], int]]:
        """Every word as it stands now: its symbols and its count."""
        found: list[tuple[list[int], int]] = []
        place, word = 1, list[int]()
        while place < len(self._symbols):
            if self._symbols[place] == NONE:
                found.append((word, self._weights[place]))
                word = []
            else:
                word.append(self._symbols[place])
            place = self._after[place]
        return found

    def _make(self, pair: Pair, place: int, weight: int, made: set[Pair]) -> None:
        self.counts[pair] += weight
        self._places[pair].append(place)
        made.add(pair)

    def _entry(self, pair: Pair) -> tuple[int, str, str, Pair]:
        return -self.counts[pair], self._falling[pair[0]], self._falling[pair[1]], pair


def _falling(token: bytes) -> str:
    """A text that sorts the other way round than the bytes; its end mark puts a token before its own prefix.

    >>> sorted([b"a", b"ab", b"b"], key=_falling)
    [b'b', b'ab', b'a']
    """
    return "".join(chr(255 - value) for value in token) + "\u0100"
