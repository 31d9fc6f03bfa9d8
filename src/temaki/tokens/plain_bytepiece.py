"""BytePiece, plain and readable: training and segmentation as the definition says them. The oracle of the compiled
form.

Training: count byte n-grams; cut the texts where their conditional probabilities say so; count the pieces; drop the
rare and the long; let every piece that is worth less than its parts go. Source: Su 2023 (BytePiece 0.6.3); Su 2016.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random

import numpy as np

NOTHING = -math.inf


def segments(text: str, longest: int | None = None, isolate_digits: bool = False) -> list[bytes]:
    """A text in normal form C, cut behind its runs of newlines, as UTF-8; joined, the segments are the text.

    `longest`, for training: the characters of a segment's line, and 100 newlines at most.

    >>> segments("ab\\n\\ncd12 x\\n", isolate_digits=True)
    [b'ab\\n\\n', b'cd', b'1', b'2', b' x\\n']
    """
    line, newlines = ("*", "+") if longest is None else (f"{{,{longest}}}", "{1,100}")
    rest = "+" if longest is None else f"{{1,{longest}}}"
    inside = r"[^\n\d]" if isolate_digits else r"[^\n]"
    pattern = rf"{inside}{line}\n{newlines}|{inside}{rest}" + (r"|\d" if isolate_digits else "")
    return [part.encode() for part in re.findall(pattern, unicodedata.normalize("NFC", text))]


def scored(counts: Mapping[bytes, int]) -> dict[bytes, float]:
    """Count -> log probability.

    >>> round(scored({b"a": 1, b"b": 3})[b"a"], 3)
    -1.386
    """
    whole = np.log(sum(counts.values()))
    return {piece: float(np.log(count) - whole) for piece, count in counts.items()}


def best(text: bytes, scores: Mapping[bytes, float]) -> list[bytes]:
    """The segmentation with the greatest sum of scores; of equal ones that whose last piece is longer.

    >>> best(b"abc", scored({b"a": 4, b"b": 3, b"c": 2, b"ab": 6, b"bc": 5, b"abc": 2}))
    [b'abc']
    """
    longest = max(map(len, scores))
    heights, came = [0.0] + [NOTHING] * len(text), [0] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        for begin in range(max(0, end - longest), end):
            score = heights[begin] + scores.get(text[begin:end], NOTHING)
            if score > heights[end]:
                heights[end], came[end] = score, begin
    return _walked(text, came)


def sampled_old(text: bytes, scores: Mapping[bytes, float], alpha: float, draw: Random) -> list[bytes]:
    """The first way of random segmentation (BytePiece 0.4), for comparison: it is biased.

    Pieces that end at a place come one by one, the longest first; a new one takes the last one's place with the
    probability sigmoid(alpha * (its score - the other's)). Of three equal ones that gives 1/4, 1/4 and 1/2.
    """
    longest = max(map(len, scores))
    heights, came = [0.0] + [NOTHING] * len(text), [0] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        for begin in range(max(0, end - longest), end):
            score = heights[begin] + scores.get(text[begin:end], NOTHING)
            if score == NOTHING:
                continue
            gain = alpha * (score - heights[end])
            if draw.random() < 1 / (1 + math.exp(-min(max(gain, -500), 500))):
                heights[end], came[end] = score, begin
    return _walked(text, came)


def train(
    texts: Sequence[str],
    sizes: Sequence[int],
    order: int = 6,
    longest: int = 36,
    min_count: int = 2,
    isolate_digits: bool = False,
    whole_characters: bool = True,
) -> list[dict[bytes, int]]:
    """The pieces and counts of each vocabulary, the largest first; three ids of each size are for special tokens."""
    parts = [part for text in texts for part in segments(text, 10_000, isolate_digits)]
    model = conditional(count_grams(parts, order), order, min_count)
    counts = Counter({bytes([byte]): 0 for byte in range(256)})
    for part in parts:
        counts.update(presegmented(part, model, order, whole_characters))
    pieces = {piece: max(count, 1) for piece, count in counts.items()}
    pieces = without(pieces, [p for p, n in pieces.items() if len(p) > 1 and (len(p) > longest or n < min_count)])
    made: list[dict[bytes, int]] = []
    for size in sorted(sizes, reverse=True):
        if len(pieces) > size - 3:
            ranked = sorted(pieces, key=lambda piece: (len(piece) > 1, -pieces[piece], -len(piece), piece))
            pieces = without(pieces, ranked[size - 3 :])
        made.append(pieces)
    return made


def count_grams(parts: Iterable[bytes], order: int) -> Counter[bytes]:
    """How often each n-gram of 1 to `order` bytes occurs inside a segment."""
    counts: Counter[bytes] = Counter()
    for part in parts:
        for begin in range(len(part)):
            counts.update(part[begin:end] for end in range(begin + 1, min(begin + order, len(part)) + 1))
    return counts


def conditional(counts: Mapping[bytes, int], order: int, min_count: int) -> dict[bytes, float]:
    """log N(c1..cn) - log N(c1..cn-1) of the n-grams that are frequent enough; every byte occurs once at least."""
    kept = {bytes([byte]): 1 for byte in range(256)}
    kept |= {gram: count for gram, count in counts.items() if len(gram) == 1 or count >= min_count}
    whole = sum(count for gram, count in kept.items() if len(gram) == 1)
    return {gram: float(np.log(count) - np.log(kept.get(gram[:-1], whole))) for gram, count in kept.items()}


def presegmented(text: bytes, model: Mapping[bytes, float], order: int, whole_characters: bool) -> list[bytes]:
    """The pieces of a segment by the n-gram model.

    State j at a byte says: byte j+1 of its piece (the last state: or a later one). Of equal ones the lowest wins.
    """
    states = range(order)
    before = [NOTHING] * order
    routes: list[list[int]] = []
    for at, byte in enumerate(text):
        nodes = [model.get(text[at - j : at + 1], NOTHING) if j <= at else NOTHING for j in states]
        if whole_characters and 0x80 <= byte < 0xC0:
            nodes[0] = NOTHING
        now, came = list(nodes), [0] * order
        for j in states if at else ():
            sums = [before[k] + nodes[j] if j in (0, min(k + 1, order - 1)) else NOTHING for k in states]
            now[j], came[j] = max(sums), sums.index(max(sums))
        before = now
        routes.append(came)
    state = before.index(max(before))
    begins: list[int] = []
    for at in range(len(text) - 1, -1, -1):
        if state == 0:
            begins.append(at)
        state = routes[at][state]
    begins.reverse()
    return [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)], strict=True)]


def without(pieces: Mapping[bytes, int], dropped: Sequence[bytes]) -> dict[bytes, int]:
    """The pieces less those dropped, whose counts go to their parts; then less those that are worth less than
    theirs."""
    kept = {piece: count for piece, count in pieces.items() if piece not in set(dropped)}
    for piece, count in redistributed(kept, {piece: pieces[piece] for piece in dropped}).items():
        kept[piece] += count
    while True:
        fewer = redistributed(kept, kept)
        if len(fewer) == len(kept):
            return fewer
        kept = fewer


def redistributed(model: Mapping[bytes, int], pieces: Mapping[bytes, int]) -> dict[bytes, int]:
    """The counts of pieces, given to the parts that a vocabulary cuts them into."""
    scores = scored(model)
    counts: Counter[bytes] = Counter()
    for piece, count in pieces.items():
        for part in best(piece, scores):
            counts[part] += count
    return dict(counts)


def _walked(text: bytes, came: Sequence[int]) -> list[bytes]:
    """The pieces behind pointers from each place to where its piece begins."""
    pieces: list[bytes] = []
    end = len(text)
    while end:
        pieces.append(text[came[end] : end])
        end = came[end]
    return pieces[::-1]
