"""Every optimizer rule: fused = twin, independent loops, torch; the average of the weights; resume bit for bit."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from temaki.base.config import read
from temaki.base.errors import CheckpointError, ConfigError
from temaki.base.roles import Role
from temaki.model import build
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig
from temaki.optim import schedule
from temaki.optim.adamw import adamw_step
from temaki.optim.average import decay_at
from temaki.optim.config import (
    AdamWConfig,
    AverageConfig,
    CosineConfig,
    LinearConfig,
    LionConfig,
    MuonConfig,
    NoamConfig,
    OptimConfig,
    OptimizerConfig,
    SgdConfig,
    SignumConfig,
    WsdConfig,
)
from temaki.optim.groups import groups
from temaki.optim.lion import lion_step
from temaki.optim.muon import muon_step, parts
from temaki.optim.optimizer import Optimizer, moments
from temaki.optim.sgd import sgd_step, signum_step

RULES: dict[str, OptimizerConfig] = {
    "adamw": AdamWConfig(weight_decay=0.1),
    "handout": AdamWConfig(order="handout", weight_decay=0.1),
    "lion": LionConfig(weight_decay=0.1),
    "lion-plain": LionConfig(),
    "signum": SignumConfig(weight_decay=0.1),
    "sign-sgd": SignumConfig(momentum=0.0),
    "sgd": SgdConfig(),
    "sgd-decay": SgdConfig(weight_decay=0.1),
    "momentum": SgdConfig(momentum=0.9, weight_decay=0.1),
    "nesterov": SgdConfig(momentum=0.9, nesterov=True),
    "muon": MuonConfig(weight_decay=0.1),
    "muon-plain": MuonConfig(nesterov=False, scale="mup"),
    "muon-heads": MuonConfig(per_head=True, scale="rows-over-columns", coefficients=(1.5, -0.5, 0.0)),
    "muon-fitted": MuonConfig(coefficients=(3.2976, -4.1355, 1.7237), steps=3, scale="plain"),
}
ROLES = {
    "a": Role("matrix"),
    "b": Role("matrix"),
    "qkv": Role("matrix", (8, 4, 4), head=4),
    "experts": Role("matrix", (5,) * 3),
}
SHAPES = {"a": (6, 9), "b": (9, 6), "qkv": (16, 6), "experts": (3, 5, 4)}


def made(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def optimizer(rule: OptimizerConfig, lr: float = 0.02, average: AverageConfig | None = None) -> Optimizer:
    found = groups(OptimConfig(matrix=rule), ROLES)
    return Optimizer({name: x.requires_grad_() for name, x in made(0).items()}, ROLES, found, lr, average)


def feed(to: Optimizer, seed: int) -> None:
    for name, g in made(seed).items():
        to.parameters[name].grad = g


def twin(rule: OptimizerConfig, theta: Tensor, g: Tensor, kept: Sequence[Tensor], t: int, lr: float, name: str) -> None:
    match rule:
        case AdamWConfig():
            adamw_step(theta, g, kept[0], kept[1], t, lr, rule)
        case LionConfig():
            lion_step(theta, g, kept[0], lr, rule)
        case SignumConfig():
            signum_step(theta, g, kept[0] if kept else None, lr, rule)
        case SgdConfig():
            sgd_step(theta, g, kept[0] if kept else None, lr, rule)
        case MuonConfig():
            muon_step(theta, g, kept[0], lr, rule, parts(ROLES[name], rule.per_head))


@pytest.mark.parametrize("most", [1 << 22, 60])
@pytest.mark.parametrize("name", RULES)
def test_what_runs_is_its_readable_twin(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temaki.optim.orthogonal.MOST", most)
    rule = RULES[name]
    fast, plain = optimizer(rule), made(0)
    kept = {key: [torch.zeros_like(x) for _ in moments(rule)] for key, x in plain.items()}
    for t in range(1, 12):
        feed(fast, t)
        fast.step(0.5)
        for key, g in made(t).items():
            twin(rule, plain[key], g, kept[key], t, 0.01, key)
    for key, x in plain.items():
        assert torch.allclose(fast.parameters[key], x, rtol=1e-11, atol=1e-12)
        for each, m in zip(moments(rule), kept[key], strict=True):
            assert torch.allclose(fast.moments[f"{key}/{each}"], m, rtol=1e-12, atol=1e-14)


def by_hand(rule: OptimizerConfig, theta: np.ndarray, gs: Sequence[np.ndarray], lr: float) -> np.ndarray:
    """Written from the papers, in NumPy."""
    m = np.zeros_like(theta)
    for g in gs:
        match rule:
            case LionConfig():
                towards = np.sign(rule.beta1 * m + (1 - rule.beta1) * g)
                m = rule.beta2 * m + (1 - rule.beta2) * g
            case SignumConfig():
                m = rule.momentum * m + (1 - rule.momentum) * g
                towards = np.sign(m)
            case SgdConfig():
                m = rule.momentum * m + g
                towards = g + rule.momentum * m if rule.nesterov else m
            case _:
                raise AssertionError(rule)
        theta = theta - lr * (towards + rule.weight_decay * theta)
    return theta


@pytest.mark.parametrize(
    "name", ["lion", "lion-plain", "signum", "sign-sgd", "sgd", "sgd-decay", "momentum", "nesterov"]
)
def test_rules_are_those_of_their_papers(name: str) -> None:
    found = optimizer(RULES[name])
    for t in range(1, 30):
        feed(found, t)
        found.step(1.0)
    for key, x in made(0).items():
        wanted = by_hand(RULES[name], x.numpy(), [made(t)[key].numpy() for t in range(1, 30)], 0.02)
        assert np.allclose(found.parameters[key].detach().numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "sgd-decay", "nesterov"])
def test_sgd_is_torchs(name: str) -> None:
    rule = RULES[name]
    assert isinstance(rule, SgdConfig)
    ours, theirs = optimizer(rule), [torch.nn.Parameter(x) for x in made(0).values()]
    reference = torch.optim.SGD(
        theirs, 0.02, momentum=rule.momentum, nesterov=rule.nesterov, weight_decay=rule.weight_decay
    )
    for t in range(1, 100):
        feed(ours, t)
        for parameter, g in zip(theirs, made(t).values(), strict=True):
            parameter.grad = g
        ours.step(1.0)
        reference.step()
    for mine, its in zip(ours.parameters.values(), theirs, strict=True):
        assert torch.allclose(mine, its, rtol=1e-12, atol=1e-13)


def test_sgd_toy_faster_faster_diverging() -> None:
    """The CS336 hand-out's: the mean square of 100 weights, rate lr / sqrt(t + 1), ten steps."""

    def ended(lr: float) -> float:
        w = (5 * torch.randn(10, 10, generator=torch.Generator().manual_seed(0))).requires_grad_()
        roles = {"w": Role("matrix")}
        found = Optimizer({"w": w}, roles, groups(OptimConfig(matrix=SgdConfig()), roles), lr)
        for t in range(10):
            w.grad = None
            (w**2).mean().backward()
            found.step(1 / math.sqrt(t + 1))
        return (w.detach() ** 2).mean().item()

    first, ten, hundred, thousand = (ended(lr) for lr in (1.0, 10.0, 100.0, 1000.0))
    assert 25 > first > ten > 1 > 1e-9 > hundred
    assert thousand > 1e9


def test_each_role_moves_by_its_own_rule_and_rate_tied_parameters_once() -> None:
    for tied in (True, False):
        block = BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2))
        model = build.build(DecoderConfig(vocabulary=11, width=16, depth=1, tied=tied, pattern=(block,)))
        config = OptimConfig(
            matrix=MuonConfig(scale="plain"), embedding=SgdConfig(rate=2.0), head=SignumConfig(rate=3.0),
            vector=LionConfig(rate=5.0),
        )  # fmt: skip
        roles = model.roles()
        made = groups(config, roles)
        names = [name for group in made for name in group.names]
        assert sorted(names) == sorted(dict(model.named_parameters()))
        assert ("head" in {group.kind for group in made}) is not tied
        assert roles["blocks.0.mixer.qkv"].head == 4
        found = Optimizer(dict(model.named_parameters()), roles, made, 0.1)
        before = {name: p.detach().clone() for name, p in found.parameters.items()}
        for p in found.parameters.values():
            p.grad = torch.full_like(p, 0.25)
        norms = found.norms("weight")
        moved = found.step(0.5, norms=True)
        size = {"embedding": 0.1 * 2 * 0.5 * 0.25, "head": 0.1 * 3 * 0.5, "vector": 0.1 * 5 * 0.5}
        for group in made:
            steps = [(before[name] - found.parameters[name]).detach() for name in group.names]
            if group.kind in size:
                assert all(torch.allclose(x, torch.full_like(x, size[group.kind]), atol=1e-6) for x in steps)
            assert moved[group.kind] == pytest.approx(torch.cat([x.flatten() for x in steps]).norm().item(), rel=1e-5)
            old = torch.cat([before[name].flatten() for name in group.names]).norm().item()
            assert norms[group.kind] == pytest.approx(old, rel=1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("average", [None, AverageConfig(decay=0.9)])
def test_resumed_is_uninterrupted_bit_for_bit(name: str, average: AverageConfig | None) -> None:
    schedules = (CosineConfig(warmup=2), LinearConfig(warmup=2), NoamConfig(warmup=2), WsdConfig(warmup=2))
    plan = schedules[len(name) % 4]

    def run(some: Optimizer, steps: range) -> None:
        for t in steps:
            feed(some, t)
            some.step(schedule.factor(plan, t, 8))

    whole, half, later = (optimizer(RULES[name], average=average) for _ in range(3))
    run(whole, range(8))
    run(half, range(4))
    with half.swapped():  # as a checkpoint does
        weights = {key: x.detach().clone() for key, x in half.parameters.items()}
        state = {key: x.detach().clone() for key, x in half.state().items()}
    assert all(torch.equal(x, state[key]) for key, x in half.state().items())
    for key, x in later.parameters.items():
        x.detach().copy_(weights[key])
    later.load(state)
    run(later, range(4, 8))
    for key, x in whole.state().items():
        assert torch.equal(x, later.state()[key])
    with whole.swapped(), later.swapped():
        assert all(torch.equal(x, later.parameters[key]) for key, x in whole.parameters.items())


def test_a_state_of_another_recipe_or_shape_is_refused() -> None:
    adamw, muon = optimizer(RULES["adamw"]), optimizer(RULES["muon"])
    with pytest.raises(CheckpointError, match="another recipe"):
        muon.load(adamw.state())
    with pytest.raises(CheckpointError, match="another shape"):
        muon.load({**muon.state(), "a/m": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="another recipe"):
        optimizer(RULES["muon"], average=AverageConfig()).load(muon.state())


def test_average_is_a_loop_and_the_raw_weights_come_back() -> None:
    found = optimizer(RULES["adamw"], average=AverageConfig(decay=0.5))
    start = {name: x.detach().clone() for name, x in found.parameters.items()}
    with found.swapped():
        assert all(torch.equal(x, start[name]) for name, x in found.parameters.items())
    for x in found.parameters.values():
        x.detach().add_(1.0)  # weights that were put in after the optimizer was made
    wanted = {name: x.detach().clone() for name, x in found.parameters.items()}
    for t in range(1, 8):
        feed(found, t)
        found.step(1.0)
        d = min(0.5, (1 + t) / (10 + t))
        assert decay_at(t, 0.5) == d
        wanted = {name: d * w + (1 - d) * found.parameters[name].detach() for name, w in wanted.items()}
    raw = {name: x.detach().clone() for name, x in found.parameters.items()}
    with pytest.raises(ZeroDivisionError), found.swapped(), found.swapped():
        assert all(torch.allclose(x, wanted[name], rtol=1e-12) for name, x in found.parameters.items())
        raise ZeroDivisionError
    assert all(torch.equal(x, raw[name]) for name, x in found.parameters.items())


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    for rule in RULES.values():
        found = optimizer(rule)
        feed(found, 1)
        found.parameters["a"].grad = None
        moved = found.step(1.0, norms=True)
        assert torch.equal(found.parameters["a"], made(0)["a"])
        assert moved["matrix"] > 0
        assert found.norms("gradient")["matrix"] == pytest.approx(
            math.sqrt(sum(float(g.square().sum()) for name, g in made(1).items() if name != "a"))
        )
        assert found.clip(1.0) > 1.0
        assert found.clip(None) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    "table",
    [
        {"lr": math.nan}, {"lr": math.inf}, {"lr": -1.0}, {"lr": 0.0}, {"clip": math.nan},
        {"matrix": {"rate": math.nan}}, {"matrix": {"rate": -1.0}}, {"matrix": {"coefficients": [1.0, math.nan, 0.0]}},
        {"average": {"decay": 1.0}}, {"matrix": {"momentum": math.inf}}, {"vector": {"kind": "muon"}},
        {"schedule": {"kind": "noam", "warmup": 0}}, {"head": {"kind": "sgd", "nesterov": True}},
        {"schedule": {"floor": math.nan}},
    ],
)  # fmt: skip
def test_rates_that_are_no_rates_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        read(OptimConfig, table)


def test_settings_of_all_rules_can_be_read() -> None:
    for rule in RULES.values():
        assert read(OptimConfig, {"matrix": {"kind": rule.kind, "rate": 0.5}}).matrix.rate == 0.5
        assert replace(rule, rate=0.5).rate == 0.5
