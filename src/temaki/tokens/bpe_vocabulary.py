"""What a byte-level BPE tokenizer knows: its tokens, what may be joined and in which order, checked once.

Two rules are in use. Merges (GPT-2, Hugging Face): a list of pairs, a pair's rank is its place in the list. Ranks
(tiktoken): no list; any two tokens whose joined bytes are a token may be joined, the rank is the id of that token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from temaki.base.errors import TokenizerError
from temaki.tokens import split

LARGEST = (1 << 21) - 1
"""Ids a vocabulary may have: a pair of ids and its rank fit in 64 bits."""

MOST_MERGES = (1 << 22) - 1
"""Merges a vocabulary may have."""

Pair = tuple[int, int]

Partial = Literal["before", "after"]
"""Bytes may lack a token, as in SmolLM2's vocabulary, and are left out: before merging, so that what stood around them
may be joined (Hugging Face), or after it (llama.cpp)."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a BPE tokenizer and the order of its merges.

    Raises TokenizerError where a byte or a merge has no id, two ids share their bytes, or a special token is not at
    its id. An empty token is a hole: an id that stands for nothing.
    """

    tokens: tuple[bytes, ...]
    """The bytes of each id; a special token's: its text."""
    merges: tuple[tuple[bytes, bytes], ...] | None
    """The merges in order; None for the rule of ranks."""
    special: Mapping[str, int]
    pattern: str
    """A name of `split.PATTERNS` or an own regular expression."""
    whole: bool
    """Whether a pre-token that is a token is taken as it is, even where the merges would not make it."""
    partial: Partial | None = None
    """When bytes without a token are left out; None: each byte has one."""
    ids: Mapping[bytes, int] = field(init=False, repr=False, compare=False)
    """Bytes -> id of the plain tokens."""

    def __post_init__(self) -> None:
        if len(self.tokens) > LARGEST:
            raise TokenizerError("too large a vocabulary", found=f"{len(self.tokens)} ids", allowed=f"up to {LARGEST}")
        split.named(self.pattern)
        object.__setattr__(self, "special", MappingProxyType(dict(self.special)))
        object.__setattr__(self, "ids", _ids(self.tokens, self.special, self.partial is not None))
        if all(bytes([value]) in self.ids for value in range(256)):
            object.__setattr__(self, "partial", None)
        if self.merges is not None:
            _check_merges(self.merges, self.ids)

    def pairs(self) -> Iterator[tuple[int, int, int, int]]:
        """Each pair that may be joined: (left id, right id, rank, id of the joined token)."""
        ids = self.ids
        if self.merges is not None:
            for rank, (left, right) in enumerate(self.merges):
                yield ids[left], ids[right], rank, ids[left + right]
            return
        for token, id in ids.items():
            for at in range(1, len(token)):
                left, right = ids.get(token[:at]), ids.get(token[at:])
                if left is not None and right is not None:
                    yield left, right, id, id

    def facts(self) -> dict[str, object]:
        """Everything that can change an id, but for Unicode's tables: tokens in hexadecimal, merges as ids."""
        merges = None
        if self.merges is not None:
            merges = [[self.ids[left], self.ids[right]] for left, right in self.merges]
        facts: dict[str, object] = {
            "pattern": split.named(self.pattern).expression,
            "special": dict(self.special),
            "tokens": [token.hex() for token in self.tokens],
            "merges": merges,
            "whole": self.whole,
        }
        return facts | {"partial": self.partial} if self.partial is not None else facts


def of(facts: Mapping[str, object]) -> Vocabulary:
    """The vocabulary that gave these facts. Raises TokenizerError for anything else."""
    expected = {"pattern": str, "special": dict, "tokens": list, "merges": (list, type(None)), "whole": bool}
    for key in (facts.keys() - {"partial"}) ^ expected.keys():
        raise TokenizerError(f"key {key!r} is " + ("unknown" if key in facts else "missing"))
    for key, kind in expected.items():
        if not isinstance(facts[key], kind):
            raise TokenizerError(f"{key} is of the wrong type", found=type(facts[key]).__name__)
    pattern, special, tokens, merges, whole = (facts[key] for key in expected)
    assert isinstance(pattern, str), "as seen above"
    assert isinstance(special, dict), "as seen above"
    assert isinstance(tokens, list), "as seen above"
    assert isinstance(merges, list | None), "as seen above"
    assert isinstance(whole, bool), "as seen above"
    partial = next((known for known in get_args(Partial) if known == facts.get("partial")), None)
    if "partial" in facts and partial is None:
        found = f"{facts['partial']!r:.40}"
        raise TokenizerError("partial is unknown", found=found, allowed=", ".join(get_args(Partial)))
    if any(type(text) is not str or type(id) is not int for text, id in special.items()):
        raise TokenizerError("special tokens are texts with integer ids")
    known = [_from_hex(text, place) for place, text in enumerate(tokens)]
    pairs = None if merges is None else tuple(_from_ids(pair, known, rank) for rank, pair in enumerate(merges))
    return Vocabulary(tuple(known), pairs, special, name_of(pattern), whole, partial)


def name_of(expression: str) -> str:
    """The name of the pattern with this regular expression, or the expression itself where it has none."""
    return next((name for name, known in split.PATTERNS.items() if known.expression == expression), expression)


def _from_hex(text: object, place: int) -> bytes:
    if isinstance(text, str):
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    raise TokenizerError(f"token {place} is not written in hexadecimal", found=f"{text!r:.40}")


def _from_ids(pair: object, tokens: Sequence[bytes], rank: int) -> tuple[bytes, bytes]:
    if isinstance(pair, list) and len(pair) == 2 and all(type(id) is int and 0 <= id < len(tokens) for id in pair):
        return tokens[pair[0]], tokens[pair[1]]
    raise TokenizerError(f"merge {rank} is not a pair of ids", found=f"{pair!r:.40}", allowed=f"0 to {len(tokens) - 1}")


def _ids(tokens: Sequence[bytes], special: Mapping[str, int], partial: bool) -> dict[bytes, int]:
    """Bytes -> id of the plain tokens. Raises TokenizerError where that is no inverse of `tokens`."""
    split.check_special(list(special))
    for text, id in special.items():
        if not 0 <= id < len(tokens) or tokens[id] != text.encode("utf-8"):
            raise TokenizerError(f"special token {text!r} is not at its id", found=str(id))
    reserved = set(special.values())
    ids = {token: id for id, token in enumerate(tokens) if token and id not in reserved}
    if len(ids) + tokens.count(b"") + len(reserved) != len(tokens):
        seen: dict[bytes, int] = {}
        for id, token in enumerate(tokens):
            if id not in reserved and token and seen.setdefault(token, id) != id:
                raise TokenizerError(f"token {id} is the same as another", found=f"{token!r}, also {seen[token]}")
    missing = [value for value in range(256) if bytes([value]) not in ids]
    if missing and not partial:
        raise TokenizerError("a byte has no id", found=f"{len(missing)} missing, the first {missing[0]}")
    return ids


def _check_merges(merges: Sequence[tuple[bytes, bytes]], ids: Mapping[bytes, int]) -> None:
    """Refuse a merge whose parts or result have no id, or that is listed twice. Raises TokenizerError."""
    if len(merges) > MOST_MERGES:
        raise TokenizerError("too many merges", found=str(len(merges)), allowed=f"up to {MOST_MERGES}")
    known = all(left in ids and right in ids and left + right in ids for left, right in merges)
    if known and len(set(merges)) == len(merges):
        return
    seen: set[tuple[bytes, bytes]] = set()
    for rank, (left, right) in enumerate(merges):
        if not {left, right, left + right} <= ids.keys() or (left, right) in seen:
            raise TokenizerError(
                f"merge {rank} cannot be used",
                found=f"{left!r} + {right!r}",
                allowed="two tokens that join to a token, each pair once",
            )
        seen.add((left, right))
