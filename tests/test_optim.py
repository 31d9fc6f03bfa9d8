"""Optimizers, schedules, clipping: check values, and torch as the oracle."""

import math

import numpy as np
import pytest
import torch

from temaki.base.roles import Role
from temaki.optim.adamw import adamw_step
from temaki.optim.coefficients import OFFICIAL, error, fit, gradient, mapped, spectrum, triple
from temaki.optim.config import AdamWConfig, MuonConfig, OptimConfig
from temaki.optim.groups import Group, groups
from temaki.optim.muon import newton_schulz, scale
from temaki.optim.muon_batched import products
from temaki.optim.optimizer import Optimizer


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


def test_clipping_is_torchs_and_leaves_small_gradients_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    for size in (0.01, 10.0):
        ours = {name: torch.nn.Parameter(torch.zeros(n, 3)) for name, n in (("a", 2), ("b", 5))}
        theirs = [torch.nn.Parameter(torch.zeros_like(p)) for p in ours.values()]
        for p, q in zip(ours.values(), theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator) * size
            q.grad = p.grad.clone()
        before = [p.grad.clone() for p in ours.values() if p.grad is not None]
        optimizer = Optimizer(
            ours, dict.fromkeys(ours, Role("vector")), [Group("vector", AdamWConfig(), ("a", "b"))], 1.0
        )
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        assert optimizer.clip(None) == pytest.approx(norm.item(), rel=1e-6)
        assert optimizer.clip(1.0) == pytest.approx(norm.item(), rel=1e-6)
        for p, q, old in zip(ours.values(), theirs, before, strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=0)
            assert torch.equal(p.grad, old) == (size < 1)
    optimizer.parameters["a"].grad = optimizer.parameters["b"].grad = None
    assert optimizer.clip(1.0) == 0.0


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


def test_newton_schulz_keeps_the_range_that_was_computed_and_an_exact_sign_its_size() -> None:
    """Methods 10: singular values in [.02, 1] go to [.6818, 1.1344]; RMS of an exact msign is 1 / sqrt(max(n, m))."""
    found = mapped(np.linspace(0.02, 1, 100_001), OFFICIAL, 5)
    assert (found.min(), found.max()) == pytest.approx((0.6818, 1.1344), abs=1e-4)
    g = torch.randn(30, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = newton_schulz(g, 40, (15 / 8, -5 / 4, 3 / 8))
    assert exact.square().mean().sqrt().item() == pytest.approx(50**-0.5, rel=1e-9)
    assert (exact * scale(30, 50, "moonlight")).square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-9)


def test_newton_schulz_of_signs_and_vectors() -> None:
    """A diagonal matrix goes to its signs (Signum), a vector to itself over its length."""
    exact = (15 / 8, -5 / 4, 3 / 8)
    signs = newton_schulz(torch.diag(torch.tensor([3.0, -0.5, 0.01], dtype=torch.float64)), 40, exact)
    assert torch.allclose(signs, torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)), atol=1e-9)
    vector = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    assert torch.allclose(newton_schulz(vector, 40, exact), vector / 5, atol=1e-9)


def test_fitted_coefficients_are_the_articles() -> None:
    """Its table for 1024 x 1024 and 2048 x 1024, five steps; the second row's fit is left to the slow test."""
    values = spectrum(1024, 1024, least=2048)
    found = fit(values)
    assert found.coefficients == pytest.approx((3.297, -4.136, 1.724), abs=0.05)
    assert (found.error, found.official) == pytest.approx((0.0275, 0.0443), abs=5e-4)
    assert error(values, (3.297, -4.136, 1.724), 5) == pytest.approx(found.error, rel=1e-3)
    longer = spectrum(2048, 1024, least=1024)
    assert error(longer, OFFICIAL, 5) == pytest.approx(0.0296, abs=2e-4)
    assert error(longer, (2.644, -3.128, 1.476), 5) == pytest.approx(0.00038, abs=2e-5)


@pytest.mark.slow
def test_fitted_coefficients_of_longer_matrices_are_the_articles() -> None:
    assert fit(spectrum(2048, 1024)).coefficients == pytest.approx((2.644, -3.128, 1.476), abs=0.05)


def test_a_fits_gradient_is_that_of_differences() -> None:
    x, w = np.linspace(0.05, 0.9, 7), np.array([1.3, 0.8, 1.15])
    found = gradient(w, x, 4)
    for i in range(3):
        step = np.eye(3)[i] * 1e-6
        slope = (error(x, triple(*(w + step)), 4) - error(x, triple(*(w - step)), 4)) / 2e-6
        assert found[i] == pytest.approx(slope, rel=1e-6)


def test_products_in_bfloat16_are_near_and_float64_is_never_lowered() -> None:
    generator = torch.Generator().manual_seed(8)
    for shape in ((40, 64), (64, 40), (48, 48)):
        g = torch.randn(shape, generator=generator)
        moved = []
        for rule in (MuonConfig(products="bfloat16"), MuonConfig(products="float32")):
            theta = torch.zeros(shape).requires_grad_()
            theta.grad = g.clone()
            roles = {"w": Role("matrix")}
            Optimizer({"w": theta}, roles, groups(OptimConfig(matrix=rule), roles), 1.0).step(1.0)
            moved.append(theta.detach())
        assert 1e-4 < float((moved[0] - moved[1]).norm() / moved[1].norm()) < 0.05
    for kind in ("auto", "float32", "bfloat16"):
        assert products(MuonConfig(products=kind), torch.zeros(1, dtype=torch.float64)) == torch.float64  # type: ignore[arg-type]


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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours_scale", "theirs_scale"), [("rows-over-columns", "original"), ("moonlight", "match_rms_adamw")]
)
def test_muon_is_torchs_on_a_fixed_gradient_sequence(ours_scale: str, theirs_scale: str, weight_decay: float) -> None:
    """Both multiply in bfloat16, whose rounding leaves 3% of a path's length at most; another momentum leaves 10%."""
    generator = torch.Generator().manual_seed(6)
    for shape in ((16, 24), (24, 16)):
        start = torch.randn(shape, generator=generator)
        theirs, ours = torch.nn.Parameter(start.clone()), start.clone().requires_grad_()
        reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=weight_decay, adjust_lr_fn=theirs_scale)
        roles = {"w": Role("matrix")}
        rule = MuonConfig(scale=ours_scale, products="bfloat16", weight_decay=weight_decay)  # type: ignore[arg-type]
        optimizer = Optimizer({"w": ours}, roles, groups(OptimConfig(matrix=rule), roles), lr=0.02)
        for _ in range(20):
            g = torch.randn(shape, generator=generator)
            theirs.grad, ours.grad = g.clone(), g.clone()
            reference.step()
            optimizer.step(1.0)
        moved = (theirs.detach() - start).norm()
        assert float((ours.detach() - theirs.detach()).norm() / moved) < 0.03


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
