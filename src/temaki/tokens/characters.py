"""A token for each character. The longest sequences and the smallest thing that can be called a tokenizer.

Ids: special tokens, the 256 bytes, then the characters beyond ASCII that the corpus holds. A character that the
vocabulary lacks is written as its UTF-8 bytes, so nothing is lost; or, where `unknown` names a special token, as that
token, and then there are no bytes and the character is lost.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.runs import RunTokenizer
from temaki.tokens.tokenizer import END_OF_TEXT

MISSING = -1
"""In the table of ids: a code point that is no token."""


def train(
    texts: Iterable[str],
    size: int | None = None,
    special: Sequence[str] = (END_OF_TEXT,),
    unknown: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "Characters":
    """The characters of a corpus, the most frequent `size` of them (specials and bytes included), or all.

    Of two equally frequent ones the smaller code point comes first. `progress(characters read, 0)` is called after
    each text. Raises TokenizerError for a size that leaves no room, an empty corpus, unusable special tokens.

    >>> train(["déjà vu"], special=[]).tokens[256:]
    (b'\\xc3\\xa0', b'\\xc3\\xa9')
    """
    _check(special, unknown)
    if isinstance(texts, str):
        raise TokenizerError("texts are a list of texts", found="one text", do="write [text]")
    first = len(special) + (256 if unknown is None else 0)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not first <= size < 1 << 32):
        raise TokenizerError("vocabulary size out of range", found=repr(size), allowed=f"{first} and more")
    counts: Counter[str] = Counter()
    read = 0
    for text in texts:
        for part, is_special in split.parts(utf8.checked(text), special):
            if not is_special:
                counts.update(part)
        read += len(text)
        if progress is not None:
            progress(read, 0)
    if not counts:
        raise TokenizerError("no text to learn a vocabulary from", do="give a corpus that is not empty")
    wanted = [character for character in counts if unknown is not None or not character.isascii()]
    wanted.sort(key=lambda character: (-counts[character], character))
    return Characters(wanted[: None if size is None else size - first], special, unknown)


class Characters(RunTokenizer):
    """A tokenizer of single characters. Implements the Tokenizer contract; noise is refused."""

    kind = "characters"
    cuts = ""

    def __init__(self, characters: Sequence[str], special: Sequence[str] = (END_OF_TEXT,), unknown: str | None = None):
        """`characters` in the order of their ids; with bytes (`unknown` is None), none of ASCII, which bytes are.

        Raises TokenizerError for what is no single character or comes twice, and for unusable special tokens.
        """
        _check(special, unknown)
        self.characters = tuple(characters)
        self.unknown = unknown
        self._first = len(special) + (256 if unknown is None else 0)
        seen: set[str] = set()
        for character in self.characters:
            if not isinstance(character, str) or len(character) != 1 or character in seen:
                raise TokenizerError("a character is one code point, and comes once", found=ascii(character)[:80])
            if unknown is None and character.isascii():
                raise TokenizerError("a character of ASCII is a byte already", found=ascii(character))
            utf8.checked(character)
            seen.add(character)
        bytes_of = [bytes([value]) for value in range(256)] if unknown is None else []
        tokens = [*(text.encode() for text in special), *bytes_of, *(text.encode() for text in self.characters)]
        super().__init__(tokens, {text: id for id, text in enumerate(special)})
        self._table: ndarray | None = None

    def facts(self) -> dict[str, object]:
        """Special tokens in order, characters in order, and the token of unknown ones."""
        return {"special": list(self.special), "characters": list(self.characters), "unknown": self.unknown}

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> "Characters":
        """The tokenizer with these facts. Raises TokenizerError."""
        special, characters, unknown = (facts.get(name) for name in ("special", "characters", "unknown"))
        if (
            facts.keys() != {"special", "characters", "unknown"}
            or not isinstance(special, list)
            or not isinstance(characters, list)
            or not isinstance(unknown, str | None)
        ):
            raise TokenizerError(
                "not the facts of a character tokenizer", found=", ".join(facts), allowed="special, characters, unknown"
            )
        return cls(characters, special, unknown)

    def encode_run(self, text: str) -> ndarray:
        """The ids of plain text, [N]."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._ids()[points]
        missing = ids == MISSING
        if not missing.any():
            return ids
        if self.unknown is not None:
            return np.where(missing, self.special[self.unknown], ids)
        lost = points[missing]
        lengths = np.ones(len(ids), np.int64)
        lengths[missing] = 2 + (lost >= 0x800) + (lost >= 0x10000)
        spread = np.repeat(missing, lengths)
        found = np.empty(len(spread), np.int64)
        found[~spread] = ids[~missing]
        written = lost.tobytes().decode("utf-32-le").encode("utf-8")
        found[spread] = np.frombuffer(written, np.uint8) + np.int64(len(self.special))
        return found

    def _ids(self) -> ndarray:
        """Code point -> id or MISSING, int32 [0x110000]; made on first use."""
        if self._table is None:
            table = np.full(0x110000, MISSING, np.int32)
            if self.unknown is None:
                table[:128] = np.arange(128) + len(self.special)
            if self.characters:
                table[[ord(character) for character in self.characters]] = np.arange(self._first, self.size)
            self._table = table
        return self._table


def _check(special: Sequence[str], unknown: str | None) -> None:
    split.check_special(special)
    if unknown is not None and unknown not in special:
        raise TokenizerError(
            "the token for unknown characters is no special token", found=repr(unknown), allowed=", ".join(special)
        )
