"""A tokenizer on disk: `vocabulary.json` for machines, `vocabulary.txt` for eyes.

The JSON holds everything that can change an id, and the fingerprint of it: a file that was changed, by whatever, is
refused. Each kind of tokenizer says what its facts are and makes itself from them; this module knows where kinds live.
"""

import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens import frame as frames
from temaki.tokens.frame import Frame
from temaki.tokens.normalized import Normalized
from temaki.tokens.printable import shown
from temaki.tokens.tokenizer import Tokenizer, fingerprint

MACHINE = "vocabulary.json"
EYES = "vocabulary.txt"
VERSION = 2
LIMIT = 1 << 28
"""Bytes up to which a vocabulary file is read."""

KINDS = {
    "bpe": ("temaki.tokens.bpe", "Bpe"),
    "bytepiece": ("temaki.tokens.bytepiece", "BytePiece"),
    "unigram": ("temaki.tokens.unigram", "Unigram"),
    "sentencepiece-bpe": ("temaki.tokens.sentencepiece_bpe", "SentencePieceBpe"),
    "wordpiece": ("temaki.tokens.wordpiece", "WordPiece"),
    "characters": ("temaki.tokens.characters", "Characters"),
}
"""Kind -> (module, class), loaded when a tokenizer of that kind is."""


def save(tokenizer: Tokenizer, folder: Path, frame: Frame | None = None) -> None:
    """Write a tokenizer into a folder, which is made if need be; each file is whole or absent.

    `frame`: what a foreign file said beside it, kept for the way back. Raises OSError, TokenizerError; a folder that
    was made for it goes again.
    """
    content: dict[str, object] = {
        "version": VERSION,
        "kind": tokenizer.kind,
        "fingerprint": tokenizer.fingerprint,
        "facts": tokenizer.facts(),
    }
    if frame is not None and frame != Frame():
        frame.check(tokenizer.special)
        content["frame"] = frame.facts()
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files.write_text(folder / EYES, describe(tokenizer))
        files.write_json(folder / MACHINE, content)
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def load(folder: Path | str) -> Tokenizer:
    """Read the tokenizer of a folder that `save` wrote.

    Raises TokenizerError for a file that is missing, malformed, of another version, or not what was written.
    """
    return load_framed(folder)[0]


def load_framed(folder: Path | str) -> tuple[Tokenizer, Frame]:
    """The tokenizer of a folder and its frame, an empty one if there is none. Raises TokenizerError."""
    return load_file(Path(folder) / MACHINE)


def load_file(path: Path) -> tuple[Tokenizer, Frame]:
    """The same of a file for machines, whatever its name. Raises TokenizerError."""
    found = files.read_json(path, TokenizerError, LIMIT)
    try:
        return _built(found)
    except TokenizerError as error:
        raise TokenizerError(f"{path} is no tokenizer: {error}") from None


def build(kind: object, facts: object) -> Tokenizer:
    """The tokenizer of a kind with these facts. Raises TokenizerError."""
    if not isinstance(facts, dict):
        raise TokenizerError("the facts of a tokenizer are a mapping", found=type(facts).__name__)
    if kind == Normalized.kind:
        inner = facts.get("inner")
        if facts.keys() != {"form", "inner"} or not isinstance(inner, dict) or inner.get("kind") == kind:
            raise TokenizerError("not the facts of a normalized tokenizer", found=", ".join(map(str, facts)))
        return Normalized(build(inner.get("kind"), inner.get("facts")), facts["form"])
    if not isinstance(kind, str) or kind not in KINDS:
        raise TokenizerError("unknown kind of tokenizer", found=f"{kind!r:.40}", allowed=", ".join(KINDS))
    module, name = KINDS[kind]
    return getattr(import_module(module), name).of(facts)


def describe(tokenizer: Tokenizer) -> str:
    """The vocabulary for eyes: a line for each id with its text (or bytes), for BPE also what it was merged of."""
    made = _merged(tokenizer)
    reserved = set(tokenizer.special.values())
    lines = [f"# {tokenizer.size} ids, {tokenizer.kind}, fingerprint {tokenizer.fingerprint}"]
    for id, token in enumerate(tokenizer.tokens):
        line = f"{id:>7}  {shown(token)}"
        if id in reserved:
            line += "  special"
        elif id in made:
            line += "  = " + " + ".join(shown(tokenizer.tokens[part]) for part in made[id])
        lines.append(line)
    return "\n".join(lines) + "\n"


def _built(found: Mapping[str, Any]) -> tuple[Tokenizer, Frame]:
    if found.get("version") != VERSION:
        raise TokenizerError(
            "unknown format",
            found=f"version {found.get('version')!r:.40}",
            allowed=f"version {VERSION}",
        )
    for key in found.keys() ^ {"version", "kind", "fingerprint", "facts"}:
        if key != "frame":
            raise TokenizerError(f"key {key!r} is " + ("unknown" if key in found else "missing"))
    try:
        true = fingerprint(found["kind"], found["facts"])
    except (RecursionError, TypeError, ValueError) as error:
        raise TokenizerError(f"the facts cannot be read: {error}") from None
    if true != found["fingerprint"]:
        raise TokenizerError(
            "the content does not match its fingerprint: the file was changed",
            found=true,
            allowed=f"{found['fingerprint']!s:.64}",
            do="restore it from the run or checkpoint it came from",
        )
    tokenizer = build(found["kind"], found["facts"])
    frame = frames.of(found["frame"]) if "frame" in found else Frame()
    frame.check(tokenizer.special)
    return tokenizer, frame


def _merged(tokenizer: Tokenizer) -> dict[int, tuple[int, int]]:
    """Id -> the ids it was merged of, where a tokenizer has merges; the first merge of a token counts."""
    merges = tokenizer.facts().get("merges") if tokenizer.kind == "bpe" else None
    reserved = set(tokenizer.special.values())
    ids = {token: id for id, token in enumerate(tokenizer.tokens) if id not in reserved}
    made: dict[int, tuple[int, int]] = {}
    for left, right in merges if isinstance(merges, list) else ():
        made.setdefault(ids[tokenizer.tokens[left] + tokenizer.tokens[right]], (left, right))
    return made
