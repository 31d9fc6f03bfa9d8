"""Words by script: what fertility (tokens a word) is counted over.

A word is a run of letters of one script with their marks, and a space before it where one stands there, as it does in
running text. In scripts that are written without spaces each character is a word, so that the number there is tokens a
character. Source of the measure: Rust et al. 2021 (fertility), by script as Petrov et al. 2023 compare languages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import regex

SPACED = (
    "Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Devanagari", "Bengali", "Gurmukhi",
    "Gujarati", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Ethiopic", "Mongolian", "Hangul",
)  # fmt: skip
"""Scripts whose words have spaces between them."""
UNSPACED = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
"""Scripts in which a character counts as a word."""
NUMBERS = "numbers"
"""Runs of digits, of whatever script."""
KEPT = 20_000
"""Words of a script that are kept for counting."""
FEWEST = 50
"""Below so many words a script is not told of."""


@dataclass(frozen=True)
class Words:
    """The words of one script in a text."""

    count: int
    """How many there are."""
    kept: tuple[str, ...]
    """The first KEPT of them."""


def by_script(texts: Iterable[str]) -> Mapping[str, Words]:
    """The words of texts by script, the most frequent script first; those with fewer than FEWEST words are left out.

    >>> found = by_script(["the cat " * 60 + "猫" * 50])
    >>> [(name, words.count, words.kept[1]) for name, words in found.items()]
    [('Latin', 120, ' cat'), ('Han', 50, '猫')]
    """
    counts: dict[str, int] = {}
    kept: dict[str, list[str]] = {}
    for text in texts:
        for match in _expression().finditer(text):
            script = match.lastgroup
            assert script is not None, "each alternative has a name"
            counts[script] = counts.get(script, 0) + 1
            held = kept.setdefault(script, [])
            if len(held) < KEPT:
                held.append(match.group())
    order = sorted((name for name in counts if counts[name] >= FEWEST), key=lambda name: -counts[name])
    return {name: Words(counts[name], tuple(kept[name])) for name in order}


@cache
def _expression() -> regex.Pattern[str]:
    letter = {name: rf"\p{{Script={name}}}\p{{M}}*+" for name in (*SPACED, *UNSPACED)}
    parts = [rf"(?P<{name}> ?(?:{letter[name]})++(?:['’](?:{letter[name]})++)*+)" for name in SPACED]
    parts += [rf"(?P<{name}>{letter[name]})" for name in UNSPACED]
    return regex.compile("|".join([*parts, rf"(?P<{NUMBERS}> ?\p{{Nd}}++)"]))
