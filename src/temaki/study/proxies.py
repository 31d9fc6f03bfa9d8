"""Short runs that stand for a long one: the same recipe at another batch, rate and length, its schedule's shape kept.

All batches read the same ids: half the batch makes twice the steps. Letters: f the share of the recipe's ids that a
run reads, B ids a step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from temaki.base import config as config_door
from temaki.study.grid import Point
from temaki.train.config import RunConfig


@dataclass(frozen=True)
class Proxy:
    """What a short run varies."""

    batch: int
    """B."""
    rate: float
    """optim.lr."""
    share: float
    """f."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"share-{self.share:g}_batch-{self.batch}_lr-{self.rate:g}"


def ids(config: RunConfig) -> int:
    """What the whole run reads."""
    return config.stop.steps * config.batch.tokens


def steps(config: RunConfig, batch: int, share: float = 1.0) -> int:
    """How many steps of a batch read a share of the run's ids."""
    return max(2, round(ids(config) * share / batch))


def changes(config: RunConfig, proxy: Proxy) -> dict[str, Any]:
    """The settings, as tables of a recipe, that make the recipe this run: also what a recommendation says.

    The warmup keeps its share of the steps; a micro-batch its size as far as it divides the step.
    """
    count = steps(config, proxy.batch, proxy.share)
    made: dict[str, Any] = {
        "batch": {"tokens": proxy.batch},
        "optim": {"lr": proxy.rate},
        "stop": {"steps": count},
    }
    if config.optim.schedule.warmup:
        warmup = max(1, min(count - 1, round(config.optim.schedule.warmup * count / config.stop.steps)))
        made["optim"]["schedule"] = {"kind": config.optim.schedule.kind, "warmup": warmup}
    if config.batch.micro is not None:
        made["batch"]["micro"] = math.gcd(config.batch.micro, proxy.batch)
    return made


def point(recipe: Mapping[str, Any], config: RunConfig, proxy: Proxy) -> Point:
    """The proxy as a run of a sweep: it validates once, at its end, and shows no samples."""
    made = config_door.merge(recipe, changes(config, proxy))
    watch = {key: value for key, value in dict(recipe.get("watch", {})).items() if key != "sample"}
    watch |= {"validate": made["stop"]["steps"], "trackers": []}
    stop = {"steps": made["stop"]["steps"]}  # of minutes nothing is left: the length is what is tried
    settings = {"optim.lr": proxy.rate, "batch.tokens": proxy.batch, "share": proxy.share}
    return Point(proxy.name, settings, {**made, "name": proxy.name, "watch": watch, "stop": stop})


def rounded(rate: float) -> float:
    """Three digits: a rate that can be said.

    >>> rounded(0.00312345)
    0.00312
    """
    return float(f"{rate:.3g}")
