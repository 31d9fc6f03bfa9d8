"""The compiled executor's cache and attention: right numbers, and bits that do not depend on company."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray

from cached import HEADS, LENGTH, TYPES, Rows, attended, everywhere, filled, held, rows, spanned, write
from temaki.base import memory
from temaki.base.compile import kernel
from temaki.base.errors import GenerationError
from temaki.compiled import rotary, softmax
from temaki.compiled.attend import TILE
from temaki.compiled.cache import Cache, CacheKind, Heads
from temaki.compiled.native import call_native
from temaki.compiled.table import SPAN
from temaki.model.dense import attention
from temaki.model.norm import rms_norm
from temaki.model.positions import rope_angles, rotate

NEAR = 2e-6
"""Of values about 1: float32 sums of 530 products, in another order than the oracle's float64 ones."""


def expected(heads: Heads, q: ndarray, k: ndarray, v: ndarray, place: int) -> ndarray:
    """The plain formula in float64: q [n, H, K] at place, place + 1, .., over keys and values [place + n, G, K]."""
    queries, keys, values = (torch.from_numpy(each.astype(np.float64)).transpose(0, 1) for each in (q, k, v))
    share = heads.heads // heads.groups
    far = (place + torch.arange(len(q)))[:, None] - torch.arange(len(k))
    mask = (far >= 0) & (far < (heads.window or len(k)))
    slopes = torch.tensor(heads.slopes or (0.0,) * heads.heads, dtype=torch.float64)
    bias = -slopes[:, None, None] * far
    keys, values = (each.repeat_interleave(share, 0) for each in (keys, values))
    return attention(queries, keys, values, mask, heads.scale, bias, heads.cap).transpose(0, 1).numpy()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", HEADS)
def test_attention_is_the_plain_formula_over_what_the_cache_holds(kind: CacheKind, name: str) -> None:
    heads = HEADS[name]
    given = rows(heads)
    cache = filled(kind, heads, given)
    k, v = held(cache, 1, LENGTH)
    for first, n in ((LENGTH - 41, 41), (250, 12), (0, 5), (17, 1)):
        q = given.q[first : first + n]
        wanted = expected(heads, q, k[: first + n], v[: first + n], first)
        assert np.abs(attended(cache, 1, q, first) - wanted).max() < NEAR


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", HEADS)
def test_bits_depend_on_no_company(kind: CacheKind, name: str) -> None:
    """Tiles of all sizes = id after id = by spans in any order = while nothing after an id is there yet = elsewhere."""
    heads = HEADS[name]
    given = rows(heads)
    whole = filled(kind, heads, given)
    first = LENGTH - 40
    q = given.q[first:]
    wanted = attended(whole, 1, q, first)
    for together in (1, 2, 5):
        assert (attended(whole, 1, q, first, together) == wanted).all()
    assert (spanned(whole, 1, q[:TILE], first) == wanted[:TILE]).all()
    across = given.q[SPAN - 3 : SPAN + 4]
    assert (attended(whole, 1, across, SPAN - 3) == attended(whole, 1, across, SPAN - 3, 1)).all()
    assert (spanned(whole, 1, across, SPAN - 3) == attended(whole, 1, across, SPAN - 3)).all()
    short = first + 3
    alone = filled(kind, heads, Rows(q, given.k[:short], given.v[:short]), slots=1, slot=0, room=short)
    assert (attended(alone, 0, q[2:3], short - 1) == wanted[2:3]).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["grouped", "narrow window", "all"])
def test_what_is_no_number_reaches_those_alone_that_see_it(kind: CacheKind, name: str) -> None:
    heads, n, bad = HEADS[name], 40, 22
    for which in ("k", "v"):
        for number in (np.nan, np.inf):
            given = rows(heads, n)
            clean = attended(filled(kind, heads, given), 1, given.q, 0)
            getattr(given, which)[bad, -1, 3] = number
            found = attended(filled(kind, heads, given), 1, given.q, 0)
            share = heads.heads // heads.groups
            window = heads.window or n
            seeing = np.zeros((n, heads.heads), bool)
            seeing[bad : bad + window, -share:] = True
            poisoned = ~np.isfinite(found).all(-1)
            assert (found[~seeing] == clean[~seeing]).all()
            if np.isnan(number) or which == "v":
                assert (poisoned == seeing).all()


def test_scores_far_apart_and_far_below() -> None:
    """Weights below e^-60 are 0 within a span and between spans, whichever comes first; huge scores are fine."""
    heads = Heads(1, 1, 8, scale=1.0)
    for high in (3, SPAN + 3):
        given = rows(heads, 2 * SPAN)
        given.k[:] = 0
        given.k[high] = 1000
        given.q[:] = 1
        found = attended(filled("float32", heads, given, room=2 * SPAN), 1, given.q[-1:], 2 * SPAN - 1)
        assert (found[0, 0] == given.v[high, 0]).all()


@kernel
def _weights(address, scores, into):  # type: ignore[no-untyped-def]
    call_native(address, scores, 0, SPAN, into, into, 0, 0, 0)


def test_the_exponential_is_right_to_two_units_in_the_last_place() -> None:
    scores = -np.linspace(0, 59.9, SPAN * 200, dtype=np.float32).reshape(200, SPAN)
    scores[:, 0] = 0
    wanted = np.exp(scores.astype(np.float64))
    for row in scores:
        result = np.ones(16, np.float32)  # the scale that is read, then the largest score and the sum
        _weights(softmax.softmax_plain.address, row.ctypes.data, result.ctypes.data)
        assert result[0] == 0
        assert abs(result[1] - row.sum(dtype=np.float64)) < 1e-6 * result[1]
    assert (np.abs(scores / wanted - 1)).max() < 2 * 2**-23


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_heads_are_normed_and_turned_as_the_model_does(pairs: rotary.Pairs) -> None:
    for heads, size in ((3, 64), (2, 6), (1, 18)):
        x, gain = rows(Heads(heads, 1, size), 1).q[0], np.linspace(0.5, 2, size, dtype=np.float32)
        cos, sin = (each.float() for each in rope_angles(torch.tensor(7), size))
        wanted = rotate(rms_norm(torch.from_numpy(x), torch.from_numpy(gain), 1e-3), cos, sin, pairs)
        line = np.concatenate([[9], x.reshape(-1), [9]]).astype(np.float32)
        tables = np.concatenate([cos.numpy(), sin.numpy()])
        rotary.norm_heads(line, 1, heads, size, gain, 0, 1e-3)
        rotary.rotate(line, 1, heads, size, rotary.PAIRS[pairs], tables, 0, size // 2)
        assert np.abs(line[1:-1].reshape(heads, size) - wanted.numpy()).max() < 1e-6
        assert line[0] == line[-1] == 9


def test_norm_of_an_odd_head() -> None:
    x, gain = rows(Heads(2, 1, 7), 1).q[0], np.ones(7, np.float32)
    wanted = rms_norm(torch.from_numpy(x), torch.from_numpy(gain), 1e-5).numpy()
    rotary.norm_heads(x.reshape(-1), 0, 2, 7, gain, 0, 1e-5)
    assert np.abs(x - wanted).max() < 1e-6


def hard_halves() -> ndarray:
    """Float32 numbers on, between and beside all float16 numbers, and those that are none."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.append(halves, np.float32(65536))
    between = (halves[:-1] + halves[1:]) / 2
    beside = [np.nextafter(between, np.float32(to)) for to in (-np.inf, np.inf)]
    positive = np.concatenate([halves, between, *beside, [np.inf, np.nan]]).astype(np.float32)
    return np.concatenate([positive, -positive, np.zeros(-2 * len(positive) % 64, np.float32)])


def test_float16_is_stored_as_numpy_rounds_it() -> None:
    numbers = hard_halves()
    heads = Heads(1, 1, 64)
    given = Rows(numbers, *(numbers.reshape(-1, 1, 64) for _ in range(2)))
    cache = filled("float16", heads, given, room=len(numbers) // 64)
    with np.errstate(over="ignore"):
        wanted = numbers.astype(np.float16).astype(np.float64).reshape(-1, 1, 64)
    for each in held(cache, 1, len(numbers) // 64):
        np.testing.assert_array_equal(each, wanted)


def test_int8_is_stored_to_half_a_step() -> None:
    heads = Heads(3, 3, 24)
    given = rows(heads, 40)
    given.k[3] = 0
    k, v = held(filled("int8", heads, given), 1, 40)
    for found, numbers in ((k, given.k), (v, given.v)):
        step = np.abs(numbers).max(-1, keepdims=True) / 127
        assert (np.abs(found - numbers) <= step * 0.50001).all()
    assert (k[3] == 0).all()


@pytest.mark.parametrize("kind", TYPES)
def test_a_slot_is_copied_put_away_put_back_and_cleared(kind: CacheKind) -> None:
    heads, n = Heads(4, 2, 6), SPAN + 37
    given, other = rows(heads, SPAN + 50), rows(heads, SPAN + 50, seed=1)
    cache = filled(kind, heads, given, slots=4)
    write(cache, 2, other)
    q = given.q[n - 1 : n]
    wanted, unlike = (attended(cache, slot, q, n - 1) for slot in (1, 2))
    assert (wanted != unlike).any()
    kept = cache.save(1, n)
    assert sum(each.nbytes for each in kept.values()) < (n + 16) * cache.bytes_per_id
    cache.fork(1, 3, n)
    cache.clear(1, SPAN + 50)
    assert (attended(cache, 3, q, n - 1) == wanted).all()
    for layer in range(2):
        for name, part in cache.parts(layer).items():
            assert not part[1, 0].any()
            assert not part[1, 1, :, : 4 if name == "keys" else 50].any()
    cache.load(0, kept)
    assert (attended(cache, 0, q, n - 1) == wanted).all()
    assert (attended(cache, 2, q, n - 1) == unlike).all()
    for length in (SPAN, 5):
        cache.load(3, cache.save(2, length))
        place = length - 1
        assert (attended(cache, 3, q, place) == attended(cache, 2, q, place)).all()


def test_room_costs_nothing_before_it_is_used() -> None:
    heads, before = Heads(4, 4, 64), memory.held()
    cache = Cache("float16", 64, 4096, [heads] * 16)
    assert cache.data.nbytes == 64 * 4096 * cache.bytes_per_id == 4 << 30
    assert cache.data.ctypes.data % 64 == 0
    given = rows(heads, 3)
    for slot in (0, 31, 63):
        write(cache, slot, given, layer=15)
    assert np.isfinite(attended(cache, 63, given.q, 0, layer=15)).all()
    after = memory.held()
    if before is None or after is None:
        pytest.skip("this system does not tell how much memory is held")
    assert after - before < 3 * SPAN * cache.bytes_per_id + (4 << 20)


def test_too_much_room_is_refused() -> None:
    with pytest.raises(GenerationError, match="no memory"):
        Cache("float32", 1 << 20, 1 << 20, [Heads(64, 64, 64)])


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import cached
sys.stdout.buffer.write(cached.everywhere().tobytes())
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(("name", "features"), [("haswell", "+avx2,+fma,+f16c"), ("generic", "")])
def test_other_processors_find_the_same(name: str, features: str) -> None:
    """As `attend` compiles for them; without fused products the last bits differ, stored numbers do not."""
    told = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    found = subprocess.run([sys.executable, "-c", CHILD, here], env=told, capture_output=True, check=True).stdout
    wanted = everywhere()
    assert np.abs(np.frombuffer(found, np.float32) - wanted).max() < NEAR


def test_pages_of_a_window_are_kept() -> None:
    """A window sees its places wherever it stands: a long row equals a fresh one at the same places."""
    heads = replace(HEADS["narrow window"], slopes=(0.1, 0.2, 0.3, 0.4))
    given = rows(heads)
    cache = filled("float32", heads, given)
    later = Rows(given.q, given.k.copy(), given.v.copy())
    later.k[: LENGTH - 3] = 5
    later.v[: LENGTH - 3] = 5
    fresh = filled("float32", heads, later)
    q = given.q[-1:]
    assert (attended(cache, 1, q, LENGTH - 1) == attended(fresh, 1, q, LENGTH - 1)).all()
