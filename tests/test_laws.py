"""Laws of batch and rate: known values, planted parameters come back, and too few pairs are said to be too few."""

import math

import numpy as np
import pytest

from temaki.study import fitting, laws
from temaki.study.laws import LAWS, Diagonal, Guess, Law, Linear, Sgd, Sign, SquareRoot, Tradeoff

BATCHES = [16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0]
PLANTED: list[Law] = [
    SquareRoot(2e-4),
    Linear(3e-6),
    Sgd(0.5, 300.0),
    Diagonal(3e-3, 200.0),
    Guess(0.01, 400.0, 0.7),
    Sign(3e-3, 150.0, 0.4),
    Sign(3e-3, 150.0, 2.0),
]


def test_known_values_of_each_law() -> None:
    assert [round(Sgd(1.0, 100.0).rate(b), 4) for b in (10, 100, 1000)] == [0.0909, 0.5, 0.9091]
    at = (10, 50, 52.3598775598, 100, 1000, 1e5)
    surging, rising = Sign(1.0, 100.0, 0.5), Sign(1.0, 100.0, 2.0)
    assert [surging.rate(b) for b in at] == pytest.approx(
        [0.789559, 0.999849, 1, 0.976058, 0.834330, 0.800377], abs=1e-6
    )
    assert [rising.rate(b) for b in at] == pytest.approx(
        [0.241039, 0.463406, 0.470589, 0.568411, 0.764474, 0.799623], abs=1e-6
    )
    assert surging.surge == pytest.approx(52.3599, abs=1e-4)
    assert surging.half == pytest.approx(31.4159, abs=1e-4)
    assert rising.surge is None
    assert laws.sign_erf(0.1, 32) == pytest.approx(0.428392, abs=1e-6)
    assert laws.sign_mean(100.0, 32) == pytest.approx(0.411389, abs=1e-6)


@pytest.mark.parametrize("beta_noise", [0.1, 0.5, 0.9, 0.999])
def test_the_surge_is_where_the_rate_is_highest(beta_noise: float) -> None:
    law = Sign(0.7, 40.0, beta_noise)
    surge = law.surge
    assert surge is not None
    around = [law.rate(surge * factor) for factor in (0.9, 0.99, 1.0, 1.01, 1.1)]
    assert max(around) == around[2] == pytest.approx(law.top)
    assert 1 / law.half - 1 / surge == pytest.approx(4 / (math.pi * law.kappa2))
    assert law.gain(law.half) == pytest.approx(0.5)


def test_small_and_large_batches_meet_the_rules_of_thumb() -> None:
    """Far below the noise SGD's law is linear and the sign laws are square roots; far above it they are flat."""
    for law, power in (
        (Sgd(1.0, 1e6), 1.0),
        (Diagonal(1.0, 1e6), 0.5),
        (Guess(1.0, 1e6, 0.5), 0.5),
        (Sign(1.0, 1e6, 2.0), 0.5),
    ):
        assert law.rate(4) / law.rate(1) == pytest.approx(4**power, rel=1e-4)
        assert law.rate(4e12) / law.rate(1e12) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda law: f"{law.kind}-{getattr(law, 'beta_noise', '')}")
def test_a_planted_law_is_found_again(planted: Law) -> None:
    rates = [planted.rate(b) for b in BATCHES]
    found = fitting.fit(type(planted), BATCHES, rates)
    assert found.residual < 1e-5
    assert vars(found.law) == pytest.approx(vars(planted), rel=1e-3)
    unseen = [32.0, 2000.0, 60000.0]
    assert [found.law.rate(b) for b in unseen] == pytest.approx([planted.rate(b) for b in unseen], rel=1e-4)
    noisy = [rate * math.exp(e) for rate, e in zip(rates, np.random.default_rng(3).normal(0, 0.05, 6), strict=True)]
    assert [fitting.fit(type(planted), BATCHES, noisy).law.rate(b) for b in BATCHES] == pytest.approx(rates, rel=0.2)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda law: f"{law.kind}-{getattr(law, 'beta_noise', '')}")
def test_a_family_fits_no_worse_than_what_it_contains_and_fewer_parameters_win(planted: Law) -> None:
    rates = [planted.rate(b) for b in BATCHES]
    found = fitting.fit_all(BATCHES, rates, error=0.02)
    assert len(found.fitted) == len(LAWS)
    residuals = {type(each.law): each.residual for each in found.fitted}
    assert residuals[Guess] <= residuals[Sgd] + 1e-6
    assert residuals[Guess] <= residuals[Diagonal] + 1e-6
    best = found.fitted[0]
    assert best.residual < 0.02
    assert len(vars(best.law)) <= len(vars(planted))


def test_weights_decide_between_pairs_that_disagree() -> None:
    heavy = fitting.fit(SquareRoot, [4, 4], [0.2, 0.4], weights=[1e6, 1])
    assert heavy.law.rate(4) == pytest.approx(0.2, rel=1e-4)
    even = fitting.fit(SquareRoot, [4, 4], [0.2, 0.8])
    assert even.law.rate(4) == pytest.approx(0.4)
    assert even.residual == pytest.approx(math.log(2))


def test_too_few_pairs_are_told_and_not_fitted() -> None:
    found = fitting.fit_all([64, 128, 128], [1e-3, 2e-3, 2e-3])
    assert {type(each.law) for each in found.fitted} == {SquareRoot, Linear}
    assert sorted(each.split(":")[0] for each in found.unfitted) == ["diagonal", "guess", "sgd", "sign"]
    assert fitting.fit_all([64], [1e-3]).fitted == ()


def test_steps_and_examples_trade_on_a_hyperbola_and_are_fitted() -> None:
    planted = Tradeoff(120.0, 30_000.0)
    for batch in (1.0, 77.0, 1e6):
        steps, examples = planted.steps(batch), planted.examples(batch)
        assert examples == pytest.approx(steps * batch)
        assert (steps / 120 - 1) * (examples / 30_000 - 1) == pytest.approx(1)
    found = fitting.fit_tradeoff(BATCHES, [planted.steps(b) for b in BATCHES])
    assert found is not None
    assert (found.steps_min, found.examples_min) == pytest.approx((120, 30_000))
    assert fitting.fit_tradeoff([10, 20, 40], [100, 101, 102]) is None
    assert fitting.fit_tradeoff([10], [100]) is None
