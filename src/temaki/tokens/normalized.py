"""A tokenizer that reads text in a normal form of Unicode: Qwen's and others' NFC, before another tokenizer.

What is lost: text comes back in that form (for NFC, "e" and U+0301 as "é"). The tables are those of Python's
`unicodedata`; special tokens are found in the text as it was given.
"""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Literal, get_args

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens import split, utf8
from temaki.tokens.runs import RunTokenizer, asked
from temaki.tokens.tokenizer import Noise, Ragged, TextStream, Tokenizer

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]


class Normalized(RunTokenizer):
    """A tokenizer behind a normal form. Implements the Tokenizer contract; noise is the inner one's."""

    kind = "normalized"
    cuts = r"(?=[\x00-\x7f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3])"
    """Before a character that joins nothing before it, in any form. Text without any is held until one comes."""

    def __init__(self, inner: Tokenizer, form: Form = "NFC"):
        """`inner` encodes what the form leaves. Raises TokenizerError for an unknown form."""
        if form not in get_args(Form):
            raise TokenizerError("unknown normal form", found=repr(form), allowed=", ".join(get_args(Form)))
        self.inner = inner
        self.form: Form = form
        super().__init__(inner.tokens, inner.special)

    def facts(self) -> dict[str, object]:
        """The form, and the inner tokenizer's kind and facts."""
        return {"form": self.form, "inner": {"kind": self.inner.kind, "facts": self.inner.facts()}}

    def encode(self, text: str, special: Collection[str] = (), noise: Noise | None = None) -> ndarray:
        """The ids of a text, uint32 [N]. Raises TokenizerError as the inner tokenizer does."""
        asked(special, self.special)
        return self._encoded(utf8.checked(text), special, noise)

    def encode_batch(self, texts: Sequence[str | bytes], special: Collection[str] = ()) -> Ragged:
        """The ids of several texts; bytes are read as UTF-8. Raises TokenizerError naming the text."""
        asked(special, self.special)
        found: list[str] = []
        for number, text in enumerate(texts):
            try:
                formed = self._formed("".join(utf8.decoded([text])), special)
            except TokenizerError as error:
                raise TokenizerError(f"text {number}: {error}") from None
            if formed is None:
                return super().encode_batch(texts, special)
            found.append(formed)
        return self.inner.encode_batch(found, special)

    def encode_iterable(self, chunks: Iterable[str | bytes], special: Collection[str] = ()) -> Iterator[ndarray]:
        """The ids of one text that comes in chunks; joined, they are those of the whole text.

        A run between two special tokens goes in pieces through the form, and as one text through the inner tokenizer,
        which knows where its own pieces may end. Raises TokenizerError.
        """
        asked(special, self.special)
        blocks = self._blocks(utf8.decoded(chunks), special)
        parts = (part for block in blocks for part in split.parts(block, special))
        for is_special, run in groupby(parts, key=itemgetter(1)):
            texts = (text for text, _ in run)
            if is_special:
                yield np.array([self.special[text] for text in texts], np.uint32)
            else:
                yield from self.inner.encode_iterable(unicodedata.normalize(self.form, text) for text in texts)

    def encode_run(self, text: str) -> ndarray:
        """The ids of plain text, [N]."""
        return self.inner.encode(unicodedata.normalize(self.form, text))

    def decode_bytes(self, ids: Sequence[int] | ndarray) -> bytes:
        """The bytes of all ids, joined. Raises TokenizerError for an id that is not in the vocabulary."""
        return self.inner.decode_bytes(ids)

    def decode(self, ids: Sequence[int] | ndarray, errors: str = "replace") -> str:
        """The text of all ids, as the inner tokenizer decodes them."""
        return self.inner.decode(ids, errors)

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return self.inner.stream()

    def _encoded(self, text: str, special: Collection[str], noise: Noise | None = None) -> ndarray:
        formed = self._formed(text, special)
        if formed is not None:
            return self.inner.encode(formed, special, noise)
        found = [
            np.array([self.special[part]], np.uint32)
            if is_special
            else self.inner.encode(unicodedata.normalize(self.form, part), (), noise)
            for part, is_special in split.parts(text, special)
        ]
        return np.concatenate(found)

    def _formed(self, text: str, special: Collection[str]) -> str | None:
        """The text with its plain runs in the form; None where that would make a special token that was none."""
        if unicodedata.is_normalized(self.form, text):
            return text
        parts = [
            (part if is_special else unicodedata.normalize(self.form, part), is_special)
            for part, is_special in split.parts(text, special)
        ]
        formed = "".join(part for part, _ in parts)
        return formed if list(split.parts(formed, special)) == parts else None
