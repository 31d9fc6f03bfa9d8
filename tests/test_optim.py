"""Optimizers, schedules, clipping: check values, and torch as the oracle."""

import math

import pytest
import torch

from temaki.base.errors import ConfigError
from temaki.base.roles import Role
from temaki.optim import schedule
from temaki.optim.adamw import adamw_step
from temaki.optim.config import AdamWConfig, CosineConfig, MuonConfig, OptimConfig, WsdConfig
from temaki.optim.groups import groups
from temaki.optim.muon import newton_schulz, scale
from temaki.optim.optimizer import Optimizer, clip_


def two_steps(order: str) -> list[float]:
    theta = torch.ones(1, dtype=torch.float64)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    rule = AdamWConfig(beta2=0.999, weight_decay=0.01, order=order)  # type: ignore[arg-type]
    found = []
    for t, g in enumerate((0.5, -0.25), start=1):
        adamw_step(theta, torch.tensor([g], dtype=torch.float64), m, v, t, 1e-3, rule)
        found.append(theta.item())
    return found


def test_adamw_two_step_values_in_both_orders() -> None:
    assert two_steps("torch") == pytest.approx([0.99899000002, 0.9987136730870783], rel=1e-14)
    assert two_steps("handout") == pytest.approx([0.9989900106324487, 0.9987136865067742], rel=1e-14)


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_torchs_over_a_thousand_steps(fused: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    theirs = start.clone().requires_grad_()
    ours = start.clone().requires_grad_()
    rule = AdamWConfig(weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    roles = {"w": Role("matrix")}
    optimizer = Optimizer({"w": ours}, roles, groups(OptimConfig(matrix=rule), roles), lr=3e-3)
    m, v = torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, 1001):
        theirs.grad = None
        ((theirs - target).pow(4).sum() + (theirs * target).sin().sum()).backward()
        assert theirs.grad is not None
        ours.grad = theirs.grad.clone()
        reference.step()
        if fused:
            optimizer.step(1.0)
        else:
            adamw_step(ours, ours.grad, m, v, t, 3e-3, rule)
    assert float((ours - theirs).detach().abs().max()) < 1e-13


def test_bias_corrected_moments_of_a_constant_gradient_are_exact_from_step_one() -> None:
    theta, g = torch.zeros(1, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    rule = AdamWConfig(beta1=0.9, beta2=0.99)
    for t in range(1, 50):
        adamw_step(theta, g, m, v, t, 0.0, rule)
        assert m.item() / (1 - 0.9**t) == pytest.approx(0.3, rel=1e-12)
        assert v.item() / (1 - 0.99**t) == pytest.approx(0.09, rel=1e-12)


def test_cosine_values() -> None:
    found = [schedule.cosine(t, 7, 21, 1.0, 0.1) for t in (0, 1, 7, 8, 14, 21, 30)]
    assert found == pytest.approx([0, 1 / 7, 1.0, 0.9887175604818206, 0.55, 0.1, 0.1], rel=1e-14)


@pytest.mark.parametrize("config", [CosineConfig(warmup=5), WsdConfig(warmup=5), WsdConfig(warmup=0, decay=1.0)])
def test_factors_stay_in_range_rise_then_fall_and_end_at_the_floor(config: CosineConfig | WsdConfig) -> None:
    factors = [schedule.factor(config, step, 60) for step in range(60)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[-1] == pytest.approx(config.floor)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_a_warmup_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup"):
        schedule.check(CosineConfig(warmup=10), 10)
    schedule.check(CosineConfig(warmup=9), 10)


def test_clipping_is_torchs_and_leaves_small_gradients_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    for size in (0.01, 10.0):
        ours = [torch.randn(n, 3, generator=generator) * size for n in (2, 5)]
        theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in ours]
        for parameter, g in zip(theirs, ours, strict=True):
            parameter.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        before = [g.clone() for g in ours]
        assert clip_(ours, 1.0).item() == pytest.approx(norm.item(), rel=1e-6)
        for g, parameter, old in zip(ours, theirs, before, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(g, parameter.grad, rtol=1e-5, atol=0)
            assert torch.equal(g, old) == (size < 1)
    assert clip_([], 1.0).item() == 0.0


def test_newton_schulz_maps_singular_values_as_computed() -> None:
    values = [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8]
    wanted = [0.470544, 0.698917, 0.758120, 0.712120, 0.746769, 0.765439, 1.119204]
    # The iteration divides by the Frobenius norm; a matrix diag(s, sqrt(1 - s^2)) has norm 1.
    for s, w in zip(values, wanted, strict=True):
        x = torch.diag(torch.tensor([s, math.sqrt(1 - s * s)], dtype=torch.float64))
        assert newton_schulz(x)[0, 0].item() == pytest.approx(w, abs=2e-6)
    found = newton_schulz(torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64))).diag()
    assert found.tolist() == pytest.approx([0.713608, 1.041969], abs=2e-6)


def test_newton_schulz_keeps_singular_vectors_transposes_and_zero() -> None:
    generator = torch.Generator().manual_seed(4)
    for shape in ((20, 12), (12, 20)):
        g = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, _s, vh = torch.linalg.svd(g, full_matrices=False)
        singular = u.mT @ newton_schulz(g) @ vh.mT
        assert (singular - singular.diag().diag()).abs().max() < 1e-9
        assert torch.allclose(newton_schulz(g.mT), newton_schulz(g).mT)
        sharp = newton_schulz(g, 40, (15 / 8, -5 / 4, 3 / 8))
        assert torch.allclose(sharp, u @ vh, atol=1e-9)
    assert newton_schulz(torch.zeros(3, 4)).abs().max() == 0


def test_muon_scales_and_stacked_parts() -> None:
    assert scale(100, 400, "moonlight") == pytest.approx(4.0)
    assert scale(400, 100, "rows-over-columns") == 2.0
    assert scale(100, 400, "rows-over-columns") == 1.0
    assert scale(100, 400, "mup") == 0.5
    generator = torch.Generator().manual_seed(5)
    stacked = torch.randn(12, 8, generator=generator)
    gradient = torch.randn(12, 8, generator=generator)

    def moved(parts: tuple[int, ...], rows: slice) -> torch.Tensor:
        theta = stacked[rows].clone().requires_grad_()
        theta.grad = gradient[rows].clone()
        roles = {"w": Role("matrix", parts)}
        optimizer = Optimizer({"w": theta}, roles, groups(OptimConfig(matrix=MuonConfig()), roles), lr=0.1)
        optimizer.step(0.5)
        return theta.detach()

    whole = moved((8, 2, 2), slice(0, 12))
    for rows in (slice(0, 8), slice(8, 10), slice(10, 12)):
        assert torch.allclose(whole[rows], moved((), rows), atol=1e-6)
    assert not torch.allclose(whole, moved((), slice(0, 12)), atol=1e-3)


def test_muon_is_torchs_on_a_fixed_gradient_sequence() -> None:
    """torch runs its Newton-Schulz in bfloat16, so the updates agree to that: 2% of the update's size."""
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(16, 24, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    ours = start.clone().requires_grad_()
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True)
    roles = {"w": Role("matrix")}
    rule = MuonConfig(scale="rows-over-columns")
    optimizer = Optimizer({"w": ours}, roles, groups(OptimConfig(matrix=rule), roles), lr=0.02)
    for _ in range(10):
        g = torch.randn(16, 24, generator=generator)
        theirs.grad, ours.grad = g.clone(), g.clone()
        reference.step()
        optimizer.step(1.0)
    moved = (theirs.detach() - start).norm()
    assert float((ours.detach() - theirs.detach()).norm() / moved) < 0.02


def test_every_parameter_is_in_exactly_one_group_and_state_round_trips() -> None:
    roles = {"a": Role("matrix"), "b": Role("vector"), "c": Role("embedding")}
    parameters = {name: torch.randn(4, 4).requires_grad_() for name in roles}
    made = groups(OptimConfig(), roles)
    assert sorted(name for group in made for name in group.names) == ["a", "b", "c"]
    optimizer = Optimizer(parameters, roles, made, 0.1)
    for parameter in parameters.values():
        parameter.grad = torch.randn(4, 4)
    optimizer.step(1.0)
    other = Optimizer(parameters, roles, made, 0.1)
    other.load(optimizer.state())
    assert other.t == 1
    assert all(torch.equal(other.moments[name], moment) for name, moment in optimizer.moments.items())
