"""SentencePiece BPE as tokenizer.json has it: Llama 2, TinyLlama, Mistral v0.1, Gemma, and what is made like them.

Their files hold merges where SentencePiece has scores; a file that is read keeps its merges, and gets scores that put
its pieces into the same order. A tokenizer with scores alone is written with all merges that its pieces allow, as
`transformers` does: the same but where different pairs side by side join to one piece (see `sentencepiece_bpe`).
"""

from collections.abc import Sequence
from typing import Any

from temaki.base.errors import TokenizerError
from temaki.tokens import hf_added, hf_fields
from temaki.tokens.frame import Frame
from temaki.tokens.merge_rules import texts_by_id
from temaki.tokens.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, Model, Normalizer, Piece
from temaki.tokens.sentencepiece_bpe import Prefix, SentencePieceBpe
from temaki.tokens.sentencepiece_tokenizer import SPACE

BYTES = {f"<0x{value:02X}>" for value in range(256)}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
FORM = "a space before the text, U+2581 for spaces"
"""What the normalizer does, in words."""


def fits(found: dict[str, Any]) -> bool:
    """Whether a file whose model is BPE is one of these, by its decoder."""
    steps = hf_fields.flattened(found.get("decoder"), "decoder", "decoders")
    return any(step["type"] in ("ByteFallback", "Metaspace", "Replace", "Fuse") for step in steps)


def read(found: dict[str, Any]) -> tuple[SentencePieceBpe, Frame]:
    """The tokenizer and frame of such a file. Raises TokenizerError for what is not understood."""
    model = hf_fields.part(found.get("model"), "model")
    falls = model.get("byte_fallback", False)
    hf_fields.only(
        model,
        "model",
        vocab=[hf_fields.ANY],
        merges=[hf_fields.ANY],
        dropout=[None, 0.0],
        unk_token=[hf_fields.ANY],
        fuse_unk=[False, True],
        byte_fallback=[False, True],
        continuing_subword_prefix=[None, ""],
        end_of_word_suffix=[None, ""],
        ignore_merges=[False],
    )
    if not falls and model.get("fuse_unk") is not True:
        raise TokenizerError("model.fuse_unk is not supported", found=repr(model.get("fuse_unk"))[:40], allowed="True")
    normalizer, prefix = _spaces(found)
    _check_decoder(found.get("decoder"), normalizer)
    vocab = hf_fields.part(model.get("vocab"), "model.vocab")
    added, ordinary = hf_added.read(found.get("added_tokens"), vocab, None if found.get("normalizer") is None else FORM)
    unknown = model.get("unk_token")
    if not isinstance(unknown, str) or unknown not in {**vocab, **added}:
        raise TokenizerError("model.unk_token is no token", found=f"{unknown!r:.60}")
    texts = texts_by_id({**vocab, **added})
    if None in texts:
        raise TokenizerError("an id of the vocabulary has no token", found=str(texts.index(None)))
    types = {text: _type(text, added, unknown, falls) for text in texts if text is not None}
    ids = {text: id for id, text in enumerate(texts) if text is not None and types[text] == NORMAL}
    merges = _merges(model, ids, types)
    tokenizer = SentencePieceBpe(
        Model(_pieces(types, merges), BPE, falls, normalizer=normalizer), merges, unknown in added, prefix
    )
    return tokenizer, hf_added.read_frame(found.get("post_processor"), added, ordinary)


def write(tokenizer: SentencePieceBpe, frame: Frame) -> dict[str, Any]:
    """The file of a SentencePiece BPE tokenizer. Raises TokenizerError for one that it cannot say."""
    model = tokenizer.model
    _check_sayable(tokenizer)
    space = SPACE if model.normalizer.escape_whitespaces else " "
    by_text = tokenizer.prefix == "text"
    before = [{"type": "Prepend", "prepend": space}] if model.normalizer.add_dummy_prefix else []
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}] if space == SPACE else []
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}] if space == SPACE else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if before else []
    pieces = model.pieces
    merges = _all_merges(tokenizer) if tokenizer.merges is None else tokenizer.merges
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": hf_added.write(tokenizer.special, frame),
        "normalizer": None if by_text else {"type": "Sequence", "normalizers": before + spaces},
        "pre_tokenizer": METASPACE if by_text else None,
        "post_processor": hf_added.write_frame(frame, tokenizer.special, None),
        "decoder": {"type": "Sequence", "decoders": [*back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[tokenizer.unknown].text,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": {piece.text: id for id, piece in enumerate(pieces)},
            "merges": [[pieces[left].text, pieces[right].text] for left, right in merges],
        },
    }


def _spaces(found: dict[str, Any]) -> tuple[Normalizer, Prefix]:
    """What is done to spaces, by the normalizer or by Metaspace. Raises TokenizerError for any other step."""
    steps = hf_fields.flattened(found.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers")
    if not steps:
        return _normalizer(found.get("normalizer")), "run"
    names = [step["type"] for step in steps]
    if names != ["Metaspace"] or found.get("normalizer") is not None:
        raise TokenizerError(
            "this pre-tokenizer is not supported for SentencePiece BPE",
            found=" then ".join(names),
            allowed="none, or Metaspace without a normalizer",
        )
    hf_fields.only(
        {"split": True, "prepend_scheme": "always", **steps[0]},  # what is meant where nothing is said
        "Metaspace",
        replacement=[SPACE],
        prepend_scheme=["first", "never"],
        split=[False],
    )
    first = steps[0]["prepend_scheme"] == "first"
    return Normalizer(add_dummy_prefix=first, remove_extra_whitespaces=False), "text" if first else "run"


def _normalizer(found: object) -> Normalizer:
    """Which spaces are put or replaced. Raises TokenizerError for any other step."""
    steps = hf_fields.flattened(found, "normalizer", "normalizers")
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    space, spaced = ({"type": "Prepend", "prepend": text} for text in (" ", SPACE))
    if steps in ([], [mark]):
        prefix = False
    elif steps in ([space], [space, mark], [spaced, mark], [mark, spaced]):
        prefix = True
    else:
        raise TokenizerError(
            "this normalizer is not supported for SentencePiece BPE",
            found=" then ".join(step["type"] for step in steps),
            allowed=f"Prepend, Replace: {FORM}",
        )
    return Normalizer(add_dummy_prefix=prefix, remove_extra_whitespaces=False, escape_whitespaces=mark in steps)


def _check_decoder(found: object, normalizer: Normalizer) -> None:
    """Refuse a decoder that does not undo the normalizer. Raises TokenizerError."""
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    wanted = [*(back if normalizer.escape_whitespaces else []), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if normalizer.add_dummy_prefix:
        wanted.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    steps = hf_fields.flattened(found, "decoder", "decoders")
    if steps != wanted:
        raise TokenizerError(
            "this decoder is not supported for SentencePiece BPE",
            found=", ".join(step["type"] for step in steps),
            allowed=", ".join(step["type"] for step in wanted),
        )


def _type(text: str, added: dict[str, int], unknown: str, falls: bool) -> int:
    if text == unknown:
        return UNKNOWN
    if text in added:
        return CONTROL
    return BYTE if falls and text in BYTES else NORMAL


def _merges(model: dict[str, Any], ids: dict[str, int], types: dict[str, int]) -> list[tuple[int, int]]:
    """The merges as ids; those that only make what is cut out before are left out, of one that comes twice the last
    place counts. Raises TokenizerError."""
    found: dict[tuple[int, int], None] = {}
    for place, merge in enumerate(hf_fields.listed(model.get("merges"), "merges")):
        parts: Sequence[Any] = merge.split(" ") if isinstance(merge, str) else merge if isinstance(merge, list) else ()
        if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise TokenizerError(f"merge {place} is not two tokens", found=f"{merge!r:.60}")
        left, right = parts
        kinds = {types.get(text) for text in (left, right, left + right)}
        if None in kinds or BYTE in kinds:
            raise TokenizerError(f"merge {place} is not of tokens, or of bytes", found=f"{merge!r:.60}")
        if kinds == {NORMAL}:
            found.pop((ids[left], ids[right]), None)
            found[ids[left], ids[right]] = None
    return list(found)


def _pieces(types: dict[str, int], merges: Sequence[tuple[int, int]]) -> tuple[Piece, ...]:
    """The pieces in the order of their ids, those first that merges make first."""
    texts = list(types)
    order: dict[str, int] = {}
    for left, right in merges:
        order.setdefault(texts[left] + texts[right], len(order))
    for text, type in types.items():
        if type == NORMAL:
            order.setdefault(text, len(order))
    return tuple(Piece(text, -float(order.get(text, 0)), type) for text, type in types.items())


def _all_merges(tokenizer: SentencePieceBpe) -> list[tuple[int, int]]:
    """All pairs of pieces that join to a third, the best first; of one piece, those with the longer left part."""
    pieces = tokenizer.model.pieces
    ids = {piece.text: id for id, piece in enumerate(pieces) if piece.type == NORMAL}
    lengths = sorted({len(text) for text in ids}, reverse=True)
    merges: list[tuple[int, int]] = []
    ranked = sorted(ids, key=lambda text: -pieces[ids[text]].score)
    last: float | None = None
    for text in ranked:
        cuts = [cut for cut in lengths if cut < len(text) and text[:cut] in ids and text[cut:] in ids]
        if not cuts:
            continue
        if pieces[ids[text]].score == last:
            raise TokenizerError("two pieces have one score, which a list of merges cannot say", found=repr(text)[:60])
        last = pieces[ids[text]].score
        merges += [(ids[text[:cut]], ids[text[cut:]]) for cut in cuts]
    return merges


def _check_sayable(tokenizer: SentencePieceBpe) -> None:
    """Refuse what tokenizer.json would read otherwise. Raises TokenizerError."""
    model = tokenizer.model
    known = {piece.text for piece in model.pieces if piece.type == NORMAL}
    wrong = {
        "rules of normalising": bool(model.normalizer.charsmap),
        "removal of extra spaces": model.normalizer.remove_extra_whitespaces,
        "spaces as they are, with one before a text alone": tokenizer.prefix == "text"
        and not model.normalizer.escape_whitespaces,
        "a space behind the text": model.treat_whitespace_as_suffix,
        "user-defined or unused pieces": any(
            piece.type not in (NORMAL, UNKNOWN, CONTROL, BYTE) for piece in model.pieces
        ),
        "a piece with a character that is none": tokenizer.merges is None
        and any(letter not in known for text in known for letter in text),
    }
    found = [name for name, is_so in wrong.items() if is_so]
    if found:
        raise TokenizerError("tokenizer.json cannot say this SentencePiece model exactly", found="; ".join(found))
