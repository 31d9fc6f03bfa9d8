"""Laws of the filters and of the draw, against oracles that sort and loop."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from temaki.base import config, keys
from temaki.base.errors import ConfigError, GenerationError
from temaki.generate import config as generate_config
from temaki.generate import request, sampling
from temaki.generate.config import SamplingConfig, checked

QUIET = settings(derandomize=True, deadline=None, max_examples=150)
# Few distinct values make ties common; -inf is legal where something else remains.
VALUES = st.one_of(st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 1.0, 3.0]), st.floats(-30, 30, width=32))
ROWS = hnp.arrays(np.float32, st.integers(1, 40), elements=VALUES).filter(lambda x: x.max() > -np.inf)
FILTERS = {
    "temperature": (lambda x: sampling.temperature(x, 0.7)),
    "greedy": (lambda x: sampling.temperature(x, 0.0)),
    "top_k": (lambda x: sampling.top_k(x, 3)),
    "top_p": (lambda x: sampling.top_p(x, 0.8)),
    "min_p": (lambda x: sampling.min_p(x, 0.2)),
    "repetition_penalty": (lambda x: sampling.repetition_penalty(x, np.array([0, 0]), 1.3)),
}


def softmax(logits) -> list[float]:
    """An independent softmax over Python floats."""
    values = [float(x) for x in logits]
    weights = [math.exp(x - max(values)) for x in values]
    total = math.fsum(weights)
    return [w / total for w in weights]


def in_order(logits) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def kept(logits) -> set[int]:
    return set(np.flatnonzero(logits > -np.inf).tolist())


def row(ids) -> request.Row:
    asked = request.Request(ids=np.array([1]))
    return request.Row(0, np.array(ids, np.int32), 1, asked)


@pytest.mark.parametrize("module", [sampling, generate_config], ids=lambda m: m.__name__)
def test_doctests(module):
    failed, ran = doctest.testmod(module)
    assert ran
    assert not failed


@pytest.mark.parametrize("name", FILTERS)
@QUIET
@given(x=ROWS)
def test_filters_are_pure_keep_type_and_only_lower_support(name, x):
    before = x.copy()
    y = FILTERS[name](x)
    assert np.array_equal(x, before)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert kept(y)
    assert kept(y) <= kept(x)
    assert int(np.argmax(x)) in kept(y) or name == "repetition_penalty"
    assert FILTERS[name](x.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("name", FILTERS)
def test_filters_of_a_batch_are_filters_of_its_rows(name):
    x = np.random.default_rng(1).normal(0, 3, (2, 3, 11)).astype(np.float32)
    if name == "repetition_penalty":
        ids = np.random.default_rng(2).integers(0, 11, (2, 3, 4))
        together = sampling.repetition_penalty(x, ids, 1.3)
        alone = [[sampling.repetition_penalty(x[i, j], ids[i, j], 1.3) for j in range(3)] for i in range(2)]
    else:
        together = FILTERS[name](x)
        alone = [[FILTERS[name](x[i, j]) for j in range(3)] for i in range(2)]
    assert np.array_equal(together, np.array(alone))


@QUIET
@given(x=ROWS, k=st.integers(1, 45))
def test_top_k_is_the_head_of_the_sorted_row(x, k):
    expected = {i for i in in_order(x)[:k] if x[i] > -np.inf}
    assert kept(sampling.top_k(x, k)) == expected


def test_top_k_support_has_exactly_k_ids_even_if_all_are_equal():
    for k in (1, 2, 7, 50, 200, 500):
        y = sampling.top_k(np.zeros(200, np.float32), k)
        assert kept(y) == set(range(min(k, 200)))


@QUIET
@given(x=ROWS, p=st.floats(1e-4, 0.999))
def test_top_p_is_the_smallest_head_that_reaches_p(x, p):
    q, order = softmax(x), in_order(x)
    y = kept(sampling.top_p(x, p))
    count = len(y)
    assert y == set(order[:count])
    assert count >= 1
    assert math.fsum(q[i] for i in order[:count]) >= p - 2 * sampling.SLACK
    if count > 1:
        assert math.fsum(q[i] for i in order[: count - 1]) < p


@pytest.mark.parametrize(("p", "count"), [(0.5, 1), (0.6, 2), (0.7, 2), (1.0, 5), (1e-4, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_top_p_table(p, count, dtype, shift):
    q = np.log([0.15, 0.5, 0.05, 0.2, 0.1]).astype(dtype) + dtype(shift)
    assert kept(sampling.top_p(q, p)) == set([1, 3, 0, 4, 2][:count])


@pytest.mark.parametrize("size", [sampling.FEW[0], sampling.FEW[0] + 1, sampling.FEW[1] + 7])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_top_p_in_large_vocabularies_equals_the_full_sort(size, p, spread):
    x = np.random.default_rng(size).normal(0, spread, size).round(1).astype(np.float32)  # rounded: many ties
    q, order = np.array(softmax(x)), in_order(x)
    sums = q[order].cumsum()
    count = int(np.searchsorted(sums, p - sampling.SLACK)) + 1
    assert kept(sampling.top_p(x, p)) == set(order[:count])


def test_top_p_one_keeps_all_despite_rounding():
    x = np.random.default_rng(0).normal(0, 9, 5000).astype(np.float32)
    assert len(kept(sampling.top_p(x, 1.0))) == 5000


@QUIET
@given(x=ROWS, p=st.floats(0, 1))
def test_min_p_keeps_what_is_probable_enough(x, p):
    q, y = softmax(x), kept(sampling.min_p(x, p))
    for i, each in enumerate(q):
        if each >= p * max(q) * (1 + 1e-4) and x[i] > -np.inf:
            assert i in y
        if each < p * max(q) * (1 - 1e-4):
            assert i not in y
    assert int(np.argmax(x)) in y


@QUIET
@given(x=ROWS, t=st.one_of(st.floats(0.05, 20), st.sampled_from([1e-300, 1e-40, 1e-3, 1e30])))
def test_temperature_divides_and_never_overflows(x, t):
    y = sampling.temperature(x, t)
    assert y.max() == 0
    assert not np.isnan(y).any()
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        expected = (wide - wide.max()) / t
    assert np.allclose(y, expected.astype(np.float64), rtol=1e-6) or expected.min() < -3e38


@QUIET
@given(x=ROWS, u=st.floats(0, 1, exclude_max=True))
def test_temperature_zero_is_exactly_argmax(x, u):
    assert sampling.draw(sampling.temperature(x, 0.0), u) == int(np.argmax(x))
    chain = sampling.filters(SamplingConfig(temperature=0.0, top_k=1, top_p=0.1, min_p=1.0))
    for each in chain:
        x = each(x, row([0]))
    assert kept(x) == {int(np.argmax(x))}


@QUIET
@given(x=ROWS, penalty=st.floats(0.5, 3), data=st.data())
def test_repetition_penalty_is_the_loop(x, penalty, data):
    ids = data.draw(st.lists(st.integers(0, len(x) - 1), max_size=12))
    expected = [float(v) for v in x]
    for i in set(ids):
        expected[i] = expected[i] / penalty if expected[i] > 0 else expected[i] * penalty
    assert np.allclose(sampling.repetition_penalty(x, np.array(ids), penalty), expected, rtol=1e-6)


def test_filters_come_in_their_fixed_order():
    chosen = SamplingConfig(repetition_penalty=1.5, temperature=0.5, top_k=4, top_p=0.8, min_p=0.1)
    x = np.random.default_rng(3).normal(0, 1, 12).astype(np.float32)
    ids = [2, 5]
    y = x
    for each in sampling.filters(chosen):
        y = each(y, row(ids))
    expected = sampling.repetition_penalty(x, np.array(ids), 1.5)
    expected = sampling.temperature(expected, 0.5)
    expected = sampling.top_k(expected, 4)
    expected = sampling.min_p(sampling.top_p(expected, 0.8), 0.1)
    assert np.array_equal(y, expected)
    swapped = sampling.temperature(sampling.top_p(x, 0.8), 0.5)
    assert kept(swapped) != kept(sampling.top_p(sampling.temperature(x, 0.5), 0.8))  # so the order is visible


def chi_square_tail(statistic: float, freedom: int) -> float:
    """P(X >= statistic): Wilson and Hilferty's normal approximation."""
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize(
    "chain",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.6),
        SamplingConfig(top_k=5),
        SamplingConfig(top_p=0.7),
        SamplingConfig(temperature=1.4, min_p=0.2),
    ],
    ids=["plain", "temperature", "top-k", "top-p", "min-p"],
)
def test_frequencies_of_the_draw_are_the_softmax(chain):
    x = np.random.default_rng(5).normal(0, 1.5, 17).astype(np.float32)
    for each in sampling.filters(chain):
        x = each(x, row([0]))
    n = 100_000
    counts = np.bincount([sampling.draw(x, keys.uniform(11, "sample", 0, i)) for i in range(n)], minlength=17)
    q = np.array(softmax(x))
    assert counts[q == 0].sum() == 0
    inside = q > 0
    statistic = float((((counts - n * q) ** 2)[inside] / (n * q[inside])).sum())
    assert chi_square_tail(statistic, int(inside.sum()) - 1) > 1e-3


def test_the_frequency_test_can_fail():
    assert chi_square_tail(16.0, 16) > 0.3
    assert chi_square_tail(39.25, 16) == pytest.approx(1e-3, rel=0.05)


@QUIET
@given(x=ROWS, u=st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulated_softmax_and_never_takes_what_is_out(x, u):
    found = sampling.draw(x, u)
    q = softmax(x)
    assert q[found] > 0
    assert math.fsum(q[:found]) <= u + 1e-12
    assert u <= math.fsum(q[: found + 1]) + 1e-12


def test_draw_at_both_ends():
    x = np.array([-np.inf, 0.0, 0.3, -np.inf], np.float32)
    assert sampling.draw(x, 0.0) == 1
    assert sampling.draw(x, math.nextafter(1.0, 0.0)) == 2
    assert [sampling.draw(np.zeros(4), u) for u in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]
    assert sampling.draw(np.array([-2000.0, 0.0, -2000.0]), 0.0) == 1  # a weight that underflows is out too
    assert sampling.draw(np.array([-2000.0, 0.0, -2000.0]), math.nextafter(1.0, 0.0)) == 1
    for size in range(1, 200):
        y = np.random.default_rng(size).normal(0, 1, size)
        assert sampling.draw(y, math.nextafter(1.0, 0.0)) < size
    for u in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="uniform"):
            sampling.draw(x, u)


BROKEN = {
    "NaN": [0.0, np.nan, 1.0, -np.inf],
    "+inf": [0.0, np.inf, 1.0, -np.inf],
    "ruled out": [-np.inf] * 4,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("filtered", [None, *FILTERS])
def test_what_is_no_distribution_is_refused_even_behind_a_filter(name, filtered):
    x = np.array(BROKEN[name], np.float32)
    if filtered is None:
        with pytest.raises(GenerationError, match=name.replace("+", r"\+")):
            sampling.check(x)
    else:
        x = FILTERS[filtered](x)
    with pytest.raises(GenerationError):
        sampling.draw(x, 0.5)


@QUIET
@given(x=ROWS)
def test_log_probabilities(x):
    found = sampling.log_probabilities(x)
    assert np.allclose(np.exp(found), softmax(x), atol=1e-12)


def test_log_probabilities_at_extremes():
    assert np.array_equal(sampling.log_probabilities(np.array([1e4, -1e4], np.float32)), [0.0, -2e4])


@QUIET
@given(x=ROWS, count=st.integers(0, 45))
def test_best_is_the_head_of_the_sorted_row(x, count):
    assert sampling.best(x, count).tolist() == in_order(x)[:count]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("max_tokens", 0),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("stop", ["", "a"]),
        ("stop_ids", [-1]),
        ("temperature", "hot"),
        ("max_tokens", 2.5),
    ],
)
def test_settings_out_of_range_are_refused_by_name_from_a_file_and_from_python(key, value):
    with pytest.raises(ConfigError, match=key):
        config.read(SamplingConfig, {key: value})
    with pytest.raises(ConfigError, match=key):
        checked(SamplingConfig(**{key: tuple(value) if isinstance(value, list) else value}))


def test_settings_that_are_not_finite_or_unknown_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        checked(SamplingConfig(temperature=math.nan))
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        config.read(SamplingConfig, {"temprature": 1.0})


def test_settings_go_through_a_mapping_and_back():
    chosen = SamplingConfig(temperature=0.5, top_k=3, stop=("a", "b"), stop_ids=(4,))
    assert config.read(SamplingConfig, config.mapping(chosen)) == chosen
    assert checked(chosen) == chosen
