"""What several ids at once cost: the loss of four heads that share a matrix, by memory and CPU seconds.

    python benchmarks/several.py

Each way is measured in a process of its own, by the peak above what stood before the loss; the median of three.
`one call` is what training does; the others are what it would cost to ask head by head.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

from temaki.model.heads import linear_nll

V, D, N, IDS = 50_257, 512, 2_048, 4
WAYS = {
    "plain": "the next id alone",
    "one call": "four heads, one call",
    "one backward": "four heads, four calls, one backward pass",
    "head by head": "four heads, a backward pass each",
}


def measured(way: str) -> tuple[float, float]:
    """(MB above what stood before, CPU seconds) of a loss and its gradient."""
    torch.manual_seed(0)
    ids = 1 if way == "plain" else IDS
    hidden = torch.randn(ids, N, D, requires_grad=True)
    weight = (0.02 * torch.randn(V, D)).requires_grad_()
    targets, weights = torch.randint(V, (ids, N)), torch.full((ids, N), 1 / N)
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))
    before, clock = peak(), time.process_time()
    each = [(h, weight, t, w) for h, t, w in zip(hidden, targets, weights, strict=True)]
    if way == "head by head":
        for one in each:
            linear_nll(*one).backward()
    elif way == "one backward":
        torch.stack([linear_nll(*one) for one in each]).sum().backward()
    else:
        linear_nll(hidden.flatten(0, 1), weight, targets.flatten(), weights.flatten()).backward()
    return peak() - before, time.process_time() - clock


def peak() -> float:
    """The most memory that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--way", choices=WAYS, help="measure one here and print its figures")
    words.add_argument("--rounds", type=int, default=3)
    asked = words.parse_args()
    if asked.way is not None:
        print(*measured(asked.way))
        return
    print(f"vocabulary {V:,}, width {D}, {N:,} ids, {torch.get_num_threads()} threads, float32\n")
    print("| loss and its gradient | MB above | CPU seconds |\n|---|---|---|")
    rounds = [{way: child(way) for way in WAYS} for _ in range(asked.rounds)]
    for way, told in WAYS.items():
        size, seconds = (statistics.median(each[way][i] for each in rounds) for i in (0, 1))
        print(f"| {told} | {size:.0f} | {seconds:.2f} |")


def child(way: str) -> tuple[float, float]:
    """The figures of a way, from a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--way", way], capture_output=True, text=True, check=True)
    size, seconds = done.stdout.split()
    return float(size), float(seconds)


if __name__ == "__main__":
    main()
