"""The machine: which device, how many threads, bits, how fast its matrix product. Only this file names devices."""

import os
import platform
import shutil
import time
from dataclasses import dataclass

import torch

from temaki.base.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """What must be the same for a resumed run to give the same bits."""

    torch: str
    device: str
    threads: int
    ranks: int
    dtype: str
    compiled: bool
    processor: str = ""


def choose(name: str | None = None) -> torch.device:
    """The device called `name`, or the best one here. Raises ConfigError for one that is not here."""
    here = ["cpu"]
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if name is None:
        return torch.device(here[0])
    if name.split(":")[0] not in here:
        raise ConfigError(f"no device {name!r} on this machine", allowed=", ".join(here))
    return torch.device(name)


def prepare(threads: int | None = None, seed: int = 0) -> None:
    """Set threads, deterministic algorithms (always on) and torch's own seed for this process."""
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


def machine(device: torch.device, dtype: torch.dtype = torch.float32, compiled: bool = False) -> Machine:
    """What this process computes with."""
    return Machine(
        torch=str(torch.__version__),
        device=device.type,
        threads=torch.get_num_threads(),
        ranks=1,
        dtype=str(dtype).removeprefix("torch."),
        compiled=compiled,
        processor=platform.machine(),
    )


def matmul_peak(device: torch.device, size: int = 1024, seconds: float = 0.4) -> float:
    """The float32 matrix-product speed of this machine, FLOP/s: the best product of size x size in a short time."""
    a = torch.randn(size, size, device=device)
    b = torch.randn(size, size, device=device)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def on_host(x: torch.Tensor) -> bool:
    """Whether a tensor lies in the processor's own memory."""
    return x.device.type == "cpu"


def compiler() -> str | None:
    """The C++ compiler that torch.compile can use here; None where there is none."""
    return next((found for name in ("g++", "clang++", "c++", "cl") if (found := shutil.which(name))), None)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next to it is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory() -> int:
    """Bytes of main memory on this machine, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
