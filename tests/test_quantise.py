"""Blocks of few bits: equal to ggml's own numbers bit for bit, however they are cut and wherever they are written."""

import math
from itertools import pairwise

import gguf
import numpy as np
import pytest
from gguf import quants
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.model import quantise
from temaki.model.quantise import Blocks
from temaki.model.quantise_kinds import KINDS

WRITTEN = [name for name, kind in KINDS.items() if kind.pack is not None]


EXTREME = (0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0xFE01)
"""Bits of float16 numbers that are hard to scale by."""


def random_blocks(kind: str, shape: tuple[int, ...], seed: int = 1) -> Blocks:
    """Blocks of any bits, with scales that are finite."""
    packing = KINDS[kind]
    count = math.prod(shape) // packing.numbers
    raw = np.random.default_rng(seed).integers(0, 256, (count, packing.bytes), np.uint8)
    for at in range(packing.bytes - 1) if kind == "BF16" else (0, 2, 208 if kind == "Q6_K" else 0):
        raw[:, at + 1] &= 0xBF  # no exponent of all ones
    return Blocks(kind, shape, raw.reshape(-1))


def theirs(blocks: Blocks) -> ndarray:
    """The numbers by the package `gguf`."""
    kind = KINDS[blocks.kind]
    rows = blocks.data.reshape(-1, blocks.shape[-1] // kind.numbers * kind.bytes)
    return quants.dequantize(rows, gguf.GGMLQuantizationType[blocks.kind]).reshape(blocks.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_the_package(kind: str) -> None:
    blocks = random_blocks(kind, (700, 256))  # several chunks, the last not full
    with np.errstate(invalid="ignore"):
        assert blocks.dequantise().tobytes() == theirs(blocks).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_any_bits_are_read(kind: str) -> None:
    """Scales that are no number give what is no number, without a word."""
    packing = KINDS[kind]
    raw = np.random.default_rng(3).integers(0, 256, (512, packing.bytes), np.uint8)
    raw[7] = 0xFF
    found = Blocks(kind, (512, packing.numbers), raw.reshape(-1)).dequantise()
    assert not np.isfinite(found[7]).any()
    assert np.isfinite(found).any()


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "BF16"])
def test_extreme_scales_are_read_as_theirs(kind: str) -> None:
    """Zeros, subnormal numbers, the largest, infinities and what is no number, in each scale of a block."""
    packing, draw = KINDS[kind], np.random.default_rng(4)
    raw = draw.integers(0, 256, (2000, packing.bytes), np.uint8)
    for at in {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        raw[:, at : at + 2] = draw.choice(EXTREME, len(raw)).astype("<u2")[:, None].view(np.uint8)
    blocks = Blocks(kind, (2000, packing.numbers), raw.reshape(-1))
    with np.errstate(invalid="ignore"):
        assert np.array_equal(blocks.dequantise(), theirs(blocks), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_places_types_and_rows(kind: str) -> None:
    blocks = random_blocks(kind, (3, 4, 256))
    whole = blocks.dequantise()
    for place in range(3):
        assert blocks[place].shape == (4, 256)
        assert np.array_equal(blocks[place].dequantise(), whole[place])
    wide = np.empty(blocks.shape, np.float64)
    assert blocks.dequantise(wide) is wide
    assert np.array_equal(wide, whole.astype(np.float64))
    assert np.array_equal(quantise.floats(blocks), whole)


def samples() -> ndarray:
    """Rows that rounding is hard on: normal, tiny, constant, zero, negative, exact halves, one large number."""
    draw = np.random.default_rng(5)
    rows = draw.normal(size=(64, 64)).astype(np.float32)
    rows[1] *= 1e-6
    rows[2], rows[3], rows[4] = 3.25, 0, -0.5
    rows[5] = np.arange(64) / 2
    rows[6, 7] = 1e4
    rows[7] = 1e-42
    return rows


@pytest.mark.parametrize("kind", WRITTEN)
def test_packing_is_theirs(kind: str) -> None:
    """But where 1 / scale is beyond float32: theirs is undefined there, ours zero."""
    rows = np.delete(samples(), 7, axis=0)
    wanted = quants.quantize(rows, gguf.GGMLQuantizationType[kind])
    assert quantise.quantise(kind, rows).data.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", WRITTEN)
def test_numbers_come_back_within_a_step(kind: str) -> None:
    """And again when what came back is packed; beside the step, what float16 leaves of a scale and a least number."""
    rows = samples()
    once = quantise.quantise(kind, rows).dequantise()
    twice = quantise.quantise(kind, once).dequantise()
    step = np.ptp(rows, axis=1, keepdims=True) / (127 if kind == "Q8_0" else 15 if kind == "Q4_1" else 7)
    left = np.abs(rows).max(axis=1, keepdims=True) * 2e-3 + 127 * np.finfo(np.float16).smallest_subnormal
    assert (np.abs(once - rows) <= step + left).all()
    assert (np.abs(twice - once) <= step + left).all()


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_numbers_that_no_scale_holds_are_refused(kind: str, wrong: float) -> None:
    rows = np.zeros((2, 32), np.float32)
    rows[1, 3] = wrong
    with pytest.raises(FormatError, match="not finite or too large"):
        quantise.quantise(kind, rows)


def test_a_finer_kind_is_nearer() -> None:
    rows = np.random.default_rng(2).normal(size=(256, 256)).astype(np.float32)
    errors = [float(np.square(quantise.quantise(kind, rows).dequantise() - rows).mean()) for kind in WRITTEN]
    order = sorted(zip(WRITTEN, errors, strict=True), key=lambda pair: pair[1])
    assert [kind for kind, _ in order] == ["Q8_0", "Q4_1", "Q4_0"]
    assert all(less[1] < more[1] for less, more in pairwise(order))
