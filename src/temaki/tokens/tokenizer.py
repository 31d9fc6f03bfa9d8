"""The tokenizer contract: text <-> ids. Loads NumPy and nothing heavier, so that all folders may name it.

Letters: V vocabulary, N ids, n texts.
"""

import codecs
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError

END_OF_TEXT = "<|endoftext|>"
"""The default special token: it separates documents and begins them."""


@dataclass(frozen=True)
class Ragged:
    """The ids of several texts in one flat array, no Python object per token."""

    ids: ndarray
    """uint32 [N]."""
    offsets: ndarray
    """int64 [n+1]; text i = ids[offsets[i]:offsets[i+1]]."""


@dataclass(frozen=True)
class Dropout:
    """Random segmentation of a tokenizer that merges: each possible merge is left out with probability `drop`.

    The same for the same (seed, place). Source: Provilkov et al. 2020.
    """

    seed: int
    place: int
    """Which text of the run it is, so that every text has draws of its own."""
    drop: float
    """0..1."""


@dataclass(frozen=True)
class Sampling:
    """Random segmentation of a tokenizer whose pieces have probabilities: each one in proportion to P^alpha.

    The same for the same (seed, place). Source: Kudo 2018; exact form: Su 2023 (BytePiece 0.5).
    """

    seed: int
    place: int
    """Which text of the run it is, so that every text has draws of its own."""
    alpha: float
    """0 = all segmentations alike, 1 = by their probability; infinity = the best one. Not negative, not NaN."""


Noise = Dropout | Sampling


class TextStream:
    """Turns ids into text as they arrive and never emits half a character.

    What all pushes and the `close` gave, joined, is what decoding all ids at once gives (errors="replace").

    >>> stream = TextStream(lambda id: bytes([id]))
    >>> [stream.push(0xC3), stream.push(0xA9), stream.push(0xC3), stream.close()]
    ['', 'é', '', '\ufffd']
    """

    def __init__(self, token: Callable[[int], bytes]):
        """`token` gives the bytes of an id and raises TokenizerError for an unknown one."""
        self._token = token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this id completes, "" while a character is still open. Raises TokenizerError."""
        return self._decoder.decode(self._token(id))

    def behind(self, ids: Sequence[int] | ndarray) -> Self:
        """The same for ids that stand behind these: what is done at the beginning of a text alone is not done.

        The space before the first word belongs to what is said. Raises TokenizerError.
        """
        return self

    def close(self) -> str:
        """U+FFFD if a character was left open, else ""; the stream can then be used anew."""
        return self._decoder.decode(b"", final=True)


def flat(ids: Sequence[int] | ndarray) -> ndarray:
    """Ids as an array, of whatever kind of integer. Raises TokenizerError for what is no flat list of integers.

    >>> flat([1, 2]).shape
    (2,)
    """
    try:
        found = np.asarray(ids)
    except ValueError:
        raise TokenizerError("ids are a flat list of integers", found="lists of several lengths") from None
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TokenizerError("ids are a flat list of integers", found=f"shape {found.shape}, {found.dtype}")
    return found


def fingerprint(kind: str, facts: Mapping[str, object]) -> str:
    """sha256 over a tokenizer's kind and facts, whatever their order of keys.

    >>> fingerprint("characters", {"tokens": []})[:8]
    'ce89d09a'
    """
    return hashlib.sha256(json.dumps([kind, facts], sort_keys=True).encode("ascii")).hexdigest()


class Tokenizer(Protocol):
    """Text <-> ids. A special token arises from text only where it is named in `special`."""

    kind: str
    """What it is on disk: "bpe", "bytepiece", ..."""
    size: int
    """V; ids are 0..V-1."""
    special: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """sha256 of all that can change an id; travels with shards and weights."""
        ...

    @property
    def tokens(self) -> Sequence[bytes]:
        """The bytes of every id; a special token's: its text."""
        ...

    def encode(self, text: str, special: Collection[str] = (), noise: Noise | None = None) -> ndarray:
        """The ids of a text, uint32 [N]."""
        ...

    def encode_batch(self, texts: Sequence[str | bytes], special: Collection[str] = ()) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8."""
        ...

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks, in constant memory: joined, those of the whole text."""
        ...

    def encode_list(self, text: str, special: Collection[str] = ()) -> list[int]:
        """The ids of a text as a list."""
        ...

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids, joined."""
        ...

    def decode(self, ids: Sequence[int] | ndarray, errors: str = "replace") -> str:
        """The text of all ids."""
        ...

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        ...

    def facts(self) -> dict[str, object]:
        """Everything that can change an id, as JSON can say it; the class's `of` makes the tokenizer again."""
        ...
