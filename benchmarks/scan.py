"""Scans of recurrent mixers in training, forward and backward: compiled loops beside their twins, in turns.

    python benchmarks/scan.py [--threads 1] [--rounds 5] [--length 2048]

First Mamba's selective scan on one row: the compiled loop, the parallel scan of torch that serves other devices, and a
loop in Python, id by id. Then S4D's diagonal scan on rows of 784 ids beside the same by FFT. Last whole layers. Medians
of rounds in turned order.
"""

import argparse
from collections.abc import Callable

import torch
from timing import again, race
from torch import Tensor

from temaki.base.rows import Rows
from temaki.model import config as c
from temaki.model import selective, ssm
from temaki.model.build import build
from temaki.model.layout import Layout
from temaki.model.scan import diagonal_scan

Run = Callable[[], object]


def backward(function: Callable[..., Tensor], *tensors: Tensor) -> Run:
    """One forward and backward, of the sum of the outputs squared."""
    leaves = [x.requires_grad_() for x in tensors]
    return lambda: torch.autograd.grad(function(*leaves).square().sum(), leaves)


def id_by_id(u: Tensor, d: Tensor, a: Tensor, bc: Tensor) -> Tensor:
    """The selective scan as a loop in Python."""
    h, found = torch.zeros_like(a), []
    for t in range(len(u)):
        y, h = selective.selective_step(h, u[t], d[t], a, bc[t, 0], bc[t, 1])
        found.append(y)
    return torch.stack(found)


def of_mamba(length: int, channels: int, states: int) -> dict[str, Run]:
    u, d, a = torch.randn(length, channels), torch.rand(length, channels) / 10, -torch.rand(channels, states) * states
    tensors, cuts = (u, d, a, torch.randn(length, 2, states)), torch.tensor([0, length])
    fresh = torch.zeros(length, dtype=torch.bool)
    return {
        "compiled": backward(lambda u, d, a, bc: selective.selective_scan(u, d, a, bc, cuts), *tensors),
        "parallel scan, torch": backward(
            lambda u, d, a, bc: selective.parallel_selective(u, d, a, bc, torch.zeros_like(a), fresh)[0], *tensors
        ),
        "loop in Python": backward(id_by_id, *tensors),
    }


def of_s4d(rows: int, length: int, channels: int, pairs: int) -> dict[str, Run]:
    a = torch.polar(torch.rand(channels, pairs) / 5 + 0.8, torch.rand(channels, pairs) * 6)
    tensors = torch.randn(rows * length, channels), a, torch.randn(channels, pairs, dtype=torch.complex64)
    cuts, one = torch.arange(rows + 1) * length, torch.ones(channels, pairs, dtype=torch.complex64)
    pieces = [(i * length, (i + 1) * length) for i in range(rows)]
    return {
        "compiled": backward(lambda u, a, w: diagonal_scan(u, a, w, cuts), *tensors),
        "FFT": backward(lambda u, a, w: ssm.convolve_pieces(u, pieces, a, one, w / 2), *tensors),
    }


def of_layers(rows: int, length: int, width: int) -> dict[str, Run]:
    ids = torch.arange(rows * length)
    layout = Layout(Rows(ids=ids, cuts=torch.arange(rows + 1) * length, positions=ids % length))
    found = {}
    for mixer in (c.S4DConfig(), c.S5Config(), c.LruConfig(), c.MambaConfig(), c.LstmConfig()):
        block = c.BlockConfig(mixer=mixer)
        config = c.DecoderConfig(vocabulary=3, width=width, depth=1, pattern=(block,), init="cs336")
        layer, x = build(config).get_submodule("blocks.0.mixer"), torch.randn(rows * length, width)
        found[mixer.kind] = backward(lambda x, *_, layer=layer: layer(x, layout, None, None), x, *layer.parameters())
    return found


def show(title: str, ids: int, runs: dict[str, Run], rounds: int) -> None:
    print(f"\n{title}\n{'':22} {'ms':>9} {'ids/s':>10} {'to the first':>13}")
    for run in runs.values():
        run()
    times = race({name: again(run) for name, run in runs.items()}, rounds)
    first = next(iter(times.values())).wall
    for name, time in times.items():
        print(f"{name:22} {time.wall * 1e3:9.1f} {ids / time.wall:10.0f} {time.wall / first:12.1f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"forward and backward, {given.threads} thread(s), medians of {given.rounds}")
    for channels, states in ((128, 16), (512, 16)):
        title = f"selective scan: one row of {given.length} ids, {channels} channels, {states} states"
        show(title, given.length, of_mamba(given.length, channels, states), given.rounds)
    for pairs in (4, 8, 16, 32):
        title = f"diagonal scan: 32 rows of 784 ids, 64 channels, {2 * pairs} real states"
        show(title, 32 * 784, of_s4d(32, 784, 64, pairs), given.rounds)
    show("layers: 8 rows of 1024 ids, width 128", 8 * 1024, of_layers(8, 1024, 128), given.rounds)


if __name__ == "__main__":
    main()
