"""Byte-level BPE, plain and readable: the trainer, and the tokenizer it makes. No byte is ever unknown.

Training starts from the 256 bytes and again and again joins the most frequent pair of neighbours inside
pre-tokens. Encoding joins, inside each pre-token, the pair that was learned first, until none is left that
was learned. Source: Sennrich et al. 2016; Radford et al. 2019 (bytes); Stanford CS336 (the tie rule).
"""

import hashlib
import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.pairs import PairTable
from temaki.tokens.tokenizer import Noise, Ragged, TextStream

END_OF_TEXT = "<|endoftext|>"
"""The default special token: it separates documents and begins them."""

NONE = -1
"""The id of a place that was swallowed by a merge."""


def train(
    texts: Iterable[str],
    size: int,
    special: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    progress: Callable[[int, int], None] | None = None,
) -> "Bpe":
    """Learn a vocabulary of `size` ids from texts: special tokens first, then the 256 bytes, then merges.

    Stops early, with a smaller `.size`, when no pair is left. Special tokens found in the texts are not
    counted. Memory grows with the number of distinct pre-tokens, not with the text. `progress(ids so far,
    size)` is called after each merge. Raises TokenizerError for a size that leaves no room, an empty corpus,
    unusable special tokens.

    >>> train(["low low low lower newest newest"], size=260).token(259)
    b' low'
    """
    split.check_special(special)
    first = 256 + len(special)
    if isinstance(size, bool) or not isinstance(size, int) or not first <= size < 1 << 32:
        raise TokenizerError(
            "vocabulary size out of range",
            found=repr(size),
            allowed=f"{first} (256 bytes and {len(special)} special tokens) to {(1 << 32) - 1}",
        )
    words = count_words(texts, special, pattern)
    if not words:
        raise TokenizerError("no text to learn a vocabulary from", do="give a corpus that is not empty")
    table = PairTable(words.items())
    merges: list[tuple[bytes, bytes]] = []
    while first + len(merges) < size and (pair := table.best()) is not None:
        merges.append((table.tokens[pair[0]], table.tokens[pair[1]]))
        table.merge(pair)
        if progress is not None:
            progress(first + len(merges), size)
    return from_merges(merges, special, pattern)


def count_words(texts: Iterable[str], special: Sequence[str], pattern: str) -> Counter[bytes]:
    """How often each pre-token occurs in the texts, special tokens left out. Raises TokenizerError."""
    if isinstance(texts, str):
        raise TokenizerError("texts are a list of texts", found="one text", do="write [text]")
    splitter = split.Splitter(pattern)
    words: Counter[str] = Counter()
    for text in texts:
        for block in splitter.blocks([utf8.checked(text)], special):
            for part, is_special in split.parts(block, special):
                if not is_special:
                    words.update(splitter.words(part))
    return Counter({word.encode("utf-8"): count for word, count in words.items()})


def from_merges(
    merges: Sequence[tuple[bytes, bytes]], special: Sequence[str] = (END_OF_TEXT,), pattern: str = "gpt2"
) -> "Bpe":
    """The tokenizer of a list of merges in our own layout: special tokens, the 256 bytes, merges.

    >>> from_merges([(b"a", b"b")]).encode_list("abba")
    [257, 99, 98]
    """
    split.check_special(special)
    tokens = [text.encode("utf-8") for text in special] + [bytes([value]) for value in range(256)]
    tokens += [left + right for left, right in merges]
    return Bpe(tokens, merges, {text: id for id, text in enumerate(special)}, pattern)


class Bpe:
    """A byte-level BPE tokenizer with any layout of ids. Implements the Tokenizer contract."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special: Mapping[str, int],
        pattern: str = "gpt2",
        remember: int = 1 << 18,
    ):
        """`tokens[id]` are the bytes of an id (a special token's: its text), `merges` in the order learned.

        `remember` is how many pre-tokens are kept with their ids, so that a frequent one is encoded once.
        Raises TokenizerError where a byte or a merge has no id, two ids share their bytes, or a merge is made
        of what no earlier merge made.
        """
        self.tokens = tuple(tokens)
        self.merges = tuple(merges)
        self.special: Mapping[str, int] = MappingProxyType(dict(special))
        self.pattern = pattern
        self.size = len(self.tokens)
        self.fingerprint = fingerprint(self.tokens, self.merges, self.special, pattern)
        self._ids = _ids(self.tokens, self.special)
        self._pairs, self._ranks = _ranked(self.merges, self._ids)
        self._splitter = split.Splitter(pattern)
        self._words = _Words(self._encode_word, remember)
        self._packed_special = {text: array("I", [id]).tobytes() for text, id in self.special.items()}

    def encode(self, text: str, special: Collection[str] = (), noise: Noise | None = None) -> ndarray:
        """The ids of a text, uint32 [N]; special tokens arise from it only where named in `special`.

        Raises TokenizerError for a special token that the vocabulary lacks, for a lone surrogate, for noise.
        """
        if noise is not None:
            raise TokenizerError("this tokenizer knows no random segmentation yet", do="leave noise out")
        self._known(special)
        return np.frombuffer(bytearray(self._pack(utf8.checked(text), special)), np.uint32)

    def encode_list(self, text: str, special: Collection[str] = ()) -> list[int]:
        """The ids of a text as a list."""
        return self.encode(text, special).tolist()

    def encode_batch(self, texts: Sequence[str | bytes], special: Collection[str] = ()) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8. Raises TokenizerError naming the text."""
        self._known(special)
        packed = bytearray()
        offsets = [0]
        for number, text in enumerate(texts):
            try:
                packed += self._pack("".join(utf8.decoded([text])), special)
            except TokenizerError as error:
                raise TokenizerError(f"text {number}: {error}") from None
            offsets.append(len(packed) // 4)
        return Ragged(np.frombuffer(packed, np.uint32), np.array(offsets, np.int64))

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks; joined, they are those of the whole text.

        Memory is bounded as `split.Splitter.blocks` says. Bytes are read as UTF-8 and may be cut anywhere.
        Raises TokenizerError for what is not UTF-8, with the offset.
        """
        self._known(special)
        for block in self._splitter.blocks(utf8.decoded(chunks), special):
            yield np.frombuffer(bytearray(self._pack_block(block, special)), np.uint32)

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids, joined. Raises TokenizerError for an id that is not in the vocabulary."""
        return b"".join(map(self.tokens.__getitem__, self._checked_ids(ids)))

    def decode(self, ids: Sequence[int] | ndarray, errors: str = "replace") -> str:
        """The text of all ids; with errors="strict", TokenizerError where their bytes are not UTF-8."""
        try:
            return self.decode_bytes(ids).decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(f"the ids are not UTF-8 text: {error}", do='use errors="replace"') from None

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self.token)

    def token(self, id: int) -> bytes:
        """The bytes of an id. Raises TokenizerError for an unknown one."""
        if not 0 <= id < self.size:
            raise self._unknown(id)
        return self.tokens[id]

    def id(self, token: bytes) -> int:
        """The id of the plain token with these bytes: the inverse of `token`. Raises TokenizerError."""
        if token not in self._ids:
            raise TokenizerError("no token has these bytes", found=repr(token))
        return self._ids[token]

    def _pack(self, text: str, special: Collection[str]) -> bytes:
        """The ids of a text as uint32 bytes."""
        if len(text) <= split.BLOCK:
            return self._pack_block(text, special)
        return b"".join(self._pack_block(block, special) for block in self._splitter.blocks([text], special))

    def _pack_block(self, text: str, special: Collection[str]) -> bytes:
        packed: list[bytes] = []
        for part, is_special in split.parts(text, special):
            if is_special:
                packed.append(self._packed_special[part])
            else:
                packed.extend(map(self._words.__getitem__, self._splitter.words(part)))
        return b"".join(packed)

    def _encode_word(self, word: bytes) -> bytes:
        ids = merge_word([self._ids[word[i : i + 1]] for i in range(len(word))], self._ranks, self._pairs)
        return array("I", ids).tobytes()

    def _known(self, special: Collection[str]) -> None:
        unknown = [text for text in special if text not in self.special]
        if unknown or isinstance(special, str):
            raise TokenizerError(
                "unknown special token",
                found=repr(special) if isinstance(special, str) else ", ".join(map(repr, unknown)),
                allowed=f"a list of these: {', '.join(map(repr, self.special)) or 'there are none'}",
            )

    def _checked_ids(self, ids: Sequence[int] | ndarray) -> list[int]:
        found = np.asarray(ids)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise TokenizerError("ids are a flat list of integers", found=f"shape {found.shape}, {found.dtype}")
        wrong = np.flatnonzero((found < 0) | (found >= self.size))
        if wrong.size:
            raise self._unknown(int(found[wrong[0]]), f" at place {wrong[0]}")
        return found.tolist()

    def _unknown(self, id: int, where: str = "") -> TokenizerError:
        return TokenizerError(f"unknown id{where}", found=str(id), allowed=f"0 to {self.size - 1}")


def merge_word(
    ids: list[int], ranks: Mapping[tuple[int, int], int], pairs: Sequence[tuple[int, int, int]]
) -> list[int]:
    """Join the neighbours of lowest rank, leftmost first, until none is ranked.

    `ranks`: (left id, right id) -> rank; `pairs[rank]` = (left id, right id, joined id). Linked places and a
    heap, so n ids cost O(n log n) however the word looks. Changes `ids`.

    >>> merge_word([1, 2, 1, 2, 2], {(1, 2): 0, (3, 3): 1}, [(1, 2, 3), (3, 3, 4)])
    [4, 2]
    """
    after = list(range(1, len(ids) + 1))
    before = list(range(-1, len(ids) - 1))
    heap = [(ranks[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, place = heapq.heappop(heap)
        left, right, joined = pairs[rank]
        second = after[place]
        if ids[place] != left or ids[second] != right:
            continue  # merged otherwise meanwhile
        ids[place], ids[second] = joined, NONE
        first, third = before[place], after[second]
        after[place] = third
        if third < len(ids):
            before[third] = place
            if (pair := (joined, ids[third])) in ranks:
                heapq.heappush(heap, (ranks[pair], place))
        if first >= 0 and (pair := (ids[first], joined)) in ranks:
            heapq.heappush(heap, (ranks[pair], first))
    return [id for id in ids if id != NONE]


def fingerprint(
    tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], special: Mapping[str, int], pattern: str
) -> str:
    """sha256 of all that can change an id: the layout, the merges in order, the special tokens, the
    expression.

    The tables of Unicode belong to the `regex` package and are not in it. Raises TokenizerError for an
    unknown pattern.
    """
    facts = [
        "bpe",
        split.named(pattern).expression,
        sorted(special.items()),
        [token.hex() for token in tokens],
        [[left.hex(), right.hex()] for left, right in merges],
    ]
    return hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()


class _Words(dict[str, bytes]):
    """Pre-token -> its ids as uint32 bytes, worked out on first use; emptied when full, so memory is
    bounded."""

    longest = 256
    """Characters up to which a pre-token is kept."""

    def __init__(self, encode: Callable[[bytes], bytes], limit: int):
        super().__init__()
        self._encode = encode
        self._limit = limit

    def __missing__(self, word: str) -> bytes:
        packed = self._encode(word.encode("utf-8"))
        if len(word) <= self.longest:
            if len(self) >= self._limit:
                self.clear()
            self[word] = packed
        return packed


def _ids(tokens: Sequence[bytes], special: Mapping[str, int]) -> dict[bytes, int]:
    """Bytes -> id of the plain tokens. Raises TokenizerError where that is no inverse of `tokens`."""
    split.check_special(list(special))
    for text, id in special.items():
        if not 0 <= id < len(tokens) or tokens[id] != text.encode("utf-8"):
            raise TokenizerError(f"special token {text!r} is not at its id", found=str(id))
    reserved = set(special.values())
    ids: dict[bytes, int] = {}
    for id, token in enumerate(tokens):
        if id in reserved:
            continue
        if not token or token in ids:
            raise TokenizerError(
                f"token {id} is empty or the same as another", found=f"{token!r}, also {ids.get(token)}"
            )
        ids[token] = id
    missing = [value for value in range(256) if bytes([value]) not in ids]
    if missing:
        raise TokenizerError("a byte has no id", found=f"{len(missing)} missing, the first {missing[0]}")
    return ids


def _ranked(
    merges: Sequence[tuple[bytes, bytes]], ids: Mapping[bytes, int]
) -> tuple[list[tuple[int, int, int]], dict[tuple[int, int], int]]:
    """The merges as (left id, right id, joined id) and the rank of each pair. Raises TokenizerError.

    Each token is made once, of parts made before. Only so do "all occurrences at once" and "one by one,
    leftmost first" give the same ids.
    """
    made = {bytes([value]) for value in range(256)}
    pairs: list[tuple[int, int, int]] = []
    for rank, (left, right) in enumerate(merges):
        joined = left + right
        if left not in made or right not in made or joined in made or joined not in ids:
            raise TokenizerError(
                f"merge {rank} cannot be used",
                found=f"{left!r} + {right!r}",
                allowed="parts that are bytes or made by an earlier merge, and a new token that has an id",
            )
        made.add(joined)
        pairs.append((ids[left], ids[right], ids[joined]))
    return pairs, {(left, right): rank for rank, (left, right, _) in enumerate(pairs)}
