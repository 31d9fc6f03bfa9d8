"""A tokenizer on disk: `vocabulary.json` for machines, `vocabulary.txt` for eyes.

The JSON holds everything that can change an id, and the fingerprint of it: a file that was changed, by
whatever, is refused. Bytes are written as GPT-2's files write them, each byte as one printable character.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens import bpe
from temaki.tokens.tokenizer import Tokenizer

MACHINE = "vocabulary.json"
EYES = "vocabulary.txt"
VERSION = 1
KEYS = {
    "version": int,
    "kind": str,
    "fingerprint": str,
    "pattern": str,
    "special": dict,
    "tokens": list,
    "merges": list,
}
LIMIT = 1 << 28
"""Bytes up to which a vocabulary file is read."""


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer into a folder, which is made if need be; each file is whole or absent. Raises
    OSError."""
    assert isinstance(tokenizer, bpe.Bpe), f"no file format for {type(tokenizer).__name__}"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / EYES, describe(tokenizer))
    content = {
        "version": VERSION,
        "kind": "bpe",
        "fingerprint": tokenizer.fingerprint,
        "pattern": tokenizer.pattern,
        "special": dict(tokenizer.special),
        "tokens": [printable(token) for token in tokenizer.tokens],
        "merges": [f"{printable(left)} {printable(right)}" for left, right in tokenizer.merges],
    }
    files.write_json(folder / MACHINE, content)


def load(folder: Path | str) -> Tokenizer:
    """Read the tokenizer of a folder that `save` wrote.

    Raises TokenizerError for a file that is missing, malformed, of another version, or not what was written.
    """
    path = Path(folder) / MACHINE
    found = files.read_json(path, TokenizerError, LIMIT)
    try:
        return _build(found)
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no tokenizer: {error}") from None


def describe(tokenizer: bpe.Bpe) -> str:
    """The vocabulary for eyes: a line for each id with its text (or bytes) and what it was merged of."""
    made = {left + right: (left, right) for left, right in tokenizer.merges}
    reserved = set(tokenizer.special.values())
    lines = [f"# {tokenizer.size} ids, pattern {tokenizer.pattern}, fingerprint {tokenizer.fingerprint}"]
    for id, token in enumerate(tokenizer.tokens):
        line = f"{id:>7}  {_shown(token)}"
        if id in reserved:
            line += "  special"
        elif token in made:
            line += "  = " + " + ".join(map(_shown, made[token]))
        lines.append(line)
    return "\n".join(lines) + "\n"


def printable(token: bytes) -> str:
    """Bytes as text, a printable character for each byte.

    >>> printable(b" a\\n")
    'ĠaĊ'
    """
    return token.decode("latin-1").translate(_characters())


def unprintable(text: str) -> bytes:
    """The inverse of `printable`. Raises TokenizerError for a character that stands for no byte.

    >>> unprintable("ĠaĊ")
    b' a\\n'
    """
    try:
        return bytes(_bytes()[character] for character in text)
    except KeyError as error:
        raise TokenizerError("a character that stands for no byte", found=ascii(error.args[0])) from None


@cache
def _characters() -> dict[int, str]:
    """Byte -> character: itself where Latin-1 prints it, else the next free character from 256 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [value for value in range(256) if value not in kept]
    return {value: chr(value) for value in kept} | {value: chr(256 + n) for n, value in enumerate(moved)}


@cache
def _bytes() -> dict[str, int]:
    return {character: value for value, character in _characters().items()}


def _shown(token: bytes) -> str:
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return f"<{token.hex(' ')}>"


def _build(found: Mapping[str, Any]) -> bpe.Bpe:
    if found.get("version") != VERSION or found.get("kind") != "bpe":
        raise TokenizerError(
            "unknown format",
            found=f"version {found.get('version')!r:.40}, kind {found.get('kind')!r:.40}",
            allowed=f"version {VERSION}, kind 'bpe'",
        )
    for key in found.keys() ^ KEYS.keys():
        raise TokenizerError(f"key {key!r} is " + ("unknown" if key in found else "missing"))
    for key, kind in KEYS.items():
        if type(found[key]) is not kind:
            raise TokenizerError(f"{key} must be of type {kind.__name__}", found=type(found[key]).__name__)
    special = {text: id for text, id in found["special"].items() if type(id) is int}
    if len(special) != len(found["special"]):
        raise TokenizerError("ids of special tokens must be integers")
    tokens = [unprintable(text) for text in _texts(found["tokens"], "tokens")]
    merges = [_merge(text) for text in _texts(found["merges"], "merges")]
    true = bpe.fingerprint(tokens, merges, special, found["pattern"])
    if true != found["fingerprint"]:
        raise TokenizerError(
            "the content does not match its fingerprint: the file was changed",
            found=true,
            allowed=found["fingerprint"][:64],
            do="restore it from the run or checkpoint it came from",
        )
    return bpe.Bpe(tokens, merges, special, found["pattern"])


def _texts(found: Sequence[Any], name: str) -> Sequence[str]:
    for place, text in enumerate(found):
        if type(text) is not str:
            raise TokenizerError(f"{name} must hold texts", found=f"{type(text).__name__} at place {place}")
    return found


def _merge(text: str) -> tuple[bytes, bytes]:
    left, space, right = text.partition(" ")
    if not space:
        raise TokenizerError("a merge is two tokens with a space between", found=ascii(text[:80]))
    return unprintable(left), unprintable(right)
