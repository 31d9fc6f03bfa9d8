"""A tokenizer into a foreign format, proved before it is there: written aside, read again, compared, then named.

Nothing is written that would be read as another tokenizer: what a format cannot hold is refused.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from temaki.base.errors import TokenizerError
from temaki.formats import llama2c_tokenizer, proof
from temaki.formats import tokenizer as opener
from temaki.tokens import bytepiece, files, gpt2_files, hf_json, sentencepiece, tiktoken_files
from temaki.tokens.bytepiece import BytePiece
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Tokenizer
from temaki.tokens.unigram import Unigram


@dataclass(frozen=True)
class Format:
    """One way to write a tokenizer."""

    write: Callable[[Tokenizer, Frame, Path], None]
    folder: bool
    """Whether it is a folder or one file."""
    unsaid: str = ""
    """What it does not hold, so that a reader must be told."""


@dataclass(frozen=True)
class Proved:
    """A conversion that was done."""

    before: Tokenizer
    after: Tokenizer
    texts: int
    """How many texts gave the same ids and bytes."""
    known: bool
    """Whether these were texts of known characters alone, and ids were compared (up to ties), not bytes."""


def convert(source: Path, out: Path, to: str, pattern: str | None = None) -> Proved:
    """Write the tokenizer at `source` to `out`, which must not exist. Raises TokenizerError, OSError."""
    if to not in FORMATS:
        raise TokenizerError("unknown format", found=repr(to), allowed=", ".join(FORMATS))
    form = FORMATS[to]
    before, frame = opener.open_framed(source, pattern)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
        written = Path(aside) / out.name
        form.write(before, frame, written)
        after = _read(written, to, before)
        texts = _proved(before, after)
        os.replace(written, out)
    return Proved(before, after, texts, _as_sentencepiece(before, after))


def _read(path: Path, to: str, before: Tokenizer) -> Tokenizer:
    """What was written, with what the format leaves unsaid told by the original."""
    pattern = before.facts().get("pattern")
    if to == "tiktoken":
        assert isinstance(pattern, str), "only BPE is written as ranks"
        return tiktoken_files.load(path, pattern, before.special)
    if to == "gpt2":
        assert isinstance(pattern, str), "only BPE is written as merges"
        return gpt2_files.load(path, pattern)
    if to == "bytepiece" and isinstance(before, BytePiece):
        return bytepiece.load(path, before.normalize)
    return opener.open(path)


def _proved(before: Tokenizer, after: Tokenizer) -> int:
    """On how many texts they are one. Raises TokenizerError.

    BytePiece as a SentencePiece model has its special tokens under other names, and may price bytes otherwise: it is
    compared on texts of characters that are pieces; where two segmentations are equally probable, either will do.
    """
    if _as_sentencepiece(before, after) and isinstance(before, BytePiece):
        scores = np.concatenate([before.segmenter.scores, np.full(after.size - before.size, -np.inf)])
        return proof.as_likely(before, after, scores, proof.texts_of(before.pieces))
    return proof.same(before, after)


def _as_sentencepiece(before: Tokenizer, after: Tokenizer) -> bool:
    return isinstance(before, BytePiece) and isinstance(after, Unigram)


def _native(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    files.save(tokenizer, path, frame)


def _gpt2(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    gpt2_files.save(tokenizer, path)


def _hf(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    hf_json.save(tokenizer, path, frame)


def _tiktoken(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    tiktoken_files.save(tokenizer, path)


def _sentencepiece(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    if isinstance(tokenizer, BytePiece):
        sentencepiece.save(bytepiece.as_sentencepiece(tokenizer), path)
    elif isinstance(tokenizer, Unigram | SentencePieceBpe):
        sentencepiece.save(tokenizer.model, path)
    else:
        raise TokenizerError(
            "a SentencePiece model holds pieces with scores",
            found=f"kind {tokenizer.kind}",
            allowed="unigram, sentencepiece-bpe, bytepiece",
        )


def _bytepiece(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    if not isinstance(tokenizer, BytePiece):
        raise TokenizerError(
            "a BytePiece model holds bytes with counts", found=f"kind {tokenizer.kind}", allowed="bytepiece"
        )
    bytepiece.save(tokenizer, path)


def _llama2c(tokenizer: Tokenizer, frame: Frame, path: Path) -> None:
    llama2c_tokenizer.save(tokenizer, path)


FORMATS: Mapping[str, Format] = {
    "native": Format(_native, folder=True),
    "gpt2": Format(_gpt2, folder=True, unsaid="the split pattern"),
    "tiktoken": Format(_tiktoken, folder=False, unsaid="the split pattern and the special tokens"),
    "hf": Format(_hf, folder=True),
    "sentencepiece": Format(_sentencepiece, folder=False),
    "bytepiece": Format(_bytepiece, folder=False, unsaid="whether text is brought into normal form C"),
    "llama2c": Format(_llama2c, folder=False, unsaid="that U+2581 is read as a space, where the tokenizer does that"),
}
"""All formats that can be written, by name."""
