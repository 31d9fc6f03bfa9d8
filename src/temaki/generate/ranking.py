"""Which of several answers is the best: by the model's mean log-probability of its ids. Letters: n ids."""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray


def mean_logprob(drawn: ndarray | None) -> float:
    """The mean of log-probabilities [n], in nats an id; -inf for an answer of no ids (None, or n = 0).

    The mean, not the sum: among sums the shortest answer wins.

    >>> mean_logprob(np.array([-1.0, -3.0])), mean_logprob(None)
    (-2.0, -inf)
    """
    return float(np.mean(drawn)) if drawn is not None and len(drawn) else -np.inf


def best_of(answers: Sequence[ndarray | None], count: int = 1) -> list[int]:
    """The indices of the `count` best answers, best first, by `mean_logprob`; equal ones in their order.

    answers: for each one the log-probabilities [n] of its ids, as `LogProbs.drawn` has them.

    >>> best_of([np.array([-1.0, -3.0]), None, np.array([-0.5]), np.array([-2.0])], 3)
    [2, 0, 3]
    """
    means = [mean_logprob(drawn) for drawn in answers]
    return sorted(range(len(means)), key=lambda i: -means[i])[:count]
