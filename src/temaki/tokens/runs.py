"""What tokenizers that are not compiled share: the whole contract, told by how one plain run of text is encoded.

A run is what lies between two special tokens. A block is a piece of a text that can be encoded for itself: it ends
where a special token does, or where the tokenizer says that nothing spans.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np
import regex
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.tokenizer import Noise, Ragged, TextStream, fingerprint, flat


class RunTokenizer(ABC):
    """The Tokenizer contract over two methods: how a run is encoded, and what is written to disk."""

    kind: str
    cuts: str
    """A regular expression that matches, empty, where both sides can be encoded each for itself."""

    def __init__(self, tokens: Sequence[bytes], special: Mapping[str, int]):
        """`tokens[id]` are the bytes of an id. Raises TokenizerError for special tokens that are not at their id."""
        self.tokens: Sequence[bytes] = tuple(tokens)
        self.size = len(self.tokens)
        self.special: Mapping[str, int] = MappingProxyType(dict(special))
        check_special_ids(self.tokens, self.special)
        self.fingerprint = fingerprint(self.kind, self.facts())
        self._last_cut = regex.compile("(?r)" + self.cuts)  # (?r): search from the end

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """Everything that can change an id, as JSON can say it."""

    @abstractmethod
    def encode_run(self, text: str) -> ndarray:
        """The ids of plain text, in which no special token is looked for: integers [N]."""

    def encode(self, text: str, special: Collection[str] = (), noise: Noise | None = None) -> ndarray:
        """The ids of a text, uint32 [N]. Raises TokenizerError for a lone surrogate, an unknown special, noise."""
        if noise is not None:
            raise TokenizerError("this kind of tokenizer knows no random segmentation", found=self.kind)
        asked(special, self.special)
        return self._encoded(utf8.checked(text), special)

    def encode_list(self, text: str, special: Collection[str] = ()) -> list[int]:
        """The ids of a text as a list."""
        return self.encode(text, special).tolist()

    def encode_batch(self, texts: Sequence[str | bytes], special: Collection[str] = ()) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8. Raises TokenizerError naming the text."""
        asked(special, self.special)
        found = [np.empty(0, np.uint32)]
        for number, text in enumerate(texts):
            try:
                found.append(self._encoded("".join(utf8.decoded([text])), special))
            except TokenizerError as error:
                raise TokenizerError(f"text {number}: {error}") from None
        lengths = [len(ids) for ids in found]
        return Ragged(np.concatenate(found), np.cumsum(lengths, dtype=np.int64))

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks; joined, they are those of the whole text.

        Memory: one chunk, one block, and the longest stretch that cannot be cut, twice. Raises TokenizerError.
        """
        asked(special, self.special)
        for block in self._blocks(utf8.decoded(chunks), special):
            yield self._encoded(block, special)

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids, joined. Raises TokenizerError for an id that is not in the vocabulary."""
        known = checked_ids(ids, self.size)
        return b"".join(self._spelled(known[at : at + split.BLOCK]) for at in range(0, len(known), split.BLOCK))

    def decode(self, ids: Sequence[int] | ndarray, errors: str = "replace") -> str:
        """The text of all ids; with errors="strict", TokenizerError where their bytes are not UTF-8."""
        try:
            return self.decode_bytes(ids).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(f"the ids are not UTF-8 text: {error}", do='use errors="replace"') from None

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self.token)

    def after(self, special: bool) -> "RunTokenizer":
        """What encodes text that goes on a text, as a text of its own: without what is put before a text.

        `special`: whether a special token stands before it, so that a run begins here.
        """
        return self

    def token(self, id: int) -> bytes:
        """The bytes of an id. Raises TokenizerError for an unknown one."""
        if not 0 <= id < self.size:
            raise TokenizerError("unknown id", found=str(id), allowed=f"0 to {self.size - 1}")
        return self.tokens[id]

    def _spelled(self, ids: ndarray) -> bytes:
        """The bytes of some ids."""
        letters, starts, lengths = self._letters
        wanted = lengths[ids]
        shifts = np.repeat(starts[ids] - np.cumsum(wanted) + wanted, wanted)  # from places in the result to `letters`
        return letters[shifts + np.arange(len(shifts))].tobytes()

    @cached_property
    def _letters(self) -> tuple[ndarray, ndarray, ndarray]:
        """All tokens' bytes in one array, where each begins, how long each is."""
        lengths = np.array([len(token) for token in self.tokens], np.int64)
        return np.frombuffer(b"".join(self.tokens), np.uint8), np.cumsum(lengths) - lengths, lengths

    def _encoded(self, text: str, special: Collection[str]) -> ndarray:
        found = [np.empty(0, np.uint32)]
        for part, is_special in split.parts(text, special):
            found.append(np.array([self.special[part]]) if is_special else self.encode_run(part))
        return np.concatenate(found).astype(np.uint32, copy=False)

    def _blocks(self, chunks: Iterable[str], special: Collection[str]) -> Iterator[str]:
        """The same text in blocks of about split.BLOCK characters."""
        held: list[str] = []
        length, wanted = 0, split.BLOCK
        for piece in (chunk[i : i + split.BLOCK] for chunk in chunks for i in range(0, len(chunk), split.BLOCK)):
            held.append(piece)
            length += len(piece)
            if length >= wanted:
                text = "".join(held)
                cut = self._cut(text, special)
                if cut:
                    yield text[:cut]
                held, length = [text[cut:]], len(text) - cut
                wanted = max(split.BLOCK, 2 * length)  # doubling: what cannot be cut is looked at just a few times
        if length:
            yield "".join(held)

    def _cut(self, text: str, special: Collection[str]) -> int:
        """The last place where a text can be cut whatever follows it; 0 if there is none."""
        open_from = len(text) - max(map(len, special), default=1) + 1  # from here on, one may be incomplete
        end = 0  # of the last special token that is whole
        for match in split.finder(special).finditer(text) if special else ():
            if match.start() >= open_from:
                break
            end = match.end()
        if open_from <= end:
            return end
        cut = self._last_cut.search(text, end, open_from)
        return end if cut is None else cut.start()


def asked(special: Collection[str], known: Mapping[str, int]) -> None:
    """Refuse special tokens that a vocabulary lacks. Raises TokenizerError."""
    unknown = [text for text in special if text not in known]
    if unknown or isinstance(special, str):
        raise TokenizerError(
            "unknown special token",
            found=repr(special) if isinstance(special, str) else ", ".join(map(repr, unknown)),
            allowed=f"a list of these: {', '.join(map(repr, known)) or 'there are none'}",
        )


def checked_ids(ids: Sequence[int] | ndarray, size: int) -> ndarray:
    """The ids as an array, if each is in 0..size-1. Raises TokenizerError."""
    found = flat(ids)
    wrong = np.flatnonzero((found < 0) | (found >= size))
    if wrong.size:
        raise TokenizerError(f"unknown id at place {wrong[0]}", found=str(found[wrong[0]]), allowed=f"0 to {size - 1}")
    return found.astype(np.int64)


def check_special_ids(tokens: Sequence[bytes], special: Mapping[str, int]) -> None:
    """Refuse special tokens whose id holds other bytes. Raises TokenizerError."""
    split.check_special(list(special))
    for text, id in special.items():
        if type(id) is not int or not 0 <= id < len(tokens) or tokens[id] != text.encode("utf-8"):
            raise TokenizerError(f"special token {text!r} is not at its id", found=repr(id))
