"""BytePiece: a unigram model over bytes. Text is cut into pieces so that the product of their probabilities is
greatest.

What is lost: text comes back in Unicode's normal form C ("e" and U+0301 as "é"), by the tables of Python's
`unicodedata`; with `normalize=None` nothing is. Each line is segmented for itself, its newlines included. Source: Su
2023 (BytePiece 0.6), whose files are read and written here.
"""

import json
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import regex
from numpy import ndarray

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens import split
from temaki.tokens.scored import ScoredTokenizer
from temaki.tokens.segmenter import Flow, Segmenter
from temaki.tokens.sentencepiece import BYTE, CONTROL, UNKNOWN, Model, Normalizer, Piece

SPECIAL = ("<pad>", "<bos>", "<eos>")
"""The names of the format's three reserved ids."""

Form = Literal["nfc"] | None


class BytePiece(ScoredTokenizer):
    """A BytePiece tokenizer. Implements the Tokenizer contract; every byte is a piece, so no text is unknown.

    >>> letters = {bytes([byte]): 1 for byte in range(256)}
    >>> BytePiece({**letters, b"ab": 9}).encode_list("abc")
    [259, 102]
    """

    kind = "bytepiece"

    def __init__(self, pieces: Mapping[bytes, int], normalize: Form = "nfc", special: Sequence[str] = SPECIAL):
        """Pieces with their counts, in the order of their ids, which come after those of `special`.

        Raises TokenizerError where a byte has no piece, a piece is empty, a count is no positive integer.
        """
        split.check_special(special)
        _check(pieces)
        self.pieces: Mapping[bytes, int] = dict(pieces)
        self.normalize: Form = _form(normalize)
        names = {text: id for id, text in enumerate(special)}
        super().__init__([*(text.encode() for text in special), *pieces], names)
        counts = np.fromiter(pieces.values(), np.float64, len(pieces))
        scores = np.concatenate([np.zeros(len(special)), np.log(counts) - np.log(float(sum(pieces.values())))])
        self.segmenter = Segmenter(list(pieces), np.arange(len(special), self.size), scores)

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Self:
        """The tokenizer that `facts` describes. Raises TokenizerError."""
        match dict(facts):
            case {"pieces": list(pieces), "normalize": normalize, "special": list(special), **rest}:
                if not rest and all(isinstance(text, str) for text in special):
                    return cls(_unpacked(pieces), _form(normalize), special)
        raise TokenizerError("this describes no BytePiece tokenizer", found=", ".join(map(str, facts)))

    def facts(self) -> dict[str, object]:
        """Pieces with their counts, in the order of their ids; the normal form; the special tokens."""
        pieces = [[b64encode(piece).decode(), count] for piece, count in self.pieces.items()]
        return {"pieces": pieces, "normalize": self.normalize, "special": list(self.special)}

    def read(self, text: str) -> bytes:
        """The text in its normal form as UTF-8."""
        return (text if self.normalize is None else unicodedata.normalize("NFC", text)).encode()

    def run(self) -> "_Run":
        """What encodes one run of plain text as it comes."""
        return _Run(self)


class _Run:
    """A run whose text is normalised up to a character that joins nothing before it; lines are kept whole at the
    end."""

    joins_nothing = regex.compile(r"(?r)(?=[\x00-\x7f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3])")

    def __init__(self, tokenizer: BytePiece):
        self._tokenizer = tokenizer
        self._flow = Flow(tokenizer.segmenter)
        self._open: list[str] = []  # what the next characters may still change
        self._length = self._wanted = 0  # of it
        self._ready = bytearray()
        self._newlines = 0  # that were all of it

    def push(self, text: str) -> ndarray:
        self._open.append(text)
        self._length += len(text)
        if self._length >= self._wanted:  # what cannot be cut is looked at just a few times
            self._read()
        if len(self._ready) < max(self._flow.held, 2 * self._newlines):
            return np.empty(0, np.uint32)
        newlines = len(self._ready) - len(self._ready.rstrip(b"\n"))
        if newlines == len(self._ready):
            self._newlines = newlines
            return np.empty(0, np.uint32)
        ids, _ = self._flow.push(bytes(self._ready), newlines)
        self._ready.clear()
        self._newlines = 0
        return ids

    def close(self) -> ndarray:
        rest = bytes(self._ready) + self._tokenizer.read("".join(self._open))
        return self._flow.push(rest, whole=True)[0]

    def _read(self) -> None:
        """Normalise what the next characters cannot change."""
        text = "".join(self._open)
        cut = len(text)
        if self._tokenizer.normalize is not None:
            found = self.joins_nothing.search(text, 0, cut)
            cut = 0 if found is None else found.start()
        self._ready += self._tokenizer.read(text[:cut])
        self._open, self._length = [text[cut:]], len(text) - cut
        self._wanted = 2 * self._length


def load(path: Path, normalize: Form = "nfc") -> BytePiece:
    """The tokenizer of a BytePiece file: JSON, base64 of the bytes -> [id, text, count]. Raises TokenizerError."""
    found = files.read_json(path, TokenizerError)
    rows: dict[int, tuple[bytes, int]] = {}
    for name, row in found.items():
        match row:
            case [int(id), str(), int(count)] if type(id) is type(count) is int and id not in rows:
                rows[id] = (_decoded(name), count)
            case _:
                raise TokenizerError(f"{path}: piece {name!r} is not [id, text, count] with an id of its own")
    first = len(SPECIAL)
    if sorted(rows) != list(range(first, first + len(rows))):
        raise TokenizerError(f"{path}: the ids are not {first} and on without a gap")
    pieces = dict(rows[id] for id in sorted(rows))
    if len(pieces) < len(rows):
        raise TokenizerError(f"{path}: a piece is in the vocabulary twice")
    return BytePiece(pieces, normalize)


def save(tokenizer: BytePiece, path: Path) -> None:
    """Write a BytePiece file, which the reference reads too. Raises TokenizerError for other ids than its own,
    OSError."""
    first = len(SPECIAL)
    if len(tokenizer.special) != first:
        raise TokenizerError("a BytePiece file has three special tokens", found=str(len(tokenizer.special)))
    rows = {
        b64encode(piece).decode(): [id, piece.decode(errors="ignore"), count]
        for id, (piece, count) in enumerate(tokenizer.pieces.items(), first)
    }
    files.write_text(path, json.dumps(rows, indent=4, ensure_ascii=False))


def as_sentencepiece(tokenizer: BytePiece) -> Model:
    """A SentencePiece unigram model with the same ids, and 256 byte pieces behind them (as the reference writes it).

    Ids 0, 1, 2 become <unk>, <s>, </s>. SentencePiece gives a character that is no piece its bytes at another price
    than here, and adds in float32: there, ids can differ. Raises TokenizerError for pieces of broken characters.
    """
    if len(tokenizer.special) != len(SPECIAL):
        raise TokenizerError("a SentencePiece model has three special tokens here", found=str(len(tokenizer.special)))
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    taken = set[int]()
    for id, piece in enumerate(tokenizer.pieces, len(SPECIAL)):
        score = float(np.float32(tokenizer.segmenter.scores[id]))
        if len(piece) == 1 and not 0 < piece[0] < 128:
            pieces.append(Piece(f"<0x{piece[0]:02X}>", score, BYTE))
            taken.add(piece[0])
            continue
        try:
            pieces.append(Piece(piece.decode().replace(" ", "\u2581"), score))
        except UnicodeDecodeError:
            raise TokenizerError("a piece is no whole characters", found=repr(piece)) from None
    pieces += [Piece(f"<0x{byte:02X}>", -100.0, BYTE) for byte in range(256) if byte not in taken]
    texts = [piece.text for piece in pieces]
    if len(set(texts)) < len(texts) or any("\0" in text for text in texts):
        raise TokenizerError(
            "a piece holds U+2581, a zero or a name of SentencePiece's own: its format cannot say that"
        )
    return Model(tuple(pieces), byte_fallback=True, normalizer=Normalizer("identity", b"", False, False, True))


def in_order(pieces: Mapping[bytes, int]) -> dict[bytes, int]:
    """Pieces in the order in which the reference numbers them: by length, then by bytes."""
    return dict(sorted(pieces.items(), key=lambda piece: (len(piece[0]), piece[0])))


def _unpacked(rows: Sequence[Any]) -> dict[bytes, int]:
    pieces: dict[bytes, int] = {}
    for row in rows:
        match row:
            case [str(name), int(count)] if (piece := _decoded(name)) not in pieces:
                pieces[piece] = count
            case _:
                raise TokenizerError("a piece is not [base64, count], or there twice", found=repr(row)[:80])
    return pieces


def _decoded(name: str) -> bytes:
    try:
        return b64decode(name, validate=True)
    except ValueError:
        raise TokenizerError("a piece is not base64", found=repr(name)[:80]) from None


def _form(normalize: object) -> Form:
    if normalize is None or normalize == "nfc":
        return "nfc" if normalize else None
    raise TokenizerError("unknown normal form", found=repr(normalize), allowed='"nfc" or None')


def _check(pieces: Mapping[bytes, int]) -> None:
    for piece, count in pieces.items():
        if type(count) is not int or not 0 < count < 1 << 53 or not piece:
            raise TokenizerError("a piece is empty or its count no positive integer", found=f"{piece!r}: {count!r}")
    missing = [byte for byte in range(256) if bytes([byte]) not in pieces]
    if missing:
        raise TokenizerError("a byte has no piece", found=f"{len(missing)} missing, the first {missing[0]}")
