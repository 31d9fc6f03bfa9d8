"""The tokenizer inside a GGUF file <-> ours: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

llama.cpp knows how text is split by a name alone. Only names whose rules were found equal to a pattern of ours are
read and written. Its tables of Unicode are older than ours: code points that became letters or numbers since may end
pre-tokens elsewhere there (`tests/test_llama_cpp.py` lists them; none other differs). Its o200k (gpt-4o) takes marks
for no part of a word, its cl100k is llama3's pattern: neither is used. Bytes that a vocabulary lacks keep apart there
what stands around them; a vocabulary that lets it meet (Hugging Face's) is read otherwise on texts with such bytes.
Source: llama.cpp's `llama-vocab.cpp`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from temaki.base.errors import FormatError, TokenizerError
from temaki.formats.gguf_file import Value
from temaki.formats.gguf_keys import flag
from temaki.formats.weights import some
from temaki.tokens import bpe_vocabulary, sentencepiece
from temaki.tokens.bpe import Bpe
from temaki.tokens.bpe_vocabulary import Vocabulary
from temaki.tokens.frame import Frame
from temaki.tokens.hf_patterns import IN_ONE
from temaki.tokens.merge_rules import as_merges, check_reached
from temaki.tokens.printable import printable, unprintable
from temaki.tokens.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe, with_marks
from temaki.tokens.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
TYPES = (0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
"""Types of tokens; 0 says nothing."""
BARE = "temaki.texts_are_bare"
"""Our own key: the token that llama.cpp puts before a text begins a prompt, and is not put before every text."""
ENDS = frozenset(
    (
        *(
            "<|endoftext|>",
            "<|end_of_text|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|return|>",
            "<|call|>",
        ),
        *("<|flush|>", "<|calls|>", "<end_of_turn>", "<end_of_utterance>", "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]"),
        *("[EOS]", "<turn|>", "<|tool_response>"),
    )
)
"""Special tokens that end an answer in llama.cpp by their text alone; a plain token of such a text becomes special."""
FILLS = frozenset(
    (
        *(
            f"<{mark}fim{dash}{part}{mark}>"
            for mark in ("", "|")
            for dash in "-_"
            for part in ("prefix", "suffix", "middle")
        ),
        *("<PRE>", "<SUF>", "<MID>", "<PAD>", "[PAD]", "<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|code_prefix|>"),
        *("<|code_suffix|>", "<|code_middle|>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
        *("<|file_sep|>", "< EOT >"),
    )
)
"""Other texts by which it makes a plain token special."""


USUAL = {"bos": 1, "eos": 2, "unk": 0}
"""Ids by their part in a SentencePiece vocabulary of which the file does not say them."""


@dataclass(frozen=True)
class Pre:
    """How llama.cpp splits text under a name."""

    pattern: str
    """Ours."""
    whole: bool = False
    """Whether a pre-token that is a token is taken as it is."""
    add_bos: bool = False
    """Whether the first token is put before a text where the file does not say."""


PRES = {
    "gpt-2": Pre("gpt2"),
    "smollm": Pre("smollm"),
    "qwen2": Pre("qwen2"),
    "llama-bpe": Pre("llama3", whole=True, add_bos=True),
    "dbrx": Pre("llama3"),
    "deepseek-v3": Pre(IN_ONE),
}
"""By the name that is written."""
ALIASES = {
    "phi-2": "gpt-2",
    "exaone4": "gpt-2",
    "deepseek-r1-qwen": "qwen2",
    "megrez": "qwen2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "dbrx",
}
"""Other names of the same rules."""


def read(metadata: Mapping[str, Value]) -> tuple[Tokenizer, Frame] | None:
    """The tokenizer of a file and what stands around a text; None where it has none.

    Raises FormatError for what is not understood, TokenizerError for a vocabulary that cannot be.
    """
    kind = metadata.get(f"{PREFIX}model")
    if kind is None or kind == "no_vocab":
        return None
    if kind == "gpt2":
        tokenizer: Tokenizer = _bpe(metadata, _pre(metadata))
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata)
    else:
        raise FormatError("this kind of tokenizer is not read", found=f"{kind!r:.40}", allowed="gpt2, llama")
    types = _types(metadata)
    ordinary = tuple(text for text, id in tokenizer.special.items() if types[id] == USER_DEFINED)
    texts = {id: text for text, id in tokenizer.special.items()}
    before, after = (tuple(texts[id] for id in around(metadata, name) if id in texts) for name in ("bos", "eos"))
    if flag(metadata, BARE, False):
        before = ()
    return tokenizer, Frame(before, after, ordinary)


def around(metadata: Mapping[str, Value], name: str) -> tuple[int, ...]:
    """The id put before a text (bos) or after it (eos), where the file says so or its kind of tokenizer does."""
    key, usual = f"{PREFIX}add_{name}_token", False
    if name == "bos" and key not in metadata:
        kind = metadata.get(f"{PREFIX}model")
        usual = kind == "llama" or (kind == "gpt2" and _pre(metadata).add_bos)
    id = token(metadata, name)
    return (id,) if id is not None and flag(metadata, key, usual) else ()


def marked(metadata: Mapping[str, Value]) -> dict[str, int]:
    """The tokens that are no ordinary text, by text."""
    pairs = zip(tokens(metadata), _types(metadata), strict=True)
    return {text: id for id, (text, kind) in enumerate(pairs) if kind in (CONTROL, USER_DEFINED)}


def token(metadata: Mapping[str, Value], name: str) -> int | None:
    """The id of a token by its part (bos, eos, eot, ..); None where there is none. Raises FormatError."""
    key = id_key(name)
    found = metadata.get(key)
    if found is None:
        usual = USUAL.get(name) if metadata.get(f"{PREFIX}model") == "llama" else None
        return usual if usual is not None and usual < len(tokens(metadata)) else None
    if type(found) is not int or not 0 <= found < len(tokens(metadata)):
        raise FormatError(f"{key} is no id", found=f"{found!r:.40}", allowed=f"0 to {len(tokens(metadata)) - 1}")
    return found


def id_key(name: str) -> str:
    """The key of a token by its part.

    >>> id_key("unk")
    'tokenizer.ggml.unknown_token_id'
    """
    long = {"unk": "unknown", "pad": "padding"}.get(name, name)
    return f"{PREFIX}{long}_token_id"


def tokens(metadata: Mapping[str, Value]) -> list[str]:
    """The texts of all ids. Raises FormatError."""
    return _texts(metadata, "tokens")


def _texts(metadata: Mapping[str, Value], name: str) -> list[str]:
    found = metadata.get(PREFIX + name)
    if not isinstance(found, list):
        raise FormatError(f"{PREFIX}{name} is no list of texts", found=type(found).__name__)
    return found


def _numbers(metadata: Mapping[str, Value], name: str, otherwise: float) -> np.ndarray:
    """One number a token. Raises FormatError."""
    count = len(tokens(metadata))
    found = metadata.get(PREFIX + name, np.full(count, otherwise))
    if not isinstance(found, np.ndarray) or len(found) != count:
        raise FormatError(f"{PREFIX}{name} is not one number for each token", allowed=str(count))
    return found


def _types(metadata: Mapping[str, Value]) -> list[int]:
    """What each token is. Raises FormatError."""
    found = _numbers(metadata, "token_type", NORMAL)
    if not np.isin(found, TYPES).all():
        raise FormatError(f"{PREFIX}token_type holds a type that is not known", allowed=", ".join(map(str, TYPES)))
    return found.astype(np.int64).tolist()


def _pre(metadata: Mapping[str, Value]) -> Pre:
    found = metadata.get(f"{PREFIX}pre", "default")
    name = ALIASES.get(found, found) if isinstance(found, str) else ""
    if name not in PRES:
        raise FormatError(
            "how this tokenizer splits text is not known",
            found=f"{PREFIX}pre = {found!r:.40}",
            allowed=", ".join([*PRES, *ALIASES]),
        )
    return PRES[name]


def _bpe(metadata: Mapping[str, Value], pre: Pre) -> Bpe:
    """A byte-level BPE; bytes may lack a token (SmolLM2's vocabulary), unused ids at the end are left out."""
    texts, types = tokens(metadata), _types(metadata)
    size = len(texts)
    while size and types[size - 1] == UNUSED:
        size -= 1
    special = {texts[id]: id for id in range(size) if types[id] in (CONTROL, USER_DEFINED, UNKNOWN)}
    held = [
        text.encode("utf-8") if text in special else b"" if kind == UNUSED else unprintable(text)
        for text, kind in zip(texts[:size], types, strict=False)
    ]
    merges = [_merge(text, place) for place, text in enumerate(_texts(metadata, "merges"))]
    return Bpe(held, merges, special, pre.pattern, whole=pre.whole, partial="after")


def _merge(text: str, place: int) -> tuple[bytes, bytes]:
    left, space, right = text.partition(" ")
    if not space or not left or not right or " " in right:
        raise FormatError(f"merge {place} is not two tokens with a space between", found=ascii(text[:60]))
    return unprintable(left), unprintable(right)


def _sentencepiece(metadata: Mapping[str, Value]) -> SentencePieceBpe:
    """A SentencePiece BPE: scores say the order of its joins, bytes stand in for what is no piece."""
    texts, types = tokens(metadata), _types(metadata)
    scores = _numbers(metadata, "scores", 0.0).astype(np.float32)
    if not np.isfinite(scores).all():
        raise FormatError(f"{PREFIX}scores are not finite")
    if flag(metadata, f"{PREFIX}remove_extra_whitespaces", False) or f"{PREFIX}precompiled_charsmap" in metadata:
        raise FormatError("a SentencePiece tokenizer that changes the text is not read from this format")
    unknown = token(metadata, "unk")
    if UNKNOWN not in types and unknown is not None:
        types[unknown] = UNKNOWN
    pieces = tuple(Piece(text, score, kind) for text, score, kind in zip(texts, scores.tolist(), types, strict=True))
    normalizer = sentencepiece.Normalizer(
        add_dummy_prefix=flag(metadata, f"{PREFIX}add_space_prefix", True), remove_extra_whitespaces=False
    )
    return SentencePieceBpe(sentencepiece.Model(pieces, sentencepiece.BPE, BYTE in types, normalizer=normalizer))


def write(tokenizer: Tokenizer, frame: Frame, size: int) -> dict[str, Value]:
    """The keys of a tokenizer for a model of `size` ids; what is over is unused.

    Raises FormatError for one that llama.cpp would read otherwise, naming what it knows.
    """
    if tokenizer.size > size:
        raise FormatError("more ids than the model has", found=str(tokenizer.size), allowed=f"up to {size}")
    if isinstance(tokenizer, SentencePieceBpe):
        return _written_sentencepiece(with_marks(tokenizer), frame, size)
    if isinstance(tokenizer, Bpe):
        return _written_bpe(tokenizer, frame, size)
    raise FormatError(
        "llama.cpp cannot be given this kind of tokenizer exactly",
        found=tokenizer.kind,
        allowed=f"byte-level BPE split as {', '.join(dict.fromkeys(pre.pattern for pre in PRES.values()))}; "
        "SentencePiece BPE",
    )


def _written_bpe(tokenizer: Bpe, frame: Frame, size: int) -> dict[str, Value]:
    known = bpe_vocabulary.of(tokenizer.facts())
    reserved = {id: text for text, id in known.special.items()}
    texts = [reserved.get(id, printable(content)) or _unused(id) for id, content in enumerate(known.tokens)]
    types = [
        (USER_DEFINED if reserved[id] in frame.ordinary else CONTROL)
        if id in reserved
        else NORMAL
        if content
        else UNUSED
        for id, content in enumerate(known.tokens)
    ]
    taken = [text for text, kind in zip(texts, types, strict=True) if kind == NORMAL and text in ENDS | FILLS]
    if taken:
        raise FormatError("llama.cpp would make special tokens of plain ones, by their text", found=some(taken))
    found = _vocabulary("gpt2", texts, types, size)
    found[f"{PREFIX}pre"] = _pre_of(known)
    found[f"{PREFIX}merges"] = [f"{printable(left)} {printable(right)}" for left, right in as_merges(tokenizer)]
    found[f"{PREFIX}add_space_prefix"] = False
    return found


def _pre_of(known: Vocabulary) -> str:
    """The name of a vocabulary's rules. Raises FormatError for rules that have none."""
    names = [name for name, pre in PRES.items() if pre.pattern == known.pattern]
    exact = [name for name in names if PRES[name].whole == known.whole and known.merges is not None]
    if exact:
        return exact[0]
    if not names:
        raise FormatError(
            "llama.cpp does not split text so",
            found=known.pattern[:80],
            allowed=", ".join(dict.fromkeys(pre.pattern for pre in PRES.values())),
        )
    try:
        check_reached(known)
    except TokenizerError as error:
        raise FormatError(f"llama.cpp would join otherwise: {error.what}", found=error.found) from None
    return names[0]


def _written_sentencepiece(tokenizer: SentencePieceBpe, frame: Frame, size: int) -> dict[str, Value]:
    model = tokenizer.model
    rules = model.normalizer
    wrong = {
        "a table of replacements": bool(rules.charsmap),
        "removal of extra spaces": rules.remove_extra_whitespaces,
        "spaces that are kept as they are": not rules.escape_whitespaces,
        "spaces after their word": model.treat_whitespace_as_suffix,
        "no pieces for bytes": not model.byte_fallback,
        "unused pieces": any(piece.type == UNUSED for piece in model.pieces),
    }
    said = [what for what, is_so in wrong.items() if is_so]
    if said:
        raise FormatError("llama.cpp cannot be given this SentencePiece model exactly", found=", ".join(said))
    del frame
    found = _vocabulary("llama", [piece.text for piece in model.pieces], [piece.type for piece in model.pieces], size)
    scores = np.zeros(size, np.float32)
    scores[: len(model.pieces)] = [piece.score for piece in model.pieces]
    found[f"{PREFIX}scores"] = scores
    found[f"{PREFIX}add_space_prefix"] = rules.add_dummy_prefix
    found[f"{PREFIX}unknown_token_id"] = tokenizer.unknown
    return found


def _vocabulary(kind: str, texts: Sequence[str], types: Sequence[int], size: int) -> dict[str, Value]:
    """Tokens and their types, filled up to the model's ids. Raises FormatError where two are written alike."""
    more = range(len(texts), size)
    whole = [*texts, *map(_unused, more)]
    if len(set(whole)) != size:
        twice = Counter(whole).most_common(1)[0][0]
        raise FormatError("two tokens would be written alike", found=repr(twice))
    return {
        f"{PREFIX}model": kind,
        f"{PREFIX}tokens": whole,
        f"{PREFIX}token_type": np.array([*types, *(UNUSED for _ in more)], np.int32),
    }


def _unused(id: int) -> str:
    return f"[PAD{id}]"


def speech(
    tokenizer: Tokenizer, frame: Frame, front: Sequence[int], stop: Sequence[int], written: Mapping[str, Value]
) -> dict[str, Value]:
    """The keys of what begins a prompt and ends an answer, beside the `written` keys of the tokenizer.

    Raises FormatError for more than the format can say, and where nothing ends an answer and no id is unused.
    """
    before = [tokenizer.special[text] for text in frame.before] or list(front)
    after = [tokenizer.special[text] for text in frame.after]
    ends = list(dict.fromkeys([*after, *stop]))
    if len(before) > 1 or len(after) > 1:
        raise FormatError("the format puts one token before a text and one after", found=f"{before}, {after}")
    found: dict[str, Value] = {f"{PREFIX}add_bos_token": bool(before), f"{PREFIX}add_eos_token": bool(after)}
    if before:
        found[f"{PREFIX}bos_token_id"] = before[0]
    if before and not frame.before:
        found[BARE] = True
    texts = {id: text for text, id in tokenizer.special.items()}
    others = [id for id in ends[1:] if texts.get(id) not in ENDS]
    if len(others) > 1:
        raise FormatError("more ids end an answer than the format can say", found=str(ends), allowed="two")
    found[f"{PREFIX}eos_token_id"] = ends[0] if ends else _no_end(tokenizer, written)
    if others:
        found[f"{PREFIX}eot_token_id"] = others[0]
    return found


def _no_end(tokenizer: Tokenizer, written: Mapping[str, Value]) -> int:
    """What to name as the end where nothing is one: llama.cpp would take a fixed id, whatever stands there.

    An id that ends an answer there by its text, else an unused one. Raises FormatError where there is neither.
    """
    known = [id for text, id in tokenizer.special.items() if text in ENDS]
    unused = [id for id, kind in enumerate(_types(written)) if kind == UNUSED]
    if not known and not unused:
        raise FormatError(
            "llama.cpp ends an answer at some id in any case, and nothing ends one here",
            found="no end, no unused id",
            allowed="a special token as the end (eos_token_id), or a model with more ids than its tokenizer",
        )
    return [*known, *unused][0]


def stops(metadata: Mapping[str, Value], special: Mapping[str, int]) -> tuple[int, ...]:
    """The ids that end an answer: those the file says (but unused ones), then those llama.cpp knows by their text."""
    types = _types(metadata)
    said = [token(metadata, name) for name in ("eos", "eot", "eom")]
    known = [id for text, id in special.items() if text in ENDS]
    return tuple(dict.fromkeys(id for id in (*said, *known) if id is not None and types[id] != UNUSED))
