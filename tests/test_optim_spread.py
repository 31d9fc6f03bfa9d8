"""Every rule over two processes, sharded, cut in pieces and copied, is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from temaki.base.dist import World
from temaki.optim.config import AverageConfig
from temaki.optim.optimizer import Optimizer
from temaki.optim.shards import Shards
from test_optim_rules import ROLES, RULES, SHAPES, feed, made, optimizer

STEPS = 5


def spread_over(kind: str, rule: str) -> Optimizer:
    """The optimizer of one of two processes; `kind` says how they hold the parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard as Rows
    from torch.distributed.tensor import distribute_tensor

    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    world = World(rank=rank, size=2, tensor=mesh) if kind == "pieces" else World(rank=rank, size=2, data=mesh)
    parameters = made(0)
    if kind == "pieces":
        parameters["a"] = cut(parameters["a"])
    if kind == "sharded":
        parameters |= {name: distribute_tensor(x, mesh, [Rows(0)]) for name, x in parameters.items()}
    parameters = {name: x.requires_grad_() for name, x in parameters.items()}
    shards = Shards(world, parameters, ("a",), joined, scattered) if kind == "pieces" else Shards(world, parameters)
    alone = optimizer(RULES[rule])
    return Optimizer(parameters, ROLES, alone.groups, alone.lr, AverageConfig(decay=0.9), shards)


def cut(whole: torch.Tensor) -> torch.Tensor:
    """Columns, as of an output projection: [6, 9] -> [6, 5] and [6, 4]."""
    return whole[:, :5].clone() if dist.get_rank() == 0 else whole[:, 5:].clone()


def scattered(name: str, whole: torch.Tensor) -> torch.Tensor:
    return cut(whole) if name == "a" and whole.shape == SHAPES["a"] else whole


def joined(name: str, part: torch.Tensor) -> torch.Tensor:
    if name != "a" or part.shape == SHAPES["a"]:
        return part
    found = [part.new_empty(6, 5), part.new_empty(6, 4)]
    for rank, each in enumerate(found):
        if rank == dist.get_rank():
            each.copy_(part)
        dist.broadcast(each, rank)
    return torch.cat(found, 1)


def fed(to: Optimizer, seed: int) -> None:
    for name, g in made(seed).items():
        like, piece = to.parameters[name], to.spread.piece(name, g)
        like.grad = torch.zeros_like(like)
        to.spread.local(like.grad).copy_(piece)


def gap(kind: str, rule: str) -> float:
    """The largest difference between two processes and one: weights, moments, averages, norms; half way resumed."""
    one, two = optimizer(RULES[rule], average=AverageConfig(decay=0.9)), spread_over(kind, rule)
    gaps = []
    for t in range(1, STEPS):
        feed(one, t)
        fed(two, t)
        gaps += [abs(one.norms("gradient")["matrix"] - two.norms("gradient")["matrix"])]
        gaps += [abs(one.clip(1.0) - two.clip(1.0))]
        a, b = one.step(0.5, norms=True), two.step(0.5, norms=True)
        gaps += [abs(a["matrix"] - b["matrix"])]
        if t == 2:  # any number of processes opens what one saved
            with one.swapped(), two.swapped():
                state = one.state()
                two = spread_over(kind, rule)
                for name, x in one.parameters.items():
                    two.spread.local(two.parameters[name].detach()).copy_(two.spread.piece(name, x.detach()))
                two.load(state)
    for name, x in one.state().items():
        other = two.state()[name]
        whole = other if name == "t" else two.spread.whole(name.rpartition("/")[0], other.detach())
        gaps.append(float((x.detach() - whole).abs().max()))
    with one.swapped(), two.swapped():
        for name, x in one.parameters.items():
            gaps.append(float((x.detach() - two.spread.whole(name, two.parameters[name].detach())).abs().max()))
    return max(gaps)


def work(rank: int, meeting: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for kind in ("copied", "sharded", "pieces"):
        for rule in RULES:
            found = gap(kind, rule)
            if rank == 0:
                print(kind, rule, found < 1e-12, found, flush=True)
    dist.barrier()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes talk over gloo and a loopback named lo")
def test_two_processes_are_one(tmp_path: Path) -> None:
    tests, pipe = Path(__file__).parent, subprocess.PIPE
    code = "import sys; sys.path.insert(0, {!r}); import test_optim_spread as s; s.work(int(sys.argv[1]), {!r})"
    code = code.format(str(tests), (tmp_path / "meeting").as_uri())
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], stdout=pipe, stderr=pipe, text=True)
        for rank in range(2)
    ]
    said, complaint = both[0].communicate(timeout=240)
    both[1].communicate(timeout=60)
    lines = said.splitlines()
    assert len(lines) == 3 * len(RULES), complaint
    assert [line for line in lines if "True" not in line.split()] == []
