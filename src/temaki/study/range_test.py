"""The learning-rate range test: one short run whose rate grows by the same share every step.

Where the smoothed loss falls fastest in the log of the rate is a rate that works; where it has turned up is one that
does not. Smith 2017, "Cyclical learning rates for training neural networks", section 3.3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import RunError
from temaki.report import folder as folders

LOW, HIGH = 1e-5, 1.0
"""First and last rate."""
STEPS = 80
SMOOTH = 0.75
"""Of the moving average of the loss."""
UP = 0.05
"""The rate is too high once the smoothed loss lies this share of all that it fell above its least."""


@dataclass(frozen=True)
class RangeTest:
    """What the test found."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step, before its update."""
    steepest: float
    """The rate at which the smoothed loss fell fastest."""
    least: float
    """The rate at which the smoothed loss was least."""
    diverged: float | None
    """The rate at which it had turned up, or was not finite; None: never."""

    @property
    def centre(self) -> float:
        """Where to look for the best rate of a whole run: half of the steepest place's, as a run stays at its rate."""
        return self.steepest / 2


def recipe(found: Mapping[str, Any], steps: int = STEPS, low: float = LOW, high: float = HIGH) -> dict[str, Any]:
    """The recipe of the test: a fresh model, the rate growing from `low` to `high`."""
    schedule = {"kind": "geometric", "first": low / high}
    made = config_door.merge(found, {"optim": {"lr": high}, "watch": {"log": 1}})
    optim = {**made["optim"], "schedule": schedule}
    return {**made, "optim": optim, "stop": {"steps": steps}, "guard": {}}


def read(run: Path) -> RangeTest:
    """What a run of the test found. Raises RunError where it has too few steps to tell."""
    lines = folders.read(run).kind("step")
    pairs = [(float(line["lr"]), float(line["loss"])) for line in lines]
    return judge([rate for rate, _ in pairs], [loss for _, loss in pairs])


def judge(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """The rates that a curve of losses names. Raises RunError for fewer than ten finite losses.

    >>> rates = [10 ** (i / 10) for i in range(-40, 1)]
    >>> losses = [4 - 2 / (1 + (0.01 / rate) ** 2) + (rate / 0.3) ** 4 for rate in rates]
    >>> found = judge(rates, losses)
    >>> 0.005 < found.steepest < found.least < found.diverged < 1
    True
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < 10:
        raise RunError(
            "the loss of the range test is not finite from its first steps on", found=f"{finite} finite losses",
            do="look at the data and the model's initial values",
        )  # fmt: skip
    smooth = _smoothed([min(loss, losses[0]) for loss in losses[:finite]])  # how high it jumps says nothing
    least = min(range(finite), key=lambda i: smooth[i])
    fell = smooth[0] - smooth[least]
    turned = next((i for i in range(least, finite) if smooth[i] > smooth[least] + UP * fell + 1e-12), None)
    window = 3
    slopes = {i: smooth[i - window] - smooth[i + window] for i in range(window, max(window + 1, least - window + 1))}
    steepest = max((i for i in slopes if i + window < finite), key=lambda i: slopes[i], default=least)
    diverged = rates[turned] if turned is not None else (rates[finite] if finite < len(rates) else None)
    return RangeTest(tuple(rates), tuple(losses), rates[min(steepest, least)], rates[least], diverged)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """An average over what was before and what comes, so that it lags behind neither."""
    forward, backward = _average(losses), _average(losses[::-1])[::-1]
    return [0.5 * (a + b) for a, b in zip(forward, backward, strict=True)]


def _average(losses: Sequence[float]) -> list[float]:
    """The bias-corrected moving average at each place."""
    found, average, mass = [], 0.0, 0.0
    for loss in losses:
        average, mass = SMOOTH * average + (1 - SMOOTH) * loss, SMOOTH * mass + 1 - SMOOTH
        found.append(average / mass)
    return found
