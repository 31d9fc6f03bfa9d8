"""Text -> where its pre-tokens end, compiled: the same as `split.Splitter` for each named pattern.

The text is looked at in windows of 64 bytes, each from the begin of a pre-token on, so that no window needs to know
what lies before it: masks of classes, and boundaries by algebra on them. What a window cannot decide (a pre-token that
fills it, some rare neighbours) is matched one character at a time. All arrays of text hold at least 64 bytes more than
are split; what stands there does not matter.
"""
# pyright: basic, reportCallIssue=false

from temaki.base.compile import bare_kernel, leading, prefetch, trailing, within64
from temaki.tokens.kernels.classes import AHEAD, LETTERS, ONE, ZERO, char
from temaki.tokens.kernels.match import CL100K, GPT2, LLAMA3, O200K, QWEN2, SMOLLM, token_end
from temaki.tokens.kernels.places import ROOM, write
from temaki.tokens.kernels.streaks import gpt2_streak, lined_streak
from temaki.tokens.kernels.utf8 import validate
from temaki.tokens.kernels.windows import cl100k_window, gpt2_window, o200k_window
from temaki.tokens.unicode import MARK, NEWLINE, NUMBER, OTHER, SPACE

__all__ = ["RULES", "ends", "safe_cut", "validate"]

RULES = {
    "gpt2": GPT2,
    "cl100k": CL100K,
    "o200k": O200K,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
    "smollm": SMOLLM,
}
"""Name of a pattern -> its number for the kernels."""


@bare_kernel
def ends(rule, text, begin, stop, out):
    """Split text[begin:stop], valid UTF-8, as if it stood alone; `out` gets the end of each pre-token until it is full.

    text uint8, out int64; gives (ends written, the last of them). The rest is split by a call from there on.
    """
    at, count, room = begin, 0, len(out)
    small = rule in (GPT2, SMOLLM)
    while at < stop and count < room:
        prefetch(text, at + AHEAD)
        if within64(text, at, 0x80, 0xFF) == ZERO:
            if small:
                count, at = gpt2_streak(text, at, stop, rule == SMOLLM, out, count)
            else:
                count, at = lined_streak(rule, text, at, stop, out, count)
            if count == room:
                break
        if small:
            starts = gpt2_window(text, at, stop, rule == SMOLLM)
        elif rule == O200K:
            starts = o200k_window(text, at, stop)
        else:
            starts = cl100k_window(rule, text, at, stop)
        if starts == ZERO:
            at = token_end(rule, text, at, stop)
            out[count] = at
            count += 1
            continue
        base = at
        if count + ROOM <= room:
            at += 63 - leading(starts)
            count += write(out, count, base, starts)
            continue
        while starts != ZERO and count < room:
            at = base + trailing(starts)
            starts &= starts - ONE
            out[count] = at
            count += 1
    return count, at


@bare_kernel
def safe_cut(rule, text, begin, stop):
    """The last place inside text[begin:stop] where it can be cut whatever follows `stop`; `begin` if none is known.

    Both sides, each split for itself, give the pre-tokens of the whole: as `split.CUTS` has it. The rule does not
    matter yet.
    """
    after, place = 0, stop
    while place > begin:
        at = place - 1
        while at > begin and text[at] & 0xC0 == 0x80:
            at -= 1
        kind = char(text, at) & 15
        if place < stop and _safe(kind, after, text[place]):
            return place
        after, place = kind, at
    return begin


@bare_kernel
def _safe(before, after, first):
    """Whether two neighbours of these classes can be parted; `first` is the first byte of the second."""
    if (LETTERS >> before) & 1:
        return after in (SPACE, NEWLINE, NUMBER) or (after == OTHER and first != 39)
    if before == NUMBER:
        return after != NUMBER
    return before in (OTHER, MARK) and after == SPACE
