"""Byte-level BPE as tokenizer.json has it: GPT-2, Llama 3, Qwen and SmolLM, and what is made like them."""

import re
from collections.abc import Collection, Sequence
from typing import Any, get_args

from temaki.base.errors import TokenizerError
from temaki.tokens import hf_added, hf_fields, hf_patterns
from temaki.tokens.bpe import Bpe
from temaki.tokens.bpe_vocabulary import Partial
from temaki.tokens.frame import Frame
from temaki.tokens.merge_rules import as_merges, texts_by_id, vocabulary
from temaki.tokens.normalized import Form, Normalized
from temaki.tokens.printable import printable, unprintable
from temaki.tokens.tokenizer import Tokenizer


def read(found: dict[str, Any]) -> tuple[Tokenizer, Frame]:
    """The tokenizer and frame of a file whose model is BPE. Raises TokenizerError for what is not understood."""
    model = hf_fields.part(found.get("model"), "model")
    hf_fields.only(
        model,
        "model",
        vocab=[hf_fields.ANY],
        merges=[hf_fields.ANY],
        dropout=[None, 0.0],
        unk_token=[hf_fields.ANY],  # only used where a byte has no token, which is refused then
        fuse_unk=[False, True],
        byte_fallback=[False, True],
        continuing_subword_prefix=[None, ""],
        end_of_word_suffix=[None, ""],
        ignore_merges=[False, True],
    )
    form = _form(found.get("normalizer"))
    for step in hf_fields.flattened(found.get("decoder"), "decoder", "decoders"):
        if step["type"] != "ByteLevel":
            raise TokenizerError("the decoder is not byte-level", found=step["type"], allowed="ByteLevel")
    vocab = hf_fields.part(model.get("vocab"), "model.vocab")
    special, ordinary = hf_added.read(found.get("added_tokens"), vocab, form)
    texts = texts_by_id({**vocab, **special})
    tokens = [_bytes(text, special) for text in texts]
    merges = [_merge(merge, place) for place, merge in enumerate(hf_fields.listed(model.get("merges"), "merges"))]
    lacking = _lacking({token for token, text in zip(tokens, texts, strict=True) if text not in special})
    partial: Partial | None = "before" if model.get("unk_token") is None else None
    steps = hf_fields.flattened(found.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers")
    if partial is not None and lacking and steps and steps[-1] == _removal(lacking):
        partial, steps = "after", steps[:-1]
    pattern = hf_patterns.read({"type": "Sequence", "pretokenizers": steps})
    whole = model.get("ignore_merges") is True
    tokenizer: Tokenizer = Bpe(tokens, merges, special, pattern, whole, partial=partial)
    frame = hf_added.read_frame(found.get("post_processor"), special, ordinary)
    return tokenizer if form is None else Normalized(tokenizer, form), frame


def write(tokenizer: Tokenizer, frame: Frame) -> dict[str, Any]:
    """The file of a byte-level BPE tokenizer, behind a normal form or not. Raises TokenizerError."""
    inner = tokenizer.inner if isinstance(tokenizer, Normalized) else tokenizer
    known = vocabulary(inner)
    reserved = {id: text for text, id in known.special.items()}
    vocab: dict[str, int] = {}
    for id, token in enumerate(known.tokens):
        text = reserved.get(id, printable(token))
        if text and vocab.setdefault(text, id) != id:
            raise TokenizerError(
                "a special token is written as another token is", found=f"{text!r}, ids {vocab[text]} and {id}"
            )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    cut = hf_patterns.write(known.pattern)
    if known.partial == "after":
        cut = {"type": "Sequence", "pretokenizers": [cut, _removal(_lacking(known.ids))]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": hf_added.write(known.special, frame),
        "normalizer": {"type": tokenizer.form} if isinstance(tokenizer, Normalized) else None,
        "pre_tokenizer": cut,
        "post_processor": hf_added.write_frame(frame, known.special, level),
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.whole,
            "vocab": vocab,
            "merges": [f"{printable(left)} {printable(right)}" for left, right in as_merges(inner)],
        },
    }


def _lacking(plain: Collection[bytes]) -> bytes:
    """The bytes that are no plain token."""
    return bytes(value for value in range(256) if bytes([value]) not in plain)


def _removal(lacking: bytes) -> dict[str, Any]:
    """The step that takes out bytes without a token and keeps what stood around them apart; it sees printable ones."""
    expression = "|".join(map(re.escape, printable(lacking)))
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Removed", "invert": False}


def _form(found: object) -> Form | None:
    """The normal form of a normalizer, None for none. Raises TokenizerError for any other."""
    steps = hf_fields.flattened(found, "normalizer", "normalizers")
    if not steps:
        return None
    if len(steps) == 1:
        for form in get_args(Form):
            if steps[0]["type"] == form:
                hf_fields.only(steps[0], form)
                return form
    raise TokenizerError(
        "this normalizer is not supported",
        found=" then ".join(step["type"] for step in steps),
        allowed=f"none, {', '.join(get_args(Form))}",
    )


def _bytes(text: str | None, special: dict[str, int]) -> bytes:
    if text is None:
        return b""
    return text.encode("utf-8") if text in special else unprintable(text)


def _merge(found: object, place: int) -> tuple[bytes, bytes]:
    parts: Sequence[Any] = found.split(" ") if isinstance(found, str) else found if isinstance(found, list) else ()
    if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TokenizerError(f"merge {place} is not two tokens", found=f"{found!r:.60}")
    return unprintable(parts[0]), unprintable(parts[1])
