"""The one loop. Objective, data and what may move vary; the loop does not, and the rest hangs on it as hooks."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from temaki.base import rows as base_rows
from temaki.base.errors import NonFiniteError
from temaki.base.log import MetricLog
from temaki.base.rows import TokenBatch
from temaki.batches.loader import Loader
from temaki.model.build import Model
from temaki.model.count import flops_per_token
from temaki.optim.optimizer import Optimizer
from temaki.train import plan as plans
from temaki.train.config import RunConfig
from temaki.train.hooks import Hook
from temaki.train.objectives import Objective
from temaki.train.plan import Plan
from temaki.train.step import update


@dataclass
class Run:
    """Everything a run is made of while it goes on."""

    config: RunConfig
    folder: Path
    model: Model
    """What is saved and generates."""
    forward: Model
    """What the step calls: the model itself, or compiled."""
    optimizer: Optimizer
    objective: Objective
    loader: Loader
    device: torch.device
    log: MetricLog
    plan: Plan
    peak: float
    """This machine's matrix-product speed, FLOP/s."""
    save: Callable[["Run"], Path]
    hooks: Sequence[Hook]
    step: int = 0
    """Updates made."""
    seconds: float = 0.0
    """Spent in the loop, hooks included, over all its resumptions."""
    told: dict[str, float] = field(default_factory=dict)
    """The last step's line."""
    tokens: int = 0
    """Ids read so far."""
    position: int = 0
    """Rows taken in the loader's order."""
    saved: int = 0
    """The step saved last."""


def loop(run: Run) -> str:
    """Train to the plan's end; returns why it ended: "finished", or the name of the signal that stopped it.

    A signal lets the step finish, then a checkpoint is saved; a second one interrupts at once. Raises NonFiniteError
    with weights and last checkpoint untouched.
    """
    with _signals() as asked:
        try:
            for hook in run.hooks:
                hook.begin(run)
            _steps(run, asked)
        except BaseException as error:
            for hook in run.hooks:
                hook.end(run, type(error).__name__)
            raise
        reason = signal.Signals(asked[0]).name if asked and run.step < run.plan.steps else "finished"
        if run.saved != run.step:
            run.save(run)
        run.log.write({"kind": "end", "step": run.step, "reason": reason, "seconds": run.seconds})
        for hook in run.hooks:
            hook.end(run, reason)
    return reason


def _steps(run: Run, asked: Sequence[int]) -> None:
    last = time.perf_counter()
    while run.step < run.plan.steps and not asked:
        line = _step(run)
        for hook in run.hooks:
            hook.step(run, line)
        now = time.perf_counter()
        run.seconds, last = run.seconds + now - last, now
        run.plan = _settle(run)
        if run.step % run.config.save.every == 0:
            run.save(run)
            run.saved = run.step


def _step(run: Run) -> dict[str, float]:
    start = time.perf_counter()
    factor = plans.rate(run.plan, run.config.optim.schedule, run.step)
    try:
        told = update(run.forward, run.objective, run.optimizer, _micro_batches(run), factor, run.config.optim.clip)
    except NonFiniteError as error:
        run.log.write({"kind": "end", "step": run.step, "reason": "not finite", "message": error.found})
        raise NonFiniteError(f"step {run.step + 1}: {error.what}", found=error.found, do=error.do) from None
    batch = run.config.batch
    run.step, run.tokens, run.position = run.step + 1, run.tokens + batch.tokens, run.position + batch.rows
    speed = batch.tokens / (time.perf_counter() - start)
    line = {
        "step": run.step,
        "loss": told.loss,
        "lr": run.config.optim.lr * factor,
        "grad_norm": told.grad_norm,
        "tokens": run.tokens,
        "seconds": run.seconds + time.perf_counter() - start,
        "tokens_per_second": speed,
        "peak_share": speed * flops_per_token(run.config.model, run.config.batch.context) / run.peak,
    }
    run.told = line
    if run.step % run.config.watch.log == 0 or run.step in (1, run.plan.steps):
        run.log.write({"kind": "step", **line})
    return line


def _micro_batches(run: Run) -> list[TokenBatch]:
    batch = run.config.batch
    first = run.position
    batches = [
        base_rows.to(run.objective.prepared(run.loader.take(first + i, batch.micro_rows), first + i), run.device)
        for i in range(0, batch.rows, batch.micro_rows)
    ]
    if run.config.parallel.compile:
        for each in batches:
            torch._dynamo.mark_dynamic(each.rows.cuts, 0)
    return batches


def _settle(run: Run) -> Plan:
    plan = plans.settle(run.plan, run.config.stop, run.config.optim.schedule, run.step, run.seconds)
    if plan != run.plan:
        run.log.write({"kind": "plan", "step": run.step, **plans.numbers(plan)})
    return plan


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying from the first; the handlers of before come back at the end."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, remember)
        except ValueError:  # not the main thread: signals go elsewhere
            break
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def numbers(run: Run) -> dict[str, Mapping[str, float]]:
    """What a manifest keeps of the run beside its step: the plan, the seconds, and each hook's own numbers."""
    return {
        "plan": plans.numbers(run.plan),
        "loop": {"seconds": run.seconds},
        **{hook.name: dict(hook.numbers) for hook in run.hooks if hook.numbers},
    }
