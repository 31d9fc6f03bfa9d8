"""Search by byte prefix: which tokens start with some bytes, and which could begin them. Token healing needs both.

A prompt that ends inside what the vocabulary holds as one token leads a model where it has never been. The cure: step
back some tokens, and let the next one be any that agrees with the bytes taken away. Source: Su 2023 (archive 9762);
guidance's token healing.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.tokenizer import Tokenizer


class PrefixIndex:
    """The plain tokens of a vocabulary in the order of their bytes; special tokens are never found."""

    def __init__(self, tokens: Sequence[bytes], special: Collection[int] = ()):
        """`tokens[id]` are the bytes of an id, `special` the ids to leave out."""
        reserved = set(special)
        sorted_tokens = sorted((token, id) for id, token in enumerate(tokens) if token and id not in reserved)
        self._keys = [token for token, _ in sorted_tokens]
        self._ids = [id for _, id in sorted_tokens]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "PrefixIndex":
        """The index of a tokenizer's vocabulary."""
        return cls(tokenizer.tokens, tokenizer.special.values())

    def starting_with(self, prefix: bytes) -> list[int]:
        """The ids of all tokens that start with these bytes, those that are them included, in order of bytes.

        >>> PrefixIndex([b"a", b"ab", b"b", b"abc"]).starting_with(b"ab")
        [1, 3]
        """
        return self._ids[bisect_left(self._keys, prefix) : self._end(prefix)]

    def inside(self, text: bytes) -> list[int]:
        """The ids of the tokens that these bytes start with, shorter than they are, the shortest first.

        >>> PrefixIndex([b"a", b"ab", b"b", b"abc"]).inside(b"abc")
        [0, 1]
        """
        found: list[int] = []
        for length in range(1, len(text)):
            at = bisect_left(self._keys, text[:length])
            while at < len(self._keys) and self._keys[at] == text[:length]:
                found.append(self._ids[at])
                at += 1
        return found

    def _end(self, prefix: bytes) -> int:
        """The place after the last token that starts with `prefix`."""
        head = prefix.rstrip(b"\xff")
        if not head:  # nothing sorts after a run of 0xFF but what starts with it
            return len(self._keys)
        return bisect_left(self._keys, head[:-1] + bytes([head[-1] + 1]))


@dataclass(frozen=True)
class Healed:
    """A prompt some tokens shorter, and what its next token may be."""

    kept: list[int]
    """The ids of the prompt without its tail; they may be none."""
    rest: bytes
    """The bytes of the tail, which what is generated must begin with and which are not shown again."""
    candidates: list[int]
    """The ids that the next token may be, ascending; empty if `rest` is: then it may be any."""


def heal(tokenizer: Tokenizer, ids: Sequence[int] | ndarray, back: int = 1, index: PrefixIndex | None = None) -> Healed:
    """Step back `back` tokens from the end of a prompt, fewer where a special token or its beginning comes first.

    Candidates are the tokens that start with the removed bytes. Where more than one token was removed, the tokens that
    these bytes start with are candidates as well: after one of them, the same is to be asked for the bytes that are
    left (`candidates`). Give `index` (`PrefixIndex.of(tokenizer)`) where prompts are many. Raises TokenizerError.

    >>> from temaki.tokens.characters import Characters
    >>> heal(Characters(["é"], special=[]), [104, 256])
    Healed(kept=[104], rest=b'\\xc3\\xa9', candidates=[256])
    """
    if isinstance(back, bool) or not isinstance(back, int) or back < 0:
        raise TokenizerError("how many tokens to step back is a number from 0 on", found=repr(back))
    given = _known([int(id) for id in ids], tokenizer)
    reserved = set(tokenizer.special.values())
    removed = 0
    while removed < min(back, len(given)) and given[-1 - removed] not in reserved:
        removed += 1
    kept = given[: len(given) - removed]
    rest = b"".join(tokenizer.tokens[id] for id in given[len(kept) :])
    if not rest:
        return Healed(given, b"", [])
    return Healed(kept, rest, candidates(index or PrefixIndex.of(tokenizer), rest, inside=removed > 1))


def candidates(index: PrefixIndex, rest: bytes, inside: bool = True) -> list[int]:
    """The ids whose bytes agree with `rest` as far as both go, ascending; only the longer ones unless `inside`."""
    return sorted(index.starting_with(rest) + (index.inside(rest) if inside else []))


def _known(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    for id in ids:
        if not 0 <= id < tokenizer.size:
            raise TokenizerError("unknown id", found=str(id), allowed=f"0 to {tokenizer.size - 1}")
    return ids
