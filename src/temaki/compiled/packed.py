"""One packed matrix by itself, for one thread at a time: heads of further ids are made of few. Letters: R rows."""

import numpy as np
from numpy import ndarray

from temaki.base.compile import bare_kernel
from temaki.compiled.matrix import act_bytes, kind_of, pack, packed_bytes, product, read_row
from temaki.compiled.plan import Bits
from temaki.compiled.products import TILE

ALIGNED = 64
"""Bytes."""
ROWS = 16
"""Rows of one product."""


class Packed:
    """A matrix [outs, columns], in float32 or in 8 or 4 bits."""

    def __init__(self, matrix: ndarray, bits: Bits | None):
        self.outs, self.columns = matrix.shape
        self.kind = kind_of(np.empty(0), bits)
        self._bytes = _aligned(packed_bytes(self.kind, self.outs, self.columns))
        pack(matrix.astype(np.float32, copy=False), None, self.kind, self._bytes)
        self._acts = _aligned(ROWS * act_bytes(self.columns))

    def times(self, x: ndarray) -> ndarray:
        """x [R, columns] -> float32 [R, outs]: x matrix^T; a row does not depend on the others."""
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty((len(x), self.outs), np.float32)
        for first in range(0, len(x), ROWS):
            rows = x[first : first + ROWS]
            into = out[first : first + ROWS].reshape(-1)
            stride = act_bytes(self.columns)
            _times(
                self._bytes, self.kind, self.outs, self.columns, rows.reshape(-1), len(rows), self._acts, stride, into
            )
        return out


@bare_kernel
def _times(weights, kind, outs, columns, x, rows, acts, stride, out):
    for r in range(rows):
        read_row(x, r * columns, columns, kind, acts, r * stride)
    product(weights, 0, kind, outs, columns, acts, 0, stride, rows, out, 0, outs, 0, (outs + TILE - 1) // TILE)


def _aligned(count: int) -> ndarray:
    """uint8 [count] from a multiple of 64 on."""
    room = np.zeros(count + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + count]
