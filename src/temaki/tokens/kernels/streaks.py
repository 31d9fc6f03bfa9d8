"""Window after window of plain ASCII: the algebra of `kernels.windows` with what it needs from one window to the next.

A window of `windows` stands where a pre-token begins, so each waits for the one before it. Here they follow each other
every 64 bytes whatever is in them, and the processor works on several at once. All that needs more than the last
character before a window and the first behind it ends the streak: then `windows` has the word. Carries are the highest
bits of the masks of the window before, moved down.
"""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import bare_kernel, equal64, leading, trailing, within64
from temaki.tokens.kernels.classes import ONE, THREE, TWO, ZERO, below, bit, byte, flood, hold
from temaki.tokens.kernels.match import O200K, QWEN2, contraction
from temaki.tokens.kernels.places import ROOM, write

TOP = np.uint64(63)
"""How far the last bit of a window is moved down to be the carry."""


@bare_kernel
def gpt2_streak(text, at, stop, alone, out, count):
    """Go on with GPT-2's pattern (`alone`: SmolLM's) from `at`, where a pre-token and 64 bytes of ASCII begin.

    Writes ends from out[count] on; gives their new number and the last of them (or `at`).
    """
    place, room = at, len(out) - ROOM
    first = ONE
    letters, numbers, rest, spaces, blank = ZERO, ZERO, ZERO, ZERO, ZERO
    while place + 64 < stop and count <= room and within64(text, place + 1, 0x80, 0xFF) == ZERO:
        letters_now = hold(within64(text, place, 97, 122) | within64(text, place, 65, 90))
        numbers_now = hold(within64(text, place, 48, 57))
        blank_now = hold(equal64(text, place, 32))
        spaces_now = hold(blank_now | within64(text, place, 9, 13))
        ahead = hold(equal64(text, place + 1, 32) | within64(text, place + 1, 9, 13))
        rest_now = ~(letters_now | numbers_now | spaces_now)
        joined = blank_now << ONE | blank
        starts = letters_now & ~(letters_now << ONE | letters) | rest_now & ~(rest_now << ONE | rest)
        if alone:
            starts = starts & ~joined | numbers_now
            ahead |= hold(within64(text, place + 1, 48, 57))
        else:
            starts = (starts | numbers_now & ~(numbers_now << ONE | numbers)) & ~joined
        quotes = starts & rest_now & equal64(text, place, 39)
        starts |= spaces_now & ~((spaces_now << ONE | spaces) & ahead)
        while quotes != ZERO:
            k = trailing(quotes)
            quotes &= quotes - ONE
            length = contraction(text, place + k + 1, stop, False)
            if length:
                if k + 1 + length > 63:
                    return count, at
                starts = starts & ~bit(k + 1) | bit(k + 1 + length)
        starts &= ~first
        letters, numbers, rest = letters_now >> TOP, numbers_now >> TOP, rest_now >> TOP
        spaces, blank, first = spaces_now >> TOP, blank_now >> TOP, ZERO
        if starts != ZERO:
            count += write(out, count, place, starts)
            at = place + 63 - leading(starts)
        place += 64
    return count, at


@bare_kernel
def lined_streak(rule, text, at, stop, out, count):
    """The same for the patterns that know newlines: cl100k, Llama 3, Qwen 2, o200k."""
    place, room = at, len(out) - ROOM
    first = ONE
    letters, lower, rest, taken, free, lines, blank, heads = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    while place + 64 < stop and count <= room and within64(text, place + 1, 0x80, 0xFF) == ZERO:
        lower_now = within64(text, place, 97, 122)
        upper_now = within64(text, place, 65, 90)
        letters_now = lower_now | upper_now
        numbers = within64(text, place, 48, 57)
        lines_now = equal64(text, place, 10) | equal64(text, place, 13)
        blank_now = equal64(text, place, 32)
        spaces = blank_now | within64(text, place, 9, 13)
        ahead = equal64(text, place + 1, 32) | within64(text, place + 1, 9, 13)
        rest_now = ~(letters_now | numbers | spaces)
        plain = spaces & ~lines_now
        taken_now = flood(lines_now & (rest_now << ONE | rest | taken), lines_now)
        free_now = spaces & ~taken_now
        lines_now &= ~taken_now
        lasts = plain & ~ahead
        starts = free_now & ~(free_now << ONE | free) | lasts
        after = plain & (lines_now << ONE | lines)
        beyond = plain + after
        if beyond < plain or beyond & ~plain & lines_now != ZERO:
            after = _last_lines(text, place, stop, after, plain, lines_now)
            if after == ZERO:
                break
        starts |= after
        heads_now = lasts | rest_now & ~(rest_now << ONE | rest | blank_now << ONE | blank)
        starts |= heads_now & rest_now
        starts |= letters_now & ~(letters_now << ONE | letters | heads_now << ONE | heads)
        if rule == QWEN2:
            starts |= numbers
        else:
            turn = numbers & ~(numbers << ONE)
            starts |= turn
            fourth = numbers & (numbers << ONE) & (numbers << TWO) & (numbers << THREE)
            if fourth | numbers >> TOP != ZERO:
                if numbers >> TOP != ZERO:
                    break
                while turn != ZERO:
                    starts |= turn
                    turn = (turn << THREE) & fourth
        quotes = equal64(text, place, 39)
        if rule == O200K:
            if equal64(text, place, 47) & (taken_now << ONE | taken) != ZERO:
                break
            starts |= upper_now & (lower_now << ONE | lower)
            quotes &= letters_now << ONE | letters
        else:
            quotes &= heads_now
        whole = True
        while quotes != ZERO and whole:
            k = trailing(quotes)
            quotes &= quotes - ONE
            length = contraction(text, place + k + 1, stop, True)
            if length:
                end = k + 1 + length
                whole = end < 63 and (rule != O200K or byte(text, place + end) != 39)
                starts = starts & ~(bit(k) - ONE ^ bit(end & 63) - ONE) if rule == O200K else starts
                starts |= bit(end & 63)
        if not whole:
            break
        starts &= ~first
        letters, lower, rest, taken = letters_now >> TOP, lower_now >> TOP, rest_now >> TOP, taken_now >> TOP
        free, lines, blank, heads = free_now >> TOP, lines_now >> TOP, blank_now >> TOP, heads_now >> TOP
        first = ZERO
        if starts != ZERO:
            count += write(out, count, place, starts)
            at = place + 63 - leading(starts)
        place += 64
    return count, at


@bare_kernel
def _last_lines(text, place, stop, after, plain, lines):
    """Those of `after`, the begins of whitespace behind a newline, whose run holds no more newlines; ZERO: unknown."""
    beyond = plain + after
    more = beyond & ~plain & lines
    known = after
    if beyond < plain:  # the last run goes on behind the window
        others = ~equal64(text, place + 64, 32)
        end = place + 64 + trailing(others)
        if others == ZERO or end >= stop:
            return ZERO
        following = byte(text, end)
        if following == 10 or following == 13:
            known ^= bit(63 - leading(after))
        elif following >= 0x80 or 9 <= following <= 12:
            return ZERO
    while more != ZERO:
        k = trailing(more)
        more &= more - ONE
        known &= ~bit(63 - leading(after & below(k)))
    return known
