"""What Hugging Face's files say about special tokens beside their ids. No `encode` applies it by itself.

Their tokenizers put tokens around a text (`<s>`, `[CLS]` .. `[SEP]`) unless told not to, and leave tokens that were
added as ordinary ones in decoded text. Here a frame is a value of its own, so that neither is lost between two files.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy import ndarray

from temaki.base.errors import TokenizerError
from temaki.tokens.tokenizer import Tokenizer, fingerprint


@dataclass(frozen=True)
class Frame:
    """Special tokens by their text."""

    before: tuple[str, ...] = ()
    """Put before a text."""
    after: tuple[str, ...] = ()
    """Put after a text."""
    ordinary: tuple[str, ...] = ()
    """Added tokens that Hugging Face does not call special. Here they arise from text only where named, as all do."""

    def around(self, ids: ndarray, tokenizer: Tokenizer) -> ndarray:
        """The ids of a text with the tokens before and after it, uint32."""
        before, after = ([tokenizer.special[text] for text in part] for part in (self.before, self.after))
        return np.concatenate([before, ids, after]).astype(np.uint32)

    def check(self, special: Mapping[str, int]) -> None:
        """Refuse tokens that are no special tokens of a tokenizer. Raises TokenizerError."""
        for text in (*self.before, *self.after, *self.ordinary):
            if text not in special:
                raise TokenizerError("a token of the frame is no special token", found=repr(text))

    def facts(self) -> dict[str, object]:
        """All of it as JSON can say it, with a fingerprint."""
        found: dict[str, object] = {name: list(texts) for name, texts in asdict(self).items()}
        return {**found, "fingerprint": fingerprint("frame", found)}


def of(facts: object) -> Frame:
    """The frame with these facts. Raises TokenizerError for others, and where they do not match their fingerprint."""
    names = ("before", "after", "ordinary")
    if not isinstance(facts, dict) or facts.keys() != {*names, "fingerprint"}:
        raise TokenizerError("not a frame", found=ascii(facts)[:80], allowed=", ".join(names))
    for name in names:
        if not isinstance(facts[name], list) or not all(isinstance(text, str) for text in facts[name]):
            raise TokenizerError(f"{name} of a frame is a list of texts", found=ascii(facts[name])[:80])
    if facts["fingerprint"] != fingerprint("frame", {name: facts[name] for name in names}):
        raise TokenizerError("the frame does not match its fingerprint: the file was changed")
    return Frame(*(tuple(facts[name]) for name in names))
