"""What the kinds of SentencePiece model share: how text is normalised, what unknown characters become, what ids say.

A character that is no piece is the unknown id (a run of them is one), or its bytes where the model has them.
Normalising loses what the model's rules lose (widths, ligatures, repeated spaces). Control pieces are special tokens;
user-defined ones always arise from text. Source: Kudo and Richardson 2018 and its code (normalizer,
sentencepiece_processor).
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import utf8
from temaki.tokens.charsmap import Charsmap
from temaki.tokens.kernels import charsmap as kernels
from temaki.tokens.runs import RunTokenizer, checked_ids
from temaki.tokens.segmented import Kind, SegmentedTokenizer
from temaki.tokens.segmenter import Flow, readonly
from temaki.tokens.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Model,
    Normalizer,
    Piece,
)
from temaki.tokens.tokenizer import TextStream

SPACE = "\u2581"
"""What stands for a space in pieces."""

NAMES = {UNIGRAM: "unigram", BPE: "BPE"}
"""Types of models that are read."""


class SentencePieceTokenizer(SegmentedTokenizer[Kind]):
    """A SentencePiece model. Implements the Tokenizer contract; `encode` gives SentencePiece's ids."""

    type: ClassVar[int]
    """Of the models that are read."""
    unknown_is_special = False
    """Whether the unknown piece, too, may be named to arise from its text."""

    def __init__(self, model: Model):
        """Raises TokenizerError for a model of another type, without an unknown piece, with one twice or empty."""
        _check(model, self.type)
        self.model = model
        self.unknown = [piece.type for piece in model.pieces].index(UNKNOWN)
        self._space = SPACE if model.normalizer.escape_whitespaces else " "
        named = (CONTROL, UNKNOWN) if self.unknown_is_special else (CONTROL,)
        special = {piece.text: id for id, piece in enumerate(model.pieces) if piece.type in named}
        super().__init__([self._said(piece) for piece in model.pieces], special)
        self.reading(model)
        self._sizes = np.array([len(piece.text.encode()) for piece in model.pieces], np.int64)
        byte_ids = [id for id, piece in enumerate(model.pieces) if piece.type == BYTE]
        order = sorted(byte_ids, key=lambda id: _byte(model.pieces[id]))
        self.byte_ids = np.array(order if model.byte_fallback else [], np.int64)

    def reading(self, model: Model) -> None:
        """Normalise text as this model says."""
        self._charsmap = Charsmap(model)
        self._plain = _only_spaces(model)
        self._prefix = " " if model.normalizer.add_dummy_prefix else ""

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Self:
        """The tokenizer that `facts` describes. Raises TokenizerError."""
        return cls(cls.read_model(facts))

    @classmethod
    def read_model(cls, facts: Mapping[str, object]) -> Model:
        """The model that `facts` describes. Raises TokenizerError."""
        match dict(facts):
            case {
                "pieces": list(pieces), "byte_fallback": bool(fallback), "suffix": bool(suffix),
                "unknown_text": str(unknown), "normalizer": {
                    "name": str(name), "charsmap": str(charsmap), "add_dummy_prefix": bool(prefix),
                    "remove_extra_whitespaces": bool(remove), "escape_whitespaces": bool(escape), **more,
                }, **rest,
            } if not rest and not more:  # fmt: skip
                normalizer = Normalizer(name, _unpacked(charsmap), prefix, remove, escape)
                return Model(tuple(map(_piece, pieces)), cls.type, fallback, suffix, unknown, normalizer)
        raise TokenizerError(f"this describes no {NAMES[cls.type]} tokenizer", found=", ".join(map(str, facts)))

    def facts(self) -> dict[str, object]:
        """The pieces with scores and types in the order of their ids, and the normaliser."""
        model, normalizer = self.model, self.model.normalizer
        return {
            "pieces": [[piece.text, piece.score, piece.type] for piece in model.pieces],
            "byte_fallback": model.byte_fallback,
            "suffix": model.treat_whitespace_as_suffix,
            "unknown_text": model.unknown_text,
            "normalizer": {
                "name": normalizer.name,
                "charsmap": b64encode(normalizer.charsmap).decode(),
                "add_dummy_prefix": normalizer.add_dummy_prefix,
                "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
                "escape_whitespaces": normalizer.escape_whitespaces,
            },
        }

    def read(self, text: str) -> bytes:
        """The text as the model normalises it."""
        if self._plain and text:
            return (self._prefix + text).replace(" ", self._space).encode()
        return self._charsmap.normalized(text.encode())

    def spelled(self, ids: ndarray, text: ndarray) -> ndarray:
        """Runs of unknown characters as one id, or as their bytes."""
        return self._given_for(ids, text, False)[0]

    def respells(self, ids: ndarray) -> bool:
        """Whether some of these ids are unknown."""
        return bool((ids == self.unknown).any())

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids but special ones, joined, without the space that normalising puts before a text.

        Raises TokenizerError for an id that is not in the vocabulary.
        """
        found = checked_ids(ids, self.size)
        opening = _Opening(self)
        said: list[bytes] = []
        while opening.strips and len(said) < found.size:
            said.append(opening.said(int(found[len(said)])))
        return b"".join([*said, self._joined(found[len(said) :])])

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return _Stream(self)

    def after(self, special: bool) -> RunTokenizer:
        """What encodes text that goes on a text, as a text of its own: without the space that is put before a run."""
        return self if special or not self.model.normalizer.add_dummy_prefix else self._inner

    @cached_property
    def _inner(self) -> RunTokenizer:
        """The same without the space before a text."""
        return type(self)(replace(self.model, normalizer=replace(self.model.normalizer, add_dummy_prefix=False)))

    def run(self) -> "_Run":
        """What encodes one run of plain text as it comes."""
        return _Run(self)

    def _said(self, piece: Piece) -> bytes:
        if piece.type == BYTE:
            return bytes([_byte(piece)])
        text = self.model.unknown_text if piece.type == UNKNOWN and not self.unknown_is_special else piece.text
        return (text if piece.type in (CONTROL, UNKNOWN) else text.replace(SPACE, " ")).encode()

    def _given_for(self, path: ndarray, text: ndarray, before: bool) -> tuple[ndarray, bool]:
        """What a path gives, and whether its last piece is unknown; `before`: that of the path before it."""
        if not self.respells(path):
            return path, before and not path.size
        out = np.empty(text.size + path.size, np.uint32)
        count, after = kernels.spell(readonly(text), path, self._sizes, self.unknown, before, self.byte_ids, out)
        return out[:count].copy(), after


class _Run:
    """A run that is normalised and segmented as it comes."""

    def __init__(self, tokenizer: SentencePieceTokenizer[Any]):
        self._tokenizer = tokenizer
        self._normal = tokenizer._charsmap.flow()
        self._flow = Flow(tokenizer.segmenter)
        self._ready = b""
        self._unknown = False

    def push(self, text: str) -> ndarray:
        self._ready += self._normal.push(text.encode())
        if len(self._ready) < self._flow.held:  # what cannot be cut is looked at just a few times
            return np.empty(0, np.uint32)
        return self._given(False)

    def close(self) -> ndarray:
        self._ready += self._normal.close()
        return self._given(True)

    def _given(self, whole: bool) -> ndarray:
        ids, text = self._flow.push(self._ready, whole=whole)
        self._ready = b""
        given, self._unknown = self._tokenizer._given_for(ids, text, self._unknown)
        return given


class _Opening:
    """What ids say at a text's beginning: the space that normalising put there is left out."""

    def __init__(self, tokenizer: SentencePieceTokenizer[Any]):
        self._tokenizer = tokenizer
        self.strips = tokenizer.model.normalizer.add_dummy_prefix or tokenizer.model.normalizer.remove_extra_whitespaces
        self._all = tokenizer.model.normalizer.remove_extra_whitespaces

    def said(self, id: int) -> bytes:
        """The bytes of the next id."""
        found = self._tokenizer._bytes[id]
        if self.strips and found:
            kind = self._tokenizer.model.pieces[id].type
            if kind not in (BYTE, UNKNOWN) and found.startswith(b" "):
                found = found[1:]
                self.strips = self._all and not found
            else:
                self.strips = False
        return found


class _Stream(TextStream):
    """A stream that leaves out the first space."""

    def __init__(self, tokenizer: SentencePieceTokenizer[Any]):
        super().__init__(self._said)
        self._tokenizer = tokenizer
        self._opening = _Opening(tokenizer)

    def _said(self, id: int) -> bytes:
        self._tokenizer.token(id)
        return self._opening.said(id)

    def behind(self, ids: Sequence[int] | ndarray) -> Self:
        for id in checked_ids(ids, self._tokenizer.size).tolist():
            if not self._opening.strips:
                break
            self._opening.said(id)
        return self

    def close(self) -> str:
        self._opening = _Opening(self._tokenizer)
        return super().close()


def _only_spaces(model: Model) -> bool:
    """Whether normalising puts a space before the text and writes spaces otherwise, and does nothing else."""
    rules = model.normalizer
    if rules.charsmap or rules.remove_extra_whitespaces or model.treat_whitespace_as_suffix:
        return False
    return all(piece.type != USER_DEFINED for piece in model.pieces)


def _byte(piece: Piece) -> int:
    found = re.fullmatch(r"<0x([0-9A-F]{2})>", piece.text)
    if found is None:
        raise TokenizerError("a byte piece is written <0x..>", found=repr(piece.text)[:80])
    return int(found[1], 16)


def _check(model: Model, type: int) -> None:
    if model.type != type:
        raise TokenizerError(f"this SentencePiece model is no {NAMES[type]} model", found=f"type {model.type}")
    texts = [piece.text for piece in model.pieces]
    utf8.checked("".join([*texts, model.unknown_text, model.normalizer.name]))
    if not all(texts) or len(set(texts)) < len(texts):
        raise TokenizerError("a piece of the model is empty, or there twice")
    kinds = [piece.type for piece in model.pieces]
    if kinds.count(UNKNOWN) != 1 or not set(kinds) <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise TokenizerError("the model has not one unknown piece, or a piece of an unknown type")
    if any(not abs(piece.score) < 1e30 for piece in model.pieces):
        raise TokenizerError("the score of a piece is no usable number")
    found = sorted(_byte(piece) for piece in model.pieces if piece.type == BYTE)
    if (found and not model.byte_fallback) or (model.byte_fallback and found != list(range(256))):
        raise TokenizerError("a model that falls back on bytes has a piece for each", found=f"{len(found)} byte pieces")


def _piece(row: object) -> Piece:
    match row:
        case [str(text), float(score) | int(score), int(kind)] if type(kind) is int and abs(score) < 1e30:
            return Piece(text, float(score), kind)
    raise TokenizerError("a piece is not [text, score, type]", found=repr(row)[:80])


def _unpacked(charsmap: str) -> bytes:
    try:
        return b64decode(charsmap, validate=True)
    except ValueError:
        raise TokenizerError("the normaliser's rules are not base64") from None
