"""Speculative decoding, the pure part: drafted ids are judged by the model's own distributions. Letters: V vocabulary,
m drafted ids, p the model's probabilities after the filters, q the draft's after the same filters.

One place is judged by `judged`; the id it gives is the drafted one exactly if that was accepted. Where a draft has no q
(all its mass lies on the id, as with n-gram lookup), the id is simply the one that plain decoding draws at this place:
it equals the drafted id with probability p, and is otherwise spread as norm(max(0, p - q)), so the rule is the same,
and speculative = plain token for token under sampling too. Leviathan et al. 2023, "Fast inference from transformers via
speculative decoding", algorithm 1 and appendix A.1; Chen et al. 2023, algorithm 2. Typical acceptance: Cai et al. 2024,
"Medusa", section 2.3.1: it changes what is said (lossy).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy import ndarray

from temaki.generate.request import Row

Acceptance = Literal["exact", "typical"]
"""exact: what is said is distributed as without drafts. typical: lossy, drafts that are likely enough pass."""
EPSILON = 0.09
"""Typical acceptance: an id more probable than this passes always."""
DELTA = 0.3
"""Typical acceptance: and one more probable than this share of e^-H."""


@dataclass(frozen=True)
class Draft:
    """A chain of ids that may come next in one row."""

    ids: ndarray
    """int32 [m], 0 <= m <= n."""
    probabilities: ndarray | None = None
    """float [m, V]: q, what each id was drawn from; None: all mass on the id."""


NONE = Draft(np.zeros(0, np.int32))
"""Nothing is proposed."""


class Proposer(Protocol):
    """Says what may come next. It keeps its own state; of a row it knows the ids and what the model's head read."""

    hidden: bool
    """It reads `Row.hidden`."""

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        """A draft of at most n ids for every row, some of them empty."""
        ...

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        """Of the last draft of slots[i] the first kept[i] ids were accepted."""
        ...

    def close(self, slot: int) -> None:
        """The row of this slot has ended, or leaves it for a while."""
        ...


def judged(p: ndarray, drafted: int, q: ndarray | None, *, accept: float, draw: float) -> int:
    """The id of one place, given p [V]: the drafted one if it is accepted, else another.

    accept, draw: two numbers in [0, 1) that nothing else has seen; `draw` is the one that plain decoding draws with.
    The drafted id x ~ q stays with probability min(1, p(x) / q(x)); else the id is drawn from norm(max(0, p - q)),
    where x itself has no mass. Where p = q every draft is accepted, so nothing is divided by 0.

    >>> p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    >>> [judged(p, 1, q, accept=u, draw=0.9) for u in (0.59, 0.61)]
    [1, 0]
    """
    if q is None:
        return drawn(p, draw)
    if accept * q[drafted] < p[drafted]:
        return drafted
    rest = residual(p, q)
    return drawn(rest if rest.any() else p, draw)


def typical(p: ndarray, drafted: int, *, epsilon: float = EPSILON, delta: float = DELTA) -> bool:
    """Lossy: whether p(drafted) > min(epsilon, delta e^-H), with H the entropy of p in nats.

    >>> typical(np.array([0.2, 0.5, 0.3]), 0), typical(np.array([0.04, 0.5, 0.46]), 0)
    (True, False)
    """
    some = p[p > 0]
    return bool(p[drafted] > min(epsilon, delta * np.exp((some * np.log(some)).sum())))


def accept(p: ndarray, draft: Draft, accepts: Sequence[float], draws: Sequence[float]) -> tuple[int, int]:
    """(kept, next id) of a whole chain: p [m + 1, V], one row more than the draft, m numbers to accept, m + 1 to draw.

    Row i of p is what the model says after the first i drafted ids; the bonus id after a chain that is kept whole comes
    from the last row.

    >>> accept(np.array([[0.1, 0.9], [0.8, 0.2]]), Draft(np.array([1])), [0.5], [0.5, 0.5])
    (1, 0)
    """
    q = draft.probabilities
    for i, drafted in enumerate(draft.ids):
        found = judged(p[i], int(drafted), None if q is None else q[i], accept=accepts[i], draw=draws[i])
        if found != drafted:
            return i, found
    return len(draft.ids), drawn(p[len(draft.ids)], draws[len(draft.ids)])


def drawn(p: ndarray, uniform: float) -> int:
    """The id at `uniform` in [0, 1) of the cumulated p [V]; an id of no mass never comes.

    >>> [drawn(np.array([0.25, 0.0, 0.75]), u) for u in (0.0, 0.2, 0.25, 0.99)]
    [0, 0, 2, 2]
    """
    sums = p.cumsum()
    return int(np.searchsorted(sums, uniform * sums[-1], side="right"))


def residual(p: ndarray, q: ndarray) -> ndarray:
    """norm(max(0, p - q)); zeros where p = q, when nothing is ever refused.

    >>> residual(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3]))
    array([1., 0., 0.])
    """
    rest = np.maximum(p - q, 0)
    total = rest.sum()
    return rest / total if total > 0 else rest


def acceptance(p: ndarray, q: ndarray) -> float:
    """alpha = sum of min(p, q): how probably a drafted id is accepted.

    >>> round(acceptance(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])), 12)
    0.7
    """
    return float(np.minimum(p, q).sum())


def expected_tokens(alpha: float, drafted: int) -> float:
    """Ids said by one pass over `drafted` ids, each accepted with probability alpha: (1 - a^(m+1)) / (1 - a).

    Leviathan et al. 2023, equation 1.

    >>> round(expected_tokens(0.8, 4), 6), round(expected_tokens(0.75, 7), 6), expected_tokens(1.0, 3)
    (3.3616, 3.599548, 4.0)
    """
    return float(drafted + 1) if alpha == 1 else (1 - alpha ** (drafted + 1)) / (1 - alpha)


def speed_up(alpha: float, drafted: int, cost: float) -> float:
    """How many times faster than plain decoding, if one drafted id costs `cost` passes of the model.

    Leviathan et al. 2023, theorem 3.8: (1 - a^(m+1)) / ((1 - a)(m c + 1)).

    >>> round(speed_up(0.75, 7, 0.02), 3)
    3.157
    """
    return expected_tokens(alpha, drafted) / (drafted * cost + 1)
