"""All segmentations of a text at once: the pieces that are in it, their scores, and what follows from them.

For short texts: plain Python over arcs. A path is a list of arcs from the text's beginning to its end; its score is the
sum of its pieces' scores. Sources: Nagata 1994 (n-best, forward Viterbi and backward A*); Kudo 2018 (sampling).
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError


@dataclass(frozen=True)
class Lattice:
    """Arcs in the order of their beginnings, from shorter to longer; each is a piece at a place."""

    text: bytes
    begins: ndarray
    """int64 [A], bytes."""
    ends: ndarray
    """int64 [A]."""
    ids: ndarray
    """int64 [A]."""
    scores: ndarray
    """float64 [A], nats."""

    @cached_property
    def _ending(self) -> list[list[int]]:
        """The arcs that end at each place, those that begin first (the longer ones) first."""
        ending: list[list[int]] = [[] for _ in range(len(self.text) + 1)]
        for arc, end in enumerate(self.ends.tolist()):
            ending[end].append(arc)
        return ending

    def heights(self) -> ndarray:
        """The score of the best path to each place, float64 [bytes + 1]; -inf where none leads."""
        best = np.full(len(self.text) + 1, -math.inf)
        best[0] = 0.0
        for begin, end, score in zip(self.begins, self.ends, self.scores, strict=True):
            best[end] = max(best[end], best[begin] + score)
        return best

    def logs(self, alpha: float = 1.0) -> tuple[ndarray, ndarray]:
        """log of the sum over all paths to each place, and from it on, of exp(alpha * score): float64 [bytes + 1]
        each."""
        before = np.full(len(self.text) + 1, -math.inf)
        after = before.copy()
        before[0] = after[-1] = 0.0
        arcs = list(zip(self.begins.tolist(), self.ends.tolist(), (alpha * self.scores).tolist(), strict=True))
        for begin, end, weight in arcs:
            before[end] = np.logaddexp(before[end], before[begin] + weight)
        for begin, end, weight in reversed(arcs):
            after[begin] = np.logaddexp(after[begin], after[end] + weight)
        return before, after

    def marginals(self, alpha: float = 1.0) -> ndarray:
        """The probability of each arc to be on a random path, float64 [A]; paths weigh exp(alpha * score)."""
        before, after = self.logs(alpha)
        return np.exp(before[self.begins] + alpha * self.scores + after[self.ends] - after[0])

    def paths(self, most: int = 10_000) -> Iterator[tuple[list[int], float]]:
        """The arcs and the score of every path, best first: `nbest` without end. Raises TokenizerError beyond
        `most`."""
        for number, path in enumerate(self._ranked()):
            if number == most:
                raise TokenizerError("too many segmentations to list", allowed=str(most), do="take the n best")
            yield path

    def nbest(self, n: int) -> list[tuple[list[int], float]]:
        """The n best paths as lists of arcs, with their log probabilities among all paths; fewer if there are fewer.

        Raises TokenizerError for n below 1.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise TokenizerError("how many segmentations", found=repr(n), allowed="1 or more")
        whole = self.logs()[0][-1]
        ranked = self._ranked()
        return [(arcs, score - whole) for _, (arcs, score) in zip(range(n), ranked, strict=False)]

    def _ranked(self) -> Iterator[tuple[list[int], float]]:
        """Paths from the best on: A* from the end; the best score to a place is what still can be had. Equal ones in
        the order of Viterbi: the longer last piece first."""
        best = self.heights()
        waiting: list[tuple[float, int, int, float, Any]] = [(-best[-1], 0, len(self.text), 0.0, None)]
        made = 0
        while waiting:
            _, _, place, score, path = heapq.heappop(waiting)
            if place == 0:
                arcs: list[int] = []
                while path is not None:
                    arcs.append(path[0])
                    path = path[1]
                yield arcs, score
                continue
            for arc in self._ending[place]:
                begin = int(self.begins[arc])
                longer = score + float(self.scores[arc])
                if best[begin] > -math.inf:
                    made += 1
                    heapq.heappush(waiting, (-(best[begin] + longer), made, begin, longer, (arc, path)))
