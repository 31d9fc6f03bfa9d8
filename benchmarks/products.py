"""Matrix products of the compiled executor beside NumPy's and torch's: G weights/s by kind and rows, one thread.

    OMP_NUM_THREADS=1 python benchmarks/products.py [--outs 46080] [--columns 576] [--rows 1,2,4,8,32,256]

The matrix is far larger than a core's cache. Each figure is the best of several repeats, one kind after the other in
turns, so that what else runs meets all of them. `rows x weights` is the work of a prompt's chunk, in G products/s.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy import ndarray

from temaki.compiled import matrix
from temaki.model.quantise import Stored, quantise

KINDS = {"float32": matrix.FLOAT, "8-bit": matrix.EIGHT, "4-bit": matrix.FOUR, "4-bit, centred": matrix.CENTRED}
BLOCKS = {matrix.EIGHT: "Q8_0", matrix.FOUR: "Q4_1", matrix.CENTRED: "Q4_0"}


def arena(size: int) -> ndarray:
    """Zeroed bytes that begin at a multiple of 64."""
    whole = np.zeros(size + matrix.ALIGNED, np.uint8)
    start = -whole.ctypes.data % matrix.ALIGNED
    return whole[start : start + size]


def ours(kind: int, weights: ndarray, x: ndarray) -> tuple[Callable[[], object], int]:
    """The product of activations that are read already, and the bytes of the matrix."""
    (outs, columns), rows = weights.shape, len(x)
    stored: Stored = weights if kind == matrix.FLOAT else quantise(BLOCKS[kind], weights)
    packed = arena(matrix.packed_bytes(kind, outs, columns))
    matrix.pack(stored, None, kind, packed)
    stride = matrix.act_bytes(columns)
    acts, out = arena(rows * stride), np.zeros(rows * outs, np.float32)
    for row in range(rows):
        matrix.read_row(x.reshape(-1), row * columns, columns, kind, acts, row * stride)
    tiles = -(-outs // matrix.TILE)
    call = (packed, 0, kind, outs, columns, acts, 0, stride, rows, out, 0, outs, 0, tiles)
    return lambda: matrix.product(*call), packed.size


def peers(weights: ndarray, x: ndarray) -> dict[str, Callable[[], object]]:
    left, right = torch.from_numpy(x), torch.from_numpy(weights)
    half = right.bfloat16()
    return {
        "NumPy float32": lambda: x @ weights.T,
        "torch float32": lambda: torch.nn.functional.linear(left, right),
        "torch bfloat16": lambda: torch.nn.functional.linear(left.bfloat16(), half),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--outs", type=int, default=46080)
    parser.add_argument("--columns", type=int, default=576)
    parser.add_argument("--rows", default="1,2,4,8,32,256")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ours", action="store_true", help="without the peers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    weights = random.standard_normal((given.outs, given.columns), np.float32)
    print(f"{given.outs} x {given.columns} weights, one thread, best of {given.repeats}")
    print(f"{'rows':>5}  {'':16} {'ms':>8} {'G weights/s':>12} {'rows x weights':>15} {'GB/s':>6}")
    for rows in map(int, given.rows.split(",")):
        x = random.standard_normal((rows, given.columns), np.float32)
        works = {name: ours(kind, weights, x) for name, kind in KINDS.items()}
        works |= {} if given.ours else {name: (work, weights.nbytes) for name, work in peers(weights, x).items()}
        best = dict.fromkeys(works, float("inf"))
        for _ in range(given.repeats + 1):
            for name, (work, _) in works.items():
                start = time.perf_counter()
                work()
                best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            rate = weights.size / seconds / 1e9
            print(f"{rows:5}  {name:16} {seconds * 1e3:8.2f} {rate:12.1f} {rate * rows:15.1f} ", end="")
            print(f"{works[name][1] / seconds / 1e9:6.1f}")


if __name__ == "__main__":
    main()
