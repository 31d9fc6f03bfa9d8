"""What an optimizer's step costs: Muon beside its own matrix products, every rule beside torch's, the share of a step.

    python benchmarks/optimizers.py [--threads 2] [--rounds 15] [--json]

Goals: Muon's step at most 1.3x the time that its Newton-Schulz products take at the machine's matrix peak (the median
product of 2,048 x 2,048 in the same dtype, threads and minutes), and at most 5% of a training step of 100 tokens for
each row of the shorter side. Contestants take turns; medians count. With one thread the times are CPU times, which
others on the machine disturb less.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from timing import Run, again, race
from torch import Tensor

from temaki.base import device as devices
from temaki.base.rows import TokenBatch, grid
from temaki.model import build
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig
from temaki.optim.config import (
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimConfig,
    OptimizerConfig,
    SgdConfig,
    SignumConfig,
)
from temaki.optim.cost import muon_flops
from temaki.optim.groups import groups
from temaki.optim.muon import matrices, parts
from temaki.optim.optimizer import Optimizer
from temaki.train.config import NextConfig
from temaki.train.objectives import Next
from temaki.train.step import gradients

PEAK = 2048


@dataclass(frozen=True)
class Size:
    """A model to take matrices from."""

    name: str
    vocabulary: int
    width: int
    depth: int
    heads: int
    context: int
    micro: int
    """Ids of a micro-batch."""


SIZES = (Size("14M", 4096, 384, 7, 6, 256, 2048), Size("0.8M", 65, 128, 4, 4, 64, 768))


class Bench:
    """A model with a gradient."""

    def __init__(self, size: Size):
        self.size = size
        block = BlockConfig(mixer=AttentionConfig(heads=size.heads, kv_heads=2, qk_norm=True))
        config = DecoderConfig(vocabulary=size.vocabulary, width=size.width, depth=size.depth, pattern=(block,))
        self.model = build.build(config)
        self.model.extend(size.context)
        self.roles = self.model.roles()
        ids = torch.randint(size.vocabulary, (size.micro // size.context, size.context))
        self.batch = TokenBatch(grid(ids), ids.reshape(-1), torch.ones(size.micro))
        self.train()

    def train(self) -> None:
        """Forward and backward of one micro-batch, added to the gradients."""
        gradients(self.model, Next(NextConfig()), [self.batch])

    def chosen(self, matrices_only: bool) -> dict[str, Tensor]:
        return {
            name: p
            for name, p in self.model.named_parameters()
            if not matrices_only or self.roles[name].kind == "matrix"
        }

    def ours(self, rule: OptimizerConfig, matrices_only: bool = False) -> Run:
        """A step of one rule for all parameters, or for the matrices alone."""
        chosen = self.chosen(matrices_only)
        kinds = {"matrix": rule} if matrices_only else dict.fromkeys(("matrix", "embedding", "head", "vector"), rule)
        found = groups(OptimConfig(**kinds), {name: self.roles[name] for name in chosen})  # type: ignore[arg-type]
        optimizer = Optimizer(chosen, self.roles, found, 1e-5)
        return lambda: optimizer.step(1.0)

    def theirs(self, make: Callable[[list[Tensor]], torch.optim.Optimizer], matrices_only: bool = False) -> Run:
        return make(list(self.chosen(matrices_only).values())).step

    def flops(self) -> int:
        """Of Muon's products in a step."""
        stacks = [matrices(p.detach(), parts(self.roles[name])) for name, p in self.chosen(True).items()]
        return sum(muon_flops(*each.shape) for stack in stacks for each in stack)


def product(dtype: torch.dtype) -> Run:
    a, b = (torch.randn(PEAK, PEAK).to(dtype) for _ in range(2))
    return lambda: torch.mm(a, b)


def steps(bench: Bench) -> Mapping[str, Run]:
    """All that takes turns."""
    return {
        "product float32": product(torch.float32),
        "product bfloat16": product(torch.bfloat16),
        "Muon, float32": bench.ours(MuonConfig(products="float32"), True),
        "Muon, bfloat16": bench.ours(MuonConfig(products="bfloat16"), True),
        "torch.optim.Muon": bench.theirs(lambda p: torch.optim.Muon(p, 1e-5), True),
        "AdamW": bench.ours(AdamWConfig()),
        "torch AdamW, fused": bench.theirs(lambda p: torch.optim.AdamW(p, 1e-5, fused=True)),
        "torch AdamW": bench.theirs(lambda p: torch.optim.AdamW(p, 1e-5)),
        "SGD, momentum": bench.ours(SgdConfig(momentum=0.9)),
        "torch SGD, momentum, fused": bench.theirs(lambda p: torch.optim.SGD(p, 1e-5, 0.9, fused=True)),
        "Lion": bench.ours(LionConfig()),
        "Signum": bench.ours(SignumConfig()),
        "forward and backward": bench.train,
    }


def measured(size: Size, rounds: int, threads: int) -> dict[str, object]:
    """Milliseconds of everything for a size, and the figures that have goals."""
    bench = Bench(size)
    times = race({name: again(run) for name, run in steps(bench).items()}, rounds)
    ms = {name: (time.cpu if threads == 1 else time.wall) * 1e3 for name, time in times.items()}
    found: dict[str, object] = {"size": asdict(size), "ms": ms, "gflop": bench.flops() / 1e9}
    tokens = 100 * size.width
    for dtype in ("float32", "bfloat16"):
        needed = bench.flops() / (2 * PEAK**3) * ms[f"product {dtype}"]
        step = ms[f"Muon, {dtype}"]
        training = ms["forward and backward"] * tokens / size.micro + step
        found[dtype] = {"needed_ms": needed, "ratio": step / needed, "share": step / training, "tokens": tokens}
    return found


def table(found: dict[str, object]) -> str:
    size, ms = found["size"], found["ms"]
    assert isinstance(size, dict)
    assert isinstance(ms, dict)
    lines = [
        f"\n### {size['name']}: width {size['width']}, {size['depth']} layers; products {found['gflop']:.1f} GFLOP\n"
    ]
    lines += ["| step of | ms |", "|---|---|", *(f"| {name} | {value:.2f} |" for name, value in ms.items())]
    lines += [
        "",
        "| Muon's products in | at the peak, ms | step / that (goal 1.3) | share of a step (goal 5%) |",
        "|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        each = found[dtype]
        assert isinstance(each, dict)
        share = f"{each['share']:.1%} at {each['tokens']:,} tokens"
        lines.append(f"| {dtype} | {each['needed_ms']:.2f} | {each['ratio']:.2f} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    devices.prepare(asked.threads)
    found = [measured(size, asked.rounds, asked.threads) for size in SIZES]
    print(json.dumps(found) if asked.json else "\n".join(table(each) for each in found))


if __name__ == "__main__":
    main()
