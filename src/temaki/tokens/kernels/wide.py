"""Numbers of any size: a float64 and a power of two apart; and draws that depend on their place alone."""
# pyright: basic, reportCallIssue=false

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from temaki.base.compile import bare_kernel


@bare_kernel
def uniform(key, place):
    """A number in [0, 1) that depends on a key and a place alone. Source: Steele et al. 2014 (SplitMix)."""
    mixed = key + np.uint64(place + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.float64(mixed >> np.uint64(11)) * 2.0**-53


@intrinsic
def _bits(_context, value):
    """`_bits(x)`: a float64 as the int64 with the same bits."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _float(_context, value):
    """`_float(i)`: the float64 with the bits of an int64."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


@bare_kernel
def two_to(power):
    """2^power for power <= 1023; 0 below -1022."""
    return _float(max(power + 1023, 0) << 52)


@bare_kernel
def exponent(number):
    """The power of two of a positive normal float64: floor(log2(number))."""
    return (_bits(number) >> 52) - 1023
