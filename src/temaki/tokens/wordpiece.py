"""WordPiece as BERT has it: words are cut into the longest pieces that the vocabulary holds.

A piece inside a word is written with a prefix (`##`) in the vocabulary. Text loses something on the way: whitespace
of any kind and length between words comes back as one space, punctuation stands alone, control characters vanish
(`clean`), case and accents do where asked, and a word that cannot be cut, or is too long, becomes the unknown token.
The classes of characters are those of `regex` and `unicodedata`; `tokenizers` has older tables, so code points assigned
since Unicode 8 may be cut otherwise there. Source: Devlin et al. 2019 and its released tokenizer; Schuster and Nakajima
2012.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import regex
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.runs import RunTokenizer
from temaki.tokens.tokenizer import TextStream

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens."""

_PUNCTUATION = r"\p{P}$+<=>^`|~"
_WORDS = regex.compile(rf"[{_PUNCTUATION}]|[^{_PUNCTUATION}\s]+")
_MARKS = regex.compile(rf"[{_PUNCTUATION}]+")  # a prefix of these begins no word but itself
_HAN = regex.compile(
    r"([\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    r"\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f])"
)
_CONTROLS = regex.compile(r"(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]|\ufffd")


@dataclass(frozen=True)
class Words:
    """How text becomes words, before any vocabulary."""

    lowercase: bool = False
    """Lower each character for itself (no final sigma)."""
    accents: bool = True
    """Keep accents; if not, text is decomposed (NFD) and its nonspacing marks are dropped."""
    clean: bool = True
    """Drop control, format and private code points and U+FFFD."""
    han: bool = True
    """A Han character is a word."""

    def split(self, text: str) -> list[str]:
        """The words of a text, none with whitespace in it.

        >>> Words(lowercase=True).split("Don't stop!")
        ['don', "'", 't', 'stop', '!']
        """
        if self.clean:
            text = _CONTROLS.sub("", text)
        if self.han:
            text = _HAN.sub(r" \1 ", text)
        if not self.accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self.lowercase:
            text = "".join(map(str.lower, text)) if "\u03a3" in text else text.lower()
        return _WORDS.findall(text)


@dataclass(frozen=True)
class Pieces:
    """How words become pieces."""

    unknown: str = "[UNK]"
    """The special token of a word that cannot be cut."""
    prefix: str = "##"
    """What stands in the vocabulary before a piece that goes on with a word."""
    longest: int = 100
    """Characters up to which a word is looked at."""


class WordPiece(RunTokenizer):
    """A WordPiece tokenizer. Implements the Tokenizer contract; noise is refused.

    `tokens[id]` are the bytes that a piece adds to the text: a space before one that begins a word, none before one
    that goes on. `decode` leaves out the space at the very start.
    """

    kind = "wordpiece"
    cuts = r"(?<=[\t\n\r\p{Z}])"
    remember = 1 << 16
    """Words that are kept with their ids, so that a frequent one is cut once."""

    def __init__(
        self,
        vocabulary: Sequence[str],
        special: Mapping[str, int],
        words: Words | None = None,
        pieces: Pieces | None = None,
    ):
        """`vocabulary`: the text of each id, `prefix` included. Raises TokenizerError for one that cannot be used."""
        self.vocabulary = tuple(vocabulary)
        self.words = words or Words()
        self.pieces = pieces or Pieces()
        if not _MARKS.fullmatch(self.pieces.prefix) or self.pieces.unknown not in special or self.pieces.longest < 1:
            raise TokenizerError(
                "a WordPiece vocabulary needs a prefix of punctuation, a length from 1 on and a special unknown token",
                found=f"prefix {self.pieces.prefix!r}, length {self.pieces.longest}, unknown {self.pieces.unknown!r}",
            )
        reserved = set(special.values())
        tokens: list[bytes] = []
        ids: dict[str, int] = {}
        for id, text in enumerate(self.vocabulary):
            if not isinstance(text, str) or not text or text in ids or (text.isspace() and id not in reserved):
                raise TokenizerError(f"token {id} is no text, empty, or the same as another", found=ascii(text)[:80])
            ids[text] = id
            tokens.append(_bytes(text, self.pieces.prefix, id in reserved))
        super().__init__(tokens, special)
        plain = {text: id for text, id in ids.items() if id not in reserved}
        mark = self.pieces.prefix
        self._begin = {text: id for text, id in plain.items() if text == mark or not text.startswith(mark)}
        self._inside = {text[len(mark) :]: id for text, id in plain.items() if text.startswith(mark)}
        self._cut_words: dict[str, list[int]] = {}

    def facts(self) -> dict[str, object]:
        """The vocabulary in order, special tokens, and the two sets of options."""
        return {
            "vocabulary": list(self.vocabulary),
            "special": dict(self.special),
            "words": asdict(self.words),
            "pieces": asdict(self.pieces),
        }

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> "WordPiece":
        """The tokenizer with these facts. Raises TokenizerError."""
        vocabulary, special = facts.get("vocabulary"), facts.get("special")
        if (
            facts.keys() != {"vocabulary", "special", "words", "pieces"}
            or not isinstance(vocabulary, list)
            or not isinstance(special, dict)
        ):
            raise TokenizerError(
                "not the facts of a WordPiece tokenizer",
                found=", ".join(facts),
                allowed="vocabulary, special, words, pieces",
            )
        if not all(type(id) is int and isinstance(text, str) for text, id in special.items()):
            raise TokenizerError("special tokens are texts with integer ids", found=ascii(special)[:80])
        return cls(vocabulary, special, _words(facts["words"]), _pieces(facts["pieces"]))

    def encode_run(self, text: str) -> ndarray:
        """The ids of plain text, [N]."""
        found: list[int] = []
        for word in self.words.split(text):
            ids = self._cut_words.get(word)
            found += self._cut_word(word) if ids is None else ids
        return np.array(found, np.uint32)

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids, joined, without the space before the first word. Raises TokenizerError."""
        written = super().decode_bytes(ids)
        return written[1:] if len(ids) and self._spaced[ids[0]] else written

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return _WordStream(self)

    def _cut_word(self, word: str) -> list[int]:
        """The ids of a word: the longest piece from the left, again and again."""
        unknown = [self.special[self.pieces.unknown]]
        ids = [] if len(word) <= self.pieces.longest else unknown
        start, pieces = 0, self._begin
        while start < len(word) and ids is not unknown:
            end = min(len(word), start + self._longest_piece)
            while end > start and word[start:end] not in pieces:
                end -= 1
            if end == start:
                ids = unknown
            else:
                ids.append(pieces[word[start:end]])
                start, pieces = end, self._inside
        if len(word) <= self.pieces.longest:
            if len(self._cut_words) >= self.remember:
                self._cut_words.clear()
            self._cut_words[word] = ids
        return ids

    @cached_property
    def _longest_piece(self) -> int:
        return max(map(len, (*self._begin, *self._inside)), default=0)

    @cached_property
    def _spaced(self) -> list[bool]:
        reserved = set(self.special.values())
        return [id not in reserved and token.startswith(b" ") for id, token in enumerate(self.tokens)]


class _WordStream(TextStream):
    """Leaves out the space before the first word, as `decode` does."""

    def __init__(self, tokenizer: WordPiece):
        super().__init__(self._spoken)
        self._tokenizer = tokenizer
        self._begun = False

    def _spoken(self, id: int) -> bytes:
        token = self._tokenizer.token(id)
        first, self._begun = not self._begun, True
        return token[1:] if first and self._tokenizer._spaced[id] else token

    def behind(self, ids: Sequence[int] | ndarray) -> Self:
        """The same for ids that stand behind these."""
        self._begun = self._begun or len(ids) > 0
        return self

    def close(self) -> str:
        """U+FFFD if a character was left open, else ""; the stream can then be used anew."""
        self._begun = False
        return super().close()


def _bytes(text: str, prefix: str, special: bool) -> bytes:
    try:
        written = text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError("a token must be encodable as UTF-8", found=ascii(text)[:80]) from None
    if special:
        return written
    return written.removeprefix(prefix.encode()) if text.startswith(prefix) and text != prefix else b" " + written


def _words(found: object) -> Words:
    kinds = {"lowercase": bool, "accents": bool, "clean": bool, "han": bool}
    return Words(**_options(found, kinds))


def _pieces(found: object) -> Pieces:
    return Pieces(**_options(found, {"unknown": str, "prefix": str, "longest": int}))


def _options(found: object, kinds: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        raise TokenizerError("not the options of a WordPiece tokenizer", found=ascii(found)[:80], allowed=str(kinds))
    return found
