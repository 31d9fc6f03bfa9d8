"""Laws of the filters and of the draw, against oracles that sort and loop."""

import doctest
import math
import tomllib
from functools import cache

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

QUIET = settings(derandomize=True, deadline=None, max_examples=100)
# Few distinct values make ties common; -inf is legal where something else remains.
VALUES = st.one_of(st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 1.0, 3.0]), st.floats(-30, 30, width=32))
ROWS = hnp.arrays(np.float32, st.integers(1, 40), elements=VALUES).filter(lambda x: x.max() > -np.inf)
FILTERS = {
    "temperature": (lambda x: sampling.temperature(x, 0.7)),
    "greedy": (lambda x: sampling.temperature(x, 0.0)),
    "top_k": (lambda x: sampling.top_k(x, 3)),
    "top_p": (lambda x: sampling.top_p(x, 0.8)),
    "min_p": (lambda x: sampling.min_p(x, 0.2)),
    "typical": (lambda x: sampling.typical(x, 0.6)),
    "repetition_penalty": (lambda x: sampling.repetition_penalty(x, np.array([0, 0]), 1.3)),
}
MOVING = ("repetition_penalty", "typical")
"""Those that may leave the largest logit behind."""


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
    assert int(np.argmax(x)) in kept(y) or name in MOVING
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
    q = np.exp(x.astype(np.float64))
    order = np.argsort(-x, kind="stable")
    sums = (q / q.sum())[order].cumsum()
    count = int(np.searchsorted(sums, p - sampling.SLACK)) + 1
    assert kept(sampling.top_p(x, p)) == set(order[:count])


def test_a_head_of_any_size_keeps_at_least_one_even_of_equal_ones():
    for size in (2, 3000, 20_000):
        assert kept(sampling.top_p(np.zeros(size, np.float32), 1e-9)) == {0}
        assert kept(sampling.typical(np.zeros(size, np.float32), 1e-9)) == {0}


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
    chosen = SamplingConfig(
        logit_bias=((3, 0.5), (7, -0.25)),
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        no_repeat_ngram=2,
        min_tokens=9,
        stop_ids=(4, 70),  # an id that the model does not have stops nothing
        temperature=0.5,
        top_k=8,
        typical_p=0.95,
        top_p=0.8,
        min_p=0.1,
    )
    x = np.random.default_rng(3).normal(0, 1, 12).astype(np.float32)
    here = request.Row(0, np.array([2, 5, 0, 1, 5, 1, 5]), 2, request.Request(ids=np.array([1])))
    y = x
    for each in sampling.filters(chosen):
        y = each(y, here)
    expected = x.astype(np.float64)
    expected[3] += 0.5
    expected[7] -= 0.25
    for i in {2, 5, 0, 1}:
        expected[i] = expected[i] / 1.5 if expected[i] > 0 else expected[i] * 1.5
    for i, count in {0: 1, 1: 2, 5: 2}.items():  # the prompt's 2 and first 5 do not count
        expected[i] -= 0.5 + 0.25 * count
    expected[[0, 1]] = -np.inf  # 5 0 and 5 1 stand there
    expected[4] = -np.inf
    expected = sampling.top_k(sampling.temperature(expected, 0.5), 8)
    expected = sampling.min_p(sampling.top_p(sampling.typical(expected, 0.95), 0.8), 0.1)
    assert kept(y) == kept(expected)
    inside = sorted(kept(y))
    assert np.allclose(y[inside], expected[inside], rtol=1e-5)
    swapped = sampling.temperature(sampling.top_p(x, 0.8), 0.5)
    assert kept(swapped) != kept(sampling.top_p(sampling.temperature(x, 0.5), 0.8))  # so the order is visible


@QUIET
@given(x=ROWS, p=st.floats(1e-4, 0.999))
def test_typical_is_the_smallest_head_of_the_order_of_surprise(x, p):
    q = softmax(x)
    entropy = -math.fsum(each * math.log(each) for each in q if each > 0)
    surprise = {i: abs(-math.log(each) - entropy) for i, each in enumerate(q) if each > 0}
    y = kept(sampling.typical(x, p)) & set(surprise)
    assert y
    mass = math.fsum(q[i] for i in y)
    farthest = max(surprise[i] for i in y)
    assert mass >= p - 2 * sampling.SLACK
    assert mass - max(q[i] for i in y if surprise[i] > farthest - 1e-9) < p  # one less on the border is too little
    nearer = {i for i, each in surprise.items() if each < farthest - 1e-9}
    assert nearer <= y
    border = [i for i in surprise if abs(surprise[i] - farthest) <= 1e-12 and q[i] == q[max(y, key=surprise.get)]]
    assert border[: len(set(border) & y)] == sorted(set(border) & y)  # equal ones by the smaller id


@QUIET
@given(x=ROWS, data=st.data())
def test_output_penalty_is_the_loop(x, data):
    output = data.draw(st.lists(st.integers(0, len(x) - 1), max_size=12))
    presence, frequency = data.draw(st.floats(-2, 2)), data.draw(st.floats(-2, 2))
    expected = [v - presence * (i in output) - frequency * output.count(i) for i, v in enumerate(map(float, x))]
    assert np.allclose(
        sampling.output_penalty(x, np.array(output), presence, frequency), expected, rtol=1e-6, atol=1e-5
    )


@QUIET
@given(ids=st.lists(st.integers(0, 3), max_size=30), n=st.integers(1, 5))
def test_repeating_is_the_loop(ids, n):
    runs = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
    expected = [v for v in range(4) if (*ids[len(ids) - n + 1 :], v) in runs and len(ids) >= n - 1]
    assert sampling.repeating(np.array(ids, np.int32), n).tolist() == expected


def test_stop_ids_are_out_until_an_answer_is_long_enough():
    (early,) = sampling.filters(SamplingConfig(min_tokens=2, stop_ids=(1, 2, 99)))
    for count, left in [(1, {0, 3}), (2, {0, 3}), (3, {0, 1, 2, 3})]:
        assert kept(early(np.zeros(4, np.float32), row([0] * count))) == left
    assert sampling.filters(SamplingConfig(min_tokens=2)) == []


def test_filters_are_those_of_transformers():
    """Over random rows with and without ties; where they keep all of equal ones, ours keep the first."""
    oracle = pytest.importorskip("transformers", reason="transformers, the oracle of filters, is missing")
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(12)
    for case in range(60):
        x = draw.normal(0, 2, 41).astype(np.float32)
        x = x.round(1) if case % 2 else x
        ids = draw.integers(0, 41 if case % 3 else 3, 20)
        k, p = int(draw.integers(1, 60)), float(draw.uniform(0.05, 0.95))
        pairs = {
            "top_k": (sampling.top_k(x, k), oracle.TopKLogitsWarper(k)),
            "top_p": (sampling.top_p(x, p), oracle.TopPLogitsWarper(p)),
            "min_p": (sampling.min_p(x, p), oracle.MinPLogitsWarper(p)),
            "typical": (sampling.typical(x, p), oracle.TypicalLogitsWarper(p)),
            "repetition": (sampling.repetition_penalty(x, ids, 1.3), oracle.RepetitionPenaltyLogitsProcessor(1.3)),
            "repeating": (
                sampling.without(x, sampling.repeating(ids, 1 + case % 3)),
                oracle.NoRepeatNGramLogitsProcessor(1 + case % 3),
            ),
        }
        for name, (ours, warper) in pairs.items():
            theirs = warper(torch.tensor(ids)[None], torch.tensor(x)[None])[0].numpy()
            if name == "top_p":  # which of equal ones they keep is their sort's business
                assert sorted(x[sorted(kept(ours))]) == sorted(x[sorted(kept(theirs))])
                continue
            assert kept(ours) <= kept(theirs), name
            inside = sorted(kept(ours))
            assert np.allclose(ours[inside], theirs[inside], rtol=1e-6), name
            if name in ("top_k", "typical"):  # they keep all that are equal to the last one
                assert {float(x[i]) for i in kept(theirs) - kept(ours)} <= {float(x[i]) for i in inside}, name
            if case % 2 == 0 or name not in ("top_k", "typical"):
                assert kept(ours) == kept(theirs), name


@cache
def uniforms(n: int) -> list[float]:
    """What an engine would draw with."""
    return [keys.uniform(11, "sample", 0, i) for i in range(n)]


def chi_square_tail(statistic: float, freedom: int) -> float:
    """P(X >= statistic): Wilson and Hilferty's normal approximation."""
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize(
    "chain",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.6, top_p=0.7),
        SamplingConfig(temperature=1.4, top_k=9, typical_p=0.9, min_p=0.2),
    ],
    ids=["plain", "top-p", "top-k-typical-min-p"],
)
def test_frequencies_of_the_draw_are_the_softmax(chain):
    x = np.random.default_rng(5).normal(0, 1.5, 17).astype(np.float32)
    for each in sampling.filters(chain):
        x = each(x, row([0]))
    n = 100_000
    counts = np.bincount([sampling.draw(x, each) for each in uniforms(n)], minlength=17)
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
        ("repetition_penalty", 1e308),
        ("stop", ["", "a"]),
        ("stop_ids", [-1]),
        ("temperature", "hot"),
        ("max_tokens", 2.5),
        ("typical_p", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("no_repeat_ngram", 0),
        ("min_tokens", -1),
        ("min_tokens", 129),
        ("logit_bias", [(3, 101.0)]),
        ("logit_bias", [(-3, 1.0)]),
        ("logit_bias", [3]),
    ],
)
def test_settings_out_of_range_are_refused_by_name_from_a_file_and_from_python(key, value):
    if (key, value) != ("min_tokens", 129):  # two settings that contradict each other are seen by `checked` alone
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
    chosen = SamplingConfig(temperature=0.5, top_k=3, stop=("a", "b"), stop_ids=(4,), logit_bias=((3, 1.5), (4, -100)))
    assert config.read(SamplingConfig, config.mapping(chosen)) == chosen
    assert checked(chosen) == chosen
    assert hash(chosen) != hash(SamplingConfig())
    written = config.toml(config.mapping(chosen))
    assert config.read(SamplingConfig, tomllib.loads(written)) == chosen


def test_a_bias_of_an_id_that_the_model_does_not_have_is_refused():
    chosen = SamplingConfig(logit_bias=((3, 1.0), (17, 2.0)))
    assert checked(chosen, 18) == chosen
    with pytest.raises(ConfigError, match="0 to 16"):
        checked(chosen, 17)
