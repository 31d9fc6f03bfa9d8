"""The processes of a run and what they say to each other; on one process every word is the identity.

Only this file opens a process group. `torchrun` starts the processes and says in the environment who is who; they
`meet` at a store, `join` in groups, and `leave`. Letters: P processes, of which D hold different rows (data) and T
share one copy of the model (tensor): P = D T.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from temaki.base.errors import RunError

PATIENCE = 300
"""Seconds that a process waits for the others in one exchange before it gives up; TEMAKI_PATIENCE says otherwise."""
_POLL = 0.05
_store: dist.Store | None = None
"""Where the processes met; None before `meet`. One a process, as torch's own default group is."""
_words = 0
"""How many times processes met at the store for a word."""


class ElsewhereError(RunError):
    """What stopped this process happened in another one, which says what it was."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    """P."""
    local: int = 0
    """Which of the processes on this machine."""
    here: int = 1
    """How many processes this machine has."""
    data: DeviceMesh | None = None
    """The D processes that hold other rows than this one; None: there are none."""
    tensor: DeviceMesh | None = None
    """The T processes that share a copy of the model with this one; None: there are none."""
    hold: Callable[[], AbstractContextManager[None]] | None = None
    """What keeps a backward pass from summing gradients over the D; None: each backward pass does it."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """D."""
        return 1 if self.data is None else self.data.size()

    @property
    def replica(self) -> int:
        """Which of the D this process is."""
        return 0 if self.data is None else self.data.get_local_rank()

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over the processes with other rows, added in float64; the same on all.

        >>> World().total([1.0, 2.0])
        [1.0, 2.0]
        """
        if self.data is None:
            return list(values)
        wide = torch.tensor(values, dtype=torch.float64, device=self.data.device_type)
        dist.all_reduce(wide, group=self.data.get_group())
        return wide.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any process says yes.

        >>> World().any(False)
        False
        """
        return -self.least(-float(flag)) > 0

    def least(self, value: float) -> float:
        """The least of the processes' numbers.

        >>> World().least(2.0)
        2.0
        """
        if self.size == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(said, op=dist.ReduceOp.MIN)
        return float(said)

    def agreed(self, value: float) -> float:
        """The main process's number, on all.

        >>> World().agreed(2.0)
        2.0
        """
        if self.size == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(said, 0)
        return float(said)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    def first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the main process, on all; it must be something that JSON can say.

        However long it takes, the others wait. Where it raises, they raise ElsewhereError.

        >>> World().first(lambda: {"depth": 4})
        {'depth': 4}
        """
        if self.size == 1:
            return make()
        assert _store is not None, "processes meet before they speak"
        key = f"first/{_next()}"
        if not self.main:
            while not _store.check([key]):
                time.sleep(_POLL)
            said = json.loads(_store.get(key))
            if said["failed"]:
                raise ElsewhereError("the main process stopped")
            return said["made"]
        try:
            made = make()
        except BaseException:
            _store.set(key, json.dumps({"failed": True}))
            raise
        _store.set(key, json.dumps({"failed": False, "made": made}))
        return made


ALONE = World()
"""One process."""


def meet() -> World:
    """The processes that torchrun started, which can speak to each other but share no work yet; or ALONE.

    Raises RunError where they do not find each other.
    """
    global _store
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if _store is None:
        if sys.platform == "linux" and os.environ.get("LOCAL_WORLD_SIZE") == str(size):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
        try:
            store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=_patience()))
        except (dist.DistError, ValueError, RuntimeError) as error:
            raise RunError(f"process {rank} of {size} did not find the others: {_line(error)}") from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store outlives processes that are restarted
        _store = dist.PrefixStore(f"attempt/{attempt}/{size}", store)
    return World(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def join(world: World, device: str, tensor: int = 1) -> World:
    """Open the groups of a world whose processes have met: gloo between processors, NCCL between GPUs."""
    assert world.size % tensor == 0, f"{tensor} do not divide {world.size} processes"
    if world.size == 1:
        return ALONE
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        if device == "cuda":
            torch.cuda.set_device(world.local)
        assert _store is not None, "processes meet before they join"
        store = dist.PrefixStore(f"groups/{_next()}", _store)
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, store=store, timeout=_patience())
    mesh = init_device_mesh(device, (world.size // tensor, tensor), mesh_dim_names=("data", "tensor"))
    return replace(
        world,
        data=mesh["data"] if world.size > tensor else None,
        tensor=mesh["tensor"] if tensor > 1 else None,
    )


def leave() -> None:
    """Close the groups, after the last word."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int) -> None:
    """End this process here with an exit code if it is one of several; alone, nothing happens.

    Groups, shards and stores keep threads of their own, and in the order in which an interpreter takes things down one
    of them now and then aborted a process (SIGABRT) whose run was finished and saved.
    """
    if _store is None:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def speaks() -> bool:
    """Whether this process is the one that says why a run failed: the first that asks. Alone it always is.

    >>> speaks()
    True
    """
    rank = int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    if _store is None:
        return rank == 0
    try:
        return _store.add("spoken", 1) == 1
    except RuntimeError:  # the store was held by the main process, which is gone
        return rank == 1


@contextmanager
def together(world: World) -> Iterator[None]:
    """Turns an exchange that failed, because another process is gone or does not answer, into a RunError."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not _lost(error):
            raise
        raise RunError(
            f"process {world.rank} of {world.size} lost another one: {_line(error)}",
            do="look at what ended first; then go on from the last checkpoint with --resume auto",
        ) from None


def _next() -> int:
    """A number that no word at the store had before; all processes count alike."""
    global _words
    _words += 1
    return _words


def _lost(error: RuntimeError) -> bool:
    """Whether a collective call failed for want of the others."""
    said = str(error)
    return isinstance(error, dist.DistError) or any(each in said for each in _LOST)


_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL", "Broken pipe")


def _patience() -> timedelta:
    return timedelta(seconds=float(os.environ.get("TEMAKI_PATIENCE", PATIENCE)))


def _line(error: BaseException) -> str:
    """The first sentence of what a library says, without where in its source."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).strip().split("\n")[0]).partition(". ")[0]
