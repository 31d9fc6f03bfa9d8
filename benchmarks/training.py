"""The training step: throughput, packed rows, peak memory, loader and log, beside `transformers` in the same run.

    python benchmarks/training.py                       two threads, all parts
    python benchmarks/training.py --only throughput     or packed, memory, loader
    python benchmarks/training.py --threads 1           CPU time instead of wall time

Prints a markdown table of medians over interleaved rounds, with ratios and goals. The peak is the median float32
product of 2,048 x 2,048 of the same rounds, whatever the precision; FLOPs a token = 6 x matrix parameters with the head
once + 6 x depth x T x width. `twins`: ours without its compiled loops and products of whole rows.
"""

import argparse
import gc
import importlib.util
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from temaki.base import device as devices
from temaki.base import team
from temaki.base.device import Precision
from temaki.base.rows import Rows, TokenBatch, grid
from temaki.batches.packing import positions
from temaki.model import build
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    NoPositionConfig,
)
from temaki.model.count import count
from temaki.optim.config import AdamWConfig, OptimConfig
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.train.config import NextConfig
from temaki.train.objectives import Next
from temaki.train.parallel import _compiled
from temaki.train.step import update

PARTS = ("throughput", "packed", "memory", "loader")
PEER = "transformers"
PRECISIONS: tuple[Precision, ...] = ("float32", "products-bf16", "autocast-bf16")
Step = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A model of GPT-2's shape and its step."""

    name: str
    vocabulary: int
    width: int
    depth: int
    heads: int
    context: int
    tokens: int
    goal: float = 0.0
    """Share of the peak to reach."""

    @property
    def config(self) -> DecoderConfig:
        block = BlockConfig(
            mixer=AttentionConfig(heads=self.heads, position=NoPositionConfig(), bias="all"),
            ffn=GeluConfig(),
            norm=LayerNormConfig(),
        )
        position = LearnedConfig(room=self.context)
        return DecoderConfig(
            vocabulary=self.vocabulary, width=self.width, depth=self.depth, pattern=(block,), input_position=position
        )

    @property
    def flops(self) -> float:
        """A token, forward and backward."""
        return 6 * count(self.config).matrix + 6 * self.depth * self.context * self.width


SHAPES = (
    Shape("14M, context 256", 4096, 384, 7, 6, 256, 2048, 0.85),
    Shape("0.8M, context 64", 65, 128, 4, 4, 64, 768, 0.70),
    Shape("0.8M, context 256", 65, 128, 4, 4, 256, 768, 0.70),
)
LARGE = Shape("GPT-2's vocabulary and width, 4 layers", 50257, 768, 4, 12, 1024, 2048)


def batch(shape: Shape, documents: int = 1) -> TokenBatch:
    """Rows of random ids, each of so many documents of random lengths."""
    generator = torch.Generator().manual_seed(documents)
    b, t = shape.tokens // shape.context, shape.context
    ids = torch.randint(shape.vocabulary, (b, t), generator=generator)
    starts = [torch.randperm(t - 1, generator=generator)[: documents - 1].sort().values + 1 + i * t for i in range(b)]
    ends = torch.cat([torch.cat([torch.tensor([i * t]), starts[i]]) for i in range(b)] + [torch.tensor([b * t])])
    rows = Rows(ids.view(-1), ends, torch.from_numpy(positions(ends.numpy())), (b, t))
    return TokenBatch(rows if documents > 1 else grid(ids), ids.view(-1), torch.ones(b * t))


def ours(shape: Shape, precision: Precision, documents: int = 1, compiled: bool = False, loops: bool = True) -> Step:
    """A step of temaki: AdamW by torch's fused kernel, clipping, all checks."""
    opened = team.open
    team.open = opened if loops else lambda: False
    model = build.build(shape.config)
    model.extend(shape.context)
    team.open = opened
    if precision == "autocast-bf16":
        devices.mixed_(model, torch.device("cpu"))
    roles = model.roles()
    rule = OptimConfig(matrix=AdamWConfig())
    optimizer = Optimizer(dict(model.named_parameters()), roles, groups(rule, roles), 1e-3)
    forward, one, objective = _compiled(model) if compiled else model, batch(shape, documents), Next(NextConfig())

    def step() -> None:
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
        team.open = opened if loops else lambda: False
        try:
            update(forward, objective, optimizer, [one], 1.0, 1.0)
        finally:
            team.open = opened

    return step


def theirs(shape: Shape, precision: Precision) -> Step:
    """A step of `transformers` GPT-2 with torch's fused AdamW and clipping."""
    from transformers import GPT2Config, GPT2LMHeadModel

    none: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary, n_positions=shape.context, n_embd=shape.width, n_layer=shape.depth,
            n_head=shape.heads, **none,
        )
    )  # fmt: skip
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    ids = torch.randint(shape.vocabulary, (shape.tokens // shape.context, shape.context))

    def step() -> None:
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "medium")
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast-bf16"):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def race(steps: Mapping[str, Step], rounds: int, clock: Callable[[], float]) -> tuple[dict[str, float], float]:
    """(median seconds of each, median FLOP/s of the float32 product), all in turns."""
    a, b = torch.randn(2, 2048, 2048)
    spent: dict[str, list[float]] = {name: [] for name in steps}
    peaks: list[float] = []

    def product() -> None:
        with devices.whole_products():
            torch.mm(a, b)

    for step in (product, *steps.values()):
        step()
        step()
    gc.disable()
    for _ in range(rounds):
        peaks.append(timed(product, clock))
        for name, step in steps.items():
            spent[name].append(timed(step, clock))
    gc.enable()
    return {name: statistics.median(times) for name, times in spent.items()}, 2 * 2048**3 / statistics.median(peaks)


def timed(step: Step, clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def throughput(
    rounds: int, clock: Callable[[], float], usable: Sequence[Precision], peer: bool, compiled: bool
) -> None:
    for shape in SHAPES:
        steps: dict[tuple[str, Precision], Step] = {}
        for precision in usable:
            steps["temaki", precision] = ours(shape, precision)
            steps["temaki, twins", precision] = ours(shape, precision, loops=False)
            if compiled and devices.compiler() is not None:
                steps["temaki, compiled", precision] = ours(shape, precision, compiled=True)
            if peer:
                steps[PEER, precision] = theirs(shape, precision)
        times, peak = race({"/".join(name): step for name, step in steps.items()}, rounds, clock)
        for who, precision in steps:
            spent = times[f"{who}/{precision}"]
            share = shape.tokens / spent * shape.flops / peak
            other = times[f"{PEER}/{precision}"] / spent if peer and who != PEER else None
            row(
                shape.name, f"{who}, {precision}", f"{spent * 1e3:.1f} ms, {shape.tokens / spent:,.0f} tokens/s",
                f"{share:.2f} of {peak / 1e9:.0f} GFLOP/s" + (f" (goal {shape.goal:.2f})" if who != PEER else ""),
                "" if other is None else f"{other:.2f} x {PEER} (goal 1.25)",
            )  # fmt: skip


def packed(rounds: int, clock: Callable[[], float], usable: Sequence[Precision]) -> None:
    for shape in SHAPES[:2]:
        for precision in usable[:2]:
            counts = [n for n in (1, 4, 16, 64) if n <= shape.context // 4]
            times, _ = race({str(n): ours(shape, precision, documents=n) for n in counts}, rounds, clock)
            for n in counts[1:]:
                what = f"{n} documents a row, {precision}"
                row(
                    shape.name,
                    what,
                    f"{times[str(n)] * 1e3:.1f} ms",
                    "",
                    f"{times['1'] / times[str(n)]:.2f} x unmasked (goal 1)",
                )


def memory() -> None:
    """Each in its own process: what two steps held at most above what the process held before the model was made."""
    found = {}
    for who in ("temaki", PEER):
        if who == PEER and importlib.util.find_spec(PEER) is None:
            continue
        told = subprocess.run([sys.executable, __file__, "--one", who], capture_output=True, text=True, check=True)
        found[who] = [float(number) for number in told.stdout.split()[-2:]]
    for who, (whole, over) in found.items():
        ratios = (
            f"{whole / found[PEER][0]:.2f} and {over / found[PEER][1]:.2f} x (goal 0.6)"
            if who != PEER and PEER in found
            else ""
        )
        row(LARGE.name, f"peak memory, {who}", f"{whole:,.0f} MB", f"{over:,.0f} MB beside weights and moments", ratios)


def one(who: Literal["temaki", "transformers"]) -> None:
    """Print (peak above the start, peak above weights and both moments), MB."""
    status = Path("/proc/self/status")

    def megabytes(name: str) -> float:
        return float(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(name))) / 1e3

    before = megabytes("VmRSS")
    step = ours(LARGE, "float32") if who == "temaki" else theirs(LARGE, "float32")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    step()
    step()
    peak = megabytes("VmHWM") - before
    print(peak, peak - 12 * count(LARGE.config).total / 1e6)


def loader(threads: int) -> None:
    """What of a real run's step goes to making batches and writing lines."""
    from temaki.base.config import read
    from temaki.base.log import MetricLog
    from temaki.batches.config import DataConfig
    from temaki.batches.loader import Loader
    from temaki.batches.prepare import prepare
    from temaki.train import run as runs
    from temaki.train.config import RunConfig

    spent = {"batches": 0.0, "lines": 0.0}

    def watched(kind: type, name: str, what: str) -> None:
        plain = getattr(kind, name)

        def call(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return plain(*given, **named)
            finally:
                spent[what] += time.perf_counter() - start

        setattr(kind, name, call)

    watched(Loader, "take", "batches")
    watched(MetricLog, "write", "lines")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        words = ["a ", "model ", "reads ", "rows ", "of ", "text ", "and ", "says ", "what ", "comes ", "next"]
        text.write_text("\n\n".join("".join(words[i * k % 11] for k in range(1, 60)) for i in range(2000)))
        data = prepare(DataConfig(text=str(text), vocabulary=300), Path(folder, "data"), lambda *_: None)
        for shape in SHAPES[:2]:
            spent.update(batches=0.0, lines=0.0)
            steps = 40 if shape.width > 200 else 300
            told = {
                "name": "run", "model": {"width": shape.width, "depth": shape.depth, "vocabulary": data.tokenizer.size,
                "pattern": [{"mixer": {"kind": "attention", "heads": shape.heads}}]},
                "batch": {"tokens": shape.tokens, "context": shape.context}, "stop": {"steps": steps},
                "optim": {"schedule": {"warmup": 5}}, "parallel": {"threads": threads},
            }  # fmt: skip
            done = runs.start(read(RunConfig, told), Path(folder, shape.name), data)
            share = {what: seconds / done.run.seconds for what, seconds in spent.items()}
            each = ", ".join(f"{what} {part:.2%}" for what, part in share.items())
            row(shape.name, "loader and log", each, "", f"{sum(share.values()):.2%} of the steps' time (goal 1%)")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", choices=PARTS)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--rounds", type=int, default=9)
    words.add_argument("--eager", action="store_true", help="without torch.compile, which takes a minute a model")
    words.add_argument("--one", choices=("temaki", PEER), help=argparse.SUPPRESS)
    asked = words.parse_args()
    devices.prepare(asked.threads, 0)
    if asked.one:
        one(asked.one)
        return
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    fast = devices.fast_bf16(torch.device("cpu"))
    peer = importlib.util.find_spec(PEER) is not None
    usable = PRECISIONS if fast else PRECISIONS[:1]
    print(
        f"{platform.machine()}, {asked.threads} threads, torch {torch.__version__}, bfloat16 products "
        f"{'fast' if fast else 'slow'}, {'CPU' if asked.threads == 1 else 'wall'} time, {asked.rounds} rounds"
        + ("" if peer else f"; {PEER} is not installed")
    )
    row("model", "what", "figure", "share of the float32 peak", "ratio")
    row(*["---"] * 5)
    parts = [asked.only] if asked.only else PARTS
    if "throughput" in parts:
        throughput(asked.rounds, clock, usable, peer, not asked.eager)
    if "packed" in parts:
        packed(asked.rounds, clock, usable)
    if "memory" in parts:
        memory()
    if "loader" in parts:
        loader(asked.threads)


if __name__ == "__main__":
    main()
