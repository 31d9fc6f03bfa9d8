"""The tokenizer contract: text <-> ids. Loads NumPy and nothing heavier, so that all folders may name it.

Letters: V vocabulary, N ids, n texts.
"""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from numpy import ndarray


@dataclass(frozen=True)
class Ragged:
    """The ids of several texts in one flat array, no Python object per token."""

    ids: ndarray
    """uint32 [N]."""
    offsets: ndarray
    """int64 [n+1]; text i = ids[offsets[i]:offsets[i+1]]."""


@dataclass(frozen=True)
class Noise:
    """Random segmentation, the same for the same (seed, place)."""

    seed: int
    place: int
    """Which text of the run it is, so that every text has draws of its own."""
    drop: float
    """Probability in 0..1 that a possible merge is left out."""


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

    def close(self) -> str:
        """U+FFFD if a character was left open, else ""; the stream can then be used anew."""
        return self._decoder.decode(b"", final=True)


class Tokenizer(Protocol):
    """Text <-> ids. A special token arises from text only where it is named in `special`."""

    size: int
    """V; ids are 0..V-1."""
    special: Mapping[str, int]
    fingerprint: str
    """sha256 of all that can change an id; travels with shards and weights."""

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
