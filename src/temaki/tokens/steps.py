"""How BPE encodes a word, step by step: for people who want to see it. Plain loops, nothing fast.

Encoding joins, in each pre-token, the neighbours that rank lowest, leftmost first, until none is ranked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Ranks = Mapping[tuple[bytes, bytes], int]
"""(left, right) -> rank: the lowest is joined first."""


@dataclass(frozen=True)
class Step:
    """One merge, at every place where it happened."""

    rank: int
    """Which merge of the vocabulary it is."""
    pieces: tuple[bytes, ...]
    """The word after it."""


def merges(word: bytes, ranks: Ranks) -> list[Step]:
    """The merges that turn the bytes of a word into its pieces, in order.

    >>> [(step.rank, step.pieces) for step in merges(b"abab", {(b"a", b"b"): 0, (b"ab", b"ab"): 7})]
    [(0, (b'ab', b'ab')), (7, (b'abab',))]
    """
    pieces = [bytes([value]) for value in word]
    made: list[Step] = []
    while True:
        ranked = [(ranks[pair], pair) for pair in pairwise(pieces) if pair in ranks]
        if not ranked:
            return made
        rank, pair = min(ranked)
        pieces = joined(pieces, pair)
        made.append(Step(rank, tuple(pieces)))


def joined(pieces: Sequence[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """The pieces with every occurrence of the pair made one, left to right, without overlap.

    >>> joined([b"a", b"a", b"a"], (b"a", b"a"))
    [b'aa', b'a']
    """
    made: list[bytes] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            made.append(pair[0] + pair[1])
            place += 2
        else:
            made.append(pieces[place])
            place += 1
    return made


def by_tokens(tokens: Sequence[bytes], word: bytes) -> Ranks:
    """The ranks of a vocabulary without a list of merges, for one word: a pair's rank is the id of its joined bytes.

    That is the rule of rank files.

    >>> by_tokens([b"a", b"b", b"ab"], b"ab")
    {(b'a', b'b'): 2}
    """
    ids = {token: id for id, token in enumerate(tokens) if token and token in word}
    return {
        (token[:cut], token[cut:]): id
        for token, id in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    }
