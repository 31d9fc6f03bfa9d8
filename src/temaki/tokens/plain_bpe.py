"""Byte-level BPE, plain and readable: the twin of the compiled tokenizer, which must give the same ids.

Training starts from the 256 bytes and again and again joins the most frequent pair of neighbours inside
pre-tokens. Encoding joins, inside each pre-token, the pair of lowest rank, until none is left that has one.
Source: Sennrich et al. 2016; Radford et al. 2019 (bytes); Stanford CS336 (the tie rule); Provilkov et al. 2020
(dropout).
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy import ndarray

from temaki.base import keys
from temaki.base.errors import TokenizerError
from temaki.tokens import bpe_vocabulary, split, tokenizer, utf8
from temaki.tokens.bpe_vocabulary import Vocabulary
from temaki.tokens.pairs import PairTable
from temaki.tokens.tokenizer import END_OF_TEXT, Dropout, Noise, Ragged, TextStream

NONE = -1
"""The id of a place that was swallowed by a merge."""

WORD = (1 << 64) - 1
"""Draws are made of 64-bit words."""


def train(
    texts: Iterable[str],
    size: int,
    special: Sequence[str] = (END_OF_TEXT,),
    pattern: str = "gpt2",
    progress: Callable[[int, int], None] | None = None,
) -> "PlainBpe":
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
    if isinstance(size, bool) or not isinstance(size, int) or not first <= size <= bpe_vocabulary.LARGEST:
        raise TokenizerError(
            "vocabulary size out of range",
            found=repr(size),
            allowed=f"{first} (256 bytes and {len(special)} special tokens) to {bpe_vocabulary.LARGEST}",
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
) -> "PlainBpe":
    """The tokenizer of a list of merges in our own layout: special tokens, the 256 bytes, merges.

    >>> from_merges([(b"a", b"b")]).encode_list("abba")
    [257, 99, 98]
    """
    return PlainBpe(layout(merges, special), merges, {text: id for id, text in enumerate(special)}, pattern)


def layout(merges: Sequence[tuple[bytes, bytes]], special: Sequence[str]) -> list[bytes]:
    """The tokens of our own layout by id: special tokens, the 256 bytes, merges. Raises TokenizerError."""
    split.check_special(special)
    tokens = [text.encode("utf-8") for text in special] + [bytes([value]) for value in range(256)]
    return tokens + [left + right for left, right in merges]


class PlainBpe:
    """A byte-level BPE tokenizer with any layout of ids. Implements the Tokenizer contract."""

    kind = "bpe"

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]] | None,
        special: Mapping[str, int],
        pattern: str = "gpt2",
        whole: bool | None = None,
        remember: int = 1 << 18,
    ):
        """`tokens[id]` are the bytes of an id (a special token's: its text), `merges` in the order learned.

        Without merges the rule of ranks holds (see `bpe_vocabulary`). `whole`: a pre-token that is a token is taken
        as it is; by default so with the rule of ranks. `remember` is how many pre-tokens are kept with their ids, so
        that a frequent one is encoded once. Raises TokenizerError as `Vocabulary` says.
        """
        whole = merges is None if whole is None else whole
        merges = None if merges is None else tuple(merges)
        self.vocabulary = Vocabulary(tuple(tokens), merges, special, pattern, whole)
        self.tokens = self.vocabulary.tokens
        self.merges = merges or ()
        self.special = self.vocabulary.special
        self.pattern = pattern
        self.size = len(self.tokens)
        self.fingerprint = tokenizer.fingerprint(self.kind, self.facts())
        self._ids = self.vocabulary.ids
        self._pairs = {(left, right): (rank, joined) for left, right, rank, joined in self.vocabulary.pairs()}
        self._splitter = split.Splitter(pattern)
        self._words = _Words(self._encode_word, remember)
        self._packed_special = {text: array("I", [id]).tobytes() for text, id in self.special.items()}

    @classmethod
    def from_ranks(cls, tokens: Sequence[bytes], special: Mapping[str, int], pattern: str) -> "PlainBpe":
        """The tokenizer of tiktoken's rule: the rank of a token is its id. Raises TokenizerError."""
        return cls(tokens, None, special, pattern)

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> "PlainBpe":
        """The tokenizer that gave these facts. Raises TokenizerError for anything else."""
        found = bpe_vocabulary.of(facts)
        return cls(found.tokens, found.merges, found.special, found.pattern, found.whole)

    def facts(self) -> dict[str, object]:
        """Everything that can change an id."""
        return self.vocabulary.facts()

    def encode(self, text: str, special: Collection[str] = (), noise: Noise | None = None) -> ndarray:
        """The ids of a text, uint32 [N]; special tokens arise from it only where named in `special`.

        Raises TokenizerError for a special token that the vocabulary lacks, for a lone surrogate, for noise that
        is no Dropout.
        """
        self._known(special)
        if noise is not None:
            return self._encode_noisy(utf8.checked(text), special, checked_noise(noise))
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
        if not 0 <= id < self.size or not self.tokens[id]:
            raise unknown_id(id, self.size)
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
        if self.vocabulary.whole and word in self._ids:
            return array("I", [self._ids[word]]).tobytes()
        ids = merge_word([self._ids[word[i : i + 1]] for i in range(len(word))], self._pairs)
        return array("I", ids).tobytes()

    def _encode_noisy(self, text: str, special: Collection[str], noise: Dropout) -> ndarray:
        found: list[int] = []
        at, key = 0, noise_key(noise)
        for part, is_special in split.parts(text, special):
            if is_special:
                found.append(self.special[part])
                at += len(part.encode("utf-8"))
                continue
            for word in (word.encode("utf-8") for word in self._splitter.words(part)):
                ids = [self._ids[word[i : i + 1]] for i in range(len(word))]
                found += merge_noisy(ids, self._pairs, noise.drop, key, at)
                at += len(word)
        return np.array(found, np.uint32)

    def _known(self, special: Collection[str]) -> None:
        check_asked(special, self.special)

    def _checked_ids(self, ids: Sequence[int] | ndarray) -> list[int]:
        listed: list[int] = tokenizer.flat(ids).tolist()
        for place, id in enumerate(listed):
            if not 0 <= id < self.size or not self.tokens[id]:
                raise unknown_id(id, self.size, f" at place {place}")
        return listed


def unknown_id(id: int, size: int, where: str = "") -> TokenizerError:
    """What is raised for an id that no token has."""
    return TokenizerError(f"unknown id{where}", found=str(id), allowed=f"0 to {size - 1}, without holes")


def check_asked(asked: Collection[str], special: Mapping[str, int]) -> None:
    """Refuse special tokens that a call names and the vocabulary lacks. Raises TokenizerError."""
    unknown = [text for text in asked if text not in special]
    if unknown or isinstance(asked, str):
        raise TokenizerError(
            "unknown special token",
            found=repr(asked) if isinstance(asked, str) else ", ".join(map(repr, unknown)),
            allowed=f"a list of these: {', '.join(map(repr, special)) or 'there are none'}",
        )


def checked_noise(noise: Noise) -> Dropout:
    """The noise, if BPE knows it. Raises TokenizerError."""
    if not isinstance(noise, Dropout):
        raise TokenizerError("BPE knows no such noise", found=type(noise).__name__, allowed="Dropout")
    if not 0 <= noise.drop <= 1:
        raise TokenizerError("drop is a probability", found=str(noise.drop), allowed="0 to 1")
    return noise


def merge_word(ids: list[int], pairs: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Join the neighbours of lowest rank, leftmost first, until none is ranked.

    `pairs`: (left id, right id) -> (rank, joined id). Linked places and a heap, so n ids cost O(n log n) however
    the word looks. Changes `ids`.

    >>> merge_word([1, 2, 1, 2, 2], {(1, 2): (0, 3), (3, 3): (1, 4)})
    [4, 2]
    """
    return _merge(ids, pairs, lambda: False)


def merge_noisy(
    ids: list[int], pairs: Mapping[tuple[int, int], tuple[int, int]], drop: float, key: int, at: int
) -> list[int]:
    """As `merge_word`, but at each step each pair that could be joined is left out with probability `drop`.

    Ends when a step leaves all of them out. The draws are a function of (key, at), `at` being the place of the
    pre-token in its text in bytes; only those are made that are needed to find the first pair that is not left out.
    """
    return _merge(ids, pairs, _Draws(drop, key, at).dropped)


def noise_key(noise: Dropout) -> int:
    """The 64-bit key of a text's draws."""
    return keys.key(noise.seed, "dropout", noise.place) & WORD


class _Draws:
    """Bernoulli draws from a counter through the finaliser of SplitMix64 (Steele et al. 2014)."""

    def __init__(self, drop: float, key: int, at: int):
        self._below = int(drop * (1 << 53))
        self._state = _mixed((key + at * 0x9E3779B97F4A7C15) & WORD)

    def dropped(self) -> bool:
        self._state = (self._state + 0x9E3779B97F4A7C15) & WORD
        return _mixed(self._state) >> 11 < self._below


def _mixed(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def _merge(ids: list[int], pairs: Mapping[tuple[int, int], tuple[int, int]], dropped: Callable[[], bool]) -> list[int]:
    after = list(range(1, len(ids) + 1))
    before = list(range(-1, len(ids) - 1))
    heap = [(pairs[pair][0], place) for place, pair in enumerate(pairwise(ids)) if pair in pairs]
    heapq.heapify(heap)
    aside: list[tuple[int, int]] = []  # left out of this step
    while heap:
        rank, place = heapq.heappop(heap)
        second = after[place]
        pair = (ids[place], ids[second]) if ids[place] != NONE and second < len(ids) else (NONE, NONE)
        if pair not in pairs or pairs[pair][0] != rank:
            continue  # merged otherwise meanwhile
        if dropped():
            aside.append((rank, place))
            continue
        joined = pairs[pair][1]
        ids[place], ids[second] = joined, NONE
        first, third = before[place], after[second]
        after[place] = third
        for entry in aside:
            heapq.heappush(heap, entry)
        aside.clear()
        if third < len(ids):
            before[third] = place
            if (pair := (joined, ids[third])) in pairs:
                heapq.heappush(heap, (pairs[pair][0], place))
        if first >= 0 and (pair := (ids[first], joined)) in pairs:
            heapq.heappush(heap, (pairs[pair][0], first))
    return [id for id in ids if id != NONE]


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
