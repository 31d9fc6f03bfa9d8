"""How state spaces grow with the length: kernels, causal convolution, and a step of decoding; and orders of steps.

    OMP_NUM_THREADS=1 python benchmarks/sequence_growth.py [--most 65536] [--width 4] [--page growth.html]

Each figure is the best of several repeats, all lengths in turns, so that what else runs meets all of them. The exponent
is the slope of log seconds against log L, or against log (L log L): 1 there is growth as L log L.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from temaki.model.config import RtfConfig, S4Config
from temaki.model.hippo import ORDERS, legs
from temaki.model.hippo_memory import window_memory
from temaki.model.rtf import Rtf, rtf_kernel
from temaki.model.s4 import S4, s4_kernel
from temaki.model.siso import Convolved
from temaki.model.ssm import causal_convolution
from temaki.report.chart import Series, lines
from temaki.report.page import page

FIRST = 1024
WARM = 16384
"""Ids that a figure is the mean over, where the length is less."""


def slope(times: Mapping[int, float], of: Callable[[int], float]) -> float:
    """Least squares of log seconds over the log of a measure of the length."""
    xs, ys = [math.log(of(length)) for length in times], [math.log(each) for each in times.values()]
    middle, level = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / sum((x - middle) ** 2 for x in xs)


def best(works: Mapping[int, Callable[[], object]], repeats: int) -> dict[int, float]:
    """Seconds of each length."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(repeats + 1):
        for length, work in works.items():
            work()  # the caches hold what it needs
            times, start = max(1, WARM // length), time.perf_counter()
            for _ in range(times):
                work()
            found[length] = min(found[length], (time.perf_counter() - start) / times)
    return found


def growing(lengths: list[int], width: int, states: int, repeats: int) -> dict[str, dict[int, float]]:
    """Seconds of both kernels, forward and with their gradient, and of the convolution."""
    torch.manual_seed(0)
    s4 = S4(S4Config(states=states, length=FIRST), width).made()
    a, b = 0.01 * torch.randn(width, states), torch.randn(width, states)
    c = torch.complex(torch.randn(width, states // 2), torch.randn(width, states // 2))

    def learned(kernel: Callable[[torch.Tensor], torch.Tensor], of: torch.Tensor) -> Callable[[], object]:
        leaf = of.detach().requires_grad_()
        return lambda: torch.autograd.grad(kernel(leaf).sum(), leaf)

    def s4_at(length: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda c: s4_kernel(s4.of, c, length)

    rows, kernels = ({n: torch.randn(width, n) for n in lengths} for _ in range(2))
    works: dict[str, dict[int, Callable[[], object]]] = {
        "S4 kernel": {n: lambda n=n: s4_at(n)(c) for n in lengths},
        "S4 kernel and gradient": {n: learned(s4_at(n), c) for n in lengths},
        "RTF kernel": {n: lambda n=n: rtf_kernel(a, b, n) for n in lengths},
        "RTF kernel and gradient": {n: learned(lambda b, n=n: rtf_kernel(a, b, n), b) for n in lengths},
        "causal convolution": {n: lambda n=n: causal_convolution(rows[n], kernels[n]) for n in lengths},
    }
    return {name: best(each, repeats) for name, each in works.items()}


@torch.no_grad()
def stepping(mixer: Convolved, lengths: list[int], repeats: int) -> dict[int, float]:
    """Seconds of one step of decoding after so many ids."""
    system, past, read = mixer.system(), tuple(each[0] for each in mixer.begin(1)), 0
    works: dict[int, Callable[[], object]] = {}
    for length in lengths:
        _, past = mixer.run(system, past, (torch.randn(length - read, mixer.channels),))
        read, here, one = length, tuple(each[None] for each in past), (torch.randn(1, mixer.channels),)
        works[length] = lambda here=here, one=one: mixer.step(system, here, one)
    return best(works, repeats)


def orders() -> dict[str, list[float]]:
    """Errors of LegS at held inputs at 8, 16, 32 and 64 steps a held piece, by rule."""
    a, b = legs(4)
    held = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    exact = window_memory(a, b, held, 1 / 8)
    return {
        rule: [
            float((window_memory(a, b, held.repeat_interleave(n), 1 / (8 * n), rule) - exact).norm())
            for n in (8, 16, 32, 64)
        ]
        for rule in ORDERS
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=65536)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--states", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--page", type=Path, help="write the curves there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [FIRST << i for i in range((given.most // FIRST).bit_length())]
    print(f"{given.width} channels, {given.states} states, float32, one thread, best of {given.repeats}; ms")
    print(f"{'':24}" + "".join(f"{n:>9}" for n in lengths) + f"{'in L':>8}{'L log L':>9}")
    times = growing(lengths, given.width, given.states, given.repeats)
    for name, each in times.items():
        told = "".join(f"{seconds * 1e3:9.3f}" for seconds in each.values())
        print(f"{name:24}{told}{slope(each, lambda n: n):8.2f}{slope(each, lambda n: n * math.log(n)):9.2f}")
    torch.manual_seed(0)
    mixers = {
        "S4 step": S4(S4Config(states=given.states), given.width),
        "RTF step": Rtf(RtfConfig(states=given.states), given.width),
    }
    for name, mixer in mixers.items():
        each = stepping(mixer, lengths, given.repeats)
        print(f"{name:24}" + "".join(f"{x * 1e3:9.3f}" for x in each.values()) + f"{slope(each, lambda n: n):8.2f}")
    print("errors of a step's rules where the input is held, 8, 16, 32, 64 steps a piece; order")
    for rule, errors in orders().items():
        order = "exact" if max(errors) < 1e-12 else f"{math.log2(errors[-2] / errors[-1]):.3f}"
        print(f"{rule:24}" + "".join(f"{e:11.2e}" for e in errors) + f"   {order}")
    if given.page is not None:
        series = [
            Series(name, [(math.log2(n), x * 1e3) for n, x in each.items()], "dots", i)
            for i, (name, each) in enumerate(times.items())
        ]
        chart = lines("Time by length", series, "log2 of the length", "ms, by ratios", log=True, wide=True)
        given.page.write_text(page("Growth of state spaces", [chart]))


if __name__ == "__main__":
    main()
