"""Proof that two tokenizers are one: the same ids, and the same text back, on texts chosen to break them."""

import random
from collections.abc import Iterable, Iterator

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.sentencepiece_tokenizer import SPACE
from temaki.tokens.tokenizer import Tokenizer

SCRAPS = (
    "the", " the", "The", " a", "'s", "'S", "\u2019s", "'ll", "'\u017f", " 2024", "1234567", "\u0663\u0664", "\u00bd",
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\u00a0", "\u0085", "\u2003", "\u200b", "\u3000",
    "\u001c", "\0", "!", "?!", "...", "/*", "<|", "|>", "<s>", "</s>", "[UNK]", "##", "\u2581", "\u0120", "\u4f60",
    "\u597d\u4e16\u754c", "\u306d\u3053", "\u30cd\u30b3", "\ud55c\uad6d\uc5b4", "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\u03b1\u03b2\u03b3", "\u05e9\u05dc\u05d5\u05dd", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e20\u0e32\u0e29\u0e32", "\u00e9", "e\u0301", "\ufb01", "\u01c5",
    "\u02b0", "\u212b", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea",
    "\u2764\ufe0f", "\U00020000", "\U000e0100", "\U0010ffff", "\ue000", "\ufeff", "\ufffd", "\u0378", "a" * 70,
    " " * 70, "=" * 70,
)  # fmt: skip
"""What texts are put together of: each has broken some tokenizer."""
COUNT = 2_000
"""Random texts of a proof."""
MOST = 12
"""Scraps of a random text, at most."""


def texts(count: int = COUNT, seed: int = 1) -> Iterator[str]:
    """Each scrap alone, then `count` random texts of scraps and of any code points; the same for the same seed.

    >>> len(list(texts(10))) == len(SCRAPS) + 10
    True
    """
    yield from SCRAPS
    draw = random.Random(seed)
    for number in range(count):
        if number % 4:
            yield "".join(draw.choices(SCRAPS, k=draw.randint(1, MOST)))
        else:
            yield "".join(chr(_code(draw)) for _ in range(draw.randint(1, MOST)))


def same(before: Tokenizer, after: Tokenizer) -> int:
    """How many texts were compared. Raises TokenizerError at the first that is not encoded and decoded alike.

    Each text is encoded with no special token and with all of them, which are texts of their own as well. Where one of
    the two, of SentencePiece's BPE, reads U+2581 as a space and the other as itself, texts with it are left out.
    """
    if dict(before.special) != dict(after.special):
        raise TokenizerError(
            "the special tokens are not the same", found=repr(dict(after.special)), allowed=repr(dict(before.special))
        )
    proven = [*texts(), *before.special, *(f"a{text} b{text}" for text in before.special)]
    if _reads_mark(before) != _reads_mark(after):
        proven = [text for text in proven if SPACE not in text]
    for text in proven:
        for special in ((), tuple(before.special)):
            wanted, found = before.encode_list(text, special), after.encode_list(text, special)
            if found != wanted:
                raise TokenizerError(
                    f"the text {ascii(text)[:80]} gets other ids", found=_few(found), allowed=_few(wanted)
                )
            if before.decode_bytes(wanted) != after.decode_bytes(wanted):
                raise TokenizerError(f"the ids of {ascii(text)[:80]} are decoded to other bytes", found=_few(wanted))
    return len(proven)


def as_likely(before: Tokenizer, after: Tokenizer, scores: ndarray, proven: Iterable[str]) -> int:
    """How many texts were compared. Raises TokenizerError at the first that gets ids of another sum of `scores`.

    `scores[id]`: the log-probability of a piece. Where two segmentations are equally probable, either may be given.
    """
    count = 0
    for count, text in enumerate(proven, 1):  # noqa: B007
        wanted, found = before.encode_list(text), after.encode_list(text)
        if found != wanted and not np.isclose(scores[found].sum(), scores[wanted].sum(), rtol=1e-5, atol=0):
            raise TokenizerError(f"the text {ascii(text)[:80]} gets other ids", found=_few(found), allowed=_few(wanted))
    return count


def texts_of(pieces: Iterable[bytes], count: int = COUNT, seed: int = 1) -> Iterator[str]:
    """Random texts of pieces of which each character is a piece too, and of such characters.

    >>> set("".join(texts_of([b"a", b"ab", b"b", b"ac"]))) == {"a", "b"}
    True
    """
    whole = [piece.decode("utf-8", "replace") for piece in pieces]
    characters = {text for text in whole if len(text) == 1 and text != "\ufffd"}
    known = sorted(text for text in whole if characters.issuperset(text))
    draw = random.Random(seed)
    for _ in range(count if known else 0):
        yield "".join(draw.choices(known, k=draw.randint(1, MOST)))


def _reads_mark(tokenizer: Tokenizer) -> bool | None:
    """Whether SentencePiece's BPE reads U+2581 as a space; None for other kinds."""
    return tokenizer.model.normalizer.escape_whitespaces if isinstance(tokenizer, SentencePieceBpe) else None


def _few(ids: list[int]) -> str:
    return " ".join(map(str, ids[:12])) + (" .." if len(ids) > 12 else "")


def _code(draw: random.Random) -> int:
    """A code point that is no surrogate: of the first plane twice out of three times."""
    code = draw.randrange(0x10000 if draw.random() < 0.67 else 0x110000)
    return code if not 0xD800 <= code < 0xE000 else 0x20
