"""Norms beside each other: batch norm and its running moments, no norm, the contrast of the norms in numbers."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import variants
from little_runs import At, lines, prepared_in, recipe, same_checkpoints
from temaki.base import device as devices
from temaki.base.config import read
from temaki.base.errors import NonFiniteError
from temaki.base.rows import TokenBatch, grid, rows
from temaki.batches.prepare import Prepared
from temaki.model.build import Model
from temaki.model.config import BatchNormConfig, NoNormConfig
from temaki.model.norm import layer_norm
from temaki.model.norm_batch import BatchNorm, NoNorm, batch_norm, forget, moments, settle
from temaki.model.part import tensors
from temaki.optim.config import OptimConfig
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.train import run as runs
from temaki.train.config import NextConfig, RunConfig
from temaki.train.objectives import Next
from temaki.train.step import update
from variants import close

D = 6


def normed(momentum: float = 0.1, dtype: torch.dtype = torch.float64) -> BatchNorm:
    """Batch norm with gains and biases that say something."""
    made = BatchNorm(BatchNormConfig(momentum=momentum), D)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        made.gain.copy_(1 + 0.2 * torch.randn(D, generator=generator))
        made.bias.copy_(0.2 * torch.randn(D, generator=generator))
    return made.to(dtype)


def numbers(n: int, seed: int = 4) -> torch.Tensor:
    return 2 + 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def test_layer_norm_compares_coordinates_and_batch_norm_compares_places() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]])
    ones, zeros = torch.ones(3), torch.zeros(3)
    assert torch.allclose(layer_norm(x, ones, zeros), torch.tensor([-1.2247, 0.0, 1.2247]).expand(2, 3), atol=1e-4)
    found = batch_norm(x, moments(x), ones, zeros)
    assert torch.allclose(found, torch.tensor([[-1.0], [1.0]]).expand(2, 3), atol=1e-4)
    assert torch.equal(NoNorm(NoNormConfig(), 3)(x), x)


def test_it_is_torchs_in_training_with_its_gradients_and_outside() -> None:
    ours, theirs = normed(momentum=0.3), nn.BatchNorm1d(D, eps=1e-5, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(ours.gain)
        theirs.bias.copy_(ours.bias)
    n, x = 20, numbers(20)
    for seed in range(3):
        x = numbers(n, seed)
        both = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        weights = numbers(20, 9)
        found, wanted = ours(both[0]), theirs(both[1])
        close(found, wanted)
        a = torch.autograd.grad((found * weights).sum(), [both[0], ours.gain, ours.bias])
        b = torch.autograd.grad((wanted * weights).sum(), [both[1], theirs.weight, theirs.bias])
        for one, other in zip(a, b, strict=True):
            close(one, other)
        settle(ours)
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    assert torch.allclose(ours.mean.double(), theirs.running_mean, atol=1e-6)
    biased = 0.7**3 + (theirs.running_var - 0.7**3) * (n - 1) / n  # torch keeps the variance of n - 1 degrees
    assert torch.allclose(ours.variance.double(), biased, atol=1e-5)
    theirs.running_var.copy_(ours.variance)
    theirs.running_mean.copy_(ours.mean)
    close(ours.eval()(x), theirs.eval()(x))
    assert torch.autograd.gradcheck(normed(), (numbers(5).requires_grad_(),))


def test_only_training_counts_and_each_place_once() -> None:
    made, x = normed(), numbers(12)
    with torch.no_grad():
        made(x)
    made.eval()(x).sum().backward()
    made.train()(x)  # a forward that teaches nothing
    made(x[:0]).sum().backward()
    assert made.seen.take() is None
    for part in x.split(5):
        made(part).sum().backward()
    mean, variance = made.seen.take() or (x, x)
    close(mean, x.mean(0))
    close(variance, x.var(0, correction=0))
    made(x).sum().backward()
    forget(made)
    before = made.mean.clone()
    settle(made)
    assert torch.equal(made.mean, before)


def test_places_that_are_one_place_stay_finite() -> None:
    made = normed()
    assert torch.equal(made(numbers(1)), made.bias[None])
    assert made(torch.full((4, D), 1e4, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_computed_anew_count_once(checkpointing: bool) -> None:
    model = variants.model("batch-norm")
    model.checkpointing = checkpointing
    ids = torch.stack(variants.pieces([16] * 3))
    model.head.nll(model(grid(ids)), ids.reshape(-1), torch.ones(48)).backward()
    assert [each.seen.sums[0] if each.seen.sums else 0 for each in batch_norms(model)] == [48] * 5


def test_an_update_settles_and_a_refused_one_forgets() -> None:
    model = variants.model("batch-norm", torch.float32)
    roles = model.roles()
    optimizer = Optimizer(dict(model.named_parameters()), roles, groups(OptimConfig(), roles), 1e-3)
    ids = torch.stack(variants.pieces([16] * 4))
    batch = TokenBatch(grid(ids), ids.reshape(-1), torch.ones(64))
    with torch.no_grad():
        wanted = model.embedding[ids.flatten()].mean(0)
    update(model, Next(NextConfig()), optimizer, [batch, batch], 1.0, 1.0)
    assert all(each.seen.sums is None for each in batch_norms(model))
    first = batch_norms(model)[0]
    assert torch.allclose(first.mean, 0.3 * wanted, atol=1e-6)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model.embedding[int(ids[0, 0])] = torch.nan
    with pytest.raises(NonFiniteError):
        update(model, Next(NextConfig()), optimizer, [batch], 1.0, 1.0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_running_moments_are_saved_and_stay_float32() -> None:
    model: Model = variants.model("batch-norm")
    saved = tensors(model)
    found = [name for name in saved if name.endswith(("norm.mean", "norm.variance"))]
    assert len(found) == 2 * len(batch_norms(model)) == 10
    for dtype in (torch.bfloat16, torch.float64):
        assert {tensors(model.to(dtype))[name].dtype for name in found} == {torch.float32}
    assert not set(found) & set(model.roles())


def test_it_sees_other_rows_and_later_places_while_it_learns_and_not_afterwards() -> None:
    model = variants.model("batch-norm")
    parts = variants.pieces([12, 9])
    together = rows(parts)
    learning = model(together).detach()
    assert not torch.allclose(learning[:12], model(rows(parts[:1])).detach())
    changed = [parts[0].clone(), parts[1]]
    changed[0][11] = (changed[0][11] + 1) % variants.VOCABULARY
    assert not torch.allclose(learning[:11], model(rows(changed)).detach()[:11])
    with torch.no_grad():
        close(model(together)[:12], model(rows(parts[:1])))
        close(model(together)[:11], model(rows(changed))[:11])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_in(tmp_path_factory.mktemp("little"))


@pytest.fixture(autouse=True)
def _peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix peak is not measured for each little run."""
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e11)


@pytest.mark.parametrize("name", ["batch-norm", "attention-mamba"])
def test_resumed_is_uninterrupted_to_the_bit(name: str, prepared: Prepared, tmp_path: Path) -> None:
    batch = {"tokens": 128, "context": 32, "micro": 64}
    config = read(RunConfig, recipe(name, stop={"steps": 6}, save={"every": 2}, batch=batch))
    runs.start(config, tmp_path / "whole", prepared)
    asked = At(3, lambda _run: os.kill(os.getpid(), signal.SIGTERM))
    assert runs.start(config, tmp_path / "cut", prepared, [asked]).run.step == 3
    runs.start(config, tmp_path / "cut", prepared, resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 6)
