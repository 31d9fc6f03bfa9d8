"""Hugging Face's tokenizer.json, in and out: byte-level BPE, SentencePiece's BPE, and BERT's WordPiece.

A file is read where its tokenizer can be rebuilt exactly; else it is refused, naming the part. Its ids are those of
`encode(text, special=tokenizer.special)` here and of `encode(text, add_special_tokens=False)` there; what it puts
around a text is in the frame. What is left out: how two texts are joined (`pair`), and how decoded text is tidied up.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temaki.base import files
from temaki.base.errors import TokenizerError
from temaki.tokens import hf_bpe, hf_fields, hf_sentencepiece, hf_wordpiece
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Tokenizer
from temaki.tokens.wordpiece import WordPiece

if TYPE_CHECKING:  # Jinja is loaded only where a template is used
    from temaki.tokens.chat import ChatTemplate

NAME = "tokenizer.json"
LIMIT = 1 << 28
"""Bytes up to which a file is read."""


def load(path: Path | str) -> tuple[Tokenizer, Frame]:
    """Read a tokenizer.json, or the one of a folder. Raises TokenizerError for what is missing or not understood."""
    path = Path(path)
    if path.is_dir():
        path = path / NAME
    found = files.read_json(path, TokenizerError, LIMIT)
    try:
        return parsed(found)
    except TokenizerError as error:
        raise TokenizerError(f"{path} cannot be used: {error}") from None


def parsed(found: Mapping[str, Any]) -> tuple[Tokenizer, Frame]:
    """The tokenizer and frame of such a file's content. Raises TokenizerError."""
    hf_fields.only(
        found,
        "the file",
        version=["1.0"],
        truncation=[None],
        padding=[None],
        added_tokens=[hf_fields.ANY],
        normalizer=[hf_fields.ANY],
        pre_tokenizer=[hf_fields.ANY],
        post_processor=[hf_fields.ANY],
        decoder=[hf_fields.ANY],
        model=[hf_fields.ANY],
    )
    model = hf_fields.part(found.get("model"), "model")
    kind = model.get("type", "BPE" if "merges" in model else None)  # old files do not say it
    if kind == "BPE":
        return hf_sentencepiece.read(dict(found)) if hf_sentencepiece.fits(dict(found)) else hf_bpe.read(dict(found))
    if kind == "WordPiece":
        return hf_wordpiece.read(dict(found))
    raise TokenizerError(
        "this model is not supported",
        found=f"{kind!r:.40}",
        allowed="BPE (byte-level, SentencePiece's), WordPiece (BERT's)",
        do="give a unigram model as its SentencePiece file (.model)",
    )


def save(
    tokenizer: Tokenizer, folder: Path, frame: Frame | None = None, template: "ChatTemplate | None" = None
) -> None:
    """Write tokenizer.json and what `transformers` wants beside it, with a chat template if one is given.

    Raises TokenizerError for a tokenizer that the format cannot say; OSError.
    """
    frame = frame or Frame()
    frame.check(tokenizer.special)
    if isinstance(tokenizer, WordPiece):
        content = hf_wordpiece.write(tokenizer, frame)
    elif isinstance(tokenizer, SentencePieceBpe):
        content = hf_sentencepiece.write(tokenizer, frame)
    elif tokenizer.kind in ("bpe", "normalized"):
        content = hf_bpe.write(tokenizer, frame)
    else:
        raise TokenizerError("tokenizer.json cannot say this kind of tokenizer exactly", found=tokenizer.kind)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / NAME, content)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files.write_json(folder / hf_fields.CONFIG, settings)
    if template is not None:
        template.save(folder)
