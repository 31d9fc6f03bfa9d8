"""Layers, maps and losses as plain functions: check values, extremes, and torch as the oracle."""

import pytest
import torch
import torch.nn.functional as F

from temaki.model import maps
from temaki.model.config import S4DConfig
from temaki.model.ffn import swiglu
from temaki.model.heads import Head, linear_nll, linear_nll_each
from temaki.model.norm import rms_norm
from temaki.model.positions import interleaved_to_half, rope_angles, rotate
from temaki.model.ssm import S4D, causal_convolution, hold, s4d_chunk, s4d_kernel, s4d_step
from variants import close


def turned(x: list[float], m: int, pairs: str) -> list[float]:
    cos, sin = rope_angles(torch.tensor(m), len(x))
    return rotate(torch.tensor(x, dtype=torch.float64), cos, sin, pairs).tolist()  # type: ignore[arg-type]


def test_rotary_values_in_both_conventions() -> None:
    x = [1.0, 2.0, 3.0, 4.0]
    assert turned(x, 1, "interleaved") == pytest.approx([-1.14264, 1.922076, 2.959851, 4.0298], abs=1e-6)
    assert turned(x, 1, "half") == pytest.approx([-1.984111, 1.959901, 2.462378, 4.0198], abs=1e-6)
    assert turned(x, 2, "interleaved") == pytest.approx([-2.234742, 0.077004, 2.919405, 4.059196], abs=1e-6)
    assert turned(x, 2, "half") == pytest.approx([-3.144039, 1.919605, -0.339143, 4.039197], abs=1e-6)
    assert turned(x, 0, "half") == x
    with pytest.raises(ValueError, match="even"):
        rope_angles(torch.tensor(1), 5)


def test_rotary_scores_depend_on_the_offset_only() -> None:
    q, k = (
        torch.tensor([1.0, 0, 0, 1], dtype=torch.float64),
        torch.tensor([0.5, -1, 2, 0.25], dtype=torch.float64),
    )

    def score(p: int, r: int) -> float:
        turned = [rotate(x, *rope_angles(torch.tensor(m), 4), "interleaved") for x, m in ((q, p), (k, r))]
        return float(turned[0] @ turned[1])

    assert [score(*pair) for pair in ((3, 5), (10, 12), (0, 2))] == pytest.approx([0.9911713] * 3, abs=1e-7)
    relative = rotate(k, *rope_angles(torch.tensor(2), 4), "interleaved")
    assert float(q @ relative) == pytest.approx(score(3, 5), abs=1e-12)
    assert score(5, 3) == pytest.approx(-0.9074182, abs=1e-7)


def test_the_two_conventions_agree_after_the_permutation_and_keep_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 8, generator=generator, dtype=torch.float64)
    cos, sin = (t[:, None] for t in rope_angles(torch.arange(6), 8))
    order = interleaved_to_half(8)
    assert order.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    close(rotate(x[..., order], cos, sin, "half"), rotate(x, cos, sin, "interleaved")[..., order])
    close(rotate(x, cos, sin, "half").norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_are_finite_and_right_at_ten_thousand(dtype: torch.dtype) -> None:
    x = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], dtype=dtype)
    sigmoid = maps.sigmoid(x)
    assert torch.equal(sigmoid, torch.sigmoid(x))
    softmax = maps.softmax(x)
    assert softmax.isfinite().all()
    assert torch.allclose(softmax.float().sum(-1), torch.ones(3), atol=2e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.allclose(softmax.float(), x.float().softmax(-1), atol=5e-3 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(maps.log_softmax(x)[0].float(), torch.tensor([0.0, *(x[0, 1:] - x[0, 0]).float()]))
    loss = maps.cross_entropy(x, torch.tensor([1, 0, 2]))
    assert loss.isfinite().all()
    assert torch.allclose(loss, F.cross_entropy(x.float(), torch.tensor([1, 0, 2]), reduction="none"))
    assert maps.softmax(torch.tensor([1.0, 2.0]), temperature=1e-3).tolist() == pytest.approx([0.0, 1.0])


def test_map_values() -> None:
    found = maps.softmax(torch.tensor([[2.0, 10.0], [-1.0, 0.0]], dtype=torch.float64))
    wanted = torch.tensor([[0.000335, 0.999665], [0.268941, 0.731059]], dtype=torch.float64)
    assert (found - wanted).abs().max() < 1e-6
    one_hot = torch.tensor([0.0, 1.0, 0.0])
    assert maps.entropy(one_hot).item() == 0
    assert maps.entropy(torch.full((4,), 0.25)).item() == pytest.approx(1.3862944)
    logits = torch.randn(5, 7) * 1000
    targets = torch.randint(0, 7, (5,))
    assert torch.allclose(maps.cross_entropy(logits, targets), F.cross_entropy(logits, targets, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("smooth", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (0.2, 1e-2)])
def test_chunked_loss_and_gradients_are_the_formula(
    dtype: torch.dtype, smooth: float, z: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temaki.model.heads.CHUNK", 60)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(23, 6, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(17, 6, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, 17, (23,), generator=generator)
    weights = torch.rand(23, generator=generator)
    weights[3] = 0
    found = linear_nll(hidden, weight, targets, weights, smooth, z)
    logits = hidden @ weight.mT
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smooth) + z * logits.logsumexp(-1) ** 2
    wanted = (each * weights).sum()
    close(found.detach(), wanted.detach())
    for a, b in zip(*(torch.autograd.grad(loss * 0.7, (hidden, weight)) for loss in (found, wanted)), strict=True):
        close(a, b)
    with torch.no_grad():
        close(linear_nll(hidden, weight, targets, weights, smooth, z), wanted)
    close(linear_nll_each(hidden, weight, targets), F.cross_entropy(logits, targets, reduction="none").detach())


def test_label_smoothing_spreads_its_mass_over_all() -> None:
    """V = 5, smooth 0.1: q = 0.92 at the target and 0.02 elsewhere."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, 1.0]], dtype=torch.float64)
    q = torch.full((5,), 0.02, dtype=torch.float64)
    q[2] = 0.92
    found = linear_nll(logits, torch.eye(5, dtype=torch.float64), torch.tensor([2]), torch.ones(1), smooth=0.1)
    assert found.item() == pytest.approx(-(q * logits[0].log_softmax(-1)).sum().item(), rel=1e-12)


def test_the_loss_never_holds_all_logits() -> None:
    """The largest tensor that the loss makes stays within a chunk, or the gradients it must give."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple) else (out,):
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.numel())
            return out

    n, d, v = 4096, 8, 4096
    head = Head(torch.nn.Parameter(torch.randn(v, d)))
    hidden = torch.randn(n, d).requires_grad_()
    with Watch():
        head.nll(hidden, torch.zeros(n, dtype=torch.int64), torch.ones(n)).backward()
    assert largest <= 1 << 21 < n * v


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 6)])
def test_gradients_of_norm_and_rotation_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(8)
    x, gain = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in (shape, shape[-1:]))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, gain))
    cos, sin = rope_angles(torch.arange(shape[-2]), shape[-1])
    for pairs in ("half", "interleaved"):
        assert torch.autograd.gradcheck(lambda a, p=pairs: rotate(a, cos, sin, p), (x,))


def test_norm_and_ffn_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(2)
    x, gain = torch.randn(5, 8, generator=generator), torch.rand(8, generator=generator)
    close(rms_norm(x, gain), x * gain / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
    assert rms_norm(x.bfloat16() * 1e3, gain.bfloat16()).dtype == torch.bfloat16
    with torch.no_grad():
        without = rms_norm(x, gain), rms_norm(x.bfloat16() * 1e3, gain.bfloat16())
    assert torch.equal(without[0], rms_norm(x, gain))
    assert torch.equal(without[1], rms_norm(x.bfloat16() * 1e3, gain.bfloat16()))
    close(without[0], F.rms_norm(x, (8,), gain, 1e-5))
    w1, w3, w2 = (torch.randn(s, generator=generator) for s in ((12, 8), (12, 8), (8, 12)))
    a = x @ w1.mT
    close(swiglu(x, torch.cat([w1, w3]), w2), (a * torch.sigmoid(a) * (x @ w3.mT)) @ w2.mT)


def test_state_space_kernel_convolution_and_steps_are_one() -> None:
    torch.manual_seed(3)
    mixer = S4D(S4DConfig(states=8), 5).double()
    with torch.no_grad():
        abar, bbar, c = mixer.system()
        u = torch.randn(40, 5, dtype=torch.float64)
        x = torch.zeros(5, 4, dtype=torch.complex128)
        stepped = []
        for t in range(40):
            y, x = s4d_step(x, u[t], abar, bbar, c)
            stepped.append(y)
        close(causal_convolution(u.T, s4d_kernel(abar, bbar, c, 40)).T, torch.stack(stepped))
        y1, x1 = s4d_chunk(torch.zeros_like(x), u[:13], abar, bbar, c)
        y2, x2 = s4d_chunk(x1, u[13:], abar, bbar, c)
        close(torch.cat([y1, y2]), torch.stack(stepped))
        assert (x2 - x).abs().max() < 1e-12


def test_zero_order_hold_is_exact_for_held_input() -> None:
    """x' = a x + 1 from 0: x(t) = (e^(a t) - 1) / a, whatever the step."""
    a = torch.tensor(-0.5 + 3.0j, dtype=torch.complex128)
    exact = ((2.0 * a).exp() - 1) / a
    for steps in (1, 4, 50):
        abar, bbar = hold(a, torch.tensor(2.0 / steps, dtype=torch.float64))
        x = torch.zeros((), dtype=torch.complex128)
        for _ in range(steps):
            x = abar * x + bbar
        assert abs(x - exact) < 1e-13


def test_s4d_begins_as_s4d_lin() -> None:
    a = torch.complex(-torch.tensor(0.5), torch.tensor(0.0))
    mixer = S4D(S4DConfig(), 300)
    with torch.no_grad():
        abar, _, _ = mixer.system()
        steps = mixer.log_step.exp()
    assert abar.shape == (300, 32)
    assert float(steps.min()) >= 1e-3
    assert float(steps.max()) <= 1e-1
    frequencies = torch.pi * torch.arange(32)
    wanted = (steps[:, None] * (a + 1j * frequencies)).exp()
    assert (abar - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e18, float("inf"), float("nan")])
def test_one_row_is_normalised_as_one_of_many(value: float, dtype: torch.dtype) -> None:
    row, gain = torch.linspace(-1, 2, 6, dtype=dtype) * value, torch.linspace(0, 1, 6, dtype=dtype)
    with torch.no_grad():
        one, many = rms_norm(row[None], gain), rms_norm(torch.stack([row, row]), gain)
    torch.testing.assert_close(one[0], many[1], equal_nan=True)
