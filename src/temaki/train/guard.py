"""The guard of a run: what its losses were, whether they spike, and how often a step was left out.

A loss spikes where it lies more than `deviations` standard deviations above the mean of the window, `steps` times in a
row. What lies above is kept out of the window, so that a spike does not become the measure of itself; one that lasts
for a whole window is the new level, and the window begins anew. Everything is a function of the losses, which are the
same on all processes, and travels in each manifest.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from temaki.train.config import GuardConfig

LEAST = 1e-3
"""The least deviation, as a share of the mean: the losses of a text learned by heart hardly differ."""


@dataclass(frozen=True)
class Spike:
    """A loss that was too high too often."""

    loss: float
    mean: float
    """Of the window before, nats like the loss."""
    deviation: float
    steps: int
    """In a row."""

    def __str__(self) -> str:
        return f"loss {self.loss:.4g} after {self.mean:.4g} +- {self.deviation:.2g}, {self.steps} steps in a row above"


class Guard:
    """Hears each step; says when its losses spike, when too many were left out, and whether all is well."""

    def __init__(self, config: GuardConfig):
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.spike.window)
        self.above = 0
        """Steps in a row whose loss lay above."""
        self.skips = 0
        """Steps in a row that were left out."""
        self.rollbacks = 0

    @property
    def healthy(self) -> bool:
        """Whether a checkpoint made now is one to go back to."""
        return not self.above and not self.skips

    def hear(self, loss: float) -> Spike | None:
        """The spike that this loss completes; it is told once.

        >>> from temaki.train.config import SpikeConfig
        >>> guard = Guard(GuardConfig(spike=SpikeConfig(window=4, steps=2)))
        >>> [guard.hear(loss) is not None for loss in (3.0, 3.1, 2.9, 3.0, 9.0, 9.5, 9.2, 3.0)]
        [False, False, False, False, False, True, False, False]
        """
        self.skips = 0
        spike = self.config.spike
        mean, deviation = self._level()
        if len(self.losses) < spike.window or loss <= mean + spike.deviations * deviation:
            self.above = 0
            self.losses.append(loss)
            return None
        self.above += 1
        found = Spike(loss, mean, deviation, spike.steps) if self.above == spike.steps else None
        if self.above >= max(spike.window, spike.steps):
            self.above = 0
            self.losses.clear()
        return found

    def left_out(self) -> bool:
        """A step was left out: whether those are now too many in a row."""
        self.skips += 1
        return self.skips > self.config.skips

    def _level(self) -> tuple[float, float]:
        """Mean and standard deviation of the window."""
        if not self.losses:
            return math.inf, 0.0
        mean = math.fsum(self.losses) / len(self.losses)
        square = math.fsum((loss - mean) ** 2 for loss in self.losses) / len(self.losses)
        return mean, max(math.sqrt(square), LEAST * abs(mean))

    def numbers(self) -> dict[str, float]:
        """The guard as a manifest keeps it."""
        counts = {"above": self.above, "skips": self.skips, "rollbacks": self.rollbacks}
        return {**counts, **{f"loss-{i}": loss for i, loss in enumerate(self.losses)}}

    def restore(self, found: Mapping[str, float]) -> None:
        """The inverse of `numbers`; a shorter window keeps the last losses."""
        if not found:
            return
        self.above, self.skips, self.rollbacks = (int(found[name]) for name in ("above", "skips", "rollbacks"))
        self.losses.clear()
        self.losses.extend(found[f"loss-{i}"] for i in range(len(found) - 3))
