"""How much memory this process holds and has held at most. Linux tells it; elsewhere nothing is known."""

import contextlib
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def held() -> int | None:
    """Bytes in memory now; None where the system does not tell."""
    return _status("VmRSS")


def peak() -> int | None:
    """Most bytes that were in memory at once since the last `forget`, or since the start; None if unknown."""
    return _status("VmHWM")


def forget() -> None:
    """Let `peak` count from here on. Where the system refuses, it goes on counting from the start: never too little."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            _RESET.write_text("5")


def _status(name: str) -> int | None:
    if sys.platform != "linux":
        return None
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None
