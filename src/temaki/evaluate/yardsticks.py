"""What two good compressors need for the same held-out text, having read the same training text.

bits per byte = 8 (size(train + held) - size(train)) / |held|: the compressor learns from the training text
and pays for the held-out text alone, as the model does. zstd at its highest level stands for dictionaries
of repeats, PPMd variant H (Shkarin 2001) for adaptive context models. No torch here: `start` measures in
another process.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyppmd
import zstandard

from temaki.base.errors import DataError

ZSTD_LEVEL = 22
PPMD_ORDER = 8
PPMD_MEMORY = (1 << 16, (1 << 32) - 37)
"""Least and most bytes of memory that the PPMd library takes from us."""
PPMD_MEMORY_A_BYTE = 64
"""Memory asked for, a byte of text; text and noise need 11 to 16, and untouched pages cost nothing."""


@dataclass(frozen=True)
class Yardsticks:
    """Bits per byte of the held-out text."""

    zstd: float
    ppmd: float


def zstd_bits(train: bytes, held: bytes) -> float:
    """Bits per byte that zstd level 22 needs for `held` after `train`, on one thread, its window over all.

    Long-distance matching helps some texts and hurts others: the smaller result counts. About 1 MB/s.
    Raises DataError for an empty held-out text.
    """
    return min(_marginal(partial(_zstd_size, long=long), train, held) for long in (False, True))


def ppmd_bits(train: bytes, held: bytes) -> float:
    """Bits per byte that PPMd variant H of order 8 needs for `held` after `train`, with memory for all of it.

    About 8 MB/s. Raises DataError for an empty held-out text.

    >>> ppmd_bits(b"to be or not to be, " * 40, b"to be or not to be, " * 20) < 0.3
    True
    """
    return _marginal(_ppmd_size, train, held)


def measure(train: bytes, held: bytes) -> Yardsticks:
    """Both yardsticks, one after the other, in this process."""
    return Yardsticks(zstd=zstd_bits(train, held), ppmd=ppmd_bits(train, held))


class Measuring:
    """Yardsticks on their way in another process."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process
        self._found: Yardsticks | None = None

    def done(self) -> bool:
        """Whether `result` would return (or raise) at once."""
        return self._found is not None or self._process.poll() is not None

    def result(self, timeout: float | None = None) -> Yardsticks:
        """The yardsticks, waited for up to `timeout` seconds.

        Raises DataError if they could not be measured, TimeoutError if they are not there in time.
        """
        if self._found is None:
            try:
                out, problem = self._process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"the yardsticks took longer than {timeout} s") from None
            if self._process.returncode != 0:
                last = (problem.strip().splitlines() or ["no message"])[-1]
                raise DataError("the yardsticks could not be measured", found=last)
            self._found = Yardsticks(**json.loads(out))
        return self._found

    def cancel(self) -> None:
        """Stop measuring; nothing is left behind."""
        self._process.kill()
        self._process.communicate()


def start(train: Path, held: Path) -> Measuring:
    """Begin to measure the yardsticks of two files in a process of their own, and return at once."""
    command = [sys.executable, "-m", "temaki.evaluate.yardsticks", str(train), str(held)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
    return Measuring(process)


def _marginal(size: Callable[[bytes], int], train: bytes, held: bytes) -> float:
    if not held:
        raise DataError("an empty held-out text has no bits per byte", do="hold out at least one document")
    return 8 * (size(train + held) - size(train)) / len(held)


def _window_log(size: int) -> int:
    """The least window, as a power of two, that covers `size` bytes, within what zstd allows.

    >>> _window_log(1), _window_log(1024), _window_log(1025)
    (10, 10, 11)
    """
    return min(max((size - 1).bit_length(), zstandard.WINDOWLOG_MIN), zstandard.WINDOWLOG_MAX)


def _zstd_size(data: bytes, long: bool) -> int:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, source_size=len(data), window_log=_window_log(len(data)), enable_ldm=long
    )
    return len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))


def _ppmd_size(data: bytes) -> int:
    least, most = PPMD_MEMORY
    memory = min(max(PPMD_MEMORY_A_BYTE * len(data), 1 << 24, least), most)
    while True:
        try:
            encoder = pyppmd.Ppmd7Encoder(PPMD_ORDER, memory)
        except MemoryError:
            if memory // 2 < max(least, 16 * len(data)):
                raise DataError(
                    "not enough memory for the PPMd yardstick",
                    found=f"{memory} bytes refused",
                    do="use less text",
                ) from None
            memory //= 2
        else:
            return len(encoder.encode(data)) + len(encoder.flush())


if __name__ == "__main__":
    found = measure(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes())
    print(json.dumps({"zstd": found.zstd, "ppmd": found.ppmd}))
