"""How varied answers are: distinct-n and rep-n, shares of runs of n ids. Letters: n length of a run."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError


def distinct(answers: Iterable[Sequence[int] | ndarray], n: int) -> float:
    """Different runs of n ids in all answers together / all runs; 0 where no answer is so long.

    1: no run comes twice, within an answer or in two. Li et al. 2016, there divided by the number of ids,
    here by the number of runs, so that 1 is reached for every n.

    >>> distinct([[1, 2, 1, 2], [1, 2]], 1), distinct([[1, 2, 1, 2], [1, 2]], 2), distinct([[1]], 2)
    (0.3333333333333333, 0.5, 0.0)
    """
    runs = [run for answer in answers for run in _runs(answer, n)]
    return len(set(runs)) / len(runs) if runs else 0.0


def repetition(answer: Sequence[int] | ndarray, n: int) -> float:
    """rep-n: 1 - different runs of n ids / all runs, within one answer; 0 where it is too short to have two.

    Welleck et al. 2020 (seq-rep-n); Su et al. 2022 (rep-n).

    >>> repetition([1, 2, 1, 2, 1], 2), repetition([1, 2, 3], 2), repetition([], 2)
    (0.5, 0.0, 0.0)
    """
    runs = _runs(answer, n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def diversity(answer: Sequence[int] | ndarray) -> float:
    """The product of 1 - rep-n for n = 2, 3, 4: Su et al. 2022.

    >>> diversity([1, 2, 3, 4, 5]), round(diversity([1, 1, 1, 1]), 4)
    (1.0, 0.1667)
    """
    return float(np.prod([1 - repetition(answer, n) for n in (2, 3, 4)]))


def _runs(ids: Sequence[int] | ndarray, n: int) -> list[tuple[int, ...]]:
    """All runs of n neighbours, in order."""
    if n < 1:
        raise GenerationError("a run has at least one id", found=f"n = {n}", allowed="n of 1 and more")
    found = np.asarray(ids).tolist()
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
