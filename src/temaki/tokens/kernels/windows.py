r"""Where pre-tokens begin in 64 bytes, by algebra on masks of classes: bit k for byte k.

A window stands where a pre-token begins. It gives the places behind that where others begin, as far as it can be sure,
the end of the text as well if it is in sight; and no place at all where it cannot tell the first. Runs of one class
begin at `x & ~(x << 1)`; in a run of whitespace before something else, the last one begins a pre-token, which the
something then may go on. A window that ends in whitespace says nothing of it, as what follows decides.
"""
# pyright: basic, reportCallIssue=false

import numpy as np

from temaki.base.compile import bare_kernel, equal64, leading, trailing, within64
from temaki.tokens.kernels.classes import ONE, THREE, TWO, ZERO, below, bit, flood, wide
from temaki.tokens.kernels.match import CL100K, QWEN2, contraction


@bare_kernel
def _known(full, spaces, final):
    """How many places of a window are decided: not those of whitespace at its end, unless the text ends there."""
    return full if final else 64 - leading(below(full) & ~spaces)


@bare_kernel
def _starts(starts, known, size, final):
    """The starts that are decided, without the window's own place; the end of the text is one, if all is."""
    starts &= below(known) & ~ONE
    return starts | bit(size) if final and known == size else starts


@bare_kernel
def gpt2_window(text, at, stop, alone):
    """GPT-2's pattern; with `alone` each number is a pre-token (SmolLM)."""
    size = min(stop - at, 64)
    final = size < 64
    inside = below(size)
    full = size
    high = within64(text, at, 0x80, 0xFF) & inside
    letters = (within64(text, at, 97, 122) | within64(text, at, 65, 90)) & inside
    numbers = within64(text, at, 48, 57) & inside
    blank = equal64(text, at, 32) & inside
    spaces = (blank | within64(text, at, 9, 13)) & inside
    heads = inside
    two = three = ZERO
    if high != ZERO:
        full, two, three, four, more, white, upper, lower, both, _ = wide(text, at, size, False)
        inside = below(full)
        heads = inside & ~high | two | three | four
        letters |= upper | lower | both
        numbers |= more
        spaces |= white
    rest = inside & ~(letters | numbers | spaces)
    ahead = spaces | ~inside
    starts = letters & ~(letters << ONE) | rest & ~(rest << ONE)
    if alone:
        starts = starts & ~(blank << ONE) | numbers & heads
        ahead |= numbers
    else:
        starts = (starts | numbers & ~(numbers << ONE)) & ~(blank << ONE)
    quotes = starts & rest & equal64(text, at, 39)
    starts |= spaces & ~(spaces << ONE) | spaces & ~high & ~(ahead >> ONE)
    starts |= spaces & (two & ~(ahead >> TWO) | three & ~(ahead >> THREE))
    while quotes != ZERO:
        k = trailing(quotes)
        quotes &= quotes - ONE
        length = contraction(text, at + k + 1, stop, False)
        if length:
            starts &= ~(TWO << np.uint64(k))
            if k + 1 + length < 64:
                starts |= bit(k + 1 + length)
    return _starts(starts, _known(full, spaces, final), size, final)


@bare_kernel
def cl100k_window(rule, text, at, stop):
    """The patterns of cl100k, Llama 3 and Qwen 2."""
    size = min(stop - at, 64)
    final = size < 64
    inside = below(size)
    full = size
    high = within64(text, at, 0x80, 0xFF) & inside
    letters = (within64(text, at, 97, 122) | within64(text, at, 65, 90)) & inside
    numbers = within64(text, at, 48, 57) & inside
    blank = equal64(text, at, 32) & inside
    lines = (equal64(text, at, 10) | equal64(text, at, 13)) & inside
    spaces = (blank | within64(text, at, 9, 13)) & inside
    two = three = four = ZERO
    if high != ZERO:
        full, two, three, four, more, white, upper, lower, both, _ = wide(text, at, size, False)
        inside = below(full)
        letters |= upper | lower | both
        numbers |= more
        spaces |= white
    rest = inside & ~(letters | numbers | spaces)
    known = _known(full, spaces, final)
    starts, heads = _spaced(rule == CL100K and final, inside, high, two, three, rest, spaces, lines, blank)
    heads |= rest & ~(rest << ONE | blank << ONE)
    starts |= heads & rest
    starts |= letters & ~(letters << ONE | _behind(heads, high, two, three, four))
    starts |= _numbers(rule == QWEN2, numbers, high, two, three, four)
    quotes = heads & rest & equal64(text, at, 39)
    while quotes != ZERO:
        k = trailing(quotes)
        quotes &= quotes - ONE
        length = contraction(text, at + k + 1, stop, True)
        if length and k + 1 + length < 64:
            starts |= bit(k + 1 + length)
    return _starts(starts, known, size, final)


@bare_kernel
def o200k_window(text, at, stop):
    """The pattern of o200k."""
    size = min(stop - at, 64)
    final = size < 64
    inside = below(size)
    full = size
    high = within64(text, at, 0x80, 0xFF) & inside
    upper = within64(text, at, 65, 90) & inside
    lower = within64(text, at, 97, 122) & inside
    numbers = within64(text, at, 48, 57) & inside
    blank = equal64(text, at, 32) & inside
    lines = (equal64(text, at, 10) | equal64(text, at, 13)) & inside
    spaces = (blank | within64(text, at, 9, 13)) & inside
    two = three = four = both = marks = ZERO
    if high != ZERO:
        full, two, three, four, more, white, upper_more, lower_more, both, marks = wide(text, at, size, True)
        inside = below(full)
        upper |= upper_more
        lower |= lower_more
        numbers |= more
        spaces |= white
    letters = upper | lower | both
    known = _known(full, spaces, final)
    rest = inside & ~(letters | numbers | spaces | marks)
    if marks != ZERO:
        joined = _marks_in_words(marks, letters, rest, blank, high, two, three, four)
        both |= joined
        letters |= joined
        rest |= marks ^ joined
    slashes = equal64(text, at, 47) & (lines << ONE)
    if slashes != ZERO:  # newlines behind something else take slashes in as well
        known = min(known, trailing(slashes))
    starts, heads = _spaced(False, inside, high, two, three, rest, spaces, lines, blank)
    heads |= rest & ~(rest << ONE | blank << ONE)
    starts |= heads & rest
    starts |= letters & ~(letters << ONE | _behind(heads, high, two, three, four))
    starts |= _numbers(False, numbers, high, two, three, four)
    small = lower
    if both != ZERO:
        small |= flood(both & (lower << ONE), both)
        turns = upper & ((both & ~small) << ONE)  # a capital behind letters of both cases, none of them small before
        while turns != ZERO:
            k = trailing(turns)
            turns &= turns - ONE
            end = k + trailing(~(upper >> np.uint64(k)))
            if end >= full and not final:
                known = min(known, k)
            elif end >= 64 or letters & bit(end) == ZERO:
                starts |= bit(k)
    starts |= upper & (small << ONE)
    quotes = (letters << ONE) & equal64(text, at, 39) & inside
    while quotes != ZERO:
        k = trailing(quotes)
        quotes &= quotes - ONE
        length = contraction(text, at + k + 1, stop, True)
        if length:
            end = k + 1 + length
            starts &= ~(below(end) & ~below(k))
            known = min(known, end + 1)
            if end < 64:
                starts |= bit(end)
            break
    return _starts(starts, known, size, final)


@bare_kernel
def _spaced(whole, inside, high, two, three, rest, spaces, lines, blank):
    """The starts in whitespace of all patterns that know newlines, and those at its last character.

    Newlines right behind something else belong to it. Of the others, the last newline of a run ends a pre-token, unless
    the run ends the text and is to stay `whole`.
    """
    seeds = lines & (rest << ONE)
    taken = flood(seeds, lines)
    free = spaces & ~taken
    plain = spaces & ~lines
    ahead = spaces | ~inside
    lasts = plain & ~high & ~(ahead >> ONE) | plain & (two & ~(ahead >> TWO) | three & ~(ahead >> THREE))
    starts = free & ~(free << ONE) | lasts
    after = plain & ((lines & ~taken) << ONE)
    if after != ZERO:
        beyond = plain | (~inside)
        ends = (beyond + after) & ~beyond & lines
        while ends != ZERO:  # more newlines come in the run
            k = trailing(ends)
            ends &= ends - ONE
            after &= ~bit(63 - leading(after & below(k)))
        starts |= after
        if whole:
            body = inside & ~free
            starts &= below(64 - leading(body) + 1)
    return starts, lasts


@bare_kernel
def _marks_in_words(marks, letters, rest, blank, high, two, three, four):
    """The marks that are as letters of both cases in o200k: all but those that go on a run of something else.

    A single character of something else that begins a pre-token is but the head of a word of marks.
    """
    joined = flood(marks & (letters << ONE), marks)
    left = marks ^ joined
    while left != ZERO:
        k = trailing(left)
        run = flood(bit(k), left)
        left ^= run
        begin = 64 - leading(below(k) & ~rest)  # of what is right before the marks, k if that is no `rest`
        single = begin < k and _behind(bit(begin), high, two, three, four) == bit(k)
        if begin == k or (single and (begin == 0 or blank & bit(begin - 1) == ZERO)):
            joined |= run
        else:
            rest |= run
    return joined


@bare_kernel
def _behind(heads, high, two, three, four):
    """The places right behind the characters that begin at `heads`."""
    return (heads & ~high) << ONE | (heads & two) << TWO | (heads & three) << THREE | (heads & four) << (TWO + TWO)


@bare_kernel
def _numbers(alone, numbers, high, two, three, four):
    """The starts in runs of numbers: each one `alone`, or every third."""
    if alone:
        return numbers & (~high | two | three | four)
    starts = numbers & ~(numbers << ONE)
    fourth = numbers & (numbers << ONE) & (numbers << TWO) & (numbers << THREE)
    if fourth == ZERO:
        return starts
    if numbers & high == ZERO:
        turn = (starts << THREE) & fourth
        while turn != ZERO:
            starts |= turn
            turn = (turn << THREE) & fourth
        return starts
    heads = numbers & (~high | two | three | four)
    count = 0
    while heads != ZERO:
        k = trailing(heads)
        heads &= heads - ONE
        count = 0 if starts & bit(k) != ZERO else count + 1
        if count == 3:
            starts |= bit(k)
            count = 0
    return starts
