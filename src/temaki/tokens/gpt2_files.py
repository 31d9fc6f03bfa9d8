"""GPT-2's two files: `encoder.json` (printable token -> id) and `vocab.bpe` (a line for each merge, in order).

Hugging Face calls the same two `vocab.json` and `merges.txt`. Neither says which pattern splits text, nor which tokens
are special: the pattern is GPT-2's unless named, and a token that is neither a byte nor made by a merge is special.
Source: Radford et al. 2019, the released encoder.
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens.bpe import Bpe
from temaki.tokens.merge_rules import as_merges, check_reached, texts_by_id, vocabulary
from temaki.tokens.printable import printable, unprintable
from temaki.tokens.tokenizer import Tokenizer

NAMES = (("encoder.json", "vocab.bpe"), ("encoder.json.gz", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""The two files, under the names that are in use."""
LIMIT = 1 << 28
"""Bytes up to which a file is read."""


def found_in(folder: Path | str) -> tuple[Path, Path] | None:
    """The two files of a folder, None where they are not both there."""
    for names in NAMES:
        first, second = (Path(folder) / name for name in names)
        if first.is_file() and second.is_file():
            return first, second
    return None


def load(folder: Path | str, pattern: str = "gpt2") -> Bpe:
    """Read the tokenizer of a folder. Raises TokenizerError for files that are missing, malformed or do not fit."""
    places = found_in(folder)
    if places is None:
        wanted = " or ".join(" and ".join(names) for names in NAMES)
        raise TokenizerError(f"{folder} holds no GPT-2 vocabulary", allowed=wanted)
    encoder, merges = places
    try:
        return built(_json(_read(encoder)), _text(_read(merges)), pattern)
    except TokenizerError as error:
        raise TokenizerError(f"{encoder} and {merges.name} are no tokenizer: {error}") from None


def built(encoder: Mapping[str, object], merges: str, pattern: str = "gpt2") -> Bpe:
    """The tokenizer of the content of the two files. Raises TokenizerError."""
    pairs = parsed_merges([line for line in merges.splitlines() if line and not line.startswith("#version")])
    texts = texts_by_id(encoder)
    made = {left + right for left, right in pairs} | {bytes([value]) for value in range(256)}
    special: dict[str, int] = {}
    tokens: list[bytes] = []
    for id, text in enumerate(texts):
        token = b"" if text is None else _plain(text)
        if text is not None and (token is None or token not in made):
            special[text] = id
            token = text.encode("utf-8")
        assert token is not None  # the line above
        tokens.append(token)
    return Bpe(tokens, pairs, special, pattern)


def parsed_merges(lines: list[str]) -> list[tuple[bytes, bytes]]:
    """Merges written as two printable tokens with a space between. Raises TokenizerError."""
    found: list[tuple[bytes, bytes]] = []
    for number, line in enumerate(lines, start=1):
        left, space, right = line.partition(" ")
        if not space or not left or not right or " " in right:
            raise TokenizerError(f"merge {number} is not two tokens with a space between", found=ascii(line[:80]))
        found.append((unprintable(left), unprintable(right)))
    return found


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `encoder.json` and `vocab.bpe` into a folder, each whole or absent.

    The pattern is not in them. Raises TokenizerError for a tokenizer that is no BPE, for special tokens whose text is
    another token's printable one, and where the files would be read as another tokenizer; OSError.
    """
    merges = as_merges(tokenizer)
    encoder: dict[str, int] = {}
    reserved = {id: text for text, id in tokenizer.special.items()}
    for id, token in enumerate(tokenizer.tokens):
        text = reserved.get(id, printable(token))
        if text and encoder.setdefault(text, id) != id:
            raise TokenizerError("two tokens would be written alike", found=f"{text!r}, ids {encoder[text]} and {id}")
    lines = "".join(f"{printable(left)} {printable(right)}\n" for left, right in merges)
    pattern = tokenizer.facts()["pattern"]
    assert isinstance(pattern, str)  # a BPE has one
    again = built(encoder, lines, pattern)
    if (again.tokens, dict(again.special)) != (tuple(tokenizer.tokens), dict(tokenizer.special)):
        raise TokenizerError("GPT-2's files cannot say this vocabulary: it has tokens that no merge makes")
    if again.merges != tuple(merges):
        raise TokenizerError("GPT-2's files cannot say these merges: one begins as the line of the version does")
    if vocabulary(tokenizer).whole:
        check_reached(vocabulary(again))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "encoder.json", encoder)
    files.write_text(folder / "vocab.bpe", "#version: 0.2\n" + lines)


def _plain(text: str) -> bytes | None:
    """The bytes of a printable token; None where it has characters that stand for none."""
    try:
        return unprintable(text)
    except TokenizerError:
        return None


def _read(path: Path) -> bytes:
    """A file's bytes, unpacked where its name ends in .gz, up to LIMIT. Raises TokenizerError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = file.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TokenizerError(f"{path.name} cannot be read: {error}") from None
    if len(found) > LIMIT:
        raise TokenizerError(f"{path.name} is too large", allowed=f"{LIMIT} bytes")
    return found


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not UTF-8: {error}") from None


def _json(content: bytes) -> dict[str, object]:
    try:
        found = json.loads(_text(content))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise TokenizerError("no JSON object", found=type(found).__name__)
    return found
