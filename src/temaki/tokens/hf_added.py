"""Added tokens and post-processors of tokenizer.json <-> special tokens and a frame."""

from collections.abc import Mapping
from typing import Any

from temaki.base.errors import TokenizerError
from temaki.tokens import hf_fields, split
from temaki.tokens.frame import Frame

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read(found: object, vocabulary: Mapping[str, object], form: str | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Text -> id of all added tokens, in order of ids, and which of them are not called special.

    `vocabulary`: the model's, text -> id; `form`: how the file normalizes text. Raises TokenizerError for one that
    takes whitespace with it, wants to be a word, has another id, or is looked for in normalized text where that may
    find it elsewhere.
    """
    texts: dict[str, int] = {}
    taken: set[int] = set()
    flags: dict[str, dict[str, bool]] = {}
    for place, each in enumerate(hf_fields.listed([] if found is None else found, "added_tokens")):
        token = hf_fields.part(each, f"added token {place}")
        text, id = token.get("content"), token.get("id")
        if not isinstance(text, str) or type(id) is not int or text in texts or id in taken:
            raise TokenizerError(f"added token {place} has no text and id of its own", found=f"{each!r:.80}")
        where = f"the added token {text!r:.40}"
        hf_fields.only(
            token,
            where,
            id=[hf_fields.ANY],
            content=[hf_fields.ANY],
            single_word=[False],
            lstrip=[False],
            rstrip=[False],
            normalized=[False, True] if form is None or (form == "NFC" and _inert(text)) else [False],
            special=[False, True],
        )
        if vocabulary.get(text, id) != id:
            raise TokenizerError(f"{where} has another id in the vocabulary", found=f"{id}, {vocabulary[text]!r:.20}")
        texts[text] = id
        taken.add(id)
        flags[text] = {flag: token.get(flag) is True for flag in FLAGS}
    split.check_special(list(texts))
    _check_overlaps(
        [text for text in texts if flags[text]["normalized"]], [text for text in texts if not flags[text]["normalized"]]
    )
    ordered = dict(sorted(texts.items(), key=lambda pair: pair[1]))
    return ordered, tuple(text for text in ordered if not flags[text]["special"])


def write(special: Mapping[str, int], frame: Frame) -> list[dict[str, Any]]:
    """The added tokens of a vocabulary, all found in the text as it was given."""
    return [
        {"id": id, "content": text, **dict.fromkeys(FLAGS, False), "special": text not in frame.ordinary}
        for text, id in sorted(special.items(), key=lambda pair: pair[1])
    ]


def read_frame(found: object, special: Mapping[str, int], ordinary: tuple[str, ...]) -> Frame:
    """What a post-processor puts around a text; what it says of pairs of texts is left out. Raises TokenizerError."""
    before: list[str] = []
    after: list[str] = []
    for step in hf_fields.flattened(found, "post_processor", "processors"):
        name = step["type"]
        if name == "ByteLevel":  # it moves offsets, no ids
            hf_fields.only(
                step, name, add_prefix_space=[True, False], trim_offsets=[True, False], use_regex=[True, False]
            )
        elif name == "TemplateProcessing" and not before and not after:
            before, after = _template(step, special)
        elif name in ("BertProcessing", "RobertaProcessing") and not before and not after:
            hf_fields.only(
                step,
                name,
                sep=[hf_fields.ANY],
                cls=[hf_fields.ANY],
                trim_offsets=[True, False],
                add_prefix_space=[True, False],
            )
            before, after = ([_named(step.get(key), special)] for key in ("cls", "sep"))
        else:
            raise TokenizerError("this post-processor is not supported", found=name, allowed="ByteLevel, templates")
    return Frame(tuple(before), tuple(after), ordinary)


def write_frame(frame: Frame, special: Mapping[str, int], otherwise: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor of a frame, `otherwise` where it puts nothing around a text."""
    if not frame.before and not frame.after:
        return otherwise

    def around(name: str, type_id: int) -> list[dict[str, Any]]:
        put = [
            [{"SpecialToken": {"id": text, "type_id": type_id}} for text in part]
            for part in (frame.before, frame.after)
        ]
        return [*put[0], {"Sequence": {"id": name, "type_id": type_id}}, *put[1]]

    tokens = {text: {"id": text, "ids": [special[text]], "tokens": [text]} for text in frame.before + frame.after}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": tokens,
    }


def _inert(text: str) -> bool:
    """Whether NFC neither makes nor undoes a token: of ASCII, nothing that another character becomes (the kelvin sign,
    the Greek question mark, the Greek grave), and at its end nothing that joins with a mark after it."""
    return text.isascii() and not set(text) & set("K;`") and not text[-1:].isalpha() and text[-1:] not in set("<=>")


def _template(step: dict[str, Any], special: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The tokens before and after a single text in a TemplateProcessing."""
    hf_fields.only(
        step, "TemplateProcessing", single=[hf_fields.ANY], pair=[hf_fields.ANY], special_tokens=[hf_fields.ANY]
    )
    told = hf_fields.part(step.get("special_tokens"), "special_tokens")
    sides: list[list[str]] = [[]]
    for each in hf_fields.listed(step.get("single"), "TemplateProcessing.single"):
        (name, what), *more = hf_fields.part(each, "a part of single").items() or [("", None)]
        id = hf_fields.part(what, "a part of single").get("id")
        if more or name not in ("Sequence", "SpecialToken") or not isinstance(id, str):
            raise TokenizerError("a part of single is neither text nor special token", found=f"{each!r:.80}")
        if name == "Sequence":
            sides.append([])
            continue
        meant = hf_fields.part(told.get(id), f"special_tokens.{id}")
        texts, ids = meant.get("tokens"), meant.get("ids")
        if not isinstance(texts, list) or [special.get(text) for text in texts if isinstance(text, str)] != ids:
            raise TokenizerError(f"special_tokens.{id} is not among the added tokens", found=f"{meant!r:.80}")
        sides[-1] += texts
    if len(sides) != 2:
        raise TokenizerError("TemplateProcessing.single does not hold one text", found=f"{len(sides) - 1}")
    return sides[0], sides[1]


def _named(found: object, special: Mapping[str, int]) -> str:
    if isinstance(found, list) and len(found) == 2 and isinstance(found[0], str) and special.get(found[0]) == found[1]:
        return found[0]
    raise TokenizerError("a token of the post-processor is not among the added tokens", found=f"{found!r:.80}")


def _check_overlaps(normalized: list[str], others: list[str]) -> None:
    """Refuse a token that here would be found first, but there loses its text to one that is looked for before it."""
    for late in normalized:
        for early in others:
            if early in late or any(early.startswith(late[at:]) for at in range(1, len(late))):
                raise TokenizerError(
                    "two added tokens overlap, the first normalized and the second not",
                    found=f"{late!r:.40}, {early!r:.40}",
                )
