"""Losses of maps: published values, gradient = p - one-hot, Fenchel-Young laws, the head in chunks, as an objective."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import variants
from temaki.base import rows as base_rows
from temaki.base.config import read
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch
from temaki.model import build, map_head, map_losses, maps, sparse_maps
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig
from temaki.train import objectives
from temaki.train.config import EntmaxLossConfig, NextConfig, ObjectiveConfig, SparsemaxLossConfig

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Loss, Callable[[Tensor], Tensor]]] = {
    "cross-entropy": (maps.cross_entropy, maps.plain_softmax),
    "sparsemax": (map_losses.sparsemax_loss, sparse_maps.sparsemax),
    "entmax 1.5": (map_losses.entmax_loss, sparse_maps.entmax15),
    "entmax 1": (lambda x, t: map_losses.entmax_loss(x, t, 1.0), maps.plain_softmax),
    "entmax 1.2": (lambda x, t: map_losses.entmax_loss(x, t, 1.2), lambda x: sparse_maps.entmax(x, 1.2)),
    "entmax 3": (lambda x, t: map_losses.entmax_loss(x, t, 3.0), lambda x: sparse_maps.entmax(x, 3.0)),
    "top-k": (lambda x, t: map_losses.top_k_loss(x, t, 3), lambda x: sparse_maps.top_k_softmax(x, 3)),
}
CONVEX = [name for name in LOSSES if name != "top-k"]
each = pytest.mark.parametrize("name", LOSSES)


def given(count: int = 12, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = 2 * torch.randn(count, size, dtype=torch.float64, generator=generator)
    x[: count // 3] = (2 * x[: count // 3]).round() / 2  # ties, and scores at the edge of the support
    return x, torch.randint(size, (count,), generator=generator)


def test_published_values() -> None:
    x = torch.tensor([1.0, 0.8, 0.1, -0.5], dtype=torch.float64).expand(3, 4)
    assert map_losses.sparsemax_loss(x, torch.tensor([0, 1, 3])).tolist() == pytest.approx([0.16, 0.36, 1.66])
    few = torch.tensor([3.0, 2.5, 0.5, 0.3, 0.1], dtype=torch.float64)
    assert float(map_losses.top_k_loss(few, torch.tensor(0), 3)) == pytest.approx(0.523909, abs=1e-6)
    assert float(map_losses.top_k_loss(few, torch.tensor(4), 3)) == pytest.approx(0.523909 + 2.9, abs=1e-6)
    cosines = torch.tensor([0.8, 0.96], dtype=torch.float64)
    assert float(map_losses.margin_loss(cosines, torch.tensor(0))) == pytest.approx(4.610002, abs=1e-6)
    assert float(map_losses.margin_loss(cosines, torch.tensor(0), margin=0.0)) == pytest.approx(1.783901, abs=1e-6)


def test_sparsemax_loss_by_its_threshold() -> None:
    x, targets = given()
    p = sparse_maps.sparsemax(x)
    threshold = (x - p).masked_fill(p == 0, maps.HIDDEN).amax(-1, keepdim=True)
    squares = torch.where(p > 0, x.square() - threshold.square(), 0.0).sum(-1)
    expected = 0.5 - x.gather(-1, targets[:, None])[:, 0] + squares / 2
    torch.testing.assert_close(map_losses.sparsemax_loss(x, targets), expected)


@each
def test_the_gradient_is_p_minus_one_hot(name: str) -> None:
    """Also at the edges of the support and where the target is outside of it; and it is the value's own slope."""
    loss, turned = LOSSES[name]
    x, targets = given()
    x.requires_grad_()
    (found,) = torch.autograd.grad(loss(x, targets).sum(), x)
    torch.testing.assert_close(found, turned(x.detach()) - torch.eye(6, dtype=x.dtype)[targets], atol=1e-9, rtol=0)
    apart = x.detach()[4:].requires_grad_()  # top-k jumps where scores are equal
    assert torch.autograd.gradcheck(lambda x: loss(x, targets[4:]), (apart,), atol=1e-6)
    if name in CONVEX:
        assert torch.autograd.gradcheck(lambda x: loss(x, targets), (x,), atol=1e-5)


@pytest.mark.parametrize("order", [2, 4])
def test_gradients_of_taylor_and_margin(order: int) -> None:
    x, targets = given()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: map_losses.taylor_loss(x, targets, order), (x,))
    expected = -maps.taylor_softmax(x, order).gather(-1, targets[:, None])[:, 0].log()
    torch.testing.assert_close(map_losses.taylor_loss(x, targets, order), expected)
    classes = torch.randn(5, 6, dtype=x.dtype, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def margin(x: Tensor, classes: Tensor) -> Tensor:
        return map_losses.margin_loss(map_losses.cosines(x, classes), targets % 5)

    assert torch.autograd.gradcheck(margin, (x, classes))


@pytest.mark.parametrize("name", CONVEX)
def test_a_fenchel_young_loss(name: str) -> None:
    """Never below 0, 0 where the map gives the target all, convex along every line, blind to a shift."""
    loss, turned = LOSSES[name]
    x, targets = given()
    found = loss(x, targets)
    assert (found >= -1e-12).all()
    sure = turned(x).gather(-1, targets[:, None])[:, 0] > 1 - 1e-12
    assert (found[sure] < 1e-9).all()
    assert (found[~sure] > 0).all()
    middle = loss((x[:6] + x[6:]) / 2, targets[:6])
    assert (middle <= (loss(x[:6], targets[:6]) + loss(x[6:], targets[:6])) / 2 + 1e-12).all()
    torch.testing.assert_close(loss(x + 3.0, targets), found, atol=1e-9, rtol=0)


def test_alpha_bends_cross_entropy_into_sparsemax() -> None:
    x, targets = given()
    line = [map_losses.entmax_loss(x, targets, alpha) for alpha in (1.0, 1.000001, 1.5, 1.999999, 2.0)]
    torch.testing.assert_close(line[0], line[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(line[3], line[4], atol=1e-5, rtol=0)
    assert all((a >= b - 1e-9).all() for a, b in pairwise(line))  # more alpha, less loss


def test_what_is_hidden_counts_for_nothing() -> None:
    x, targets = given()
    wide = torch.cat((x, torch.full((len(x), 2), maps.HIDDEN, dtype=x.dtype)), -1).requires_grad_()
    every = {**LOSSES, "taylor": (map_losses.taylor_loss, maps.taylor_softmax)}
    for loss, _ in every.values():
        found = loss(wide, targets)
        torch.testing.assert_close(found, loss(x, targets), atol=1e-9, rtol=1e-9)
        (grad,) = torch.autograd.grad(found.sum(), wide)
        assert (grad[:, 6:] == 0).all()
        assert grad.isfinite().all()


# ---- under the head, and as an objective ----------------------------------------------------------------------------


@each
@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_head_in_chunks(name: str, cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of three places: the same sum and gradients as from all logits at once; weight 0 adds nothing."""
    monkeypatch.setattr(map_head, "CHUNK", 3 * 6)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(10, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    targets, weights = torch.randint(6, (10,), generator=generator), torch.rand(10, generator=generator).double()
    weights[[0, 7]] = 0.0
    scored = LOSSES[name][0]
    logits = hidden @ weight.mT
    expected = (weights * scored(logits if cap is None else cap * (logits / cap).tanh(), targets)).sum()
    found = map_head.linear_loss(hidden, weight, targets, weights, scored, cap)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(2 * found, (hidden, weight)), torch.autograd.grad(2 * expected, (hidden, weight)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(map_head.linear_loss(hidden, weight, targets, weights, scored, cap), expected)


def model(dtype: torch.dtype = torch.float64) -> build.Model:
    block = BlockConfig(mixer=AttentionConfig(heads=2))
    return build.build(DecoderConfig(vocabulary=variants.VOCABULARY, width=16, depth=1, pattern=(block,)), 1, dtype)


@pytest.mark.parametrize("loss", [{"kind": "sparsemax"}, {"kind": "entmax", "alpha": 1.3}, {"kind": "top-k", "k": 4}])
def test_as_an_objective(loss: dict[str, object]) -> None:
    """The sum is the loss of the model's own logits, it falls by its gradient, and it is not said to be bits."""
    config: ObjectiveConfig = read(NextConfig, {"kind": "next", "loss": loss})
    assert not objectives.says_next(config)
    objective, built = objectives.objective(config), model()
    read_ids = variants.pieces([9, 14])
    rows, targets = base_rows.rows(read_ids), torch.cat(read_ids).roll(-1)
    batch = TokenBatch(rows=rows, targets=targets, weights=torch.ones(23))
    total = objective.totals(built, batch)["next"]
    expected = objectives.scored(config.loss)(built.head.logits(built(rows)), targets).sum()
    torch.testing.assert_close(total, expected)
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective.totals(built, batch)["next"].backward()
        optimizer.step()
    assert objective.totals(built, batch)["next"] < 0.7 * total


def test_plain_stays_plain() -> None:
    """Cross-entropy by any of its names is the head's own."""
    batch = TokenBatch(rows=base_rows.rows(variants.pieces([9])), targets=torch.arange(9), weights=torch.ones(9))
    built = model()
    found = [
        objectives.objective(config).totals(built, batch)["next"]
        for config in (NextConfig(), NextConfig(loss=EntmaxLossConfig(alpha=1.0)))
    ]
    torch.testing.assert_close(found[0], found[1])
    assert objectives.says_next(NextConfig())


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="smooth and z belong to"):
        read(NextConfig, {"kind": "next", "smooth": 0.1, "loss": {"kind": "sparsemax"}})
    with pytest.raises(ConfigError, match="margin"):
        read(NextConfig, {"kind": "next", "loss": {"kind": "margin"}})
    with pytest.raises(ConfigError, match="alpha"):
        read(NextConfig, {"kind": "next", "loss": {"kind": "entmax", "alpha": 0.5}})
    assert not objectives.says_next(NextConfig(loss=SparsemaxLossConfig()))
