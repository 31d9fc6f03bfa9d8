"""Compiled loops of the training step equal their twins in torch, on any number of threads, and keep NaN a NaN."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base import compile as compiled
from temaki.base import device as devices
from temaki.base import team
from temaki.model import attention_products as products
from temaki.model import heads, norm_loops
from temaki.model.dense import documents_attention_dense
from temaki.model.ffn_loops import Gate, Pointwise
from temaki.model.norm import rms_norm
from temaki.model.positions import rope_angles, rotate
from temaki.model.sight import Sight

pytestmark = pytest.mark.skipif(not team.open(), reason="torch brings no GNU OpenMP of its own here")

Formula = Callable[..., Tensor]


def _gated(activation: Callable[[Tensor], Tensor]) -> Formula:
    def formula(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return activation(gate) * value

    return formula


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


LOOPS: dict[str, tuple[Formula, Formula, int]] = {
    "gelu": (lambda x: Pointwise.apply(x, False), _gelu, 1),
    "relu squared": (lambda x: Pointwise.apply(x, True), lambda x: F.relu(x).square(), 1),
    "silu gate": (lambda x: Gate.apply(x, True), _gated(F.silu), 1),
    "gelu gate": (lambda x: Gate.apply(x, False), _gated(_gelu), 1),
    "rms norm": (
        lambda x, g: norm_loops.RmsNormLoop.apply(x, g, 1e-5),
        lambda x, g: x * g / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
        2,
    ),
}
"""The loop, its formula in float64, and how many tensors it takes: x [n, 34], gain [34]."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gradients(formula: Formula, *inputs: Tensor) -> list[Tensor]:
    """The value and the gradients of a weighted sum of it."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    value = formula(*inputs)
    weights = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view_as(value).to(value.dtype)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), inputs)]


def close(found: list[Tensor], wanted: list[Tensor], bound: float = 3e-6) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= bound * max(1.0, float(b.norm()))


@pytest.mark.parametrize("rows", [1, 7, 4000])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_its_formula_and_its_bits_do_not_depend_on_threads(name: str, rows: int) -> None:
    loop, formula, many = LOOPS[name]
    generator = torch.Generator().manual_seed(rows)
    inputs = [3 * torch.randn(rows, 34, generator=generator), torch.rand(34, generator=generator) + 0.5][:many]
    found = gradients(loop, *inputs)
    close(found, gradients(formula, *(x.double() for x in inputs)))
    with threads(1):
        alone = gradients(loop, *inputs)
    with threads(2):
        assert all(torch.equal(a, b) for a, b in zip(alone, gradients(loop, *inputs), strict=True))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_does_not_become_finite_unseen(name: str, bad: float) -> None:
    loop, formula, many = LOOPS[name]
    inputs = [torch.ones(2, 34), torch.ones(34)][:many]
    inputs[0][1, 3] = bad
    for found, wanted in zip(gradients(loop, *inputs), gradients(formula, *inputs), strict=True):
        assert not bool((wanted.isnan() & found.isfinite()).any())


def test_threads_that_come_together_may_call_a_task_that_nothing_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_function: object) -> None:
        raise RuntimeError("cannot cache")

    task, x, gain = team.task(norm_loops._norm_task.function), torch.randn(4, 3000, 16), torch.ones(16)
    wanted = norm_loops.RmsNormLoop.apply(x, gain, 1e-5)
    monkeypatch.setattr(compiled, "_Cache", refuse)
    y, shrinks = torch.empty_like(x), x.new_empty(4, 3000)

    def call(i: int) -> None:
        for _ in range(50):
            task(3000, 8, x[i], gain, y[i], shrinks[i], 16, 1e-5)

    with pytest.warns(UserWarning, match="no folder"), ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert torch.equal(y, wanted)


def test_large_and_small_numbers_of_activations() -> None:
    x = torch.tensor([[-1e4, -200.0, -61.0, -30.0, -1e-30, 0.0, 1e-30, 30.0, 61.0, 200.0, 1e4]])
    for name in ("gelu", "relu squared"):
        loop, formula, _ = LOOPS[name]
        for found, wanted in zip(gradients(loop, x), gradients(formula, x.double()), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=1e-10)


# ---- attention ------------------------------------------------------------------------------------------------------

CUTS = {"whole": [0, 40, 80], "packed": [0, 1, 2, 17, 40, 79, 80], "single ids": list(range(81))}


def stacked_twin(
    x: Tensor, gains: tuple[Tensor, Tensor] | None, angles: tuple[Tensor, Tensor] | None, cuts: Tensor,
    shape: products.Shape,
) -> Tensor:  # fmt: skip
    """`framed_attention` by separate steps and a dense mask."""
    q, k, v = x.unflatten(1, (shape.heads + 2 * shape.groups, -1)).split((shape.heads, shape.groups, shape.groups), 1)
    if gains is not None:
        q, k = rms_norm(q, gains[0], shape.eps), rms_norm(k, gains[1], shape.eps)
    if angles is not None:
        q, k = rotate(q, *angles), rotate(k, *angles)
    return documents_attention_dense(q, k, v, cuts, Sight(shape.causal, shape.scale)).flatten(1)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("groups", "normed", "turned"), [(4, False, False), (2, True, True), (1, True, False)])
@pytest.mark.parametrize("queries", [128, 8])
def test_attention_of_whole_rows_is_the_dense_one(
    cuts: str, causal: bool, groups: int, normed: bool, turned: bool, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "QUERIES", queries)  # 8: five blocks a row
    monkeypatch.setattr(products, "SCORES", 1 << (21 if queries == 128 else 8))  # and a row at a time
    torch.manual_seed(groups)
    size, places = 6, torch.tensor(CUTS[cuts])
    x, gains = torch.randn(80, (4 + 2 * groups) * size), (torch.rand(size) + 0.5, torch.rand(size) + 0.5)
    angles = tuple(each[:, None] for each in rope_angles(torch.arange(80) % 40, size)) if turned else None
    shape = products.Shape(4, groups, causal, None, 1e-5)

    def found(x: Tensor, *gains: Tensor) -> Tensor:
        narrow = None if angles is None else (angles[0].float(), angles[1].float())
        spans = products.spans(x, places, 40, causal)
        return products.framed_attention(x, (gains[0], gains[1]) if gains else None, narrow, spans, shape)

    def wanted(x: Tensor, *gains: Tensor) -> Tensor:
        wide = None if angles is None else (angles[0], angles[1])
        return stacked_twin(x, (gains[0], gains[1]) if gains else None, wide, places, shape)

    inputs = (x, *gains) if normed else (x,)
    close(gradients(found, *inputs), gradients(wanted, *(each.double() for each in inputs)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("head", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("length", [1, 7, 65])
def test_what_is_not_finite_passes_through_attention(bad: float, head: int, length: int) -> None:
    x = torch.randn(length, 3 * 4, generator=torch.Generator().manual_seed(length))
    x[0, head * 4 + 1] = bad
    spans = products.spans(x, torch.tensor([0, length]), length, causal=True)
    gains, x = (torch.ones(4), torch.ones(4)), x.requires_grad_()
    y = products.framed_attention(x, gains, None, spans, products.Shape(1, 1, True, None, 1e-5))
    assert not y[0].isfinite().all()
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad.isfinite().all()


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_has_no_second_derivative_and_says_so(name: str) -> None:
    loop, _, many = LOOPS[name]
    inputs = [torch.ones(2, 34), torch.ones(34)][:many]
    x = inputs[0].requires_grad_()
    (slope,) = torch.autograd.grad(loop(*inputs).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_piece_never_leaves_its_row() -> None:
    with pytest.raises(AssertionError, match="two rows"):
        products.spans(torch.zeros(8), torch.tensor([0, 3, 6, 8]), 4, causal=True)


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("smooth", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_the_loss_in_one_pass_is_the_formula(smooth: float, z: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK", 600)  # several chunks
    torch.manual_seed(1)
    hidden, weight = torch.randn(70, 8), torch.randn(65, 8)
    targets, weights = torch.randint(65, (70,)), torch.rand(70)

    def found(hidden: Tensor, weight: Tensor) -> Tensor:
        return heads.linear_nll(hidden, weight, targets, weights, smooth, z)

    def wanted(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.T
        each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smooth)
        return (weights * (each + z * logits.logsumexp(-1).square())).sum()

    close(gradients(found, hidden, weight), gradients(wanted, hidden.double(), weight.double()))


@pytest.mark.parametrize("target", [-1, -100, 9])
def test_a_target_that_is_no_class_is_refused(target: int) -> None:
    weight = torch.ones(9, 8, requires_grad=True)
    with pytest.raises(AssertionError, match="of 9 classes"):
        heads.linear_nll(torch.ones(2, 8), weight, torch.tensor([0, target]), torch.ones(2))


def test_targets_may_lie_apart() -> None:
    weight = torch.eye(9, requires_grad=True)
    spread = torch.tensor([[0, 8], [1, 8], [2, 8]])[:, 0]
    found, wanted = (
        heads.linear_nll(torch.eye(9)[:3], weight, each, torch.ones(3)) for each in (spread, spread.clone())
    )
    assert torch.equal(found, wanted)


def test_a_nan_among_logits_reaches_the_loss() -> None:
    hidden = torch.ones(4, 8)
    hidden[2, 5] = float("nan")
    weight = torch.ones(9, 8, requires_grad=True)
    loss = heads.linear_nll(hidden, weight, torch.zeros(4, dtype=torch.int64), torch.ones(4))
    assert loss.isnan()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.isnan().any()


def test_products_are_whole_again_after_the_fused_kernel() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with devices.whole_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
