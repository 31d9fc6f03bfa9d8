"""UTF-8: is it, and where is it not?"""
# pyright: basic, reportCallIssue=false

from temaki.base.compile import bare_kernel, equal64, leading, prefetch, within64
from temaki.tokens.kernels.classes import AHEAD, ONE, THREE, TWO, ZERO, below, byte, hold


@bare_kernel
def validate(text, begin, stop):
    """The place of the first byte of text[begin:stop] that is not UTF-8, as Python's decoder names it; -1 if all is.

    `text` holds 64 bytes more; what stands there does not matter.
    """
    at = begin
    while at + 64 <= stop:
        prefetch(text, at + AHEAD)
        high = within64(text, at, 0x80, 0xFF)
        if high == ZERO:
            at += 64
            continue
        step = _valid(text, at, high)
        if step == 0:
            break
        at += step
    while at < stop:
        length = _length(text, at, stop)
        if length == 0:
            return at
        at += length
    return -1


@bare_kernel
def _valid(text, at, high):
    """How many of the 64 bytes from `at` on are valid, whole characters; 0 where some are not."""
    follow = hold(within64(text, at, 0x80, 0xBF))
    two = hold(within64(text, at, 0xC2, 0xDF))
    three = hold(within64(text, at, 0xE0, 0xEF))
    four = hold(within64(text, at, 0xF0, 0xF4))
    whole = 63 - leading(~follow)  # where the last character begins: all before it is in sight
    if whole < 0:
        return 0
    inside = below(whole + 1)
    wanted = (two | three | four) << ONE | (three | four) << TWO | four << THREE
    wrong = (wanted ^ follow) | (high & ~(two | three | four | follow))
    low, middle = hold(within64(text, at, 0x80, 0x8F)), hold(within64(text, at, 0x90, 0x9F))
    wrong |= hold(equal64(text, at, 0xE0)) << ONE & (low | middle)  # longer than needed
    wrong |= hold(equal64(text, at, 0xED)) << ONE & ~(low | middle)  # surrogates
    wrong |= hold(equal64(text, at, 0xF0)) << ONE & low  # longer than needed
    wrong |= hold(equal64(text, at, 0xF4)) << ONE & ~low  # above U+10FFFF
    return 0 if wrong & inside != ZERO else whole


@bare_kernel
def _length(text, at, stop):
    """The length of the character at `at`, 0 if it is none or `stop` cuts it."""
    first = byte(text, at)
    if first < 0x80:
        return 1
    low, high = 0x80, 0xBF
    if 0xC2 <= first <= 0xDF:
        length = 2
    elif 0xE0 <= first <= 0xEF:
        length = 3
        low = 0xA0 if first == 0xE0 else 0x80
        high = 0x9F if first == 0xED else 0xBF
    elif 0xF0 <= first <= 0xF4:
        length = 4
        low = 0x90 if first == 0xF0 else 0x80
        high = 0x8F if first == 0xF4 else 0xBF
    else:
        return 0
    if at + length > stop or not low <= byte(text, at + 1) <= high:
        return 0
    for more in range(2, length):
        if byte(text, at + more) & 0xC0 != 0x80:
            return 0
    return length
