"""Token healing: step back some tokens, and let the answer begin with any that agree with the bytes taken away.

Where the vocabulary holds "numpy as" as one token, a prompt that ends in "numpy" leads a model to a place where it has
never seen " as" follow. The next token is drawn by the model among those that begin with the bytes r taken away (and,
where more than one token was, among those that r begins with; then the same is asked for the rest of r); what is said
is the bytes beyond r. Afterwards all goes on as ever. Where r itself is the only candidate the answer is the plain one.
Source: Su 2023 (archive 9762); guidance's token healing. Letters: V the model's vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.tokens.prefix import PrefixIndex, candidates, heal
from temaki.tokens.tokenizer import TextStream, Tokenizer

KEPT = 4
"""Indices kept ready: one of 49k tokens takes 0.05 s."""


@dataclass(frozen=True)
class Retreat:
    """A prompt that stepped back."""

    ids: ndarray
    """int32 [n], n >= 1: what is left of the prompt."""
    rest: bytes
    """r: what the answer must begin with and what is not said again; empty: the prompt is as it was."""
    removed: int
    """Ids taken away."""
    healing: "Healing | None"
    """How the answer begins; None if `rest` is empty."""


class Healing:
    """A constraint on the beginning of an answer: its bytes agree with `rest`, then it is free.

    size: V. inside: also tokens shorter than what is left of `rest` may come.
    """

    def __init__(self, index: PrefixIndex, tokens: Sequence[bytes], rest: bytes, inside: bool, size: int):
        self.index = index
        self.tokens = tokens
        self.rest = rest
        self.inside = inside
        self.size = size

    def matcher(self) -> "_Matcher":
        """A matcher before the first id of an answer."""
        return _Matcher(self, self.rest)


class _Matcher:
    """One answer; `done` never, and free as soon as it has begun."""

    done = False

    def __init__(self, healing: Healing, rest: bytes):
        self._healing = healing
        self._rest = rest

    def mask(self) -> ndarray | None:
        """bool [V]: the tokens that agree with what is left; None: all. Raises GenerationError where there is none."""
        if not self._rest:
            return None
        allowed = np.zeros(self._healing.size, np.bool_)
        allowed[[id for id in self._candidates() if id < len(allowed)]] = True
        if not allowed.any():
            raise GenerationError("no token of the model agrees with the end of the prompt", found=repr(self._rest))
        return allowed

    def advance(self, id: int) -> None:
        """`id` has come. Raises GenerationError if it was not allowed."""
        if not self._rest:
            return
        if id not in self._candidates():
            raise GenerationError("a token that does not agree with the end of the prompt", found=str(id))
        self._rest = self._rest[len(self._healing.tokens[id]) :]

    def copy(self) -> "_Matcher":
        """Another at the same place that goes its own way."""
        return _Matcher(self._healing, self._rest)

    def _candidates(self) -> list[int]:
        return candidates(self._healing.index, self._rest, self._healing.inside)


class Beyond(TextStream):
    """The text of an answer without its first bytes, `rest`; what stands behind them is said as ever."""

    def __init__(self, tokenizer: Tokenizer, rest: bytes):
        super().__init__(self._said)
        self.rest = rest
        """What is still to be left out."""
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.special.values())

    def _said(self, id: int) -> bytes:
        special = id in self._special or not 0 <= id < self._tokenizer.size
        token = self._tokenizer.decode_bytes([id]) if special else self._tokenizer.tokens[id]
        cut = min(len(token), len(self.rest))
        self.rest = self.rest[cut:]
        return token[cut:]


def retreat(tokenizer: Tokenizer, ids: ndarray, back: int, size: int) -> Retreat:
    """Take the last `back` tokens of a prompt away, fewer where a special token or the prompt's first id comes first.

    Raises GenerationError for a `back` below 1.
    """
    if back < 1:
        raise GenerationError("healing steps back at least one token", found=str(back), allowed="1 and more")
    index = _index(tokenizer)
    found = heal(tokenizer, ids, min(back, len(ids) - 1), index)
    removed = len(ids) - len(found.kept)
    if not found.rest:
        return Retreat(ids, b"", 0, None)
    healing = Healing(index, tokenizer.tokens, found.rest, removed > 1, size)
    return Retreat(np.array(found.kept, np.int32), found.rest, removed, healing)


@lru_cache(KEPT)
def _index(tokenizer: Tokenizer) -> PrefixIndex:
    return PrefixIndex.of(tokenizer)
