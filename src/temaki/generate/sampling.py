"""Logits -> an id: filters as plain functions of NumPy arrays, their list for some settings, and one draw.

A filter takes logits [..., V] and returns logits of the same type with -inf = out; it never writes into its
input. Ties are broken by the smaller id, everywhere. Logits that are no distribution (NaN, +inf, all -inf)
pass through the filters as such and are refused by the draw. This is the readable truth; answers are drawn by its
compiled twin, `sampler`. Letters: V vocabulary, n ids.

The order: bias; repetition, presence and frequency penalty; no repeated run, no early stop; temperature; top-k,
typical, top-p, min-p. Each works on what the one before left.
Top-p: Holtzman et al. 2020, section 3.1; typical: Meister et al. 2023, section 4; min-p: Nguyen et al. 2024; repetition
penalty: Keskar et al. 2019 (CTRL), section 4.1; presence and frequency penalty: OpenAI's API reference; no repeated
runs: Paulus et al. 2018, section 2.5.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.generate.config import SamplingConfig
from temaki.generate.request import Filter, Row

FEW = (1024, 8192)
"""Top-p sorts about this many of the largest logits, then more, and all (4 ms at 49k) only if it must."""
SLACK = 1e-7
"""Top-p counts a sum this near to p as reached: logits in float32 know no better."""
LEAST = 1e-300
"""A sum that at least one id is needed for."""


def temperature(logits: ndarray, t: float) -> ndarray:
    """(logits - max) / t, in float64 inside; t = 0 is the limit: all but the first largest are out.

    >>> temperature(np.array([1.0, 3.0, 2.0], np.float32), 0.5)
    array([-4.,  0., -2.], dtype=float32)
    >>> temperature(np.array([1.0, 3.0, 3.0], np.float32), 0.0)
    array([-inf,   0., -inf], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if t > 0:
            shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
            return (shifted / t).astype(logits.dtype)
        best = logits.argmax(-1)[..., None]
        top = np.take_along_axis(logits, best, -1)
        out = np.full_like(logits, -np.inf)
        np.put_along_axis(out, best, top - top, -1)  # 0, or NaN where the best is no number
    return out


def top_k(logits: ndarray, k: int) -> ndarray:
    """Keep exactly the k largest (all, where there are no more), equal ones by the smaller id.

    >>> top_k(np.array([1.0, 3.0, 3.0, 3.0], np.float32), 2)
    array([-inf,   3.,   3., -inf], dtype=float32)
    """
    size = logits.shape[-1]
    if k >= size:
        return logits
    last = np.partition(logits, size - k, -1)[..., size - k, None]
    equal = logits == last
    spare = k - (logits > last).sum(-1, keepdims=True)
    return np.where((logits < last) | (equal & (equal.cumsum(-1) > spare)), logits.dtype.type(-np.inf), logits)


def top_p(logits: ndarray, p: float) -> ndarray:
    """Keep the smallest set of ids whose probabilities sum to at least p, taken in the order (-logit, id).

    At least one id stays; p = 1 keeps all.

    >>> q = np.log([0.5, 0.2, 0.15, 0.1, 0.05]).astype(np.float32)
    >>> [int(np.isfinite(top_p(q, p)).sum()) for p in (0.5, 0.6, 0.7, 1.0, 1e-4)]
    [1, 2, 2, 5, 1]
    """
    if p >= 1:
        return logits
    if logits.ndim > 1:
        return np.stack([top_p(each, p) for each in logits]) if len(logits) else logits
    top = logits.max()
    if not np.isfinite(top):
        return logits
    inside = np.flatnonzero(logits > -np.inf)
    values = logits[inside]
    weights = np.exp(values.astype(np.float64) - top)
    goal = max(p - SLACK, LEAST) * weights.sum()
    order = _largest(values, FEW[0])
    for count in (*FEW[1:], len(values)):
        if weights[order].sum() >= goal:
            break
        order = _largest(values, count)
    sums = weights[order].cumsum()
    kept = inside[order[: np.searchsorted(sums, goal) + 1]]
    out = np.full_like(logits, -np.inf)
    out[kept] = logits[kept]
    return out


def typical(logits: ndarray, p: float) -> ndarray:
    """Keep the smallest set of ids whose probabilities sum to at least p, taken in the order (|-log q - H|, id).

    H = -sum q log q is the entropy, q the probabilities: ids near to what is expected come first, not the best ones. At
    least one id stays; p = 1 keeps all.

    >>> q = np.log([0.5, 0.2, 0.15, 0.1, 0.05]).astype(np.float32)
    >>> [np.flatnonzero(np.isfinite(typical(q, p))).tolist() for p in (0.1, 0.3, 0.8)]
    [[1], [1, 2], [0, 1, 2]]
    """
    if p >= 1:
        return logits
    if logits.ndim > 1:
        return np.stack([typical(each, p) for each in logits]) if len(logits) else logits
    top = logits.max()
    if not np.isfinite(top):
        return logits
    inside = np.flatnonzero(logits > -np.inf)
    logs = log_probabilities(logits[inside])
    weights = np.exp(logs)
    order = np.argsort(np.abs(logs - (weights * logs).sum()), kind="stable")
    sums = weights[order].cumsum()
    kept = inside[order[: np.searchsorted(sums, max(p - SLACK, LEAST) * sums[-1]) + 1]]
    out = np.full_like(logits, -np.inf)
    out[kept] = logits[kept]
    return out


def min_p(logits: ndarray, p: float) -> ndarray:
    """Keep the ids at least p times as probable as the best one: logit >= max + log p. p = 0 keeps all.

    >>> min_p(np.log(np.array([0.5, 0.3, 0.2], np.float32)), 0.5).round(2)
    array([-0.69, -1.2 ,  -inf], dtype=float32)
    """
    if p <= 0:
        return logits
    floor = logits.max(-1, keepdims=True) + logits.dtype.type(np.log(p))
    return np.where(logits < floor, logits.dtype.type(-np.inf), logits)


def repetition_penalty(logits: ndarray, ids: ndarray, penalty: float) -> ndarray:
    """Divide the positive and multiply the negative logits of `ids` [..., n] by `penalty`, once each.

    >>> repetition_penalty(np.array([2.0, -2.0, 1.0], np.float32), np.array([0, 1, 1]), 2.0)
    array([ 1., -4.,  1.], dtype=float32)
    """
    ids = np.asarray(ids, np.int64)
    found = np.take_along_axis(logits, ids, -1)
    out = logits.copy()
    changed = np.where(found > 0, found / penalty, found * penalty)
    np.put_along_axis(out, ids, changed.astype(logits.dtype), -1)
    return out


def output_penalty(logits: ndarray, output: ndarray, presence: float, frequency: float) -> ndarray:
    """logit - presence - frequency * count, for the ids that stand `count` >= 1 times in `output` [n]; logits [V].

    >>> output_penalty(np.array([2.0, 2.0, 2.0], np.float32), np.array([0, 1, 1]), 0.5, 0.25)
    array([1.25, 1.  , 2.  ], dtype=float32)
    """
    ids, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
    out = logits.copy()
    out[ids] = (logits[ids].astype(np.float64) - (presence + frequency * counts)).astype(logits.dtype)
    return out


def logit_bias(logits: ndarray, bias: Sequence[tuple[int, float]]) -> ndarray:
    """logit + b for each (id, b); logits [V].

    >>> logit_bias(np.array([1.0, 2.0], np.float32), [(1, -1.5), (1, 0.25)])
    array([1.  , 0.75], dtype=float32)
    """
    out = logits.copy()
    for id, each in bias:
        out[id] += each
    return out


def without(logits: ndarray, ids: Sequence[int] | ndarray) -> ndarray:
    """Put `ids` out; logits [V].

    >>> without(np.array([1.0, 2.0, 3.0], np.float32), [0, 2])
    array([-inf,   2., -inf], dtype=float32)
    """
    out = logits.copy()
    out[np.asarray(ids, np.int64)] = -np.inf
    return out


def repeating(ids: ndarray, n: int) -> ndarray:
    """int64: the ids that would end a run of n ids which stands in `ids` [m] already.

    >>> repeating(np.array([5, 6, 7, 5, 6, 8, 5, 6]), 3), repeating(np.array([5, 6]), 1), repeating(np.array([5]), 3)
    (array([7, 8]), array([5, 6]), array([], dtype=int64))
    """
    if len(ids) < n:
        return np.zeros(0, np.int64)
    runs = np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.int64), n)
    same = (runs[:, : n - 1] == ids[len(ids) - n + 1 :]).all(-1)
    return np.unique(runs[same, n - 1])


def filters(config: SamplingConfig) -> list[Filter]:
    """The filters that these settings ask for, in their fixed order; those that change nothing are left out.

    >>> len(filters(SamplingConfig())), len(filters(SamplingConfig(temperature=0.7, top_k=50, top_p=0.9)))
    (0, 3)
    """
    c = config
    found = _penalties(c)
    if c.temperature == 0:
        return [*found, lambda logits, row: temperature(logits, 0.0)]
    if c.temperature != 1:
        found.append(lambda logits, row: temperature(logits, c.temperature))
    if c.top_k is not None:
        k = c.top_k
        found.append(lambda logits, row: top_k(logits, k))
    if c.typical_p < 1:
        found.append(lambda logits, row: typical(logits, c.typical_p))
    if c.top_p < 1:
        found.append(lambda logits, row: top_p(logits, c.top_p))
    if c.min_p > 0:
        found.append(lambda logits, row: min_p(logits, c.min_p))
    return found


def _penalties(c: SamplingConfig) -> list[Filter]:
    """What looks at the ids so far, before the temperature."""
    found: list[Filter] = []
    if c.logit_bias:
        found.append(lambda logits, row: logit_bias(logits, c.logit_bias))
    if c.repetition_penalty != 1:
        found.append(lambda logits, row: repetition_penalty(logits, row.ids, c.repetition_penalty))
    if c.presence_penalty or c.frequency_penalty:
        said = (c.presence_penalty, c.frequency_penalty)
        found.append(lambda logits, row: output_penalty(logits, row.ids[row.prompt :], *said))
    if c.no_repeat_ngram is not None:
        n = c.no_repeat_ngram
        found.append(lambda logits, row: without(logits, repeating(row.ids, n)))
    if c.min_tokens and c.stop_ids:
        stops = np.array(c.stop_ids, np.int64)
        found.append(lambda logits, row: _not_yet(logits, row, stops, c.min_tokens))
    return found


def _not_yet(logits: ndarray, row: Row, stops: ndarray, least: int) -> ndarray:
    """The stop ids are out while an answer is shorter than `least` ids."""
    early = len(row.ids) - row.prompt < least
    return without(logits, stops[stops < len(logits)]) if early else logits


def check(logits: ndarray) -> None:
    """Raise GenerationError where logits [V] are no distribution: NaN, +inf, or nothing but -inf.

    >>> check(np.array([0.0, -np.inf]))
    """
    top = logits.max()  # NaN wins a maximum
    if np.isfinite(top):
        return
    count = f"of {len(logits)} logits"
    if np.isnan(top):
        raise GenerationError("the logits hold NaN: no id can be drawn", found=f"{int(np.isnan(logits).sum())} {count}")
    if top > 0:
        raise GenerationError("the logits hold +inf: no id can be drawn", found=f"{int((logits == top).sum())} {count}")
    raise GenerationError("every id is ruled out: no id can be drawn", found=f"-inf in all {count}")


def draw(logits: ndarray, uniform: float) -> int:
    """The id at `uniform` in [0, 1) of the cumulated softmax of logits [V]; an id that is out never comes.

    Raises GenerationError for logits that are no distribution, see `check`.

    >>> [draw(np.log([0.25, 0.5, 0.25]), u) for u in (0.0, 0.2, 0.3, 0.7, 0.8)]
    [0, 0, 1, 1, 2]
    """
    if not 0 <= uniform < 1:
        raise ValueError(f"uniform must be in [0, 1), found {uniform}")
    check(logits)
    kept = np.flatnonzero(logits > -np.inf)
    wide = logits[kept].astype(np.float64)
    sums = np.exp(wide - wide.max()).cumsum()
    goal = uniform * sums[-1]  # below the whole sum also when rounded: (1 - 2^-53) s takes over half a bit from s
    return int(kept[np.searchsorted(sums, goal, side="right")])


def log_probabilities(logits: ndarray) -> ndarray:
    """logits - logsumexp(logits) over the last axis, in float64 and nats: [..., V] -> [..., V].

    >>> log_probabilities(np.array([0.0, 0.0], np.float32)).round(4)
    array([-0.6931, -0.6931])
    """
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def best(values: ndarray, count: int) -> ndarray:
    """The ids of the `count` largest of values [V], best first, equal ones by the smaller id: int64, at most
    V.

    >>> best(np.array([1.0, 3.0, 2.0, 3.0]), 3)
    array([1, 3, 2])
    """
    if count == 0:
        return np.zeros(0, np.int64)
    kept = np.flatnonzero(top_k(values, count) == values) if count < len(values) else np.arange(len(values))
    return kept[np.argsort(-values[kept], kind="stable")][:count]


def _largest(logits: ndarray, count: int) -> ndarray:
    """The ids above the `count`-th largest logit in the order (-logit, id); all, where `count` is not
    less."""
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    found = np.flatnonzero(logits > np.partition(logits, len(logits) - count)[len(logits) - count])
    return found[np.argsort(-logits[found], kind="stable")]
