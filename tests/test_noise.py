"""The gradient's noise scale: unbiased, never clipped, and the same after a resume."""

import json

import numpy as np
import pytest

from temaki.train.noise import Norms, Scale


def drawn(small: int, large: int, count: int) -> tuple[float, list[Norms]]:
    """The true scale of a gradient of 50 numbers, and measurements: a batch and its first part, as a step has them."""
    rng = np.random.default_rng(11)
    truth, deviations = rng.normal(0, 1, 50), rng.uniform(2, 8, 50)
    found = []
    for _ in range(count):
        g = truth + deviations * rng.normal(0, 1, (large, 50))
        part, whole = g[:small].mean(0), g.mean(0)
        found.append(Norms(small, large, float(part @ part), float(whole @ whole)))
    return float((deviations**2).sum() / (truth @ truth)), found


def test_the_estimate_meets_the_truth_though_single_ones_are_negative() -> None:
    truth, found = drawn(4, 8, 4000)
    assert sum(each.signal < 0 for each in found) > 100
    scale = Scale(decay=0.9995)
    for each in found:
        scale.add(each)
    assert scale.simple == pytest.approx(truth, rel=0.04)
    assert np.mean([each.noise for each in found]) / np.mean([each.signal for each in found]) == pytest.approx(
        truth, rel=0.04
    )
    clipped = np.mean([each.noise for each in found]) / np.mean([max(0.0, each.signal) for each in found])
    assert clipped < 0.9 * truth


def test_averages_are_the_means_of_equal_measurements_from_the_first_on() -> None:
    scale = Scale()
    assert (scale.noise, scale.signal, scale.simple) == (None, None, None)
    for _ in range(3):
        scale.add(Norms(2, 6, 10.0, 4.0))
        assert (scale.noise, scale.signal) == pytest.approx((18.0, 1.0))


def test_two_equal_sizes_say_nothing_and_noise_that_hides_the_signal_is_none() -> None:
    scale = Scale()
    scale.add(Norms(4, 4, 1.0, 1.0))
    assert scale.noise is None
    scale.add(Norms(1, 4, 8.0, 1.0))
    assert scale.signal is not None
    assert scale.signal < 0
    assert scale.simple is None


def test_what_a_manifest_keeps_goes_on_bit_for_bit() -> None:
    _, found = drawn(4, 8, 40)
    whole, first, second = Scale(), Scale(), Scale()
    for each in found:
        whole.add(each)
    for each in found[:17]:
        first.add(each)
    second.restore(json.loads(json.dumps(first.numbers())))
    for each in found[17:]:
        second.add(each)
    assert second.numbers() == whole.numbers()
    second.restore({})
    assert second.noise is None
