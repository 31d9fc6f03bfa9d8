"""The plan of a run: how many steps, and where the rate begins to fall; decided once, kept in every manifest."""

from collections.abc import Mapping
from dataclasses import dataclass

from temaki.optim.config import ScheduleConfig
from temaki.optim.schedule import decay_start, factor
from temaki.train.config import StopConfig


@dataclass(frozen=True)
class Plan:
    """What is decided of a run's length."""

    steps: int
    decay: int
    """The step at which the rate begins to fall."""
    settled: bool
    """True once the length will not change any more."""


def first(stop: StopConfig, schedule: ScheduleConfig) -> Plan:
    """The plan at the start: the recipe's steps, open to one change if minutes are given."""
    return Plan(stop.steps, decay_start(schedule, stop.steps), settled=stop.minutes is None)


def settle(plan: Plan, stop: StopConfig, schedule: ScheduleConfig, step: int, seconds: float) -> Plan:
    """The plan after `step` steps that took `seconds`: once the rate is about to fall, the length to fill the minutes.

    The moment has come when the steps done so far are the stable share of the steps that the whole time allows.
    """
    if plan.settled or stop.minutes is None or step < 1:
        return plan
    total = max(step + 1, round(step * stop.minutes * 60 / max(seconds, 1e-9)))
    start = decay_start(schedule, total)
    if step < start and step < plan.steps - 1:
        return plan
    return Plan(total, max(start, min(step, total)), settled=True)


def rate(plan: Plan, schedule: ScheduleConfig, step: int) -> float:
    """The schedule's factor for the update number `step` (0 is the first)."""
    return factor(schedule, min(step, plan.steps - 1), plan.steps, plan.decay)


def numbers(plan: Plan) -> dict[str, float]:
    """The plan as a manifest keeps it."""
    return {"steps": plan.steps, "decay": plan.decay, "settled": float(plan.settled)}


def restore(found: Mapping[str, float]) -> Plan:
    """The inverse of `numbers`."""
    return Plan(int(found["steps"]), int(found["decay"]), bool(found["settled"]))
