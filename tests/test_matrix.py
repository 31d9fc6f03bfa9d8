"""Packed matrices: the stored numbers, sums that do not depend on their company, the same on every processor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from temaki.base.compile import kernel
from temaki.base.errors import FormatError
from temaki.compiled import matrix
from temaki.compiled.matrix import CENTRED, EIGHT, FLOAT, FOUR
from temaki.compiled.products import Target, target
from temaki.compiled.vectors import features, half_at
from temaki.formats import weights
from temaki.formats.weights import Change, Weight
from temaki.model.quantise import Blocks, Stored, quantise
from temaki.model.quantise_kinds import KINDS

NAMES = {EIGHT: "Q8_0", FOUR: "Q4_1", CENTRED: "Q4_0"}
ALL = {"float32": FLOAT, "8-bit": EIGHT, "4-bit": FOUR, "4-bit centred": CENTRED}
SHAPES = ((48, 64), (16, 32), (40, 96), (1, 576))
ODD = ((16, 40), (7, 1), (33, 31))
"""Shapes that blocks cannot have."""
PROCESSORS = {
    "avx2": ("haswell", "+avx2,+fma,+f16c", Target(8, 4, vnni=False, avx2=True)),
    "avx2 and vnni": ("alderlake", "+avx2,+fma,+f16c,+avxvnni", Target(8, 4, vnni=True, avx2=True)),
    "any": ("generic", "", Target(8, 4, vnni=False, avx2=False)),
}
"""Names and features that Numba is told, and what is made of them."""


def arena(size: int) -> ndarray:
    """Bytes that hold something else, from a multiple of 64 on."""
    whole = np.full(size + 64, 0xA5, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


def packed(stored: Stored, kind: int, rows: ndarray | None = None) -> ndarray:
    out = arena(matrix.packed_bytes(kind, *stored.shape))
    matrix.pack(stored, rows, kind, out)
    return out


def unpacked(weights: ndarray, kind: int, outs: int, columns: int) -> ndarray:
    """All rows by `embed`."""
    out = np.empty((outs, columns), np.float32)
    for row in range(outs):
        matrix.embed(weights, 0, kind, outs, columns, row, out.reshape(-1), row * columns)
    return out


def read(x: ndarray, kind: int) -> ndarray:
    """Rows of activations."""
    acts = arena(len(x) * matrix.act_bytes(x.shape[1]))
    for row in range(len(x)):
        matrix.read_row(x.reshape(-1), row * x.shape[1], x.shape[1], kind, acts, row * matrix.act_bytes(x.shape[1]))
    return acts


def product(weights: ndarray, kind: int, outs: int, x: ndarray, tiles: range | None = None) -> ndarray:
    """float32 [rows, outs + 2]: the outputs between two columns of sevens; outputs of other tiles are sevens too."""
    rows, columns = x.shape
    out = np.full((rows, outs + 2), 7, np.float32)
    first, last = (0, -(-outs // 16)) if tiles is None else (tiles.start, tiles.stop)
    stride = matrix.act_bytes(columns)
    acts = read(x, kind)
    matrix.product(weights, 0, kind, outs, columns, acts, 0, stride, rows, out.reshape(-1), 1, outs + 2, first, last)
    return out


def stored(kind: int, outs: int, columns: int, seed: int = 0) -> Stored:
    numbers = np.random.default_rng(seed).standard_normal((outs, columns), np.float32)
    return numbers if kind == FLOAT or columns % 32 else quantise(NAMES[kind], numbers)


def inputs(rows: int, columns: int) -> ndarray:
    return np.random.default_rng(5).standard_normal((rows, columns), np.float32) * 3


def groups_of(x: ndarray) -> tuple[ndarray, ndarray]:
    """(q [rows, groups, 32], s [rows, groups]) of rows, in NumPy's words."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    most = np.abs(padded).max(axis=-1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(most > 2.0**-119, np.float32(127) / most, np.float32(0))
    return np.rint(padded * inverse[..., None]), np.where(inverse > 0, most * np.float32(1 / 127), np.float32(0))


def expected(w: ndarray, kind: int, x: ndarray) -> ndarray:
    """The product in float64, of what the activations are read as."""
    if kind == FLOAT:
        return x.astype(np.float64) @ w.T
    q, s = groups_of(x)
    return (q * s[..., None].astype(np.float64)).reshape(len(x), -1)[:, : x.shape[1]] @ w.T


@kernel
def halves(raw, out):
    for each in range(len(out)):
        out[each] = half_at(raw, 2 * each)


def every_half() -> ndarray:
    """All float16 numbers as float32, by our own words."""
    out = np.empty(1 << 16, np.float32)
    halves(np.arange(1 << 16, dtype=np.uint16).view(np.uint8), out)
    return out


def outputs() -> dict[str, ndarray]:
    """What processors are compared by: activations, and products of several shapes and numbers of rows."""
    found = {"half": every_half()}
    for name, kind in ALL.items():
        for outs, columns in (*SHAPES, ODD[0]):
            weights = packed(stored(kind, outs, columns), kind)
            found[f"{name} {outs} {columns}"] = product(weights, kind, outs, inputs(11, columns))
    found["read"] = read(inputs(3, 70), FOUR).reshape(3, -1)[:, : 3 * 48]
    lowest, most = blocks_of(EIGHT, 0x80), blocks_of(FOUR, 0xFF)
    found["least"] = product(packed(lowest, EIGHT), EIGHT, 16, np.full((5, 32), 2, np.float32))
    found["most"] = product(packed(most, FOUR), FOUR, 16, np.full((5, 32), -2, np.float32))
    return found


def save(path: str) -> None:
    """Called in a fresh interpreter."""
    np.savez(path, target=repr(target()), **outputs())  # pyright: ignore[reportArgumentType]


def blocks_of(kind: int, byte: int) -> Blocks:
    """16 rows of one block each with d = 1, m = 0 and the same byte everywhere."""
    raw = np.full((16, KINDS[NAMES[kind]].bytes), byte, np.uint8)
    raw[:, :2] = (0, 0x3C)
    if kind == FOUR:
        raw[:, 2:4] = 0
    return Blocks(NAMES[kind], (16, 32), raw.reshape(-1))


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_products_are_those_of_the_stored_numbers(kind: int) -> None:
    for outs, columns in (*SHAPES, *ODD):
        weights = packed(stored(kind, outs, columns), kind)
        w, x = unpacked(weights, kind, outs, columns), inputs(11, columns)
        found = product(weights, kind, outs, x)
        wanted = expected(w, kind, x)
        assert np.abs(found[:, 1:-1] - wanted).max() <= 2e-6 * np.abs(wanted).max(), (outs, columns)
        assert (found[:, [0, -1]] == 7).all()  # nothing beside the outputs is written


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_a_rows_bits_depend_on_no_other_row_and_no_cut(kind: int) -> None:
    for outs, columns in (*SHAPES[1:3], ODD[2]):
        weights, x = packed(stored(kind, outs, columns), kind), inputs(17, columns)
        alone = np.concatenate([product(weights, kind, outs, x[row : row + 1]) for row in range(17)])
        for rows in range(2, 18):
            assert product(weights, kind, outs, x[17 - rows :]).tobytes() == alone[17 - rows :].tobytes(), rows
        parts = [product(weights, kind, outs, x, range(tile, tile + 1)) for tile in range(-(-outs // 16))]
        for tile, part in enumerate(parts):
            here = slice(1 + 16 * tile, min(17 + 16 * tile, outs + 1))
            assert np.array_equal(part[:, here], alone[:, here])
            part[:, here] = 7
            assert (part == 7).all()


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_spoils_its_row_alone(kind: int, wrong: float) -> None:
    weights, x = packed(stored(kind, 40, 96), kind), inputs(9, 96)
    clean = product(weights, kind, 40, x)
    x[3, 70] = wrong
    found = product(weights, kind, 40, x)
    assert not np.isfinite(found[3, 1:-1]).any()
    others = np.arange(9) != 3
    assert found[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_zeros_and_the_smallest_numbers_give_zeros(kind: int) -> None:
    weights = packed(stored(kind, 16, 64), kind)
    assert (product(weights, kind, 16, np.zeros((2, 64), np.float32))[:, 1:-1] == 0).all()
    small = np.abs(product(weights, kind, 16, np.full((2, 64), 1e-40, np.float32))[:, 1:-1])
    assert small.max() < 1e-37


def test_rows_are_read_as_in_numpy() -> None:
    random = np.random.default_rng(1)
    for columns in (96, 40, 1, 33):
        x = (random.standard_normal((40, columns)) * 10.0 ** random.integers(-38, 30, (40, 1))).astype(np.float32)
        x[0] = np.linspace(-127, 127, columns) if columns > 1 else 127
        x[1, : min(columns, 4)] = [127, 0.5, 1.5, -2.5][: min(columns, 4)]  # halves go to the even side
        q, s = groups_of(x)
        acts = read(x, EIGHT).reshape(40, -1)[:, : 48 * q.shape[1]].reshape(40, -1, 48)
        assert np.array_equal(acts[..., :32].view(np.int8), q)
        numbers, integers = acts[..., 32:].copy().view(np.float32), acts[..., 32:].copy().view(np.int32)
        sums = q.sum(axis=-1)
        assert np.array_equal(numbers[..., 0], s)
        assert np.array_equal(numbers[..., 1], s * sums.astype(np.float32))
        assert np.array_equal(integers[..., 2:], np.stack([-8 * sums, -128 * sums], axis=-1))


def test_the_largest_integers_are_summed_exactly() -> None:
    x = np.full((5, 32), 2, np.float32)
    assert np.allclose(product(packed(blocks_of(EIGHT, 0x80), EIGHT), EIGHT, 16, x)[:, 1:-1], -128 * 64, rtol=1e-6)
    assert np.allclose(product(packed(blocks_of(FOUR, 0xFF), FOUR), FOUR, 16, -x)[:, 1:-1], -15 * 64, rtol=1e-6)
    assert np.allclose(product(packed(blocks_of(CENTRED, 0), CENTRED), CENTRED, 16, x)[:, 1:-1], -8 * 64, rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_blocks_keep_their_numbers(name: str) -> None:
    """Bit for bit where a kind is kept; K-quants and fifth bits as 8-bit blocks of their numbers."""
    random = np.random.default_rng(2)
    size = KINDS[name]
    raw = random.integers(0, 256, (20 * 512 // size.numbers, size.bytes), np.uint8)
    for at in range(size.bytes - 1) if name == "BF16" else (0, 2, 208 if name == "Q6_K" else 0):
        raw[:, at + 1] &= 0xB7 if name != "BF16" else 0xBF  # scales that are finite, and not too large for Q8_0
    blocks = Blocks(name, (20, 512), raw.reshape(-1))
    kind, order = matrix.kind_of(blocks), random.permutation(20)
    numbers = blocks.dequantise()
    if kind == EIGHT and name != "Q8_0":
        numbers = quantise("Q8_0", numbers).dequantise()
    assert unpacked(packed(blocks, kind), kind, 20, 512).tobytes() == numbers.tobytes()
    assert unpacked(packed(blocks, kind, order), kind, 20, 512).tobytes() == numbers[order].tobytes()


@pytest.mark.parametrize("bits", [8, 4])
def test_floats_are_quantised_as_everywhere(bits: int) -> None:
    numbers = np.random.default_rng(3).standard_normal((300, 1056), np.float32)  # more than one slice
    kind = matrix.kind_of(numbers, bits)
    wanted = quantise(NAMES[kind], numbers).dequantise()
    assert unpacked(packed(numbers, kind), kind, 300, 1056).tobytes() == wanted.tobytes()
    assert unpacked(packed(numbers.astype(np.float64), kind), kind, 300, 1056).tobytes() == wanted.tobytes()
    numbers[200, 5] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        packed(numbers, kind)


@pytest.mark.parametrize("kind", NAMES)
def test_columns_that_fill_no_group_do_not_widen_its_range(kind: int) -> None:
    numbers = np.random.default_rng(6).random((16, 40), np.float32) + 100
    found = unpacked(packed(numbers, kind), kind, 16, 40)
    whole = quantise(NAMES[kind], np.tile(numbers[:, :32], 2)).dequantise()
    assert np.array_equal(found[:, :32], whole[:, :32])
    assert np.abs(found[:, 32:] - numbers[:, 32:]).max() <= 1.1 * np.abs(whole - np.tile(numbers[:, :32], 2)).max()


def test_matrices_side_by_side_are_one() -> None:
    """Those of one kind and width with multiples of 16 outputs; also their sizes are multiples of 64."""
    for kind in ALL.values():
        first, second = stored(kind, 32, 96, 1), stored(kind, 23, 96, 2)
        both = np.concatenate([packed(first, kind), packed(second, kind)])
        assert both.size == matrix.packed_bytes(kind, 55, 96)
        assert matrix.packed_bytes(kind, 32, 96) % 64 == 0
        weights = arena(both.size)
        weights[:] = both
        alone = [unpacked(packed(one, kind), kind, *one.shape) for one in (first, second)]
        assert np.array_equal(unpacked(weights, kind, 55, 96), np.concatenate(alone))


def test_a_weight_says_which_rows_it_is_made_of() -> None:
    random = np.random.default_rng(4)
    q, k = (quantise("Q4_1", random.standard_normal((rows, 64), np.float32)) for rows in (32, 16))
    made = Weight((48, 64), ((q, weights.interleaved(2)), (k, weights.SAME)))
    parts = made.blocks()
    assert parts is not None
    assert parts[1][1] is None
    rows = np.concatenate([unpacked(packed(part, FOUR, order), FOUR, *part.shape) for part, order in parts])
    assert rows.tobytes() == made.array().tobytes()


@pytest.mark.parametrize("rows", [1, 2, 32])
def test_a_weight_changed_otherwise_has_no_rows(rows: int) -> None:
    array = np.ones((rows, 2), np.float32)
    turned = Change(lambda x: x[:, ::-1], lambda x: x[:, ::-1])
    for change in (weights.TRANSPOSED, weights.PLUS_ONE, turned):
        assert Weight(change.ours(array).shape, ((array, change),)).blocks() is None
    assert weights.plain(array).blocks() is not None
    assert weights.plain(array[0]).blocks() is None


def test_float16_numbers_are_widened_exactly() -> None:
    with np.errstate(invalid="ignore"):
        wanted = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    assert np.array_equal(every_half(), wanted, equal_nan=True)


@pytest.fixture(scope="module")
def here() -> dict[str, ndarray]:
    return outputs()


@pytest.mark.parametrize("name", ["avx2", "any", pytest.param("avx2 and vnni", marks=pytest.mark.slow)])
def test_every_processor_computes_the_same(name: str, here: dict[str, ndarray], tmp_path: Path) -> None:
    """Integers to the bit everywhere; sums too where products and sums are fused in one step, else to 1e-6."""
    processor, said, wanted = PROCESSORS[name]
    needed = {each[1:] for each in said.split(",") if each}
    if not needed <= features():
        pytest.skip(f"this processor lacks {', '.join(sorted(needed - features()))}")
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": said}
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_matrix; test_matrix.save('o.npz')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "o.npz"))
    assert str(found.pop("target")) == repr(wanted)
    assert found.keys() == here.keys()
    fused = ("fma" in features()) == ("fma" in needed)
    for key, value in here.items():
        if key == "half":
            assert np.array_equal(found[key], value, equal_nan=True)
        elif key == "read" or fused:
            assert found[key].tobytes() == value.tobytes(), key
        else:
            assert np.abs(found[key] - value).max() <= 1e-6 * np.abs(value).max(), key
