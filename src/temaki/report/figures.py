"""Numbers as people read them: short, with their unit, and never a lie by rounding to zero."""

import math
from typing import Any

SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
LARGEST = 1e300
"""Beyond this a number cannot be drawn; it counts as not finite."""


def number(value: Any) -> float | None:
    """The finite number in a value read from a file, or None: text, nan, infinities, absent values.

    >>> number(3), number("nan"), number(float("inf")), number(True), number(None)
    (3.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """The count in a value read from a file, or None.

    >>> whole(3), whole(3.5), whole("3")
    (3, None, None)
    """
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def short(value: float | None, digits: int = 3) -> str:
    """About `digits` digits and a suffix: k, M, G, T; a dash for None.

    >>> short(1234567), short(999), short(0.00031), short(999_999), short(None)
    ('1.23M', '999', '0.00031', '1M', '–')
    """
    if value is None:
        return "–"
    for size, suffix in SUFFIXES:
        if abs(value) >= size * (1 - 0.5 * 10**-digits):
            return f"{value / size:.{digits}g}".replace("e+03", "000") + suffix
    return f"{value:.{digits}g}"


def fixed(value: float | None, places: int = 3) -> str:
    """With so many decimal places; a dash for None.

    >>> fixed(1.20704), fixed(None)
    ('1.207', '–')
    """
    return "–" if value is None else f"{value:,.{places}f}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart.

    >>> count(12500)
    '12,500'
    """
    return "–" if value is None else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share of one as percent.

    >>> percent(0.713)
    '71%'
    """
    return "–" if share is None else f"{100 * share:.0f}%"


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units.

    >>> duration(12.3), duration(305), duration(3600 * 5 + 61), duration(90_000)
    ('12.3s', '5m 5s', '5h 1m', '1d 1h')
    """
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    rest = math.floor(seconds + 0.5)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        parts.append((amount, unit))
    first = next(i for i, (amount, _) in enumerate(parts) if amount)
    return " ".join(f"{amount}{unit}" for amount, unit in parts[first : first + 2] if amount)


def size(amount: float | None, unit: str = "B") -> str:
    """Bytes, or another unit, in decimal multiples.

    >>> size(1763142), size(12), size(4e11, "FLOP/s")
    ('1.76 MB', '12 B', '400 GFLOP/s')
    """
    if amount is None:
        return "–"
    text = short(amount)
    return f"{text[:-1]} {text[-1]}{unit}" if text[-1].isalpha() else f"{text} {unit}"
