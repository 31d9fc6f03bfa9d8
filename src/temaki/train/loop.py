"""The one loop. Objective, data and what may move vary; the loop does not, and the rest hangs on it as hooks."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from temaki.base import device as devices
from temaki.base import rows as base_rows
from temaki.base.dist import ALONE, World
from temaki.base.errors import NonFiniteError, RunError
from temaki.base.log import MetricLog
from temaki.base.rows import TokenBatch
from temaki.batches.data import Takes
from temaki.model import dropout
from temaki.model.build import Model
from temaki.model.count import flops_per_token
from temaki.optim.optimizer import Optimizer
from temaki.train import plan as plans
from temaki.train import requests
from temaki.train.config import RollBackAtSpikeConfig, RunConfig, WarnAtSpikeConfig, freezes
from temaki.train.guard import Guard, Spike
from temaki.train.hooks import Hook
from temaki.train.noise import Scale
from temaki.train.objectives import Objective
from temaki.train.plan import Plan
from temaki.train.requests import Requests
from temaki.train.step import Told, update


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
    loader: Takes
    device: torch.device
    log: MetricLog
    plan: Plan
    peak: float
    """This machine's matrix-product speed, FLOP/s."""
    save: Callable[["Run"], Path]
    back: Callable[["Run", int], None]
    """Makes the run stand where its last healthy checkpoint up to a step stands, and removes later ones."""
    hooks: Sequence[Hook]
    world: World = ALONE
    step: int = 0
    """Updates made, those left out included."""
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
    noise: Scale = field(default_factory=Scale)
    """The gradient's noise, measured on the way."""
    guard: Guard = field(init=False)
    flops: float = field(init=False)
    """Of a training step, an id."""

    def __post_init__(self) -> None:
        self.guard = Guard(self.config.guard)
        self.flops = flops_per_token(self.config.model, self.config.batch.context, freezes(self.config.objective))


def loop(run: Run) -> str:
    """Train to the plan's end; returns why it ended: "finished", or what asked it to stop (see `requests.py`).

    A signal lets the step finish, then a checkpoint is saved; a second one interrupts at once. Raises NonFiniteError
    with weights and last checkpoint untouched, RunError where the loss spikes and the recipe says to stop.
    """
    with requests.listening(run.folder, run.world) as asked:
        try:
            for hook in run.hooks:
                hook.begin(run)
            if isinstance(run.config.guard.spike.do, RollBackAtSpikeConfig) and run.step == 0:
                run.save(run)  # so that there is always a place to go back to
            stopped = _steps(run, asked)
        except BaseException as error:
            for hook in run.hooks:
                hook.end(run, type(error).__name__)
            raise
        reason = stopped or "finished"
        if run.saved != run.step:
            _save(run)
        run.log.write({"kind": "end", "step": run.step, "reason": reason, "seconds": run.seconds})
        for hook in run.hooks:
            hook.end(run, reason)
    return reason


def _steps(run: Run, asked: Requests) -> str | None:
    """Step until the plan's end or until someone asks to stop: who."""
    last = time.perf_counter()
    while run.step < run.plan.steps:
        wanted = asked.agreed(run.world)
        if wanted.stop is not None:
            return wanted.stop
        if wanted.save:
            _save(run)
        line = _step(run)
        spike = run.guard.hear(line["loss"]) if line is not None else None
        back = spike is not None and _spiked(run, spike)
        if not back:
            _tell(run, line)
        now = time.perf_counter()
        run.seconds, last = run.seconds + now - last, now
        if not back:
            _settle(run)
            if run.step % run.config.save.every == 0:
                _save(run)
    return None


def _tell(run: Run, line: Mapping[str, float] | None) -> None:
    for hook in run.hooks:
        if line is None:
            hook.skipped(run)
        else:
            hook.step(run, line)


def _save(run: Run) -> None:
    run.save(run)
    run.saved = run.step


def _step(run: Run) -> dict[str, float] | None:
    """One step and its line; None where it was left out."""
    start = time.perf_counter()
    factor = plans.rate(run.plan, run.config.optim.schedule, run.step)
    watch, clip = run.config.watch, run.config.optim.clip
    norms = watch.norms is not None and (run.step + 1) % watch.norms == 0
    batches = _micro_batches(run)
    try:
        told = update(run.forward, run.objective, run.optimizer, batches, factor, clip, run.world, norms)
    except NonFiniteError as error:
        _left_out(run, error)
        return None
    _advance(run)
    if told.noise is not None:
        run.noise.add(told.noise)
    line = _line(run, told, run.config.optim.lr * factor, time.perf_counter() - start)
    run.told = line
    if norms or run.step % watch.log == 0 or run.step in (1, run.plan.steps):
        run.log.write({"kind": "step", **line, "memory": devices.resident(run.device)})
    return line


def _advance(run: Run) -> None:
    batch = run.config.batch
    run.step, run.tokens, run.position = run.step + 1, run.tokens + batch.tokens, run.position + batch.rows


def _line(run: Run, told: Told, lr: float, seconds: float) -> dict[str, float]:
    """What a step that took `seconds` says."""
    speed = run.config.batch.tokens / seconds
    line = {
        "step": run.step,
        "loss": told.loss,
        "lr": lr,
        "grad_norm": told.grad_norm,
        "tokens": run.tokens,
        "seconds": run.seconds + seconds,
        "tokens_per_second": speed,
        "peak_share": speed * run.flops / run.peak,
    }
    for name, norms in (("grad", told.gradients), ("weight", told.weights), ("update", told.updates)):
        line |= {f"{name}_norm/{role}": norm for role, norm in norms.items()}
    if run.noise.simple is not None:
        line["noise_scale"] = run.noise.simple
    return line


def _left_out(run: Run, error: NonFiniteError) -> None:
    """Go on without the update, or raise, as the recipe says; the rows of the step are passed over."""
    guard = run.config.guard
    if guard.non_finite == "stop" or run.guard.left_out():
        what = f"step {run.step + 1}: {error.what}"
        if guard.non_finite == "skip":
            what += f", after {guard.skips} steps in a row that were left out for it"
        run.log.write({"kind": "end", "step": run.step, "reason": "not finite", "message": error.found})
        raise NonFiniteError(what, found=error.found, do=error.do) from None
    _advance(run)
    run.log.write({"kind": "skip", "step": run.step, "message": error.found})


def _spiked(run: Run, spike: Spike) -> bool:
    """Do what the recipe says about a spike: whether the run went back."""
    run.log.write({"kind": "spike", "step": run.step, "loss": spike.loss, "message": str(spike)})
    match run.config.guard.spike.do:
        case WarnAtSpikeConfig():
            return False
        case RollBackAtSpikeConfig(most=most) if run.guard.rollbacks < most:
            _roll_back(run, spike)
            return True
        case do:
            often = f", after going back {run.guard.rollbacks} times" if isinstance(do, RollBackAtSpikeConfig) else ""
            run.log.write({"kind": "end", "step": run.step, "reason": "spike", "message": str(spike)})
            raise RunError(
                f"step {run.step}: the loss spikes{often}",
                found=str(spike),
                do="lower optim.lr or look at the data; guard.spike.do says what else to do than to stop",
            )


def _roll_back(run: Run, spike: Spike) -> None:
    """Stand at the last healthy checkpoint with the rows up to the spike passed over, and save that.

    The first loss of a spike is that of the weights of the step before, so the update of that step may be what broke
    them, and its checkpoint is passed over too. The lines of the steps taken back leave the log; a line says so, and
    a length that was decided meanwhile is told again, since it stays.
    """
    spiked, position, rollbacks = run.step, run.position, run.guard.rollbacks + 1
    run.back(run, spiked - spike.steps - 1)
    run.position, run.guard.rollbacks = position, rollbacks
    run.log.cut(run.step)
    line = {"from": spiked, "to": run.step, "times": rollbacks, "position": position, "message": str(spike)}
    run.log.write({"kind": "rollback", "step": run.step, **line})
    if run.plan != plans.first(run.config.stop, run.config.optim.schedule):
        _tell_plan(run)
    _save(run)


def _micro_batches(run: Run) -> list[TokenBatch]:
    """This process's share of each micro-batch: of m rows and D replicas, rows [r m / D, (r + 1) m / D)."""
    batches, first = [], run.position
    for rows in _sizes(run):
        share = rows // run.world.replicas
        place = first + run.world.replica * share
        batch = run.objective.prepared(run.loader.take(place, share), place)
        if run.config.model.draws:
            batch = dropout.numbered(batch, run.config.seed, place)
        batches.append(base_rows.to(batch, run.device))
        first += rows
    if run.config.parallel.compile:
        for each in batches:
            torch._dynamo.mark_dynamic(each.rows.cuts, 0)
    return batches


def _sizes(run: Run) -> list[int]:
    """Rows of each micro-batch; now and then a step that is read at once is read in two halves.

    Not if compiled: a half is another shape, and compiling that costs more than it tells.
    """
    batch, halves = run.config.batch, run.config.batch.halves
    half = batch.rows // 2 // run.world.replicas * run.world.replicas
    whole = batch.micro_rows == batch.rows and not run.config.parallel.compile
    if whole and half and halves is not None and (run.step + 1) % halves == 0:
        return [half, batch.rows - half]
    return [batch.micro_rows] * (batch.rows // batch.micro_rows)


def _settle(run: Run) -> None:
    """Decide the run's length once it is time to."""
    if run.plan.settled:
        return
    seconds = run.world.agreed(run.seconds)
    plan = plans.settle(run.plan, run.config.stop, run.config.optim.schedule, run.step, seconds)
    if plan != run.plan:
        run.plan = plan
        _tell_plan(run)


def _tell_plan(run: Run) -> None:
    run.log.write({"kind": "plan", "step": run.step, **plans.numbers(run.plan)})


def numbers(run: Run) -> dict[str, Mapping[str, float]]:
    """What a manifest keeps of the run beside its step: plan, seconds, guard, noise, and each hook's own numbers."""
    return {
        "plan": plans.numbers(run.plan),
        "loop": {"seconds": run.seconds},
        "guard": run.guard.numbers(),
        "noise": run.noise.numbers(),
        **{hook.name: dict(hook.numbers) for hook in run.hooks if hook.numbers},
    }


def stand(run: Run, step: int, tokens: int, position: int, found: Mapping[str, Mapping[str, float]]) -> None:
    """Make the run stand where a checkpoint of `step` stood; `found`: its `numbers`. The plan and the clock stay."""
    run.step = run.saved = step
    run.tokens, run.position = tokens, position
    run.guard.restore(found.get("guard", {}))
    run.noise.restore(found.get("noise", {}))
    for hook in run.hooks:
        hook.numbers.update(found.get(hook.name, {}))
