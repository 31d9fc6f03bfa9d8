"""Weights as files hold them: plain arrays, and blocks of few bits that share a scale. NumPy alone.

Letters: N blocks. The kinds are those of ggml (`quantise_kinds`); numbers are exact to the bit with its own.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.model.quantise_kinds import KINDS

AT_ONCE = 1 << 14
"""Numbers that are worked on at a time, so that what is in between stays in the cache."""


@dataclass(frozen=True)
class Blocks:
    """An array as blocks of one kind along its last axis."""

    kind: str
    """A name in `KINDS`."""
    shape: tuple[int, ...]
    """Of the numbers; the last is a multiple of the kind's block."""
    data: ndarray
    """uint8 [bytes], usually memory-mapped."""

    def __post_init__(self) -> None:
        kind = KINDS[self.kind]
        wanted = math.prod(self.shape) // kind.numbers * kind.bytes
        assert self.shape[-1] % kind.numbers == 0, f"{self.shape} in blocks of {kind.numbers}"
        assert self.data.dtype == np.uint8, f"bytes are uint8, not {self.data.dtype}"
        assert self.data.shape == (wanted,), f"{self.data.shape}, wanted {wanted} bytes"

    def __getitem__(self, at: int) -> "Blocks":
        """One place of the first axis of several."""
        assert len(self.shape) > 1, "a row of blocks cannot be cut"
        assert 0 <= at < self.shape[0], f"place {at} of {self.shape[0]}"
        size = len(self.data) // self.shape[0]
        return Blocks(self.kind, self.shape[1:], self.data[at * size : (at + 1) * size])

    def dequantise(self, out: ndarray | None = None) -> ndarray:
        """The numbers, float32; written to `out` (C-contiguous, any float type) if it is given.

        >>> Blocks("BF16", (2,), np.array([0x80, 0x3F, 0, 0xC0], np.uint8)).dequantise()
        array([ 1., -2.], dtype=float32)
        """
        kind = KINDS[self.kind]
        if out is None:
            out = np.empty(self.shape, np.float32)
        assert out.shape == self.shape, f"{out.shape}, wanted {self.shape}"
        assert out.flags.c_contiguous, "numbers are written side by side"
        raw, flat = self.data.reshape(-1, kind.bytes), out.reshape(-1, kind.numbers)
        step = AT_ONCE // kind.numbers
        own = None if out.dtype == np.float32 else np.empty((min(step, len(raw)), kind.numbers), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale is no number, and so is what it scales
            for first in range(0, len(raw), step):
                part = raw[first : first + step]
                place = flat[first : first + step]
                if own is None:
                    kind.unpack(part, place)
                else:
                    kind.unpack(part, own[: len(part)])
                    np.copyto(place, own[: len(part)], casting="same_kind")
        return out


Stored = ndarray | Blocks
"""A weight as a file holds it."""


def quantise(kind: str, numbers: ndarray) -> Blocks:
    """An array as blocks of a kind. Raises FormatError for numbers that are not finite or too large for its scales.

    >>> quantise("Q4_1", np.arange(32) % 16).dequantise()[:4]
    array([0., 1., 2., 3.], dtype=float32)
    """
    packing = KINDS[kind]
    assert packing.pack is not None, f"{kind} is read only"
    rows = numbers.reshape(-1, packing.numbers)
    data = np.empty((len(rows), packing.bytes), np.uint8)
    step = AT_ONCE // packing.numbers
    for first in range(0, len(rows), step):
        part = rows[first : first + step].astype(np.float32)
        if not np.isfinite(part).all() or np.abs(part).max(initial=0) > packing.most:
            raise FormatError(f"a number is not finite or too large for {kind}", allowed=f"up to {packing.most:g}")
        packing.pack(part, data[first : first + step])
    return Blocks(kind, numbers.shape, data.reshape(-1))


def floats(stored: Stored, out: ndarray | None = None) -> ndarray:
    """The numbers of a stored weight; written to `out` if it is given, else a plain array is given as it is."""
    if isinstance(stored, Blocks):
        return stored.dequantise(out)
    if out is None:
        return stored
    np.copyto(out, stored, casting="same_kind")
    return out
