"""Filters and draw of an answer's next id in compiled passes: the fast twin of `sampling`. Letters: V vocabulary."""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from temaki.generate import sampler_loops as loops
from temaki.generate import sampling
from temaki.generate.config import SamplingConfig
from temaki.generate.request import LogProbs, Row

SURE = sampling.SLACK


class Space(NamedTuple):
    """Working memory of the loops: candidates (ids, logits, weights), then what a look for a boundary needs."""

    ids: ndarray
    logits: ndarray
    weights: ndarray
    keys: ndarray
    ones: ndarray
    bins: ndarray
    spare_keys: ndarray
    spare_masses: ndarray


class Sampler:
    """Draws for any number of answers from models of one vocabulary; not for several threads at once.

    The settings are those of the row's own request. Nothing is remembered from call to call but working memory, 60
    bytes an id, made when it is first needed. Same ids as `sampling.filters` and `sampling.draw`: sums differ in their
    last bits, so a draw that falls within 1e-12 of a border could differ.
    """

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary
        self._space: Space | None = None
        self._weights = np.zeros(0)
        self._counts = np.zeros(0, np.int32)
        self._logits: dict[tuple[str, np.dtype], ndarray] = {}

    def draw(self, logits: ndarray, row: Row, uniform: float, allowed: ndarray | None = None) -> int:
        """The id at `uniform` in [0, 1) of the filtered distribution of logits [V].

        allowed: bool [V], a constraint's mask, applied before all filters; None: all. Raises GenerationError for logits
        that are no distribution, before or after the filters.
        """
        if not 0 <= uniform < 1:
            raise ValueError(f"uniform must be in [0, 1), found {uniform}")
        logits = self._adjusted(logits, row, allowed)
        settings = row.request.sampling
        if settings.temperature == 0:
            return _greedy(logits)
        space, n = self._chosen(logits, settings)
        if n is None:
            return loops.walk(self._weights, self.vocabulary, uniform, space.bins)
        return int(space.ids[loops.walk(space.weights, n, uniform, space.bins)])

    def probabilities(self, logits: ndarray, row: Row, allowed: ndarray | None = None) -> ndarray:
        """float64 [V]: what `draw` draws from; with temperature 0 all mass lies on one id. Raises as `draw` does."""
        logits = self._adjusted(logits, row, allowed)
        settings = row.request.sampling
        out = np.empty(self.vocabulary)
        if settings.temperature == 0:
            out[:] = 0
            out[_greedy(logits)] = 1
            return out
        space, n = self._chosen(logits, settings)
        if n is None:
            return np.divide(self._weights, loops.total(self._weights, 0, self.vocabulary), out=out)
        loops.scatter(space, n, out)
        return out

    def logprobs(self, logits: ndarray, drawn: int, count: int) -> LogProbs:
        """The log-probability of `drawn` and the `count` best, by the model itself: before any filter.

        Raises GenerationError for logits that are no distribution.
        """
        rest = self._log_sum(logits)
        ids = self._best(logits, count)
        found = logits[np.array([drawn, *ids])].astype(np.float64) - rest
        return LogProbs(found[:1], ids[None], found[None, 1:])

    def best(self, logits: ndarray, row: Row, count: int, allowed: ndarray | None = None) -> tuple[ndarray, ndarray]:
        """(ids int64 [n], float64 [n]): the `count` best next ids that are not out, best first, n at most `count`.

        Their numbers are the model's log-probabilities, on which mask, bias, penalties and bans have worked as if they
        were logits. Raises GenerationError for logits that are no distribution.
        """
        logs = logits - self._log_sum(logits)  # float64
        adjusted = self._adjusted(logs, row, allowed)
        ids = self._best(adjusted, count)
        found = adjusted[ids]
        return ids[found > -np.inf], found[found > -np.inf]

    def _log_sum(self, logits: ndarray) -> np.float64:
        """log sum exp of logits. Raises GenerationError for logits that are no distribution."""
        top = _top(logits)
        self._working()
        loops.weigh(np.ascontiguousarray(logits), float(top), self.vocabulary, self._weights)
        return np.float64(top) + np.log(loops.total(self._weights, 0, self.vocabulary))

    def _best(self, logits: ndarray, count: int) -> ndarray:
        """int64: the ids of the `count` largest, best first, equal ones by the smaller id."""
        if count == 0:
            return np.zeros(0, np.int64)
        space = self._working()
        n = loops.best(np.ascontiguousarray(logits), min(count, self.vocabulary), space)
        order = np.argsort(-space.logits[:n], kind="stable")
        return space.ids[order].astype(np.int64)

    def _chosen(self, logits: ndarray, c: SamplingConfig) -> tuple[Space, int | None]:
        """The candidates and how many; None: all, with their weights in `_weights`."""
        top, space = _top(logits), self._working()
        if c.temperature != 1:
            cooled = self._row("cooled", logits.dtype)
            loops.cool(logits, float(top), c.temperature, cooled)
            logits, top = cooled, logits.dtype.type(0)
        k = 0 if c.top_k is None or c.top_k >= len(logits) else c.top_k
        alone, whole = k == 0 and c.typical_p == 1, 0.0
        if alone and (c.top_p < 1 or c.min_p == 0):
            loops.weigh(logits, float(top), len(logits), self._weights)
            if c.top_p == 1:
                return space, None
            whole = loops.total(self._weights, 0, len(logits))
        least = float(top + logits.dtype.type(np.log(c.min_p))) if c.min_p > 0 else -np.inf
        typical, p = (each - SURE if each < 1 else 1.0 for each in (c.typical_p, c.top_p))
        return space, loops.choose(logits, float(top), whole, k, typical, p, least, space)

    def _adjusted(self, logits: ndarray, row: Row, allowed: ndarray | None) -> ndarray:
        """Logits after mask, bias and penalties: a copy where anything changes."""
        c = row.request.sampling
        assert logits.shape == (self.vocabulary,), f"logits {list(logits.shape)} for a vocabulary of {self.vocabulary}"
        penalties = c.repetition_penalty != 1 or c.presence_penalty != 0 or c.frequency_penalty != 0
        early = len(row.ids) - row.prompt < c.min_tokens and c.stop_ids
        if not (penalties or early or c.logit_bias or c.no_repeat_ngram is not None or allowed is not None):
            return np.ascontiguousarray(logits)
        _top(logits)
        out = self._row("adjusted", logits.dtype)
        if allowed is None:
            np.copyto(out, logits)
        else:
            loops.masked(np.ascontiguousarray(logits), allowed, out)
        for id, bias in c.logit_bias:
            out[id] += bias
        if penalties:
            if not len(self._counts):
                self._counts = np.zeros(self.vocabulary, np.int32)
            repetition = logits.dtype.type(c.repetition_penalty)
            said = (repetition, c.presence_penalty, c.frequency_penalty, self._counts)
            loops.penalise(out, row.ids, row.prompt, *said)
        if c.no_repeat_ngram is not None:
            loops.repeating_out(out, row.ids, min(c.no_repeat_ngram, len(row.ids) + 1))
        if early:
            out[[id for id in c.stop_ids if id < len(out)]] = -np.inf
        return out

    def _row(self, name: str, dtype: np.dtype) -> ndarray:
        """A row [V] of working memory."""
        if (name, dtype) not in self._logits:
            self._logits[name, dtype] = np.empty(self.vocabulary, dtype)
        return self._logits[name, dtype]

    def _working(self) -> Space:
        if self._space is None:
            v = self.vocabulary
            self._weights = np.empty(v)
            self._space = Space(
                ids=np.empty(v, np.int32),
                logits=np.empty(v),
                weights=np.empty(v),
                keys=np.empty(v),
                ones=np.ones(v),
                bins=np.empty(loops.BINS),
                spare_keys=np.empty(v),
                spare_masses=np.empty(v),
            )
        return self._space


def _top(logits: ndarray) -> ndarray:
    """The largest; raises GenerationError for logits that are no distribution."""
    top = logits.max()
    if not np.isfinite(top):
        sampling.check(logits)
    return top


def _greedy(logits: ndarray) -> int:
    """The first of the largest. Raises as `_top`."""
    found = int(logits.argmax())  # the first NaN, where there is one
    if not np.isfinite(logits[found]):
        sampling.check(logits)
    return found
