"""Texts that have broken tokenizers: marks, joined emoji, every kind of whitespace, odd cases, what is unassigned."""

import random
from collections.abc import Iterator

SCRAPS = [
    "the",
    " the",
    "The",
    "THE",
    "a",
    "'s",
    "'S",
    "'\u017f",
    "'ll",
    "\u2019s",
    "don't",
    " 2024",
    "1234567",
    "٣٤",
    "½",
    "²",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    " \n ",
    "\u00a0",
    "\u0085",
    "\u2003",
    "\u200b",
    "\u3000",
    "\u001c",
    "\x0b",
    "\x0c",
    "\u2028",
    "\0",
    "!",
    "?!",
    "...",
    "/*",
    "<|",
    "|>",
    "<s>",
    "</s>",
    "[UNK]",
    "##",
    "▁",
    "Ġ",
    "_",
    "-",
    "你",
    "好世界",
    "ねこ",
    "ネコ",
    "한국어",
    "Привет",
    "αβγΣ",
    "שלום",
    "العربية",
    "नमस्ते",
    "ภาษา",
    "é",
    "e\u0301",
    "ﬁ",
    "ǅ",
    "ʰ",
    "Å",
    "\u212b",
    "\u0300",
    "😀",
    "👨\u200d👩\u200d👧",
    "🇩🇪",
    "❤\ufe0f",
    "\U00020000",
    "\U000e0100",
    "\U0010ffff",
    "\ue000",
    "\ufeff",
    "\ufffd",
    "\u0378",
    "İ",
    "ß",
    "a" * 70,
    " " * 70,
    "=" * 70,
    "x" * 101,
]
"""What texts are put together of."""


def texts(count: int, seed: int, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Each scrap, then random texts of scraps, of `more` and of any code points; the same for the same seed."""
    yield ""
    yield from SCRAPS
    draw = random.Random(seed)
    for number in range(count):
        if number % 4:
            yield "".join(draw.choices([*SCRAPS, *more, *more, *more], k=draw.randint(1, 12)))
        else:
            yield "".join(code_point(draw) for _ in range(draw.randint(1, 12)))


def code_point(draw: random.Random) -> str:
    """Any code point but a surrogate and the script that Unicode 18 brought, which some libraries do not know yet.

    Of the first plane twice out of three times.
    """
    code = draw.randrange(0x10000 if draw.random() < 0.67 else 0x110000)
    return chr(code if not (0xD800 <= code < 0xE000 or 0x3D000 <= code < 0x40000) else 0x20)
