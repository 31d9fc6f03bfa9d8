"""Room for large arrays: in memory, or in temporary files that are mapped, where a bound is set."""

import mmap
import os
import sys
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy import ndarray
from numpy.typing import DTypeLike

AROUND = 1 << 16
"""Bytes that the system may map for one place that is touched."""


class Room:
    """Makes arrays; those that are larger than an eighth of the bound lie in files and leave memory when asked to.

    The files have no name and are gone with their arrays.
    """

    def __init__(self, memory: int | None):
        """`memory`: the bound in bytes, if there is one."""
        self._memory = memory
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> ndarray:
        """A new array; what it holds is not defined. Raises OSError where the disk has no room for it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._memory is None or size <= self._memory // 8:
            return np.empty(shape, dtype)
        with tempfile.TemporaryFile(prefix="temaki-") as file:
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and later would end us
            else:
                file.truncate(size)
            return self.mapped(file, dtype).reshape(shape)

    def mapped(self, file: BinaryIO, dtype: DTypeLike) -> ndarray:
        """What a file holds, as a flat array that can be written to."""
        file.flush()
        found = mmap.mmap(file.fileno(), 0)
        self._maps.add(found)
        return np.frombuffer(found, dtype)

    def longer(self, array: ndarray, length: int) -> ndarray:
        """The same with room for `length` items or rows."""
        larger = self.empty((length, *array.shape[1:]), array.dtype)
        step = self.span(2 * larger.strides[0])
        for begin in range(0, len(array), step):
            larger[begin : min(begin + step, len(array))] = array[begin : begin + step]
            self.release()
        return larger

    @property
    def crowded(self) -> bool:
        """Whether mapped arrays are larger than may stay in memory."""
        return self._memory is not None and sum(map(len, self._maps)) > self._memory // 4

    def span(self, size: int) -> int:
        """How many items of `size` bytes may be touched before Python is asked to `release` and go on."""
        return self._memory // 4 // size if self._memory is not None and self.crowded else 1 << 20

    def release(self) -> None:
        """Let mapped arrays leave memory, where much of them is there; they are read again when needed."""
        if self._memory is None or not self.crowded or sys.platform != "linux":
            return
        shared = int(Path("/proc/self/statm").read_bytes().split()[2]) * mmap.PAGESIZE
        if shared > self._memory // 4:
            for found in self._maps:
                found.madvise(mmap.MADV_DONTNEED)
