"""How much memory this process holds, has held at most, and could get; Linux tells it, elsewhere less is known."""

import contextlib
import os
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def held() -> int | None:
    """Bytes in memory now; None where the system does not tell."""
    return _field(_STATUS, "VmRSS")


def peak() -> int | None:
    """Most bytes that were in memory at once since the last `forget`, or since the start; None if unknown."""
    return _field(_STATUS, "VmHWM")


def forget() -> None:
    """Let `peak` count from here on. Where the system refuses, it goes on counting from the start: never too little."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            _RESET.write_text("5")


def available() -> int | None:
    """Bytes that this process could still get without swapping, within its container; None where nothing is known."""
    free = _field(_MEMORY, "MemAvailable")
    if free is None:
        return total()
    limit = _group()
    return free if limit is None else min(free, limit)


def total() -> int | None:
    """Bytes of main memory on this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def last_cache() -> int | None:
    """Bytes of the processor's last cache, whoever shares it; None where the system does not tell."""
    try:
        said = [(path / "size").read_text().strip() for path in _CACHES.glob("index*")]
        return max((int(each.removesuffix("K")) * 1024 for each in said), default=None)
    except (OSError, ValueError):
        return None


def _group() -> int | None:
    """What the control group of a container leaves; None where it sets no limit."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - int(stat["anon"]))
    except (OSError, ValueError, KeyError):
        return None


def _field(path: Path, name: str) -> int | None:
    if sys.platform != "linux":
        return None
    for line in path.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None
