"""Ctrl-C that is never forgotten: one that was swallowed on its way is raised again by the next sign of progress.

An interrupt is an exception raised between two steps of Python. Where it falls into a callback of the compiler of
kernels, it is printed and dropped there, and the work would go on.
"""

import signal
from types import FrameType

_asked: list[int] = []


def remember() -> None:
    """From now on SIGINT is noted, and raises KeyboardInterrupt as before; where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raise KeyboardInterrupt if one was asked for."""
    if _asked:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    signal.default_int_handler(number, frame)
