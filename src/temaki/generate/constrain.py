"""Constrained decoding: answers that a regular expression or a JSON schema matches, token by token.

The grammar is followed byte by byte by llguidance (Rust, MIT), which is loaded when the first constraint is made; here
it is given our vocabulary's bytes, and its masks become ours. Text that is forced is spelled in the fewest tokens.
An answer that is not cut by its length matches; one that is (done = "length") begins like a match.
Letters: V the model's vocabulary.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

META = frozenset("\\.+*?()|[]{}^$#&-~/")
"""Characters that mean something in a regular expression."""
JSON_STYLE: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line, as Python writes it: a model that may choose its spaces can go on with them for ever."""
FORCED = 1000
"""Bytes of forced text that are spelled at a time."""
SEE = "write it otherwise; docs/generation.md says what is supported"
WORDS = {
    "NoExtensionBias": "nothing can match it",
    "oneOf constraints": "oneOf whose parts may accept the same text is not supported; anyOf is",
    "is not present in a registry": "a $ref to another document is not supported",
    "lookarounds not supported": "^, $ and \\b inside a pattern are not supported",
}
"""What llguidance says, and what is said instead."""
KEPT = 4
"""Vocabularies kept ready: one of 49k tokens takes 0.2 s and some MB."""


@dataclass(frozen=True)
class Regex:
    """The whole answer matches a regular expression, as Rust's `regex` writes them.

    No look-around, no back-references; `^` and `$` may stand at its ends and change nothing.
    """

    pattern: str

    def grammar(self) -> str:
        """What llguidance reads."""
        from llguidance import LLMatcher

        return LLMatcher.grammar_from_regex(_encodable(self.pattern, "the regular expression"))


@dataclass(frozen=True)
class Schema:
    """The answer is a JSON text that a JSON schema accepts, in one line; `format`s are approximate."""

    schema: str
    """As JSON."""

    @cached_property
    def content(self) -> Mapping[str, Any] | bool:
        """Read. Raises GenerationError where it is no JSON object or boolean, and says where."""
        try:
            found = json.loads(_encodable(self.schema, "the JSON schema"))
        except json.JSONDecodeError as error:
            raise GenerationError(
                f"the JSON schema is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
            ) from None
        except RecursionError:
            raise GenerationError("the JSON schema is nested too deeply") from None
        if not isinstance(found, dict | bool):
            raise GenerationError("a JSON schema is an object", found=type(found).__name__, do='{"type": "object"}')
        return found

    def grammar(self) -> str:
        """What llguidance reads."""
        from llguidance import LLMatcher

        content = self.content
        if isinstance(content, bool):  # true: anything; false: nothing, which only a part of a schema may say
            content = {} if content else {"enum": []}
        try:
            return LLMatcher.grammar_from_json_schema(json.dumps(content), overrides=JSON_STYLE)
        except ValueError as error:
            raise GenerationError(f"the JSON schema cannot be used: {_plain(str(error))}", do=SEE) from None


@dataclass(frozen=True)
class Choice:
    """The answer is one of several texts."""

    texts: tuple[str, ...]

    def grammar(self) -> str:
        """What llguidance reads."""
        if not self.texts:
            raise GenerationError("a choice between no texts", do="give at least one")
        escaped = ("".join("\\" + c if c in META else c for c in text) for text in self.texts)
        return Regex("|".join(escaped)).grammar()


Shape = Regex | Schema | Choice
ANY_JSON = Schema('{"type": "object"}')
"""Any JSON object."""


class Vocabulary:
    """What llguidance must know of a tokenizer: the bytes of every id that a constraint may use.

    size: V; ids beyond the tokenizer's are never allowed. stop: ids that end an answer; they are allowed where it may
    end, and there alone. Special tokens are never part of an answer that is constrained.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, stop: Sequence[int]):
        self.size = size
        self.stop = np.array(sorted({id for id in stop if id < size}), np.int64)
        unused = {*tokenizer.special.values(), *self.stop.tolist()}
        tokens = [
            b"" if id in unused or token[:1] == b"\xff" else token  # such a byte is in no text
            for id, token in enumerate(tokenizer.tokens[:size])
        ]
        self.tokens = tokens + [b""] * (size - len(tokens))

    @cached_property
    def table(self) -> "LLTokenizer":
        """llguidance's form of it. One more id, V, stands for the end, whatever ids end an answer."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Words(self.tokens)))

    def constraint(self, shape: Shape) -> "Grammar":
        """What answers of this shape must look like.

        Raises GenerationError for a shape that is wrong, that nothing matches, or that is too large, and says where.
        """
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        inner = LLMatcher(self.table, shape.grammar(), log_level=0, limits=limits)
        if inner.is_error():
            raise _refused(shape, inner.get_error())
        first = _Matcher(self, inner)
        try:
            first.mask()
        except GenerationError as error:
            raise GenerationError(
                f"{_named(shape)} matches nothing that this vocabulary can spell",
                found=error.found,
                do="change it so that some text matches it",
            ) from None
        return Grammar(first)


@lru_cache(KEPT)
def vocabulary(tokenizer: Tokenizer, size: int, stop: tuple[int, ...]) -> Vocabulary:
    """The vocabulary of a tokenizer, kept for the next request."""
    return Vocabulary(tokenizer, size, stop)


class Grammar:
    """A constraint that is known to be right; matchers are copies of one that stands at the beginning."""

    def __init__(self, first: "_Matcher"):
        self._first = first

    def matcher(self) -> "_Matcher":
        """A matcher before the first id of an answer."""
        return self._first.copy()


class _Matcher:
    """One answer under way."""

    def __init__(self, vocabulary: Vocabulary, inner: "LLMatcher", mask: ndarray | None = None):
        self._vocabulary = vocabulary
        self._inner = inner
        self._mask = mask
        """bool [V + 1]: ids, and whether the answer may end here; None: not asked yet."""

    @property
    def done(self) -> bool:
        """Nothing may follow but an end. Raises GenerationError where nothing at all may follow."""
        if self._inner.is_stopped() and not self._inner.is_error():
            return True
        return self._inner.is_accepting() and self._found().sum() == len(self._vocabulary.stop) + 1

    def mask(self) -> ndarray:
        """bool [V]: which ids may come. Raises GenerationError where none may."""
        return self._found()[:-1]

    def advance(self, id: int) -> None:
        """`id` has come. Raises GenerationError if it was not allowed."""
        size = self._vocabulary.size
        if not 0 <= id < size or not self._found()[id]:
            found = repr(self._vocabulary.tokens[id]) if 0 <= id < size else str(id)
            raise GenerationError("the constraint does not allow this token here", found=found)
        if not self._inner.consume_token(id):
            raise GenerationError("the constraint cannot be followed", found=_plain(self._inner.get_error()))
        self._mask = None

    def copy(self) -> "_Matcher":
        """Another at the same place that goes its own way."""
        return _Matcher(self._vocabulary, self._inner.deep_copy(), self._mask)

    def _found(self) -> ndarray:
        if self._mask is None:
            bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
            if self._inner.is_error():
                raise GenerationError("nothing can follow", found=_plain(self._inner.get_error()))
            size = self._vocabulary.size
            self._mask = np.unpackbits(bits, count=size + 1, bitorder="little").view(np.bool_)
            self._mask[self._vocabulary.stop] = self._mask[size]
        return self._mask


class _Words:
    """A vocabulary as llguidance's wrapper wants to see it: tokens, and text -> ids for what is forced."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]):
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [len(tokens)]
        self._ids = {token: id for id, token in reversed(list(enumerate(tokens))) if token}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Fewest tokens, of equally many the longest first; none where they cannot spell the text. Its beginning alone,
        where it is long.

        >>> _Words([b"a", b"ab", b"bc", b"c"])(b"abc")
        [1, 3]
        """
        text = text[:FORCED]
        best: list[tuple[int, int, int]] = [(0, 0, 0)] * len(text) + [(0, -1, len(text))]
        for start in range(len(text) - 1, -1, -1):
            ways = [
                (best[stop][0] + 1, self._ids[text[start:stop]], stop)
                for stop in range(min(len(text), start + self._longest), start, -1)
                if text[start:stop] in self._ids and (best[stop][0] or stop == len(text))
            ]
            best[start] = min(ways, key=lambda way: way[0], default=(0, -1, start))
        found, at = [], 0
        while at < len(text) and best[at][0]:
            found.append(best[at][1])
            at = best[at][2]
        return found


def _named(shape: Shape) -> str:
    return {Regex: "the regular expression", Schema: "the JSON schema", Choice: "the choice"}[type(shape)]


def _refused(shape: Shape, said: str) -> GenerationError:
    """What llguidance says of a grammar, as ours: what is wrong and where."""
    if not isinstance(shape, Regex):
        return GenerationError(f"{_named(shape)} cannot be used: {_plain(said)}", do=SEE)
    reason = re.search(r"^error: (.+)$", said, re.MULTILINE)
    caret = re.search(r"^ {4}( *)\^", said, re.MULTILINE)
    if reason is None or caret is None:
        after = said.partition("(in regex): ")[2] or said
        return GenerationError(f"the regular expression is wrong: {_plain(after)}", found=shape.pattern, do=SEE)
    at = _unescaped(shape.pattern, len(caret[1]))
    return GenerationError(
        f"the regular expression is wrong at character {at + 1}: {reason[1]}", found=shape.pattern, do=SEE
    )


def _unescaped(pattern: str, column: int) -> int:
    r"""The place in a pattern of a column of it as it is shown, where / and line ends are written \/ and \n.

    >>> _unescaped("a/(", 3), _unescaped("a\\/(", 3)
    (2, 3)
    """
    shown = 0
    for at, c in enumerate(pattern):
        if shown >= column:
            return at
        shown += 2 if c == "\n" or (c == "/" and pattern[at - 1 : at] != "\\") else 1
    return len(pattern)


def _encodable(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GenerationError(f"{what} holds a lone surrogate at character {error.start + 1}") from None
    return text


def _plain(said: str) -> str:
    """What llguidance says, in its first line and in words of ours.

    >>> _plain('Unimplemented keys: ["if", "not"]')
    'keys that are not supported: if, not'
    """
    reason = re.search(r"^error: (.+)$", said, re.MULTILINE)  # of a pattern within a schema
    line = f"a pattern is wrong: {reason[1]}" if reason is not None else said.strip().partition("\n")[0]
    keys = re.match(r"Unimplemented keys: \[(.*)\]", line)
    if keys is not None:
        return "keys that are not supported: " + keys[1].replace('"', "")
    return next((ours for theirs, ours in WORDS.items() if theirs in line), line)
