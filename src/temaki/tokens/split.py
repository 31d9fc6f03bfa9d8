"""Text -> specials and pre-tokens: what may never merge across.

Special tokens are cut out first (longest first where two begin at one place), then a pattern cuts the plain
text between them into pre-tokens. Source of the GPT-2 pattern: Radford et al. 2019, the released encoder.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex

from temaki.base.errors import TokenizerError

BLOCK = 1 << 16
"""Characters that are split at a time."""


@dataclass(frozen=True)
class Pattern:
    """A way to cut plain text into pre-tokens."""

    expression: str
    """A regular expression of the `regex` package; its matches are the pre-tokens."""
    cuts: str | None
    """Matches, empty, only where both sides, each split for itself, give the pre-tokens of the whole."""


# After a letter all but letters, marks (they may go on a word) and apostrophes begin a pre-token, after a number all
# but numbers, after anything else whitespace that is no newline. True of every pattern here.
CUTS = r"(?<=\p{L})(?=[\s\p{N}]|[^'\s\p{L}\p{N}\p{M}])|(?<=\p{N})(?=\P{N})|(?<=[^\s\p{L}\p{N}])(?=[^\S\r\n])"

PATTERNS = {
    # A pre-token holds one class of characters, but for a leading space and an apostrophe before letters, and
    # only whitespace looks ahead: so each change of class is a cut, but for those two.
    "gpt2": Pattern(
        expression=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        cuts=r"(?<=\S)(?=\s)|(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})|(?<=[^\s\p{L}\p{N}'])(?=[\p{L}\p{N}])",
    ),
    # As tiktoken 0.14 has it: whitespace that ends the text stays whole, newlines or not.
    "cl100k": Pattern(
        expression=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
        r"|\s*[\r\n]|\s+(?!\S)|\s",
        cuts=CUTS,
    ),
    # Words begin where a small letter is followed by a capital; endings such as 's belong to their word.
    "o200k": Pattern(
        expression=r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        cuts=CUTS,
    ),
    # Also what older releases of tiktoken call cl100k.
    "llama3": Pattern(
        expression=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        cuts=CUTS,
    ),
    "qwen2": Pattern(
        expression=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        cuts=CUTS,
    ),
    # The field says it in two steps, each number alone and then GPT-2's pattern between them; this is both in one.
    "smollm": Pattern(
        expression=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
        cuts=CUTS,
    ),
}


def named(pattern: str) -> Pattern:
    """The pattern of that name, or an own regular expression (which has no cuts).

    Raises TokenizerError for an unknown name and for text that is no regular expression.

    >>> named("gpt2").expression[:18]
    "'(?:[sdmt]|ll|ve|r"
    >>> named(r"\\S+|\\s+").cuts is None
    True
    """
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if regex.fullmatch(r"[A-Za-z0-9_-]*", pattern):
        near = difflib.get_close_matches(pattern, PATTERNS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "name one, or write a regular expression"
        raise TokenizerError("unknown split pattern", found=repr(pattern), allowed=", ".join(PATTERNS), do=hint)
    try:
        reverse = regex.compile(pattern).flags & regex.REVERSE
    except (regex.error, ValueError, RecursionError) as error:  # flags that exclude each other, groups in groups
        raise TokenizerError(f"the split pattern is no regular expression: {error}", found=f"{pattern:.200}") from None
    if reverse:
        raise TokenizerError("a split pattern cannot search backwards", found=pattern, do="leave (?r) out")
    return Pattern(pattern, None)


class Splitter:
    """Cuts text with one pattern. Nothing is lost: what an own pattern does not match is a pre-token too."""

    def __init__(self, pattern: str):
        found = named(pattern)
        self._words = regex.compile(found.expression)
        self._cuts = None if found.cuts is None else regex.compile("(?r)" + found.cuts)  # (?r): the last one

    def words(self, text: str) -> list[str]:
        """The pre-tokens of plain text; joined they are the text.

        >>> Splitter("gpt2").words("i'll   pre-tokenize")
        ['i', "'ll", '  ', ' pre', '-', 'tokenize']
        """
        found = self._words.finditer(text)
        return [match.group() for match in found] if self._cuts else _with_gaps(text, found)

    def blocks(self, chunks: Iterable[str], special: Collection[str] = ()) -> Iterator[str]:
        """The same text in blocks of about BLOCK characters that can be split one by one as if it were whole.

        Holds one chunk, one block and the longest pre-token (which nobody can cut), twice; with an own
        pattern, whose safe cuts nobody knows, the text between two special tokens.
        """
        held: list[str] = []
        length, wanted = 0, BLOCK
        for piece in (chunk[i : i + BLOCK] for chunk in chunks for i in range(0, len(chunk), BLOCK)):
            held.append(piece)
            length += len(piece)
            if length < wanted:
                continue
            text = "".join(held)
            cut = self._last_cut(text, special)
            if cut:
                yield text[:cut]
            held, length = [text[cut:]], len(text) - cut
            wanted = max(BLOCK, 2 * length)  # doubling: a run without a cut is looked at just a few times
        if length:
            yield "".join(held)

    def _last_cut(self, text: str, special: Collection[str]) -> int:
        """The last place where `text` can be cut whatever follows it; 0 if there is none."""
        open_from = len(text) - max(map(len, special), default=1) + 1  # from here on, one may be incomplete
        end = 0  # of the last special token that is whole
        for match in finder(special).finditer(text) if special else ():
            if match.start() >= open_from:
                break
            end = match.end()
        if self._cuts is None or open_from <= end:
            return end
        cut = self._cuts.search(text, end, open_from)
        return end if cut is None else cut.start()


def parts(text: str, special: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The plain runs (False) and special tokens (True) of a text, in order, none empty.

    >>> list(parts("a<s>b<s><s>", ["<s>", "<s><s>"]))
    [('a', False), ('<s>', True), ('b', False), ('<s><s>', True)]
    """
    end = 0
    for match in finder(special).finditer(text) if special else ():
        if match.start() > end:
            yield text[end : match.start()], False
        yield match.group(), True
        end = match.end()
    if end < len(text):
        yield text[end:], False


def finder(special: Collection[str]) -> regex.Pattern[str]:
    """What finds special tokens: their alternation, longest first."""
    longest_first = sorted(special, key=lambda text: (-len(text), text))
    return regex.compile("|".join(map(regex.escape, longest_first)))


def check_special(special: Sequence[str]) -> None:
    """Refuse special tokens that no text could name. Raises TokenizerError."""
    if isinstance(special, str):
        raise TokenizerError("special tokens are a list", found=f"the text {special!r}", do=f"write [{special!r}]")
    for text in special:
        if not isinstance(text, str) or not text:
            raise TokenizerError("a special token is text, and not empty", found=repr(text))
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise TokenizerError("a special token must be encodable as UTF-8", found=repr(text)) from None
    twice = sorted(text for text, count in Counter(special).items() if count > 1)
    if twice:
        raise TokenizerError("a special token is named twice", found=", ".join(map(repr, twice)))


def _with_gaps(text: str, found: Iterable[regex.Match[str]]) -> list[str]:
    """The matches and what lies between them, none empty."""
    words: list[str] = []
    done = 0
    for match in found:
        words += [text[done : match.start()], match.group()]
        done = match.end()
    return [word for word in (*words, text[done:]) if word]
