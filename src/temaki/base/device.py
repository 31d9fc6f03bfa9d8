"""The machine: which device, how many threads, bits, how fast its matrix product. Only this file names devices."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch.nn import Module

from temaki.base import memory as host
from temaki.base.errors import ConfigError

Precision = Literal["float32", "products-bf16", "autocast-bf16"]
"""products-bf16: numbers are kept in float32, matrix products take them in bfloat16 and add in float32; autocast-bf16:
torch's mixed precision in the forward pass, and the same products outside of it."""


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


def choose(name: str | None = None, among: int | None = None) -> torch.device:
    """The device called `name`, or the best one here. Raises ConfigError for one that is not here.

    among: which of the processes on this machine asks, where there are several; each has a GPU of its own.
    """
    here = ["cpu"]
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if among is not None:
        here = [kind for kind in here if kind != "mps"]
    if name is not None and name.split(":")[0] not in here:
        raise ConfigError(f"no device {name!r} on this machine", allowed=", ".join(here))
    found = torch.device(name or here[0])
    if among is None or found.type != "cuda":
        return found
    if among >= torch.cuda.device_count():
        raise ConfigError(
            f"process {among} of this machine has no GPU", found=f"{torch.cuda.device_count()} GPUs",
            do="start at most as many processes as there are GPUs, or set parallel.device=cpu",
        )  # fmt: skip
    return torch.device("cuda", among)


def prepare(threads: int | None = None, seed: int = 0, precision: Precision = "float32") -> None:
    """Set threads, deterministic algorithms (always on), torch's own seed and the precision of matrix products.

    Where the processor multiplies bfloat16 no faster than float32, "products-bf16" is float32 (`machine` says which).
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


def usable(precision: Precision, device: torch.device) -> Precision:
    """The precision that is asked for, or float32 for products in bfloat16 that would be no faster on this device.

    Raises ConfigError for mixed precision on a device that multiplies bfloat16 slowly: it would be slower in all.
    """
    if precision == "float32" or fast_bf16(device):
        return precision
    if precision == "products-bf16":
        return "float32"
    raise ConfigError(
        f"parallel.precision = {precision} would only be slow here: {device.type} multiplies bfloat16 no faster than"
        " float32",
        allowed='"float32", or "products-bf16", which is float32 on such a machine',
        do="leave parallel.precision out",
    )


def mixed_(model: Module, device: torch.device) -> None:
    """Let a finished model's forward pass run under torch's mixed precision: products in bfloat16, the rest as it says.

    Parameters and gradients stay float32; losses are made outside of it.
    """
    forward = model.forward
    model.forward = torch.autocast(device.type, torch.bfloat16)(forward)


def machine(device: torch.device, precision: Precision = "float32", compiled: bool = False) -> Machine:
    """What this process computes with."""
    return Machine(
        torch=str(torch.__version__),
        device=device.type,
        threads=torch.get_num_threads(),
        ranks=1,
        dtype=precision,
        compiled=compiled,
        processor=platform.machine(),
    )


def matmul_peak(device: torch.device, size: int = 1024, seconds: float = 0.4) -> float:
    """The float32 matrix-product speed of this machine, FLOP/s: the best product of size x size in a short time."""
    a = torch.randn(size, size, device=device)
    b = torch.randn(size, size, device=device)
    best = float("inf")
    end = time.perf_counter() + seconds
    with whole_products():
        while time.perf_counter() < end or best == float("inf"):
            synchronize(device)
            start = time.perf_counter()
            torch.mm(a, b)
            synchronize(device)
            best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


@contextmanager
def whole_products() -> Iterator[None]:
    """Products of float32 numbers are float32 inside, whatever the process has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def fast_bf16(device: torch.device, size: int = 384) -> bool:
    """Whether this device multiplies matrices in bfloat16 at least twice as fast as in float32, by trying once.

    The factor is about 5 where the processor has tiles for it, and 1 / 40 where it has not.
    """
    best = {}
    with whole_products():
        for dtype in (torch.float32, torch.bfloat16):
            a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
            times = []
            for _ in range(7):
                synchronize(device)
                start = time.perf_counter()
                torch.mm(a, b)
                synchronize(device)
                times.append(time.perf_counter() - start)
            best[dtype] = min(times)
    return best[torch.bfloat16] * 2 < best[torch.float32]


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


def resident(device: torch.device) -> int | None:
    """Bytes this process holds in the device's memory; None where the system does not say."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else host.held()


def available(device: torch.device) -> int | None:
    """Bytes this process could still get of the device's memory; None where the system does not say."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host.available()
