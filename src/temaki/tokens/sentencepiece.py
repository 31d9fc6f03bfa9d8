"""SentencePiece model files: the parts of their protocol buffer that segment text, read and written.

A message is a list of fields: a number, a wire type, a value. What this reader does not know it passes over, as the
format asks; what is cut off or impossible is an error. Source: the SentencePiece repository, sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from temaki.base import files
from temaki.base.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""

UNIGRAM, BPE, WORD, CHAR = range(1, 5)
"""Types of models."""

LIMIT = 1 << 28
"""Bytes of the largest file that is read."""

Value = int | bytes
Fields = Mapping[int, Sequence[Value]]


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary."""

    text: str
    """U+2581 stands for a space where the model escapes it."""
    score: float = 0.0
    """float32: log probability."""
    type: int = NORMAL


@dataclass(frozen=True)
class Normalizer:
    """What is done to a text before it is segmented."""

    name: str = "identity"
    charsmap: bytes = b""
    """Replacement rules in SentencePiece's compiled form, see `charsmap`; empty: none."""
    add_dummy_prefix: bool = True
    """A space before the text."""
    remove_extra_whitespaces: bool = True
    """No space at either end, one at most in between."""
    escape_whitespaces: bool = True
    """U+2581 for every space."""


@dataclass(frozen=True)
class Model:
    """A SentencePiece model."""

    pieces: tuple[Piece, ...]
    """In the order of their ids."""
    type: int = UNIGRAM
    byte_fallback: bool = False
    """Characters that are no piece become pieces of type BYTE."""
    treat_whitespace_as_suffix: bool = False
    unknown_text: str = " \u2047 "
    """What the unknown id decodes to."""
    normalizer: Normalizer = field(default_factory=Normalizer)


def load(path: Path) -> Model:
    """The model in a file. Raises TokenizerError."""
    try:
        if path.stat().st_size > LIMIT:
            raise TokenizerError(f"{path} is too large for a SentencePiece model", allowed=f"{LIMIT} bytes")
        return read(path.read_bytes())
    except OSError as problem:
        raise TokenizerError(f"{path} cannot be read: {problem.strerror}") from None


def save(model: Model, path: Path) -> None:
    """Write a model that SentencePiece reads too. Raises OSError."""
    files.write_bytes(path, write(model))


def read(content: bytes) -> Model:
    """The model in a message. Raises TokenizerError for what is no such message."""
    fields = _fields(content)
    if 1 not in fields:
        raise TokenizerError("this is no SentencePiece model: it has no pieces")
    trainer, normalizer = (_merged(fields, number) for number in (2, 3))
    return Model(
        pieces=tuple(_piece(_bytes(value)) for value in fields[1]),
        type=_int(trainer, 3, UNIGRAM),
        byte_fallback=bool(_int(trainer, 35, 0)),
        treat_whitespace_as_suffix=bool(_int(trainer, 24, 0)),
        unknown_text=_text(trainer, 44, " \u2047 "),
        normalizer=Normalizer(
            name=_text(normalizer, 1, ""),
            charsmap=_bytes(normalizer.get(2, [b""])[-1]),
            add_dummy_prefix=bool(_int(normalizer, 3, 1)),
            remove_extra_whitespaces=bool(_int(normalizer, 4, 1)),
            escape_whitespaces=bool(_int(normalizer, 5, 1)),
        ),
    )


def write(model: Model) -> bytes:
    """The message of a model."""
    ids = {piece.type: id for id, piece in reversed(list(enumerate(model.pieces)))}
    pieces = [
        _packed(1, piece.text.encode()) + _tag(2, 5) + struct.pack("<f", piece.score) + _packed(3, piece.type)
        for piece in model.pieces
    ]
    trainer = [
        _packed(3, model.type), _packed(4, len(model.pieces)), _packed(24, int(model.treat_whitespace_as_suffix)),
        _packed(35, int(model.byte_fallback)), _packed(40, ids.get(UNKNOWN, 0)),
        _packed(44, model.unknown_text.encode()),
    ]  # fmt: skip
    for number, name in ((41, "<s>"), (42, "</s>"), (43, "<pad>")):
        found = [id for id, piece in enumerate(model.pieces) if piece.text == name and piece.type == CONTROL]
        trainer.append(_packed(number, found[0] if found else (1 << 64) - 1))
    normalizer = [
        _packed(1, model.normalizer.name.encode()), _packed(2, model.normalizer.charsmap),
        _packed(3, int(model.normalizer.add_dummy_prefix)), _packed(4, int(model.normalizer.remove_extra_whitespaces)),
        _packed(5, int(model.normalizer.escape_whitespaces)),
    ]  # fmt: skip
    parts = [_packed(1, piece) for piece in pieces]
    return b"".join([*parts, _packed(2, b"".join(trainer)), _packed(3, b"".join(normalizer))])


def _piece(content: bytes) -> Piece:
    fields = _fields(content)
    score = fields.get(2, [b"\0\0\0\0"])[-1]
    if not isinstance(score, bytes) or len(score) != 4:
        raise TokenizerError("the score of a piece is no float32")
    return Piece(_text(fields, 1, ""), struct.unpack("<f", score)[0], _int(fields, 3, NORMAL))


def _fields(content: bytes) -> dict[int, list[Value]]:
    """The fields of a message by number; numbers as they stand, lengths and fixed widths as bytes."""
    fields: dict[int, list[Value]] = {}
    for number, value in _walk(content):
        fields.setdefault(number, []).append(value)
    return fields


def _walk(content: bytes) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise TokenizerError("this is no SentencePiece model", found=f"wire type {wire} at byte {at}")
        if number == 0 or at + size > len(content):
            raise TokenizerError("the SentencePiece model is cut off or damaged", found=f"field {number} at byte {at}")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first; and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise TokenizerError("the SentencePiece model is cut off or damaged", found=f"a number at byte {at}")


def _merged(fields: Fields, number: int) -> dict[int, list[Value]]:
    """A message that stands in a field; given twice, the later one adds to the first."""
    return _fields(b"".join(_bytes(value) for value in fields.get(number, [])))


def _bytes(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    raise TokenizerError("the SentencePiece model is damaged", found="a number where a message or text should be")


def _int(fields: Fields, number: int, default: int) -> int:
    value = fields.get(number, [default])[-1]
    if isinstance(value, int):
        return value
    raise TokenizerError("the SentencePiece model is damaged", found=f"no number in field {number}")


def _text(fields: Fields, number: int, default: str) -> str:
    value = fields.get(number, [default.encode()])[-1]
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError:
        raise TokenizerError("the SentencePiece model is damaged", found=f"no UTF-8 in field {number}") from None


def _packed(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _tag(number, 0) + _number(value)
    return _tag(number, 2) + _number(len(value)) + value


def _tag(number: int, wire: int) -> bytes:
    return _number(number << 3 | wire)


def _number(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
