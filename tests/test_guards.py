"""Guards of a run: faults are injected, and what goes on is what should have gone on, to the bit."""

import errno
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from little_runs import At, lines, prepared_in, recipe, same_checkpoints
from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base import log
from temaki.base.config import read
from temaki.base.dist import World
from temaki.base.errors import CheckpointError, ConfigError, NonFiniteError, RunError
from temaki.base.rows import TokenBatch
from temaki.batches.prepare import Prepared
from temaki.checkpoint import native
from temaki.checkpoint.store import Store
from temaki.model.count import count
from temaki.optim.config import CosineConfig, LinearConfig, NoamConfig, ScheduleConfig, WsdConfig
from temaki.study import recipes
from temaki.study.hooks import Validate
from temaki.train import loop, room
from temaki.train import plan as plans
from temaki.train import run as runs
from temaki.train.config import GuardConfig, RunConfig, SpikeConfig, StopConfig
from temaki.train.guard import LEAST, Guard
from temaki.train.hooks import Every, Hook
from temaki.train.loop import Run

NAME = "grouped"
ROWS = 4
"""Rows a step of the little recipe."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_in(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def _peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix peak is not measured for each little run."""
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e11)


def config(**changes: object) -> RunConfig:
    return read(RunConfig, recipe(NAME, **changes))


def kinds(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in log.read(folder / "metrics.jsonl") if line["kind"] == kind]


class Faulty:
    """An objective whose loss is multiplied while the run stands at rows of certain steps' places in the data."""

    def __init__(self, run: Run, steps: Sequence[int], factor: float):
        self.run, self.inner, self.factor = run, run.objective, factor
        self.rows = {ROWS * (step - 1) for step in steps}
        self.scales = run.objective.scales

    def prepared(self, batch: TokenBatch, place: int) -> TokenBatch:
        return self.inner.prepared(batch, place)

    def counts(self, batch: TokenBatch) -> Mapping[str, float]:
        return self.inner.counts(batch)

    def totals(self, model: Any, batch: TokenBatch) -> Mapping[str, torch.Tensor]:
        factor = self.factor if self.run.position in self.rows else 1.0
        return {name: value * factor for name, value in self.inner.totals(model, batch).items()}


class BadData(Hook):
    """The rows of certain steps (counted from 1 in an untroubled run) give a loss that is `factor` times too high."""

    name = "bad-data"

    def __init__(self, *steps: int, factor: float = math.inf):
        super().__init__()
        self.steps, self.factor = steps, factor

    def begin(self, run: Run) -> None:
        run.objective = Faulty(run, self.steps, self.factor)  # type: ignore[assignment]


def move(steps: int, rows: int) -> Callable[[Run], None]:
    def act(run: Run) -> None:
        run.step, run.position = run.step + steps, run.position + rows
        run.tokens += 128 * steps

    return act


def stop(_run: Run) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# ---- numbers that are not finite ------------------------------------------------------------------------------------


def test_a_step_left_out_moves_the_data_and_the_step_and_nothing_else(prepared: Prepared, tmp_path: Path) -> None:
    skipping = config(guard={"non_finite": "skip"})
    outcome = runs.start(skipping, tmp_path / "fault", prepared, [BadData(4)])
    assert (outcome.reason, outcome.run.step, outcome.run.optimizer.t) == ("finished", 12, 11)
    runs.start(skipping, tmp_path / "clean", prepared, [At(3, move(1, ROWS))])
    same_checkpoints(tmp_path / "fault", tmp_path / "clean", 12)
    assert lines(tmp_path / "fault") == lines(tmp_path / "clean")
    (line,) = kinds(tmp_path / "fault", "skip")
    assert line["step"] == 4
    assert "first in the loss" in line["message"]


@pytest.mark.parametrize("cut", [3, 5])
def test_resumed_is_uninterrupted_through_a_step_left_out(cut: int, prepared: Prepared, tmp_path: Path) -> None:
    skipping = config(guard={"non_finite": "skip"})
    runs.start(skipping, tmp_path / "whole", prepared, [BadData(4, 6)])
    runs.start(skipping, tmp_path / "cut", prepared, [BadData(4, 6), At(cut, stop)])
    runs.start(skipping, tmp_path / "cut", prepared, [BadData(4, 6)], resuming="auto")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [line["step"] for line in kinds(tmp_path / "cut", "skip")] == [4, 6]


def test_too_many_steps_left_out_in_a_row_stop_the_run(prepared: Prepared, tmp_path: Path) -> None:
    patient = config(guard={"non_finite": "skip", "skips": 2})
    runs.start(patient, tmp_path / "two", prepared, [BadData(4, 5, 7, 8)])
    with pytest.raises(NonFiniteError, match=r"step 6: .*after 2 steps in a row"):
        runs.start(patient, tmp_path / "three", prepared, [BadData(4, 5, 6)])
    assert Store(tmp_path / "three" / "checkpoints").open(5).manifest.healthy is False


def test_a_gradient_that_is_not_finite_names_its_parameter(prepared: Prepared, tmp_path: Path) -> None:
    def poison(run: Run) -> None:
        run.model.get_parameter("blocks.1.ffn.down").register_hook(lambda grad: grad * math.nan)

    with pytest.raises(NonFiniteError, match=r"(?s)step 3: .*the gradient of blocks\.1\.ffn\.down") as raised:
        runs.start(config(), tmp_path / "run", prepared, [At(2, poison)])
    assert "the gradient is not finite" in str(raised.value)


def test_weights_made_nan_stop_a_skipping_run_too(prepared: Prepared, tmp_path: Path) -> None:
    def poison(run: Run) -> None:
        with torch.no_grad():
            run.model.get_parameter("blocks.0.ffn.up")[0, 0] = math.nan

    with pytest.raises(NonFiniteError, match=r"parameter blocks\.0\.ffn\.up"):
        runs.start(
            config(guard={"non_finite": "skip", "skips": 3}, save={"every": 50}),
            tmp_path / "run", prepared, [At(2, poison)],
        )  # fmt: skip
    assert [line["step"] for line in kinds(tmp_path / "run", "skip")] == [3, 4, 5]


# ---- spikes of the loss ---------------------------------------------------------------------------------------------


def spiky(do: Mapping[str, object], **changes: object) -> RunConfig:
    return config(guard={"spike": {"window": 4, "steps": 2, "do": dict(do)}}, **changes)


@pytest.mark.parametrize("seed", range(5))
def test_a_spike_is_the_definition(seed: int) -> None:
    """Against NumPy's mean and deviation over the last losses that were no part of a spike."""
    draw = random.Random(seed)
    settings = SpikeConfig(window=6, deviations=3.0, steps=2)
    guard = Guard(GuardConfig(spike=settings))
    calm: list[float] = []
    above = told = 0
    for i in range(400):
        loss = 3 - i / 200 + draw.gauss(0, 0.05) + (draw.random() < 0.1) * 2
        if i % 10 == 9:
            guard, found = Guard(GuardConfig(spike=settings)), guard.numbers()
            guard.restore(found)
            assert guard.numbers() == found
        window = np.array(calm[-6:])
        high = len(window) == 6 and loss > window.mean() + 3 * max(window.std(), LEAST * abs(window.mean()))
        above = above + 1 if high else 0
        calm += [] if high else [loss]
        assert (guard.hear(loss) is not None) == (above == 2)
        assert guard.healthy == (not high) or above >= 6
        told += above == 2
        if above == 6:
            calm, above = [], 0
    assert told > 0


def test_a_level_that_stays_becomes_the_level() -> None:
    guard = Guard(GuardConfig(spike=SpikeConfig(window=4, steps=2)))
    told = [guard.hear(loss) is not None for loss in [1.0] * 4 + [2.0] * 12 + [1.0] * 4 + [2.0] * 2]
    assert [i for i, each in enumerate(told) if each] == [5, 21]
    assert not guard.healthy


def test_a_run_rolled_back_is_one_that_went_from_there_with_the_rows_passed_over(
    prepared: Prepared, tmp_path: Path
) -> None:
    back = spiky({"kind": "roll-back"})
    outcome = runs.start(back, tmp_path / "fault", prepared, [BadData(8, 9, factor=20.0)])
    assert (outcome.reason, outcome.run.step, outcome.run.position) == ("finished", 12, ROWS * (12 + 4))
    runs.start(back, tmp_path / "clean", prepared, [At(5, move(0, ROWS * 4))])
    same_checkpoints(tmp_path / "fault", tmp_path / "clean", 12)
    assert lines(tmp_path / "fault") == lines(tmp_path / "clean")
    (line,) = kinds(tmp_path / "fault", "rollback")
    assert (line["from"], line["to"]) == (9, 5)
    assert kinds(tmp_path / "fault", "spike") == []


@pytest.mark.parametrize("cut", [6, 8, 11])
def test_resumed_is_uninterrupted_through_a_spike(cut: int, prepared: Prepared, tmp_path: Path) -> None:
    """Stopped before the spike, within it, and after the run went back and came there again."""
    back = spiky({"kind": "roll-back"}, save={"every": 4})
    runs.start(back, tmp_path / "whole", prepared, [BadData(7, 8, factor=20.0)])
    runs.start(back, tmp_path / "cut", prepared, [BadData(7, 8, factor=20.0), At(cut, stop)])
    runs.start(back, tmp_path / "cut", prepared, [BadData(7, 8, factor=20.0)], resuming="auto")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [line["to"] for line in kinds(tmp_path / "cut", "rollback")] == [4]


def test_a_run_that_spikes_again_and_again_stops(prepared: Prepared, tmp_path: Path) -> None:
    settings = spiky({"kind": "roll-back", "most": 2}, save={"every": 1, "keep": 9})
    with pytest.raises(RunError, match=r"the loss spikes, after going back 2 times"):
        runs.start(settings, tmp_path / "run", prepared, [BadData(*range(8, 99), factor=20.0)])
    assert [line["to"] for line in kinds(tmp_path / "run", "rollback")] == [5]


def test_a_jump_of_the_rate_is_a_spike_and_its_checkpoints_are_not_healthy(prepared: Prepared, tmp_path: Path) -> None:
    class Jump(Hook):
        def step(self, run: Run, line: Mapping[str, float]) -> None:
            run.optimizer.lr = 5.0 if run.step == 6 and not run.guard.rollbacks else run.config.optim.lr

    whole = spiky({"kind": "warn"}, save={"every": 1, "keep": 12})
    runs.start(whole, tmp_path / "warn", prepared, [Jump()])
    assert len(kinds(tmp_path / "warn", "spike")) == 1
    store = Store(tmp_path / "warn" / "checkpoints")
    healthy = {step: store.open(step).manifest.healthy for step in store.steps()}
    assert healthy[6]
    assert not healthy[8]
    with pytest.raises(RunError, match="the loss spikes"):
        runs.start(spiky({"kind": "stop"}, save={"every": 1, "keep": 3}), tmp_path / "stop", prepared, [Jump()])
    again = spiky({"kind": "roll-back"}, save={"every": 1, "keep": 3})
    outcome = runs.start(again, tmp_path / "stop", prepared, [Jump()], resuming="auto")
    assert outcome.reason == "finished"
    (line,) = kinds(tmp_path / "stop", "rollback")
    assert (line["from"], line["to"]) == (9, 6)
    assert [each["step"] for each in lines(tmp_path / "stop")] == list(range(1, 13))


def test_a_warned_run_is_an_unguarded_one(prepared: Prepared, tmp_path: Path) -> None:
    runs.start(spiky({"kind": "warn"}), tmp_path / "warned", prepared, [BadData(8, 9, factor=20.0)])
    runs.start(config(), tmp_path / "plain", prepared, [BadData(8, 9, factor=20.0)])
    assert [line["step"] for line in kinds(tmp_path / "warned", "spike")] == [9]
    same_checkpoints(tmp_path / "warned", tmp_path / "plain", 12)


# ---- what is asked from outside -------------------------------------------------------------------------------------


def touch(name: str) -> Callable[[Run], None]:
    return lambda run: (run.folder / name).touch()


def test_a_signal_and_a_file_save_and_a_file_stops(prepared: Prepared, tmp_path: Path) -> None:
    often = config(save={"every": 50, "keep": 9})
    runs.start(often, tmp_path / "whole", prepared)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()  # of an earlier run: not meant for this one
    hooks = [At(2, lambda _: os.kill(os.getpid(), signal.SIGUSR1)), At(4, touch("save")), At(7, touch("stop"))]
    outcome = runs.start(often, tmp_path / "run", prepared, hooks)
    assert (outcome.reason, outcome.run.step) == ("stop", 7)
    assert Store(tmp_path / "run" / "checkpoints").steps() == [2, 4, 7]
    assert not {"save", "stop"} & {path.name for path in (tmp_path / "run").iterdir()}
    runs.start(often, tmp_path / "run", prepared, resuming="auto")
    same_checkpoints(tmp_path / "run", tmp_path / "whole", 12)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_signal_while_a_hook_works_lets_it_finish(prepared: Prepared, tmp_path: Path) -> None:
    class Slow(Every):
        name = "slow"

        def act(self, run: Run) -> None:
            stop(run)
            self.numbers["done"] = run.step

    outcome = runs.start(config(), tmp_path / "run", prepared, [Slow(6)])
    assert (outcome.reason, outcome.run.step) == ("SIGTERM", 6)
    manifest = Store(tmp_path / "run" / "checkpoints").open(6).manifest
    assert manifest.hooks["slow"] == {"done": 6}


def test_a_disk_that_is_full_at_a_save_costs_the_steps_since_the_last_one(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.start(config(), tmp_path / "whole", prepared)
    write = native.write_folder

    def full(folder: Path, *rest: Any) -> None:
        if folder.name.endswith("10"):
            raise CheckpointError(f"{folder} cannot be written: {os.strerror(errno.ENOSPC)}")
        write(folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(native, "write_folder", full)
        with pytest.raises(CheckpointError, match="No space left"):
            runs.start(config(), tmp_path / "run", prepared)
    assert Store(tmp_path / "run" / "checkpoints").steps() == [5]
    runs.start(config(), tmp_path / "run", prepared, resuming="auto")
    same_checkpoints(tmp_path / "run", tmp_path / "whole", 12)


# ---- time -----------------------------------------------------------------------------------------------------------

SCHEDULES: tuple[ScheduleConfig, ...] = (
    WsdConfig(warmup=20, decay=0.5, floor=0.02),
    WsdConfig(warmup=20, decay=0.2, floor=0.0),
    CosineConfig(warmup=20, floor=0.1),
    LinearConfig(warmup=20, floor=0.0),
    NoamConfig(warmup=20),
)


def simulated(
    schedule: ScheduleConfig, limit: float, pace: Callable[[int], float], steps: int = 1000
) -> tuple[list[float], float, list[plans.Plan]]:
    """(rate of each step, seconds of all, plans that were decided) of a run whose steps take `pace` seconds."""
    asked = StopConfig(steps=steps, max_minutes=limit / 60)
    plan, step, seconds = plans.first(asked, schedule), 0, 0.0
    rates, decided = [], []
    while step < plan.steps:
        rates.append(plans.rate(plan, schedule, step))
        step, seconds = step + 1, seconds + pace(step)
        new = plans.settle(plan, asked, schedule, step, seconds)
        decided += [new] if new != plan else []
        plan = new
        assert plans.restore(plans.numbers(plan)) == plan
    return rates, seconds, decided


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: f"{each.kind}")
@pytest.mark.parametrize("limit", [150.0, 400.0, 999.0])
def test_a_limited_run_ends_in_time_with_its_rate_down(schedule: ScheduleConfig, limit: float) -> None:
    rates, seconds, decided = simulated(schedule, limit, lambda _: 1.0)
    assert limit - 2 <= seconds <= limit
    assert len(decided) == 1
    whole, _, _ = simulated(schedule, 1e9, lambda _: 1.0)
    assert whole[-1] == pytest.approx(plans.rate(plans.first(StopConfig(steps=1000), schedule), schedule, 999))
    if not isinstance(schedule, NoamConfig):
        assert rates[-1] == pytest.approx(whole[-1], abs=1e-9)
        falls = np.diff(rates[20:])
        assert (falls <= 1e-12).all()
        assert (-falls).max() <= 3.2 / (1000 - 20) * 1000 / limit * 2 + 1e-9, "no cliff"


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: f"{each.kind}")
def test_a_limit_that_does_not_bind_changes_no_rate(schedule: ScheduleConfig) -> None:
    rates, seconds, _ = simulated(schedule, 1001.0, lambda _: 1.0)
    plan = plans.first(StopConfig(steps=1000), schedule)
    assert (seconds, rates) == (1000.0, [plans.rate(plan, schedule, step) for step in range(1000)])


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda each: f"{each.kind}")
def test_a_machine_that_slows_down_ends_late_but_decayed(schedule: ScheduleConfig) -> None:
    rates, seconds, decided = simulated(schedule, 300.0, lambda step: 1.0 if step < 200 else 3.0)
    assert seconds > 300
    assert len(decided) == 1
    assert rates[-1] == pytest.approx(schedule.floor, abs=1e-9)  # type: ignore[union-attr]


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=lambda each: f"{each.kind}")
def test_a_clock_that_jumps_still_leaves_a_tenth_for_the_decay(schedule: ScheduleConfig) -> None:
    rates, _, (plan,) = simulated(schedule, 300.0, lambda step: 3600.0 if step == 100 else 1.0)
    assert 100 < plan.steps <= 112
    assert rates[-1] == pytest.approx(schedule.floor, abs=1e-9)  # type: ignore[union-attr]
    assert len(rates) - 100 >= 10


def test_what_was_decided_is_in_metrics_and_manifest_and_honoured_on_resume(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)

    def tick() -> float:
        clock.now += 0.25
        return clock.now

    monkeypatch.setattr(loop.time, "perf_counter", tick)
    asked = config(stop={"steps": 100, "max_minutes": 0.5})
    outcome = runs.start(asked, tmp_path / "run", prepared, [At(24, stop)])
    assert outcome.reason == "SIGTERM"
    (decided,) = kinds(tmp_path / "run", "plan")
    assert decided["step"] < 24 < decided["steps"] < 100
    assert Store(tmp_path / "run" / "checkpoints").open(24).manifest.hooks["plan"]["steps"] == decided["steps"]
    clock.now += 3600
    monkeypatch.setattr(loop.time, "perf_counter", lambda: tick() * 5)
    outcome = runs.start(asked, tmp_path / "run", prepared, resuming="auto")
    assert (outcome.reason, outcome.run.step) == ("finished", decided["steps"])
    assert lines(tmp_path / "run")[-1]["lr"] == pytest.approx(0.02 * asked.optim.lr)


def test_a_length_that_was_decided_is_still_told_where_a_run_went_back_behind_it(
    prepared: Prepared, tmp_path: Path
) -> None:
    decided = plans.Plan(steps=14, decay=6, settled=True)

    def decide(run: Run) -> None:
        run.plan = decided

    hooks = [At(7, decide), BadData(9, 10, factor=20.0)]
    outcome = runs.start(spiky({"kind": "roll-back"}), tmp_path / "run", prepared, hooks)
    (back,) = kinds(tmp_path / "run", "rollback")
    assert (back["from"], back["to"], back["times"]) == (10, 5, 1)
    (told,) = kinds(tmp_path / "run", "plan")
    assert (told["step"], plans.restore(told), outcome.run.step) == (5, decided, 14)


def test_a_checkpoint_that_is_saved_again_after_a_resume_keeps_its_score(prepared: Prepared, tmp_path: Path) -> None:
    judge = lambda: Validate(4, prepared, 512)  # noqa: E731
    runs.start(config(), tmp_path / "run", prepared, [judge(), At(4, stop)])
    store = Store(tmp_path / "run" / "checkpoints")
    score = store.open(4).manifest.score
    assert score is not None

    class Ask(Hook):
        def begin(self, run: Run) -> None:
            touch("save")(run)

    runs.start(config(), tmp_path / "run", prepared, [judge(), Ask(), At(5, stop)], resuming="auto")
    assert [line["step"] for line in kinds(tmp_path / "run", "save")] == [4, 4, 5]
    assert store.open(4).manifest.score == score
    assert store.open(5).manifest.score is None


# ---- a changed recipe -----------------------------------------------------------------------------------------------


def test_a_changed_recipe_is_listed_and_refused_unless_named(prepared: Prepared, tmp_path: Path) -> None:
    runs.start(config(stop={"steps": 3}), tmp_path / "run", prepared)
    schedule = {"kind": "wsd", "warmup": 2}
    changed = config(optim={"lr": 0.01, "schedule": schedule}, stop={"steps": 5}, watch={"log": 2})
    with pytest.raises(RunError) as raised:
        runs.start(changed, tmp_path / "run", prepared, resuming="auto", allow=["optim.lr"])
    assert "stop.steps: 3 -> 5" in raised.value.found
    assert "optim.lr" not in raised.value.found
    assert "watch" not in raised.value.found
    heard: list[str] = []
    allow = ["optim.lr", "stop", "seed", "optm.lr"]
    outcome = runs.start(changed, tmp_path / "run", prepared, resuming="auto", warn=heard.append, allow=allow)
    assert outcome.run.step == 5
    assert any("--allow-change optm.lr allows nothing" in line for line in heard)
    assert not any("seed" in line for line in heard)
    assert any("optim.lr: 0.005 -> 0.01; stop.steps: 3 -> 5" in line for line in heard)
    assert not any("watch" in line for line in heard)


def test_a_save_from_before_a_setting_existed_is_the_same_recipe(prepared: Prepared, tmp_path: Path) -> None:
    runs.start(config(stop={"steps": 3}), tmp_path / "run", prepared)
    store = Store(tmp_path / "run" / "checkpoints")
    found = store.open(3)
    older = found.settings()
    del older["guard"], older["batch"]["halves"], older["watch"]["norms"], older["optim"]["matrix"]
    from temaki.base import config as config_door
    from temaki.checkpoint.resume import auto

    manifest = found.manifest
    native_settings = config_door.mapping(config(stop={"steps": 3}))
    path = found.folder.path
    assert manifest.machine
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda old: config_door.mapping(  # noqa: E731
        read(RunConfig, {key: old[key] for key in old if key in older})
    )
    resumed = auto(path.parents[1], native_settings, manifest.machine, manifest.tokenizer, manifest.shards, complete)
    assert resumed is not None
    assert resumed.recipe == ()


# ---- rows and processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replica(World):
    """One of several processes with other rows."""

    at: int = 0
    of: int = 1

    @property
    def replicas(self) -> int:
        return self.of

    @property
    def replica(self) -> int:
        return self.at


@pytest.mark.parametrize("batch", [{"micro": 128}, {"halves": 1}, {"halves": None}])
def test_the_rows_of_all_replicas_are_those_of_one_process(
    batch: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    settings = {"tokens": 256, "context": 32, **{key: value for key, value in batch.items() if value is not None}}
    run = runs.start(config(batch=settings, stop={"steps": 3}), tmp_path / "run", prepared).run
    run.config = replace(run.config, batch=replace(run.config.batch, **batch))

    def taken(world: World) -> list[list[int]]:
        run.world = world
        return [each.rows.ids.tolist() for each in loop._micro_batches(run)]

    whole = taken(World())
    assert len(whole) == (1 if batch == {"halves": None} else 2)
    for of in (2, 4):
        shares = [taken(Replica(at=at, of=of)) for at in range(of)]
        assert [[one for share in shares for one in share[i]] for i in range(len(whole))] == whole


def test_noise_norms_and_memory_are_measured_on_the_way(prepared: Prepared, tmp_path: Path) -> None:
    watched = config(
        watch={"log": 1, "norms": 5}, batch={"tokens": 128, "context": 32, "halves": 2}, stop={"steps": 30}
    )
    outcome = runs.start(watched, tmp_path / "run", prepared)
    found = kinds(tmp_path / "run", "step")
    assert [line["step"] for line in found if "update_norm/matrix" in line] == list(range(5, 31, 5))
    assert all(line["memory"] > 0 for line in found)
    assert outcome.run.noise.numbers()["mass"] > 0
    ends = {key: outcome.run.noise.numbers()[key] for key in ("noise", "signal")}
    assert Store(tmp_path / "run" / "checkpoints").open(30).manifest.hooks["noise"].items() >= ends.items()


# ---- memory ---------------------------------------------------------------------------------------------------------


def shaped(**changes: Any) -> RunConfig:
    model = {
        "vocabulary": 8192, "width": 512, "depth": 8, "tied": False,
        "pattern": [{"mixer": {"kind": "attention", "heads": 8}}],
    }  # fmt: skip
    found = {"name": "x", "model": model, "batch": {"tokens": 16384, "context": 256}, "stop": {"steps": 9}}
    return read(RunConfig, {**found, **changes})


def test_what_saves_memory_is_counted_so() -> None:
    most = room.room(shaped()).total
    lighter = [
        room.room(shaped(parallel={"checkpoint_activations": True})),
        room.room(shaped(batch={"tokens": 16384, "context": 256, "micro": 2048})),
        room.room(shaped(), shards=4, replicas=4),
        room.room(shaped(), tensor=2),
    ]
    assert all(each.total < most for each in lighter)
    adamw = room.room(shaped(optim={"matrix": {"kind": "adamw"}}))
    assert (
        adamw.optimizer > room.room(shaped()).optimizer > room.room(shaped(optim={"matrix": {"kind": "sgd"}})).optimizer
    )


@pytest.mark.parametrize("heads", ["parallel", "sequential", "medusa"])
def test_heads_of_further_ids_take_memory_and_a_frozen_trunk_little(heads: str) -> None:
    def headed(**task: Any) -> RunConfig:
        return recipes.complete(
            {**config_door.mapping(shaped()), "objective": {"kind": "several", "heads": {"kind": heads}, **task}}, 8192
        )

    block = room.kept(replace(shaped().model, depth=9)) - room.kept(shaped().model)
    more = room.kept(headed().model) - room.kept(shaped().model)
    assert more > (3 * block if heads != "medusa" else 3 * 3 * 512)
    found, whole = room.room(headed(trunk="frozen")), room.room(headed())
    assert found.weights == whole.weights
    assert found.gradients == 4 * count(headed().model).further == found.optimizer / 2
    assert found.activations < 0.6 * whole.activations


def test_advice_that_is_taken_makes_it_fit() -> None:
    free = int(room.room(shaped()).total * 0.5)
    with pytest.raises(ConfigError, match="will not fit") as raised:
        room.check(shaped(), free)
    assert "parallel.checkpoint_activations=true" in raised.value.do
    micro = int(raised.value.do.split("batch.micro=")[1].split(",")[0])
    room.check(shaped(batch={"tokens": 16384, "context": 256, "micro": micro}), free)
    room.check(shaped(), None)
    odd = room.room(shaped(batch={"tokens": 60 * 256, "context": 256, "micro": 30 * 256}), replicas=4)
    with pytest.raises(ConfigError, match="will not fit") as raised:
        room.check(shaped(batch={"tokens": 60 * 256, "context": 256}), int(odd.total) + 1, replicas=4)
    assert "batch.micro=5120" in raised.value.do.split(", or "), "4 processes share the rows"
    with pytest.raises(ConfigError, match=r"smaller model\.width"):
        room.check(shaped(), 1000)


# ---- bad input ------------------------------------------------------------------------------------------------------

RECIPE = """name = "little"
[model]
width = 32
depth = 2
[[model.pattern]]
[model.pattern.mixer]
kind = "attention"
heads = 2
[batch]
tokens = 128
context = 32
[stop]
steps = 12
[optim.schedule]
warmup = 2
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optim.schedule.warmup=12"], "warmup 12, steps 12"),
        (["optim.lr=nan"], "optim.lr"),
        (["model.width=2097152", "model.depth=64"], "will not fit"),
        (["stop.minutes=1", "--max-minutes", "2"], "give one of them"),
        (["--max-minutes", "0"], "stop.max_minutes"),
        (["--max-minutes", "nan"], "stop.max_minutes"),
        (["guard.spike.window=2"], "guard.spike.window"),
        (["guard.non_finite=ignore"], "guard.non_finite"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from temaki.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    monkeypatch.setattr(sys, "argv", ["temaki", "train", "recipe.toml", *words])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert left.value.code == 2, told
    assert says in told
    assert not Path("runs").exists()
