"""The plan of a run: how many steps, and where the rate begins to fall; decided once, kept in every manifest."""

from collections.abc import Mapping
from dataclasses import dataclass

from temaki.optim.config import ScheduleConfig, WsdConfig
from temaki.optim.schedule import decay_start, factor
from temaki.train.config import StopConfig

SHORTEST = 0.1
"""A run that is shortened goes on for at least this share of the steps it has made, so that the rate falls and is not
cut, even where that takes longer than was asked."""


@dataclass(frozen=True)
class Plan:
    """What is decided of a run's length."""

    steps: int
    decay: int
    """The step at which the rate begins to fall; of a plan that squeezes, the step from which it does."""
    settled: bool
    """True once the length will not change any more."""
    whole: int | None = None
    """Steps of the curve whose rest, from step `decay` on, is squeezed into this plan's; None: nothing is squeezed."""


def first(stop: StopConfig, schedule: ScheduleConfig) -> Plan:
    """The plan at the start: the recipe's steps, open to one change if minutes are given."""
    return Plan(stop.steps, decay_start(schedule, stop.steps), stop.minutes is None and stop.max_minutes is None)


def settle(plan: Plan, stop: StopConfig, schedule: ScheduleConfig, step: int, seconds: float) -> Plan:
    """The plan after `step` steps that took `seconds`: once it is time to decide, the length that fits the minutes."""
    if plan.settled or step < 1:
        return plan
    if stop.minutes is not None:
        return _filled(plan, stop.minutes, schedule, step, seconds)
    assert stop.max_minutes is not None, "a plan without minutes is settled from the start"
    return _limited(plan, stop.max_minutes, schedule, step, seconds)


def _filled(plan: Plan, minutes: float, schedule: ScheduleConfig, step: int, seconds: float) -> Plan:
    """The length that fills the minutes, decided when the rate is about to fall.

    The moment has come when the steps done so far are the stable share of the steps that the whole time allows.
    """
    total = max(step + 1, round(step * minutes * 60 / max(seconds, 1e-9)))
    start = decay_start(schedule, total)
    if step < start and step < plan.steps - 1:
        return plan
    return Plan(total, max(start, min(step, total)), settled=True)


def _limited(plan: Plan, minutes: float, schedule: ScheduleConfig, step: int, seconds: float) -> Plan:
    """The recipe's length, or what the minutes allow where that is less; decided once.

    warmup-stable-decay: decided when the rate is about to fall, and the same share of the steps is left for it.
    cosine, linear: decided halfway; the rest of the curve, from where it stands, is passed through in the steps left.
    noam: decided halfway; a rate that is a function of the step alone only ends earlier. A run that slows down after
    the decision ends later than asked, with its rate down.
    """
    allowed = int(step * minutes * 60 / max(seconds, 1e-9))
    total = min(plan.steps, max(step + 1 + int(SHORTEST * step), allowed))
    start = decay_start(schedule, total) if isinstance(schedule, WsdConfig) else total // 2
    if step < start and step < plan.steps - 1:
        return plan
    if total == plan.steps:
        return Plan(total, plan.decay, settled=True)
    if isinstance(schedule, WsdConfig):
        return Plan(total, max(start, min(step, total)), settled=True)
    return Plan(total, step, settled=True, whole=plan.steps)


def rate(plan: Plan, schedule: ScheduleConfig, step: int) -> float:
    """The schedule's factor for the update number `step` (0 is the first).

    A squeezed plan reads the curve of `whole` steps at s + (t - s) (whole - s) / (steps - s) for t = step + 1 beyond
    s = `decay`.
    """
    step = min(step, plan.steps - 1)
    if plan.whole is None or schedule.kind == "noam":
        return factor(schedule, step, plan.steps, plan.decay)
    if step < plan.decay:
        return factor(schedule, step, plan.whole)
    speed = (plan.whole - plan.decay) / (plan.steps - plan.decay)
    return factor(schedule, plan.decay + (step + 1 - plan.decay) * speed - 1, plan.whole)


def numbers(plan: Plan) -> dict[str, float]:
    """The plan as a manifest keeps it."""
    whole = {} if plan.whole is None else {"whole": plan.whole}
    return {"steps": plan.steps, "decay": plan.decay, "settled": float(plan.settled), **whole}


def restore(found: Mapping[str, float]) -> Plan:
    """The inverse of `numbers`."""
    whole = int(found["whole"]) if "whole" in found else None
    return Plan(int(found["steps"]), int(found["decay"]), bool(found["settled"]), whole)
