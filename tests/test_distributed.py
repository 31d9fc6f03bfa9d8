"""Flat rows and the attention operator under torch.compile, activation checkpointing and two processes."""

import shutil
import socket
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from temaki.model.kernels import documents_attention
from temaki.model.sight import CAUSAL, Sight
from variants import close

TWO = """
import os, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
sys.path.insert(0, {tests!r})
import variants
from temaki.base.rows import grid

def worker(rank):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ids = torch.stack(variants.pieces([16] * 4))
    loss_of = lambda m, x: m.head.nll(m(grid(x)), x.reshape(-1), torch.ones(x.numel())) / ids.numel()
    for name in ("grouped", "hybrid"):
        model = variants.model(name, torch.float64)
        loss_of(model, ids).backward()
        whole = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        class Loss(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model
            def forward(self, x):
                return loss_of(self.model, x)
        ddp = torch.nn.parallel.DistributedDataParallel(Loss())
        (ddp(ids[rank * 2 : rank * 2 + 2]) * 2).backward()  # DDP averages over ranks; the step sums
        gap = max(float((p.grad - w).norm() / w.norm()) for p, w in zip(model.parameters(), whole))
        if rank == 0:
            print(name, gap < 1e-12, gap)
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # both have said what they found; nothing is left to take down in order

if __name__ == "__main__":
    mp.spawn(worker, nprocs=2)
"""


def test_two_processes_are_one_batch(tmp_path, fresh: Callable[[str], str]) -> None:  # type: ignore[no-untyped-def]
    import subprocess
    import sys
    from pathlib import Path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(Path(__file__).parent), port=port))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("grouped", "hybrid"))]
    assert [line[:2] for line in lines] == [["grouped", "True"], ["hybrid", "True"]]


class Layer(torch.nn.Module):
    """The least that holds the operator between two matrices."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.sight = sight
        self.qkv = torch.nn.Linear(32, 64, bias=False)

    def forward(self, x: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split((32, 16, 16), -1)
        heads = (q.unflatten(-1, (4, 8)), k.unflatten(-1, (2, 8)), v.unflatten(-1, (2, 8)))
        return x + documents_attention(*heads, cuts, self.sight).flatten(1)


def gradients(forward: Callable[..., torch.Tensor], layer: Layer, cuts: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(2)
    x = torch.randn(48, 32)
    layer.zero_grad()
    out = forward(x, cuts)
    out.square().sum().backward()
    assert layer.qkv.weight.grad is not None
    return [out.detach(), layer.qkv.weight.grad.clone()]


@pytest.mark.parametrize("sight", [CAUSAL, Sight(window=5, slopes=(0.5, 0.2, 0.1, 0.01), cap=2.0)], ids=["", "bent"])
def test_the_operator_compiles_whole_and_survives_checkpointing(sight: Sight) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    layer = Layer(sight)
    compiled = torch.compile(layer, fullgraph=True)
    for cuts in ([0, 48], [0, 5, 5, 12, 48], [0, 1, 47, 48]):
        at = torch.tensor(cuts)
        plain = gradients(layer, layer, at)
        for forward in (
            compiled,
            lambda x, c: checkpoint(layer, x, c, use_reentrant=False),
            lambda x, c: checkpoint(compiled, x, c, use_reentrant=False),
        ):
            for a, b in zip(gradients(forward, layer, at), plain, strict=True):
                close(a, b)
