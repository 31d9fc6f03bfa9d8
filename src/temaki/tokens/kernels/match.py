"""One pre-token at a time: each pattern of `split.PATTERNS` as a function from where a pre-token begins to its end.

Slow and exact: the windows of `kernels.windows` fall back on it. All are given valid UTF-8 and never read from `stop`
on.
"""
# pyright: basic, reportCallIssue=false

from temaki.base.compile import bare_kernel
from temaki.tokens.kernels.classes import LETTERS, REST, WHITE, byte, char
from temaki.tokens.unicode import BOTH, LOWER, MARK, NEWLINE, NUMBER, UPPER

GPT2, CL100K, O200K, LLAMA3, QWEN2, SMOLLM = range(6)

END = 15
"""The class of the place behind the text; in no set of classes."""
FIRST = 1 << UPPER | 1 << BOTH | 1 << MARK
"""What o200k takes at the head of a word, and LAST at its tail."""
LAST = 1 << LOWER | 1 << BOTH | 1 << MARK


@bare_kernel
def token_end(rule, text, at, stop):
    """The end of the pre-token that begins at `at` < stop."""
    if rule in (GPT2, SMOLLM):
        return _gpt2_end(rule, text, at, stop)
    if rule == O200K:
        return _o200k_end(rule, text, at, stop)
    return _cl100k_end(rule, text, at, stop)


@bare_kernel
def contraction(text, at, stop, any_case):
    """The bytes of s, d, m, t, ll, ve or re at `at`, 0 if none is there; (?i) also takes U+017F for an s."""
    if at >= stop:
        return 0
    first = byte(text, at)
    second = byte(text, at + 1) if at + 1 < stop else 0
    if any_case:
        if first == 0xC5 and second == 0xBF:
            return 2
        first, second = first | 32, second | 32
    if first == 115 or first == 100 or first == 109 or first == 116:  # s d m t
        return 1
    if second == 108:
        return 2 if first == 108 else 0  # ll
    return 2 if second == 101 and (first == 118 or first == 114) else 0  # ve re


@bare_kernel
def _look(text, at, stop):
    """`char`, or END where the text ends."""
    return char(text, at) if at < stop else END


@bare_kernel
def _within(wanted, code):
    return (wanted >> (code & 15)) & 1 != 0


@bare_kernel
def _run(text, at, stop, wanted):
    """The end of the characters from `at` on whose class is wanted."""
    while at < stop:
        code = char(text, at)
        if not _within(wanted, code):
            break
        at += code >> 4
    return at


@bare_kernel
def _white_end(rule, text, at, stop):
    r"""\s++$ (cl100k), \s*[\r\n]+ (not in GPT-2), \s+(?!\S) (numbers too in SmolLM), \s+: the first that matches."""
    start, last, lines = at, at, at
    while at < stop:
        code = char(text, at)
        if not _within(WHITE, code):
            break
        last = at
        at += code >> 4
        if code & 15 == NEWLINE:
            lines = at
    if rule == CL100K and at == stop:
        return at
    if lines > start and rule != GPT2 and rule != SMOLLM:
        return lines
    if at == stop or last == start or (rule == SMOLLM and char(text, at) & 15 == NUMBER):
        return at
    return last


@bare_kernel
def _gpt2_end(rule, text, at, stop):
    if byte(text, at) == 39:
        length = contraction(text, at + 1, stop, False)
        if length:
            return at + 1 + length
    body = at + 1 if byte(text, at) == 32 else at
    code = _look(text, body, stop)
    if _within(LETTERS, code):
        return _run(text, body, stop, LETTERS)
    if _within(REST, code):
        return _run(text, body, stop, REST)
    if code & 15 == NUMBER:
        if rule == GPT2:
            return _run(text, body, stop, 1 << NUMBER)
        if body == at:
            return at + (code >> 4)
    return _white_end(rule, text, at, stop)


@bare_kernel
def _numbers_end(text, at, stop, most):
    while at < stop and most:
        code = char(text, at)
        if code & 15 != NUMBER:
            break
        at += code >> 4
        most -= 1
    return at


@bare_kernel
def _rest_end(rule, text, at, stop):
    r"""?[^\s\p{L}\p{N}]+[\r\n]* (o200k: and /); `at` if it does not match."""
    body = at + 1 if byte(text, at) == 32 else at
    end = _run(text, body, stop, REST)
    if end == body:
        return at
    while end < stop and (byte(text, end) == 10 or byte(text, end) == 13 or (rule == O200K and byte(text, end) == 47)):
        end += 1
    return end


@bare_kernel
def _cl100k_end(rule, text, at, stop):
    if byte(text, at) == 39:
        length = contraction(text, at + 1, stop, True)
        if length:
            return at + 1 + length
    code = char(text, at)
    kind = code & 15
    if kind == NUMBER:
        return _numbers_end(text, at, stop, 1 if rule == QWEN2 else 3)
    body = at if kind == NEWLINE or _within(LETTERS, code) else at + (code >> 4)
    end = _run(text, body, stop, LETTERS)
    if end > body:
        return end
    end = _rest_end(rule, text, at, stop)
    return end if end > at else _white_end(rule, text, at, stop)


@bare_kernel
def _lowered(text, at, stop):
    """[Lu Lt Lm Lo M]*[Ll Lm Lo M]+ with its backtracking; `at` if it does not match."""
    good = at
    while at < stop:
        code = char(text, at)
        if not _within(FIRST, code):
            if code & 15 == LOWER:
                good = _run(text, at, stop, LAST)
            break
        at += code >> 4
        if code & 15 != UPPER:
            good = at
    return good


@bare_kernel
def _ended(text, at, stop):
    """`at`, or the end of an 's and the like there."""
    if at < stop and byte(text, at) == 39:
        length = contraction(text, at + 1, stop, True)
        if length:
            return at + 1 + length
    return at


@bare_kernel
def _o200k_end(rule, text, at, stop):
    code = char(text, at)
    kind = code & 15
    if kind == NUMBER:
        return _numbers_end(text, at, stop, 3)
    body = at if kind == NEWLINE or _within(LETTERS, code) else at + (code >> 4)
    for begin in (body, at):
        end = _lowered(text, begin, stop)
        if end > begin:
            return _ended(text, end, stop)
    for begin in (body, at):
        end = _run(text, begin, stop, 1 << UPPER)
        if end > begin:
            return _ended(text, end, stop)
    end = _rest_end(rule, text, at, stop)
    return end if end > at else _white_end(rule, text, at, stop)
