"""Which words a vocabulary of pieces has found in texts: how often, how firmly joined, how freely used.

Cohesion: log p(piece) less the best log probability of its cut into two pieces or more, nats; what its being one piece
is worth (pointwise mutual information of its parts). Boundary entropy: of the piece that follows it, and of the one
before it, nats; the lower of the two is low where it is but a part of something longer. Sources: Sproat and Shih 1990;
Su 2017.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.tokens.bytepiece import BytePiece
from temaki.tokens.kernels import viterbi
from temaki.tokens.segmenter import readonly

PORTION = 1 << 24
"""Characters of texts that are segmented at a time."""


@dataclass(frozen=True)
class Found:
    """A piece of two characters or more, and how texts use it."""

    id: int
    text: str
    count: int
    cohesion: float
    """Nats; infinite where its bytes have no other cut."""
    before: float
    """Entropy of the piece before it, nats; texts' ends left out."""
    after: float

    @property
    def boundary(self) -> float:
        """The lower of the two entropies."""
        return min(self.before, self.after)


def discover(texts: Iterable[str | bytes], tokenizer: BytePiece) -> list[Found]:
    """The pieces of two characters or more that the texts hold, the most frequent first. Raises TokenizerError.

    Memory: 16 bytes for each distinct pair of neighbours, and one portion of text.
    """
    counts = np.zeros(tokenizer.size, np.int64)
    pairs, times = np.empty(0, np.uint64), np.empty(0, np.int64)
    for portion in _portions(texts):
        batch = tokenizer.encode_batch(portion)
        counts += np.bincount(batch.ids, minlength=tokenizer.size)
        pairs, times = _summed(np.append(pairs, _neighbours(batch.ids, batch.offsets)), times)
    before = _entropies((pairs & np.uint64(0xFFFFFFFF)).astype(np.int64), times, tokenizer.size)
    after = _entropies((pairs >> np.uint64(32)).astype(np.int64), times, tokenizer.size)
    words = {id: text for id in np.flatnonzero(counts).tolist() if len(text := _text(tokenizer.tokens[id])) > 1}
    worth = cohesion(tokenizer)
    rows = [Found(id, text, int(counts[id]), worth[id], before[id], after[id]) for id, text in words.items()]
    return sorted(rows, key=lambda row: (-row.count, row.id))


def cohesion(tokenizer: BytePiece) -> list[float]:
    """Of each id, nats; 0 for special tokens, infinite where there is no other cut."""
    reserved = tokenizer.size - len(tokenizer.pieces)
    pool = readonly(np.frombuffer(b"".join(tokenizer.pieces), np.uint8))
    sizes = np.array([len(piece) for piece in tokenizer.pieces], np.int64)
    automaton, scores = tokenizer.segmenter.automaton, tokenizer.segmenter.scores
    room = automaton.longest + 1
    out = np.empty(sizes.size)
    viterbi.split_scores(
        pool, np.cumsum(sizes) - sizes, sizes, automaton.units, automaton.first, scores, np.empty(room),
        np.empty(room, np.int64), np.empty(room, np.int64), out,
    )  # fmt: skip
    return [0.0] * reserved + (scores[reserved:] - out).tolist()


def _portions(texts: Iterable[str | bytes]) -> Iterator[list[str | bytes]]:
    held: list[str | bytes] = []
    length = 0
    for text in texts:
        held.append(text)
        length += len(text)
        if length >= PORTION:
            yield held
            held, length = [], 0
    yield held


def _neighbours(ids: ndarray, offsets: ndarray) -> ndarray:
    """Each piece and the one after it in the same text as one uint64, the first in the upper half."""
    inside = np.ones(ids.size, np.bool_)
    inside[offsets[offsets < ids.size]] = False  # beginnings of texts
    later = np.flatnonzero(inside)
    return ids[later - 1].astype(np.uint64) << np.uint64(32) | ids[later].astype(np.uint64)


def _summed(pairs: ndarray, times: ndarray) -> tuple[ndarray, ndarray]:
    """Distinct pairs and how often; the first of `pairs` come `times` times, the others once."""
    weights = np.ones(pairs.size, np.int64)
    weights[: times.size] = times
    found, places = np.unique(pairs, return_inverse=True)
    return found, np.bincount(places, weights, found.size).astype(np.int64)


def _entropies(ids: ndarray, times: ndarray, size: int) -> list[float]:
    """log N - sum(n log n) / N of each id over its pairs, n times each."""
    whole = np.bincount(ids, times, size)
    parts = np.bincount(ids, times * np.log(times), size)
    seen = np.maximum(whole, 1.0)
    return np.maximum(np.log(seen) - parts / seen, 0.0).tolist()


def _text(piece: bytes) -> str:
    """The piece as text, empty if it is none."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return ""
