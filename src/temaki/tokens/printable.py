"""Bytes as printable characters, one for each, as GPT-2's files write them.

Source: Radford et al. 2019, the released encoder.
"""

from functools import cache

from temaki.base.errors import TokenizerError


def printable(token: bytes) -> str:
    """Bytes as text, a printable character for each byte.

    >>> printable(b" a\\n")
    'ĠaĊ'
    """
    return token.decode("latin-1").translate(_characters())


def unprintable(text: str) -> bytes:
    """The inverse of `printable`. Raises TokenizerError for a character that stands for no byte.

    >>> unprintable("ĠaĊ")
    b' a\\n'
    """
    try:
        return bytes(map(_bytes().__getitem__, text))
    except KeyError as error:
        raise TokenizerError("a character that stands for no byte", found=ascii(error.args[0])) from None


def shown(token: bytes) -> str:
    """Bytes for eyes: quoted text, or hexadecimal where they are not UTF-8.

    >>> shown(b"\\xc3"), shown(b"a")
    ('<c3>', "'a'")
    """
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return f"<{token.hex(' ')}>"


@cache
def _characters() -> dict[int, str]:
    """Byte -> character: itself where Latin-1 prints it, else the next free character from 256 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [value for value in range(256) if value not in kept]
    return {value: chr(value) for value in kept} | {value: chr(256 + n) for n, value in enumerate(moved)}


@cache
def _bytes() -> dict[str, int]:
    return {character: value for value, character in _characters().items()}
