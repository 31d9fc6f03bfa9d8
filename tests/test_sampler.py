"""The compiled sampler draws what the readable filters and the readable draw say."""

import numpy as np
import pytest

from temaki.base import keys
from temaki.base.errors import GenerationError
from temaki.generate import sampler_loops as loops
from temaki.generate import sampling
from temaki.generate.config import SamplingConfig
from temaki.generate.request import Request, Row
from temaki.generate.sampler import Sampler

CHAINS = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "temperature": {"temperature": 0.8},
    "usual": {"temperature": 0.8, "top_p": 0.95},
    "top-p": {"top_p": 0.6},
    "small-p": {"top_p": 1e-9},
    "top-k": {"top_k": 7},
    "top-one": {"top_k": 1},
    "min-p": {"min_p": 0.1},
    "best-alone": {"min_p": 1.0},
    "typical": {"typical_p": 0.7},
    "top-p-min-p": {"temperature": 1.3, "top_p": 0.9, "min_p": 0.05},
    "all": {"temperature": 1.2, "top_k": 30, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.02},
    "top-k-min-p": {"top_k": 40, "min_p": 0.3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": -0.3, "top_p": 0.9},
    "bans": {"no_repeat_ngram": 2, "logit_bias": ((3, 4.0), (0, -100.0)), "min_tokens": 30, "stop_ids": (1, 2)},
    "greedy-bans": {"temperature": 0.0, "no_repeat_ngram": 1, "repetition_penalty": 0.8, "logit_bias": ((4, 1.0),)},
}


def row(ids=(1, 2, 3), prompt=1, **chain) -> Row:
    chosen = SamplingConfig(**chain)
    return Row(0, np.array(ids, np.int32), prompt, Request(ids=np.array([1]), sampling=chosen))


def filtered(logits: np.ndarray, here: Row) -> np.ndarray:
    for each in sampling.filters(here.request.sampling):
        logits = each(logits, here)
    return logits


def rows(size: int, count: int, seed: int) -> list[np.ndarray]:
    """Rows of many spreads; rounded ones have ties; some ids are out."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        x = draw.normal(0, (0.0, 0.1, 1.0, 4.0, 20.0)[i % 5], size) + draw.normal(0, 10)
        x = x.round(1) if i % 2 else x
        if i % 3 == 0 and size > 4:
            x[draw.integers(0, size, size // 3)] = -np.inf
            x[size // 2] = 0.0
        found.append(x.astype(np.float32))
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_ten_thousand_draws_are_the_readable_ones(name):
    """Over all chains together well above it."""
    draw = np.random.default_rng(1)
    size, place = 97, 0
    sampler = Sampler(size)
    for x in rows(size, 40, seed=2):
        here = row(draw.integers(0, size, draw.integers(2, 25)), 2, **CHAINS[name])
        y = filtered(x, here)
        for _ in range(25):
            place += 1
            u = keys.uniform(3, "sample", 0, place)
            assert sampler.draw(x, here, u) == sampling.draw(y, u)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_are_the_softmax_of_what_the_filters_leave(name, dtype):
    draw = np.random.default_rng(4)
    for size in (1, 2, 5, 61, 2 * loops.BINS + 77):
        sampler = Sampler(size)
        chain = {**CHAINS[name], "logit_bias": ((0, 2.0),)} if "logit_bias" in CHAINS[name] else CHAINS[name]
        for x in rows(size, 10, seed=5):
            here = row(draw.integers(0, size, 12) if size > 12 else [0, 0], 1, **chain)
            y = filtered(x.astype(dtype), here)
            if not np.isfinite(y.max()):  # so few ids that the bans leave none
                with pytest.raises(GenerationError, match="ruled out"):
                    sampler.probabilities(x.astype(dtype), here)
                continue
            found = sampler.probabilities(x.astype(dtype), here)
            expected = np.exp(sampling.log_probabilities(y))
            assert np.allclose(found, expected, rtol=1e-11, atol=1e-300)
            assert np.array_equal(found > 0, expected > 0)
            for u in (0.0, 0.3, 0.77, 0.9999):
                assert sampler.draw(x.astype(dtype), here, u) == sampling.draw(y, u)


@pytest.mark.parametrize(("p", "count"), [(0.5, 1), (0.6, 2), (0.7, 2), (1.0, 5), (1e-4, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_top_p_table(p, count, dtype):
    q = np.log([0.15, 0.5, 0.05, 0.2, 0.1]).astype(dtype) + dtype(7)
    found = Sampler(5).probabilities(q, row(top_p=p))
    assert set(np.flatnonzero(found).tolist()) == set([1, 3, 0, 4, 2][:count])


@pytest.mark.parametrize("k", [1, 50, loops.BINS, loops.BINS + 1, 5000])
@pytest.mark.parametrize("kind", ["spread", "ties", "sorted", "flat", "outliers"])
def test_a_head_of_a_large_vocabulary_is_exact(k, kind):
    size = 12_345
    draw = np.random.default_rng(k)
    x = draw.normal(0, 3, size)
    x = {
        "spread": x,
        "ties": x.round(1),
        "sorted": np.sort(x),
        "flat": np.zeros(size),
        "outliers": np.where(draw.random(size) < 0.5, -1e9, x * np.exp(draw.normal(0, 30, size)).clip(0, 1e30)),
    }[kind].astype(np.float32)
    sampler = Sampler(size)
    expected = sampling.top_k(x, k)
    n = loops.best(x, k, sampler._working())
    assert sampler._working().ids[:n].tolist() == np.flatnonzero(expected > -np.inf).tolist()
    here = row(top_k=k, top_p=0.9)
    assert sampler.draw(x, here, 0.6) == sampling.draw(filtered(x, here), 0.6)
    drawn, count = int(x.argmin()), min(k, 60)
    found, logs = sampler.logprobs(x, drawn, count), sampling.log_probabilities(x)
    assert found.ids[0].tolist() == sampling.best(x, count).tolist()
    assert np.allclose(found.best[0], logs[found.ids[0]], rtol=1e-12, atol=1e-12)
    assert np.allclose(found.drawn, logs[drawn], rtol=1e-12, atol=1e-12)
    assert sampler.logprobs(x, drawn, 0).ids.shape == (1, 0)


@pytest.mark.parametrize("masses", ["ones", "random", "zeros between"])
def test_the_boundary_is_that_of_a_sort_even_where_keys_span_all_numbers(masses):
    draw = np.random.default_rng(6)
    for case in range(200):
        n = int(draw.integers(1, 300))
        wide = draw.choice([-1.0, 1.0], n) * 10.0 ** draw.uniform(-300, 300, n)
        given = [wide, draw.normal(0, 1, n), draw.integers(0, 4, n) * 1.0, 5e-324 * draw.integers(1, 9, n)][case % 4]
        mass = np.ones(n) if masses == "ones" else draw.random(n)
        mass = np.where(draw.random(n) < 0.5, 0, mass) if masses == "zeros between" else mass
        mass[0] += 0.1
        goal = float(draw.uniform(0, 1) * mass.sum()) + 1e-9
        order = np.argsort(-given, kind="stable")
        last = min(int(np.searchsorted(mass[order].cumsum(), goal)), n - 1)
        space = np.empty(n), np.empty(n)
        key, above = loops.boundary(given, mass, n, goal, np.empty(loops.BINS), *space)
        assert key == given[order[last]]
        assert above == pytest.approx(mass[given > key].sum(), abs=1e-9)


def test_the_exponential_is_that_of_numpy_to_the_last_bit_but_one():
    x = -np.random.default_rng(7).uniform(0, 707, 100_000)
    found = np.empty(len(x))
    loops.weigh(x, 0.0, len(x), found)
    assert np.abs(found / np.exp(x) - 1).max() < 4.5e-16
    edges = np.array([0.0, -1e-300, -708.0, -709.0, -1e30, -np.inf])
    loops.weigh(edges, 0.0, len(edges), found)
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2] == pytest.approx(np.exp(-708.0), rel=1e-12)
    assert found[3:6].tolist() == [0.0, 0.0, 0.0]


def test_a_walk_never_ends_on_a_weight_of_zero():
    bins = np.empty(loops.BINS)
    draw = np.random.default_rng(8)
    for n in (1, 2, 9, 1000, 9000):
        for _ in range(20):
            weights = np.where(draw.random(n) < 0.9, 0.0, draw.random(n) * 10.0 ** draw.integers(-12, 1, n))
            weights[draw.integers(0, n)] = 1.0
            sums = weights.cumsum()
            for u in (0.0, 0.5, 0.999, float(np.nextafter(1.0, 0.0))):
                found = loops.walk(weights, n, u, bins)
                assert weights[found] > 0
                assert sums[found] >= u * sums[-1] * (1 - 1e-12)
                assert sums[found] - weights[found] <= u * sums[-1] * (1 + 1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_no_distribution_is_refused(name):
    sampler, here = Sampler(6), row([5, 5, 5], 1, **CHAINS[name])
    for broken, said in [(np.nan, "NaN"), (np.inf, "inf")]:
        x = np.array([0.0, 1.0, broken, -np.inf, 2.0, 0.5], np.float32)
        for ask in (lambda x: sampler.draw(x, here, 0.5), lambda x: sampler.probabilities(x, here)):
            with pytest.raises(GenerationError, match=said):
                ask(x)
        with pytest.raises(GenerationError, match=said):
            sampler.logprobs(x, 0, 1)
        with pytest.raises(GenerationError, match=said):  # a mask does not hide it
            sampler.draw(x, here, 0.5, np.arange(6) < 2)
    with pytest.raises(GenerationError, match="ruled out"):
        sampler.draw(np.full(6, -np.inf, np.float32), here, 0.5)
    with pytest.raises(GenerationError, match="ruled out"):
        sampler.draw(np.zeros(6, np.float32), here, 0.5, np.zeros(6, bool))
    for u in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="uniform"):
            sampler.draw(np.zeros(6, np.float32), here, u)


@pytest.mark.parametrize("name", CHAINS)
def test_a_mask_is_minus_infinity_before_all_filters(name):
    draw, sampler = np.random.default_rng(9), Sampler(97)
    for x in rows(97, 10, seed=10):
        here, allowed = row(draw.integers(0, 97, 9), 2, **CHAINS[name]), draw.random(97) < 0.4
        allowed[48] = True
        out = np.where(allowed, x, np.float32(-np.inf))
        before = x.copy()
        for u in (0.1, 0.9):
            assert sampler.draw(x, here, u, allowed) == sampling.draw(filtered(out, here), u)
        assert np.array_equal(x, before)


def test_nothing_is_carried_from_call_to_call():
    """One sampler for all chains, vocabulary rows that are views, both types: as a new one for each."""
    draw, one = np.random.default_rng(11), Sampler(97)
    table = np.stack(rows(97, 12, seed=12), 1).T  # rows that are not contiguous
    for i in range(200):
        x = table[i % 12].astype(np.float64) if i % 5 == 0 else table[i % 12]
        here = row(draw.integers(0, 97, 30), 7, **list(CHAINS.values())[int(draw.integers(len(CHAINS)))])
        u = float(draw.random())
        assert one.draw(x, here, u) == Sampler(97).draw(x, here, u)


@pytest.mark.parametrize("name", ["plain", "penalties", "bans"])
def test_the_best_continuations_are_sorted_log_probabilities_after_penalties(name):
    draw, sampler = np.random.default_rng(13), Sampler(97)
    for x in rows(97, 10, seed=14):
        here, allowed = row(draw.integers(0, 97, 40), 7, **CHAINS[name]), draw.random(97) < 0.5
        allowed[48] = True
        logs = np.where(allowed, sampling.log_probabilities(x), -np.inf)
        for each in sampling._penalties(here.request.sampling):
            logs = each(logs, here)
        order = [int(i) for i in np.argsort(-logs, kind="stable") if logs[i] > -np.inf][:60]
        ids, found = sampler.best(x, here, 60, allowed)
        assert np.allclose(found, logs[ids], rtol=1e-12, atol=1e-12)
        assert np.allclose(logs[ids], logs[order], rtol=1e-12, atol=1e-12)
        assert len(set(ids.tolist())) == len(order)


def test_drawing_loads_no_torch(fresh):
    code = "import sys, temaki.generate.sampler, temaki.generate.beam, temaki.generate.contrastive"
    assert fresh(f"{code}; print('torch' in sys.modules)").strip() == "False"
