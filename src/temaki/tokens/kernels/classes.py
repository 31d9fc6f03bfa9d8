"""One character of UTF-8 text: its class and length; and 64 bytes at a time: class masks, bit k for byte k.

Letters: all bytes of a character carry its class. A window is the 64 bytes from a place on, or what is left of them.
"""
# pyright: basic, reportCallIssue=false

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from temaki.base.compile import bare_kernel, equal64, trailing, within64
from temaki.tokens import unicode
from temaki.tokens.unicode import BOTH, LOWER, MARK, NEWLINE, NUMBER, OTHER, SPACE, UPPER

WHICH, CLASSES = unicode.blocks()
ASCII = unicode.flat()[:128]

LETTERS = 1 << UPPER | 1 << LOWER | 1 << BOTH
"""Sets of classes: bit c for class c."""
WHITE = 1 << SPACE | 1 << NEWLINE
REST = 1 << OTHER | 1 << MARK

AHEAD = 1024
"""Bytes ahead that are asked for where each window begins where the last one ended: the processor cannot guess those,
and `validate` took four times as long on 27 MB of Chinese text."""

ZERO, ONE = np.uint64(0), np.uint64(1)
TWO, THREE = np.uint64(2), np.uint64(3)
WIDE_1, WIDE_2, WIDE_3 = np.uint64(1 << 63), np.uint64(3 << 62), np.uint64(7 << 61)


@intrinsic
def byte(_context, array, at):
    """`byte(text, i)`: item i of an array of unsigned integers, as an int; i is not looked at."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.zext(builder.load(builder.gep(data, [args[1]])), ir.IntType(64))

    return types.intp(array, types.intp), generate


@intrinsic
def hold(_context, mask):
    """`hold(mask)`: the mask, as a number that LLVM will not take apart into the vector of bits that it came from.

    Without AVX-512 it would pick single bytes out of vectors then: `validate` took five times as long on Chinese text.
    """

    def generate(_context, builder, _signature, args):
        word = ir.IntType(64)
        nothing = ir.InlineAsm(ir.FunctionType(word, [word]), "", "=r,0")
        return builder.call(nothing, args)

    return types.uint64(types.uint64), generate


@bare_kernel
def char(text, at):
    """The character at `at`: 16 * its length + its class. Reads it alone."""
    first = byte(text, at)
    if first < 0x80:
        return 16 + byte(ASCII, first)
    second = byte(text, at + 1) & 63
    if first < 0xE0:
        length, block, last = 32, first & 31, second
    elif first < 0xF0:
        length, block, last = 48, (first & 15) << 6 | second, byte(text, at + 2) & 63
    else:
        block = (first & 7) << 12 | second << 6 | byte(text, at + 2) & 63
        length, last = 64, byte(text, at + 3) & 63
    kind = byte(WHICH, block)
    if kind >= 8:
        kind = byte(CLASSES, kind << 6 | last)
    return length + kind


@bare_kernel
def bit(k):
    """Bit k, 0..63, as a mask."""
    return ONE << np.uint64(k)


@bare_kernel
def below(n):
    """The n lowest bits; all of them from 64 to 127. No branch: in Chinese text it could not be foretold."""
    return (ONE << np.uint64(n & 63)) - ONE | ZERO - np.uint64(n >> 6)


@bare_kernel
def flood(seeds, field):
    """The runs of `field` from each seed upwards; a seed lies in `field`, and at most one in each run."""
    return (field + seeds ^ field) & field


@bare_kernel
def wide(text, at, size, cased):
    """The masks of a window's characters of more than one byte.

    Gives (full, leads of two, of three, of four bytes, numbers, spaces, upper, lower, both, marks): `full` is the size
    of the window without a last character that does not fit. Where the case of letters does not matter, all may be
    in `both`. Lead bytes whose characters are all letters are known in vectors, the rest one by one.
    """
    inside = below(size)
    two = within64(text, at, 0xC2, 0xDF) & inside
    three = within64(text, at, 0xE0, 0xEF) & inside
    four = within64(text, at, 0xF0, 0xF7) & inside
    full = min(size, trailing(two & WIDE_1 | three & WIDE_2 | four & WIDE_3))
    inside = below(full)
    two, three, four = two & inside, three & inside, four & inside
    known = within64(text, at, 0xE5, 0xE9) | within64(text, at, 0xEB, 0xEC)  # U+5000..9FFF, U+B000..CFFF
    known |= equal64(text, at, 0xE4) & within64(text, at + 1, 0xB8, 0xBF)  # U+4E00..4FFF
    known &= three
    rest = three ^ known | four
    both = known | known << ONE | known << TWO
    if cased:
        rest |= two
    else:
        known = within64(text, at, 0xD0, 0xD1) & two  # U+0400..047F
        both |= known | known << ONE
        rest |= two ^ known
    numbers, spaces, upper, lower, marks = ZERO, ZERO, ZERO, ZERO, ZERO
    while rest != ZERO:
        k = trailing(rest)
        rest &= rest - ONE
        code = char(text, at + k)
        bits = below(code >> 4) << np.uint64(k)
        kind = code & 15
        numbers |= bits if kind == NUMBER else ZERO
        spaces |= bits if kind == SPACE else ZERO
        upper |= bits if kind == UPPER else ZERO
        lower |= bits if kind == LOWER else ZERO
        both |= bits if kind == BOTH else ZERO
        marks |= bits if kind == MARK else ZERO
    return full, two, three, four, numbers, spaces, upper, lower, both, marks
