"""Schedules: check values, and laws over all of them."""

import pytest

from temaki.base.errors import ConfigError
from temaki.optim import schedule
from temaki.optim.config import CosineConfig, GeometricConfig, LinearConfig, NoamConfig, ScheduleConfig, WsdConfig

ALL: list[ScheduleConfig] = [
    CosineConfig(warmup=5), CosineConfig(warmup=0, floor=0.0), LinearConfig(warmup=5),
    LinearConfig(warmup=0, floor=0.2), NoamConfig(warmup=5), WsdConfig(warmup=5), WsdConfig(warmup=0, decay=1.0),
    GeometricConfig(first=1e-3),
]  # fmt: skip


def test_cosine_values() -> None:
    found = [schedule.cosine(t, 7, 21, 1.0, 0.1) for t in (0, 1, 7, 8, 14, 21, 30)]
    assert found == pytest.approx([0, 1 / 7, 1.0, 0.9887175604818206, 0.55, 0.1, 0.1], rel=1e-14)


def test_noam_is_the_papers() -> None:
    """Vaswani et al. 2017, equation 3, over its largest value, warmup^-0.5."""
    for t in range(1, 100):
        paper = min(t**-0.5, t * 20**-1.5) * 20**0.5
        assert schedule.factor(NoamConfig(warmup=20), t - 1, 100) == pytest.approx(paper, rel=1e-12)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    found = [schedule.factor(LinearConfig(warmup=4, floor=0.1), step, 10) for step in range(10)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1])


@pytest.mark.parametrize("config", ALL)
def test_factors_stay_in_range_rise_then_fall_from_where_decay_begins(config: ScheduleConfig) -> None:
    factors = [schedule.factor(config, step, 60) for step in range(60)]
    assert all(0 <= f <= 1 for f in factors)
    start = schedule.decay_start(config, 60)
    assert factors[: max(1, start)] == sorted(factors[: max(1, start)])
    assert factors[max(0, start - 1) :] == sorted(factors[max(0, start - 1) :], reverse=True)
    if isinstance(config, CosineConfig | LinearConfig | WsdConfig):
        assert factors[-1] == pytest.approx(config.floor)
    if 0 < start < 60:
        assert factors[start - 1] > factors[start]


@pytest.mark.parametrize("config", [each for each in ALL if not isinstance(each, GeometricConfig)])
def test_a_warmup_that_does_not_fit_is_refused(config: ScheduleConfig) -> None:
    if config.warmup:
        with pytest.raises(ConfigError, match="warmup"):
            schedule.check(config, config.warmup)
    schedule.check(config, config.warmup + 1)
