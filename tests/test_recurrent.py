"""Laws of every mixer with a state of fixed size: one recurrence in three forms, and the gradients of the fast one."""

from typing import get_args

import pytest
import torch
from torch import Tensor

import variants
from temaki.base.rows import rows
from temaki.model import build, init
from temaki.model.config import BlockConfig, RecurrentConfig
from temaki.model.layout import Layout
from temaki.model.recurrent import Carried, Given, Recurrent

WIDTH = 16
LENGTHS = [3, 1, 0, 70, 12, 12, 17]
"""One of them longer than a chunk, so that chunks are passed on."""
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
every_kind = pytest.mark.parametrize("kind", variants.RECURRENT)
both_dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])


def made(kind: str, dtype: torch.dtype) -> Recurrent:
    """The mixer with initial values that say something."""
    config = variants.RECURRENT[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        mixer = build.MIXERS[type(config)](config, BlockConfig(mixer=config), WIDTH, {})
    assert isinstance(mixer, Recurrent)
    init.fill(mixer, variants.config(kind if kind in variants.PATTERNS else "s4d"), 1)
    return mixer.to(dtype)


def read(lengths: list[int], dtype: torch.dtype) -> tuple[Tensor, Layout]:
    parts = variants.pieces(lengths)
    x = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return x.to(dtype), Layout(rows(parts))


def near(found: Tensor, wanted: Tensor, what: str) -> None:
    """Within the bound of its type, of the largest value."""
    assert found.shape == wanted.shape, what
    assert found.dtype == wanted.dtype, what
    worst = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
    assert worst <= BOUNDS[wanted.real.dtype if wanted.is_complex() else wanted.dtype], f"{what}: {worst}"


def cut(given: Given, *places: slice | int) -> Given:
    return tuple(each[places] for each in given)


def test_every_kind_of_the_union_is_here() -> None:
    assert {type(config) for config in variants.RECURRENT.values()} == set(get_args(RecurrentConfig))


@every_kind
@both_dtypes
@torch.no_grad()
def test_whole_is_chunks_is_steps(kind: str, dtype: torch.dtype) -> None:
    mixer = made(kind, dtype)
    x, layout = read(LENGTHS, dtype)
    given, system = mixer.project(x, layout), mixer.system()
    whole = mixer.whole(system, given, layout)
    assert whole.shape == (len(x), mixer.channels)
    near(Recurrent.whole(mixer, system, given, layout), whole, "piece by piece")
    start, stop = layout.pieces[3]
    for size in (1, 9, 64):
        past: Carried = tuple(each[0] for each in mixer.begin(1))
        found = []
        for low in range(start, stop, size):
            y, past = mixer.chunk(system, past, cut(given, slice(low, min(low + size, stop))))
            found.append(y)
        near(torch.cat(found), whole[start:stop], f"chunks of {size}")


@every_kind
@both_dtypes
@torch.no_grad()
def test_a_step_of_many_slots_is_a_chunk_of_one_id_of_each(kind: str, dtype: torch.dtype) -> None:
    mixer = made(kind, dtype)
    x, layout = read([5, 5, 5], dtype)
    given, system = mixer.project(x, layout), mixer.system()
    whole = mixer.whole(system, given, layout)
    past = mixer.begin(3)
    for i in range(5):
        y, past = mixer.step(system, past, tuple(each[i::5] for each in given))
        near(y, whole[i::5], f"step {i}")
    for slot in range(3):
        _, after = mixer.run(
            system, tuple(each[0] for each in mixer.begin(1)), cut(given, slice(5 * slot, 5 * slot + 5))
        )
        for one, other in zip(past, after, strict=True):
            near(one[slot], other, f"the state of slot {slot}")


@every_kind
@both_dtypes
def test_the_fast_form_has_the_gradients_of_the_slow_one(kind: str, dtype: torch.dtype) -> None:
    """Of its input and of every parameter; the slow one in float64, for compiled steps of decoding have none."""
    x, layout = read([3, 40, 1, 70, 6], torch.float64)
    weights = torch.randn(len(x), WIDTH, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    sides = []
    for mixer, form in (
        (made(kind, dtype), type(made(kind, dtype)).whole),
        (made(kind, torch.float64), Recurrent.whole),
    ):
        kinds = next(mixer.parameters()).dtype
        leaf = x.to(kinds).requires_grad_()
        given = mixer.project(leaf, layout)
        y = mixer.finish(form(mixer, mixer.system(), given, layout), given)
        names, parameters = zip(*mixer.named_parameters(), strict=True)
        sides.append(torch.autograd.grad((y * weights.to(kinds)).sum(), [leaf, *parameters]))
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    for name, one, other in zip(("x", *names), *sides, strict=True):
        assert (one - other).abs().max() <= bound * other.abs().max(), name


@every_kind
def test_what_is_carried_is_in_the_precision_of_the_model_or_float32(kind: str) -> None:
    """Of a model of fewer bits too, but for what is copied: the inputs that a convolution looks back on."""
    for dtype, kinds in (
        (torch.float64, {torch.float64, torch.complex128}),
        (torch.float32, {torch.float32, torch.complex64}),
        (torch.bfloat16, {torch.float32, torch.complex64}),
    ):
        mixer = made(kind, dtype)
        x, layout = read([4], dtype)
        assert mixer.begin(2)[-1].dtype in kinds
        assert mixer(x, layout, None, None).dtype == dtype
