"""Pieces as a person reads them: what is invisible becomes visible, neighbours are told apart by colour."""

import os
import sys
from collections.abc import Sequence

VISIBLE = {ord(" "): "·", ord("\n"): "⏎\n", ord("\r"): "␍", ord("\t"): "⇥\t"}
GROUNDS = (24, 52, 22, 54, 58, 23)
"""Background colours of the 256-colour terminal that neighbours take in turn, dark enough for white letters."""
LETTERS = 231
RESET = "\x1b[0m"


def coloured() -> bool:
    """Whether standard output takes colours: a terminal, and NO_COLOR is not set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def shown(token: bytes, *, lines: bool = False) -> str:
    """The bytes of a piece as text; bytes that are no whole characters in hex; with `lines`, newlines break lines.

    >>> shown(b" a\\n"), shown(b"\\xe4\\xbd"), shown(b"\\x00")
    ('·a⏎', '‹e4 bd›', '␀')
    """
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return f"‹{token.hex(' ')}›"
    visible = VISIBLE if lines else {code: mark[:1] for code, mark in VISIBLE.items()}
    controls = {code: chr(0x2400 + code) for code in range(32) if code not in visible} | {0x7F: "␡"}
    return text.translate(visible | controls)


def line(tokens: Sequence[bytes], colour: bool) -> str:
    """All pieces one behind the other: on coloured grounds, or with a bar between them.

    >>> line([b"the", b" cat"], colour=False)
    'the|·cat'
    """
    if not colour:
        return "|".join(shown(token) for token in tokens)
    made = []
    for place, token in enumerate(tokens):
        paint = f"\x1b[38;5;{LETTERS};48;5;{GROUNDS[place % len(GROUNDS)]}m"
        text = shown(token, lines=True).replace("\n", f"{RESET}\n{paint}").replace("\t", "")
        made.append(f"{paint}{text}{RESET}")
    return "".join(made)
