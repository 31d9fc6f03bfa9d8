"""Mamba, S5, the linear recurrent unit and S4D as layers: their forms agree, and they begin as their papers say."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from temaki.base.rows import Rows
from temaki.model import init
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, LruConfig, MambaConfig, S4DConfig, S5Config
from temaki.model.layout import Layout
from temaki.model.mamba import Mamba
from temaki.model.mimo import S5, Lru, legs_frequencies
from temaki.model.recurrent import Recurrent
from temaki.model.ssm import S4D, hold

CONFIGS = (
    MambaConfig(states=4),
    MambaConfig(states=3, expand=1, conv=1, rank=5),
    S5Config(states=8),
    LruConfig(states=5),
    S4DConfig(states=6),
    S4DConfig(states=516),
)
MODEL = DecoderConfig(
    vocabulary=3, width=8, depth=1, pattern=(BlockConfig(mixer=AttentionConfig(heads=1)),), init="cs336"
)
KINDS: dict[str, Callable[..., Recurrent]] = {"mamba": Mamba, "s5": S5, "lru": Lru, "s4d": S4D}
CUTS = torch.tensor([0, 0, 1, 64, 127, 192, 600])
FORMS = pytest.mark.parametrize("config", CONFIGS, ids=lambda x: f"{x.kind}-{x.states}")


def layer(config: MambaConfig | S5Config | LruConfig | S4DConfig, dtype: torch.dtype) -> Recurrent:
    torch.manual_seed(1)
    mixer = KINDS[config.kind](config, 8)
    init.fill(mixer, MODEL, 1)
    return mixer.to(dtype)


def layout(cuts: Tensor = CUTS) -> Layout:
    ids = torch.zeros(int(cuts[-1]), dtype=torch.int64)
    return Layout(
        Rows(ids=ids, cuts=cuts, positions=torch.cat([ids[:0], *(torch.arange(n) for n in cuts.diff().tolist())]))
    )


def apart(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    if not found.numel():
        return 0.0
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))


@FORMS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_whole_is_chunks_is_steps(config: MambaConfig, dtype: torch.dtype, tolerance: float) -> None:
    """All pieces at once, each in chunks of 64 ids, and id by id."""
    mixer, where = layer(config, dtype), layout()
    x = torch.randn(600, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        system, given = mixer.system(), mixer.project(x, where)
        whole = mixer.whole(system, given, where)
        chunks, steps = [], []
        for start, stop in itertools.pairwise(CUTS.tolist()):
            past, chunked = mixer.begin(1), tuple(each[0] for each in mixer.begin(1))
            for t in range(start, stop):
                y, past = mixer.step(system, past, tuple(each[t : t + 1] for each in given))
                steps.append(y)
            for low in range(start, stop, 64):
                part = tuple(each[low : min(low + 64, stop)] for each in given)
                y, chunked = mixer.chunk(system, chunked, part)
                chunks.append(y)
            if stop > start:
                _, run = mixer.run(
                    system, tuple(each[0] for each in mixer.begin(1)), tuple(each[start:stop] for each in given)
                )
                for one, two, three in zip(past, chunked, run, strict=True):
                    assert apart(torch.view_as_real(two + 0j), torch.view_as_real(one[0] + 0j)) < tolerance
                    assert apart(torch.view_as_real(three + 0j), torch.view_as_real(one[0] + 0j)) < tolerance
        assert apart(whole, torch.cat(steps)) < tolerance
        assert apart(whole, torch.cat(chunks)) < tolerance
        assert apart(whole, Recurrent.whole(mixer, system, given, where)) < tolerance


@FORMS
def test_gradients_of_loops_are_those_of_twins(config: MambaConfig) -> None:
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(2))
    found: list[dict[str, Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        mixer, leaf = layer(config, dtype), x.to(dtype).clone().requires_grad_()
        mixer(leaf, layout(), None, None).square().sum().backward()
        grads = {name: p.grad for name, p in mixer.named_parameters() if p.grad is not None} | {"x": leaf.grad}
        assert grads.keys() == dict(mixer.named_parameters()).keys() | {"x"}
        found.append({name: grad for name, grad in grads.items() if grad is not None})
    for name, wanted in found[1].items():
        assert apart(found[0][name], wanted) < 2e-4, name


@FORMS
def test_nothing_crosses_a_document(config: MambaConfig) -> None:
    mixer = layer(config, torch.float64)
    x = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        both = mixer(x, layout(torch.tensor([0, 13, 30])), None, None)
        alone = mixer(x[13:], layout(torch.tensor([0, 17])), None, None)
    assert apart(both[13:], alone) < 1e-10


def test_mamba_begins_as_its_paper_says() -> None:
    torch.manual_seed(0)
    mixer = Mamba(MambaConfig(), 40)
    assert mixer.rank == 3
    assert torch.allclose(mixer.system(), -torch.arange(1.0, 17.0).expand(80, 16))
    steps = torch.nn.functional.softplus(mixer.step_bias.detach())
    assert float(steps.min()) * 1.001 >= 1e-3
    assert float(steps.max()) <= 1e-1 * 1.001


def test_s5_begins_at_the_normal_part_of_legs() -> None:
    torch.manual_seed(0)
    n = torch.arange(8, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    legs = -torch.tril(torch.outer(root, root), -1) - torch.diag(n + 1)
    normal = legs + torch.outer(n + 0.5, torch.ones(8)).sqrt() * (n + 0.5).sqrt()
    found = torch.linalg.eigvals(normal)
    assert torch.allclose(found.real, torch.full((8,), -0.5, dtype=torch.float64))
    wanted = found.imag[found.imag > 0].sort().values
    assert torch.allclose(legs_frequencies(4), wanted)
    mixer = S5(S5Config(states=8), 5)
    rates = torch.complex(torch.full((4,), -0.5), wanted.float())
    abar, bbar = hold(rates, mixer.log_step.exp())
    assert torch.allclose(mixer.system(), abar)
    assert torch.allclose(mixer.gains(), bbar)


def test_the_linear_recurrent_unit_begins_on_its_ring_and_keeps_the_size_of_noise() -> None:
    torch.manual_seed(0)
    mixer = Lru(LruConfig(states=2000, radius_min=0.6, radius_max=0.9, phase_max=1.0), 3)
    a = mixer.system().detach()
    assert float(a.abs().min()) * 1.0001 >= 0.6
    assert float(a.abs().max()) <= 0.9 * 1.0001
    assert float(a.angle().min()) >= 0
    assert float(a.angle().max()) <= 1.0001
    assert float(a.abs().square().mean()) == pytest.approx((0.6**2 + 0.9**2) / 2, rel=0.02)
    gains = mixer.gains().detach().real
    assert torch.allclose(gains.square(), 1 - a.abs().square(), rtol=1e-4)  # E|h|^2 = gain^2 / (1 - |a|^2) = 1


def test_s4d_states_are_measured_in_inputs() -> None:
    torch.manual_seed(0)
    mixer = S4D(S4DConfig(states=8), 5)
    _, bbar, _ = mixer.system()
    assert torch.equal(bbar, torch.ones_like(bbar))
