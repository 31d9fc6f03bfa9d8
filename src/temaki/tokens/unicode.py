"""Unicode classes: what each code point is to a pre-token, as a table that compiled code reads fast.

`python -m temaki.tokens.unicode` writes `unicode_table.py` anew from the `regex` package, whose Unicode version it
notes; the tests compare the two over every code point.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import regex
from numpy import ndarray

from temaki.tokens import unicode_table

CODE_POINTS = 0x110000
BLOCK = 64
"""Code points in a block of the table: those of one lead byte, or of two, in UTF-8."""

OTHER, SPACE, NEWLINE, NUMBER, MARK, UPPER, LOWER, BOTH = range(8)

CLASSES = {
    NEWLINE: r"[\r\n]",
    SPACE: r"[^\S\r\n]",
    NUMBER: r"\p{N}",
    MARK: r"\p{M}",
    UPPER: r"[\p{Lu}\p{Lt}]",
    LOWER: r"\p{Ll}",
    BOTH: r"[\p{Lm}\p{Lo}]",
}
"""Class -> its expression; no two share a code point, OTHER is the rest. The letters, \\p{L}, are the last three."""


BROUGHT = {"18.0": 0x3D000, "17.0": 0x088F, "16.0": 0x1C89, "15.1": 0x2EBF0, "15.0": 0x10EFD, "14.0": 0x0870}
"""Version of Unicode, newest first -> a code point that it was the first to assign."""


def flat() -> ndarray:
    """The class of every code point, uint8 [CODE_POINTS].

    >>> [int(flat()[ord(c)]) for c in "Aa了1 \\n!"]
    [5, 6, 7, 3, 1, 2, 0]
    """
    runs = unicode_table.RUNS.split()
    classes = np.array([int(run[0]) for run in runs], np.uint8)
    return np.repeat(classes, [int(run[1:], 16) for run in runs])


def blocks() -> tuple[ndarray, ndarray]:
    """The table in two stages: code point c has class `classes[which[c // BLOCK] * BLOCK + c % BLOCK]`.

    Blocks 0 to 7 hold one class each, their own number: so a small `which` is the class itself. uint16
    [CODE_POINTS / BLOCK] and uint8.
    """
    known = {bytes([kind]) * BLOCK: kind for kind in range(8)}
    whole = flat().tobytes()
    which = [known.setdefault(whole[i : i + BLOCK], len(known)) for i in range(0, CODE_POINTS, BLOCK)]
    return np.array(which, np.uint16), np.frombuffer(b"".join(known), np.uint8)


def runs() -> Iterator[str]:
    """The runs of equal class in the `regex` package's tables: the class, then the length in hexadecimal."""
    kinds = bytearray(CODE_POINTS)
    text = "".join(map(chr, range(CODE_POINTS)))
    for kind, expression in CLASSES.items():
        for match in regex.finditer(expression, text):
            kinds[match.start()] = kind
    return (f"{kind}{len(list(run)):x}" for kind, run in groupby(kinds))


def source() -> str:
    """The text of `unicode_table.py`."""
    lines = ['"""Runs of code points of one class, from 0 on, as `unicode.runs` found them: generated, not edited."""']
    lines += ["", f'UNICODE = "{version()}"', '"""The version of Unicode that the table is of."""', "", 'RUNS = """']
    width = 0
    for run in runs():
        if not width or width + len(run) > 117:
            lines.append(run)
            width = len(run)
        else:
            lines[-1] += " " + run
            width += 1 + len(run)
    return "\n".join([*lines, '"""', ""])


def version() -> str:
    """The Unicode version of the `regex` package, told by a letter that each version brought."""
    for name, letter in BROUGHT.items():
        if regex.match(r"\P{Cn}", chr(letter)):
            return name
    raise AssertionError("the regex package knows no Unicode version from 14 on")


if __name__ == "__main__":
    Path(unicode_table.__file__).write_text(source(), encoding="utf-8")
