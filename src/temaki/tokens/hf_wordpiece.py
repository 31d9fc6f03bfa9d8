"""WordPiece as tokenizer.json has it: BERT's normalizer, pre-tokenizer and model."""

from typing import Any

from temaki.base.errors import TokenizerError
from temaki.tokens import hf_added, hf_fields
from temaki.tokens.frame import Frame
from temaki.tokens.merge_rules import texts_by_id
from temaki.tokens.tokenizer import Tokenizer
from temaki.tokens.wordpiece import Pieces, WordPiece, Words


def read(found: dict[str, Any]) -> tuple[Tokenizer, Frame]:
    """The tokenizer and frame of a file whose model is WordPiece. Raises TokenizerError for what is not understood."""
    model = hf_fields.part(found.get("model"), "model")
    hf_fields.only(
        model,
        "model",
        vocab=[hf_fields.ANY],
        unk_token=[hf_fields.ANY],
        continuing_subword_prefix=[hf_fields.ANY],
        max_input_chars_per_word=[hf_fields.ANY],
    )
    vocab = hf_fields.part(model.get("vocab"), "model.vocab")
    special, ordinary = hf_added.read(found.get("added_tokens"), vocab, "BERT's")
    texts = texts_by_id({**vocab, **special})
    if None in texts:
        raise TokenizerError("an id of the vocabulary has no token", found=str(texts.index(None)))
    unknown, prefix, longest = (
        model.get(name) for name in ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word")
    )
    if not isinstance(unknown, str) or not isinstance(prefix, str) or type(longest) is not int:
        raise TokenizerError("the model lacks its unknown token, prefix or longest word", found=f"{unknown!r:.40}")
    if unknown not in special:  # there its text would be cut into pieces, here every special token is found
        raise TokenizerError("the unknown token is not among the added tokens", found=f"{unknown!r:.40}")
    tokenizer = WordPiece(
        [text for text in texts if text is not None], special, _words(found), Pieces(unknown, prefix, longest)
    )
    return tokenizer, hf_added.read_frame(found.get("post_processor"), special, ordinary)


def write(tokenizer: WordPiece, frame: Frame) -> dict[str, Any]:
    """The file of a WordPiece tokenizer."""
    words, pieces = tokenizer.words, tokenizer.pieces
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": hf_added.write(tokenizer.special, frame),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": words.clean,
            "handle_chinese_chars": words.han,
            "strip_accents": not words.accents,
            "lowercase": words.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": hf_added.write_frame(frame, tokenizer.special, None),
        "decoder": {"type": "WordPiece", "prefix": pieces.prefix, "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": pieces.unknown,
            "continuing_subword_prefix": pieces.prefix,
            "max_input_chars_per_word": pieces.longest,
            "vocab": {text: id for id, text in enumerate(tokenizer.vocabulary)},
        },
    }


def _words(found: dict[str, Any]) -> Words:
    """The options of BERT's normalizer, before BERT's pre-tokenizer. Raises TokenizerError for any others."""
    kinds = [hf_fields.kind(found.get(name), name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    if kinds[:2] != ["BertNormalizer", "BertPreTokenizer"] or kinds[2] not in ("", "WordPiece"):
        raise TokenizerError(
            "this WordPiece tokenizer is not BERT's", found=", ".join(kinds), allowed="BertNormalizer, BertPreTokenizer"
        )
    normalizer = found["normalizer"]
    hf_fields.only(
        normalizer,
        "BertNormalizer",
        clean_text=[True, False],
        handle_chinese_chars=[True, False],
        strip_accents=[None, True, False],
        lowercase=[True, False],
    )
    hf_fields.only(found["pre_tokenizer"], "BertPreTokenizer")
    lowercase = normalizer.get("lowercase", True)
    strips = normalizer.get("strip_accents")
    return Words(
        lowercase=lowercase,
        accents=not (lowercase if strips is None else strips),
        clean=normalizer.get("clean_text", True),
        han=normalizer.get("handle_chinese_chars", True),
    )
