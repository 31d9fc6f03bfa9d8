"""tiktoken's files: a line for each token, its bytes in base64 and its rank, which is its id.

The file holds neither special tokens nor the pattern, so both are asked for. The encoders of the npm package `tiktoken`
are JSON and hold all three. Source: openai/tiktoken, `load.py` and the registry of its npm build.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens import split
from temaki.tokens.bpe import Bpe
from temaki.tokens.bpe_vocabulary import LARGEST
from temaki.tokens.merge_rules import as_ranks
from temaki.tokens.tokenizer import Tokenizer

LIMIT = 1 << 28
"""Bytes up to which a file is read."""

EXPRESSIONS = {
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
}
"""Expressions that are written otherwise than ours and cut alike."""


def load(path: Path | str, pattern: str, special: Mapping[str, int] | None = None) -> Bpe:
    """Read a file of ranks. Raises TokenizerError for one that is missing or malformed."""
    path = Path(path)
    try:
        if path.stat().st_size > LIMIT:
            raise TokenizerError(f"{path} is too large", allowed=f"{LIMIT} bytes")
        return _built(_ranks(path.read_bytes()), special or {}, pattern)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no file of ranks: {error}") from None


def load_json(path: Path | str) -> Bpe:
    """Read an encoder of the npm package. Raises TokenizerError for one that is missing or malformed."""
    found = files.read_json(Path(path), TokenizerError, LIMIT)
    try:
        return from_json(found)
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no encoder of tiktoken: {error}") from None


def from_json(found: Mapping[str, Any]) -> Bpe:
    """The tokenizer of such an encoder's content. Raises TokenizerError."""
    for key, kind in {"pat_str": str, "special_tokens": dict, "bpe_ranks": str}.items():
        if not isinstance(found.get(key), kind):
            raise TokenizerError(f"{key} is missing or of the wrong type", found=type(found.get(key)).__name__)
    ranks: dict[bytes, int] = {}
    for line in found["bpe_ranks"].split("\n"):
        if line:
            words = line.split(" ")
            first = _number(words[1] if len(words) > 1 else "")
            for place, word in enumerate(words[2:]):
                _add(ranks, _bytes(word.encode("utf-8", "replace")), first + place)
    expression = found["pat_str"]
    known = {pattern.expression: name for name, pattern in split.PATTERNS.items()} | EXPRESSIONS
    return _built(ranks, found["special_tokens"], known.get(expression) or expression)


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write the ranks of a byte-level BPE tokenizer; its special tokens and pattern are not in the file.

    Raises TokenizerError for a tokenizer whose merges ranks cannot say; OSError.
    """
    ranks = sorted(as_ranks(tokenizer).items(), key=lambda pair: pair[1])
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks)
    files.write_bytes(path, b"".join(lines))


def _built(ranks: Mapping[bytes, int], special: Mapping[str, int], pattern: str) -> Bpe:
    for text, id in special.items():
        if not isinstance(text, str) or type(id) is not int or not 0 <= id < LARGEST:
            raise TokenizerError("special tokens are texts with ids", found=f"{text!r:.40}: {id!r:.40}")
    split.check_special(list(special))
    size = max([*ranks.values(), *special.values()], default=-1) + 1
    if size > 2 * len(ranks) + 1024:
        raise TokenizerError("most ids have no token", found=f"{len(ranks)} tokens, the last id {size - 1}")
    tokens = [b""] * size
    for token, id in (*ranks.items(), *((text.encode("utf-8"), id) for text, id in special.items())):
        if tokens[id]:
            raise TokenizerError(f"id {id} has two tokens", found=f"{tokens[id]!r:.40} and {token!r:.40}")
        tokens[id] = token
    return Bpe.from_ranks(tokens, special, pattern)


def _ranks(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if line:
            word, space, rank = line.partition(b" ")
            if not space:
                raise TokenizerError(f"line {number} is not a token and a rank", found=ascii(line[:80]))
            _add(ranks, _bytes(word), _number(rank.decode("ascii", "replace")))
    return ranks


def _add(ranks: dict[bytes, int], token: bytes, rank: int) -> None:
    if not token or ranks.setdefault(token, rank) != rank:
        raise TokenizerError("a token is empty, or comes twice", found=f"{token!r:.40}, rank {rank}")


def _bytes(word: bytes) -> bytes:
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenizerError(f"a token is not written in base64: {error}", found=ascii(word[:80])) from None


def _number(word: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 9 or int(word) >= LARGEST:
        raise TokenizerError("a rank is no number, or out of range", found=ascii(word[:80]))
    return int(word)
