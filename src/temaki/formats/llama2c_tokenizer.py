"""llama2.c's tokenizer file, in and out: a SentencePiece BPE whose pieces hold spaces as they are.

int32: bytes of the longest piece; then for each id float32 score, int32 bytes, the bytes. Types and normaliser are not
in it, they are what run.c does: id 0 is unknown, 1 begins a text, 2 ends one, 3 to 258 are the bytes; a space is put
before a text; a character that is no piece is its bytes. U+2581 is such a character, where SentencePiece reads a space.
Source: llama2.c, tokenizer.py (export) and run.c (encode).
"""

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens.bpe_vocabulary import LARGEST
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, Model, Normalizer, Piece
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Tokenizer

BEGIN, END, FIRST_BYTE, PLAIN = 1, 2, 3, 259
"""Ids: of the text's beginning, of its end, of byte 0, of the first piece that is neither."""
SHOWN = {1: "\n<s>\n", 2: "\n</s>\n"}
"""How run.c shows the two."""
NAMES = {1: "<s>", 2: "</s>"}
LIMIT = 1 << 27
"""Bytes of the largest file that is read."""
WIDEST = 1 << 12
"""Bytes of the longest piece that is accepted."""
SPACE = "\u2581"
FRAME = Frame(before=(NAMES[BEGIN],))


def fits(path: Path) -> bool:
    """Whether a file is made like this; its pieces are not looked at."""
    return size(path) is not None


def size(path: Path) -> int | None:
    """How many pieces a file holds; None for what is no such file."""
    if not path.is_file() or not 0 < path.stat().st_size <= LIMIT:
        return None
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or not 0 < int.from_bytes(head[:4], "little") <= WIDEST:
            return None
        if not 0 <= int.from_bytes(head[8:12], "little") <= WIDEST:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            rows = _rows(content)
    return None if rows is None else len(rows)


def load(path: Path) -> tuple[SentencePieceBpe, Frame]:
    """The tokenizer in a file. Raises TokenizerError."""
    try:
        if path.stat().st_size > LIMIT:
            raise TokenizerError(f"{path} is too large for a tokenizer of llama2.c", allowed=f"{LIMIT} bytes")
        return read(path.read_bytes()), FRAME
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{path} cannot be used: {error}") from None


def read(content: bytes) -> SentencePieceBpe:
    """The tokenizer in a file's content. Raises TokenizerError."""
    rows = _rows(content)
    if rows is None:
        raise TokenizerError("this is no tokenizer of llama2.c, or it is cut off", found=f"{len(content)} bytes")
    if len(rows) < PLAIN or any(text != _byte(value) for value, (_, text) in enumerate(rows[FIRST_BYTE:PLAIN])):
        raise TokenizerError("a tokenizer of llama2.c has the bytes at ids 3 to 258", found=f"{len(rows)} pieces")
    return SentencePieceBpe(
        Model(
            tuple(_piece(id, score, text) for id, (score, text) in enumerate(rows)),
            type=BPE,
            byte_fallback=True,
            unknown_text="<unk>",
            normalizer=Normalizer(remove_extra_whitespaces=False, escape_whitespaces=False),
        )
    )


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer that run.c reads. Raises TokenizerError for one that it would read otherwise; OSError."""
    files.write_bytes(path, write(tokenizer))


def write(tokenizer: Tokenizer) -> bytes:
    """The content of such a file. Raises TokenizerError for a tokenizer that run.c would read otherwise."""
    if not isinstance(tokenizer, SentencePieceBpe):
        raise TokenizerError(
            "llama2.c holds SentencePiece BPE alone", found=f"kind {tokenizer.kind}", allowed=SentencePieceBpe.kind
        )
    model = tokenizer.model
    _check(model)
    spaced = model.normalizer.escape_whitespaces
    texts = [
        SHOWN.get(id) or (piece.text.replace(SPACE, " ") if spaced else piece.text)
        for id, piece in enumerate(model.pieces)
    ]
    if len(set(texts)) < len(texts):
        raise TokenizerError("two pieces differ only by U+2581 for a space, which llama2.c cannot say")
    rows = [text.encode() for text in texts]
    entries = [struct.pack("<fi", piece.score, len(row)) + row for piece, row in zip(model.pieces, rows, strict=True)]
    return struct.pack("<i", max(map(len, rows))) + b"".join(entries)


def _rows(content: bytes | mmap.mmap) -> list[tuple[float, bytes]] | None:
    """Score and bytes of each piece; None where the content is not made so to its last byte, or of too many."""
    if len(content) < 4:
        return None
    longest = int.from_bytes(content[:4], "little", signed=True)
    rows: list[tuple[float, bytes]] = []
    at = 4
    while at + 8 <= len(content):
        score, length = struct.unpack_from("<fi", content, at)
        at += 8
        if not 0 <= length <= longest or len(rows) == LARGEST:
            return None
        rows.append((score, content[at : at + length]))
        at += length
    return rows if at == len(content) and longest <= WIDEST else None


def _piece(id: int, score: float, raw: bytes) -> Piece:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise TokenizerError(f"piece {id} is no UTF-8", found=f"{raw!r:.60}") from None
    if FIRST_BYTE <= id < PLAIN:
        return Piece(text, score, BYTE)
    if id in SHOWN:
        return Piece(NAMES[id] if text == SHOWN[id] else text, score, CONTROL)
    return Piece(text, score, UNKNOWN if id == 0 else NORMAL)


def _check(model: Model) -> None:
    """Refuse what run.c would read otherwise. Raises TokenizerError."""
    types = [piece.type for piece in model.pieces]
    rules = model.normalizer
    wanted = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    known = {piece.text for piece in model.pieces if piece.type == NORMAL}
    wrong = {
        "pieces 0 to 258 that are not unknown, beginning, end and the bytes": types[:PLAIN] != wanted
        or [piece.text.encode() for piece in model.pieces[FIRST_BYTE:PLAIN]] != [_byte(value) for value in range(256)],
        "control, user-defined or unused pieces beyond": set(types[PLAIN:]) - {NORMAL},
        "rules of normalising": rules.charsmap,
        "removal of extra spaces": rules.remove_extra_whitespaces,
        "no space before a text": not rules.add_dummy_prefix or model.treat_whitespace_as_suffix,
        "a piece with a character that is none": any(letter not in known for text in known for letter in text),
        "a piece that is too long": max(len(piece.text.encode()) for piece in model.pieces) > WIDEST,
    }
    found: Sequence[str] = [name for name, is_so in wrong.items() if is_so]
    if found:
        raise TokenizerError("llama2.c would read this tokenizer otherwise", found="; ".join(found))


def _byte(value: int) -> bytes:
    return b"<0x%02X>" % value
