"""Any path -> a tokenizer, told by what is in it, never by its name."""

import json
import re
from pathlib import Path

from temaki.base.errors import TokenizerError
from temaki.formats import llama2c_tokenizer
from temaki.formats import open as models
from temaki.tokens import bytepiece, files, gpt2_files, sentencepiece, tiktoken_files
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Tokenizer
from temaki.tokens.unigram import Unigram

ACCEPTED = (
    "a tokenizer folder of ours (or a run, checkpoint or data folder that holds one), GPT-2's folder, tokenizer.json "
    "or its folder, tiktoken's ranks, a SentencePiece .model (unigram, BPE), a BytePiece model, llama2.c's tokenizer "
    ".bin, a model with a tokenizer (.gguf, llama2.c's .bin)"
)
LARGEST = 1 << 28
"""Bytes of a file that is read."""
RANK = re.compile(rb"[A-Za-z0-9+/]*={0,2} \d+\r?\n")
"""The first line of a file of ranks."""
PROTO = b"\n"
"""The first byte of a SentencePiece model: field 1, a piece."""


def open(path: str | Path, pattern: str | None = None) -> Tokenizer:
    """The tokenizer at a path; `pattern` is the split of a file of ranks, which does not say it.

    Raises TokenizerError for a path that holds none, and for a damaged one.
    """
    return open_framed(path, pattern)[0]


def open_framed(path: str | Path, pattern: str | None = None) -> tuple[Tokenizer, Frame]:
    """The same, and the frame that a foreign file may say beside it; an empty one if there is none."""
    path = Path(path)
    if not path.exists():
        raise TokenizerError(f"no such file or folder: {path}", allowed=ACCEPTED)
    if path.is_file():
        return _file(path, pattern)
    for place in (path, path / "tokenizer"):
        if (place / files.MACHINE).is_file():
            return files.load_framed(place)
    if (path / "tokenizer.json").is_file():
        return _hf(path)
    if (path / "tokenizer.model").is_file():
        return _sentencepiece(path / "tokenizer.model"), Frame()
    if gpt2_files.found_in(path) is not None:
        return gpt2_files.load(path, pattern or "gpt2"), Frame()
    found = _of_model(path)
    if found is not None:
        return found
    raise TokenizerError(f"{path} holds no tokenizer", allowed=ACCEPTED)


def _file(path: Path, pattern: str | None) -> tuple[Tokenizer, Frame]:
    """The tokenizer in a file, by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
        size = path.stat().st_size
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    found = _by_start(path, start, pattern) if size <= LARGEST else None
    if found is None:
        found = _of_model(path)
    if found is not None:
        return found
    if size > LARGEST:
        raise TokenizerError(f"{path} is too large to be a tokenizer", found=f"{size} bytes", allowed=f"{LARGEST}")
    do = "give the folder that holds it" if start.startswith(b"#version") else ""  # GPT-2's merges alone
    raise TokenizerError(f"{path} is no tokenizer", found=f"it begins with {start[:16]!r}", allowed=ACCEPTED, do=do)


def _by_start(path: Path, start: bytes, pattern: str | None) -> tuple[Tokenizer, Frame] | None:
    """The tokenizer in a file that begins as tokenizers do; None for any other."""
    if start.lstrip()[:1] == b"{":
        return _json(path)
    if RANK.match(start):
        if pattern is None:
            do = "name it with --split, as --split cl100k"
            raise TokenizerError(f"{path} holds ranks, and does not say how text is split", do=do)
        return tiktoken_files.load(path, pattern), Frame()
    if start[2:4] == b"\0\0":  # of a number, never of a SentencePiece model
        return llama2c_tokenizer.load(path) if llama2c_tokenizer.fits(path) else None
    return (_sentencepiece(path), Frame()) if start[:1] == PROTO else None


def _json(path: Path) -> tuple[Tokenizer, Frame]:
    """The tokenizer in a JSON file, by its keys."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from None
    if found and all(isinstance(value, int) for value in found.values()):  # GPT-2's ids alone, "kind" and "model" too
        do = "give the folder that holds it and vocab.bpe"
        raise TokenizerError(f"{path} holds ids, and no merges", allowed=ACCEPTED, do=do)
    if "kind" in found and isinstance(found.get("facts"), dict):
        return files.load_file(path)
    if "model" in found:
        return _hf(path)
    if "bpe_ranks" in found:
        return tiktoken_files.load_json(path), Frame()
    if all(isinstance(value, list) for value in found.values()):
        return bytepiece.load(path), Frame()
    raise TokenizerError(
        f"{path} is no tokenizer", found=f"JSON with {', '.join(map(repr, [*found][:4]))}", allowed=ACCEPTED
    )


def _sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece model, by its type."""
    model = sentencepiece.load(path)
    kinds = {sentencepiece.UNIGRAM: Unigram, sentencepiece.BPE: SentencePieceBpe}
    if model.type not in kinds:
        raise TokenizerError(
            f"{path} is of a type that is not read", found=f"type {model.type}", allowed="1 (unigram), 2 (BPE)"
        )
    return kinds[model.type](model)


def _of_model(path: Path) -> tuple[Tokenizer, Frame] | None:
    """The tokenizer that travels with a model; None for what is no model. Raises TokenizerError where it has none."""
    door = models.door(path)
    if door is None:
        return None
    found = door.open(path).framed
    if found is None:
        raise TokenizerError(f"{path} is a model without a tokenizer", allowed=ACCEPTED)
    return found


def _hf(path: Path) -> tuple[Tokenizer, Frame]:
    """The tokenizer of a tokenizer.json; what reads it loads the template engine, which others need not wait for."""
    from temaki.tokens import hf_json

    return hf_json.load(path)
