"""Dropout, initial values, rates over widths, decay by role, averaged weights: what a configuration says is done."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import variants
from little_runs import At, lines, plain, prepared_in, recipe, same_checkpoints
from temaki.base import device as devices
from temaki.base import log
from temaki.base.config import read
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch, grid
from temaki.batches.prepare import Prepared
from temaki.checkpoint.store import Store
from temaki.evaluate import loss
from temaki.formats import open as opener
from temaki.model import build, dropout
from temaki.model.build import Model
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, GeluConfig
from temaki.model.dropout import STEPS, Dropout, hidden, numbered
from temaki.optim.average import decay_at
from temaki.optim.config import AdamWConfig, LionConfig, MuonConfig, OptimConfig, SgdConfig, SignumConfig
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.optim.transfer import carried
from temaki.study.hooks import Validate
from temaki.train import run as runs
from temaki.train.config import NextConfig, RunConfig
from temaki.train.loop import Run
from temaki.train.objectives import Next
from temaki.train.step import gradients
from variants import NAMES, VOCABULARY


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Shards of a small corpus of varied sentences, with a home-made tokenizer."""
    return prepared_in(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def _peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix peak is not measured for each little run."""
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e11)


# ---- dropout --------------------------------------------------------------------------------------------------------


def batch(rows: int, length: int = 12, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows, length + 1), generator=generator)
    return TokenBatch(grid(ids[:, :-1]), ids[:, 1:].reshape(-1), torch.ones(rows * length))


def part(whole: TokenBatch, first: int, stop: int) -> TokenBatch:
    """Rows first..stop-1 of a batch of whole rows, without numbers."""
    length = len(whole.targets) // whole.rows.shape[0] if whole.rows.shape else 0
    ids = whole.rows.ids.view(-1, length)[first:stop]
    return TokenBatch(grid(ids), whole.targets[first * length : stop * length], torch.ones(ids.numel()))


def hiding(name: str, share: float = 0.3, **changes: object) -> Model:
    """A variant that hides."""
    config = read(DecoderConfig, {**plain(name), "vocabulary": VOCABULARY, "dropout": share, **changes})
    return build.build(config, 3, torch.float64)


def slopes(model: Model, batches: list[TokenBatch]) -> dict[str, Tensor]:
    model.zero_grad()
    gradients(model, Next(NextConfig()), batches)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_masks_are_the_lanes_of_splitmix64() -> None:
    draws = torch.tensor([5, -7, 2**62])
    for site, width, kept in ((0, 6, 40_000), (3, 8, 1), (2, 1, STEPS - 1)):
        each = math.ceil(width / 4)
        found = hidden(draws, torch.tensor(site), width, kept)
        for i, seed in enumerate(draws.tolist()):
            for column in range(width):
                z = (seed + 0x9E3779B97F4A7C15 * (site * each + column // 4 + 1)) % 2**64
                z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
                z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
                z ^= z >> 31
                lane = z >> 16 * (column % 4) & 0xFFFF
                signed = lane - (lane >> 15 << 16)
                assert bool(found[i, column]) == (signed >= kept - 2**15)


def test_as_many_are_hidden_as_was_asked_and_the_mean_stays() -> None:
    made = numbered(batch(40, 50), 1, 0).rows.draws
    assert made is not None
    sites = [hidden(made, torch.tensor(i), 64, round(0.9 * STEPS)).double() for i in range(3)]
    for each in sites:
        assert abs(float(each.mean()) - 0.1) < 4 * math.sqrt(0.09 / each.numel())
        assert abs(np.corrcoef(each.numpy().ravel()[:-1], each.numpy().ravel()[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(sites[0].numpy().ravel(), sites[1].numpy().ravel())[0, 1]) < 0.015
    x = torch.ones(2000, 64).double()
    assert abs(float(dropout.dropped(x, made, torch.tensor(0), 0.1).mean()) - 1) < 0.005


def test_numbers_are_a_function_of_seed_and_place() -> None:
    whole = numbered(batch(6), 4, 10).rows.draws
    some = numbered(part(batch(6), 2, 5), 4, 12).rows.draws
    assert whole is not None
    assert some is not None
    assert torch.equal(whole.view(6, -1)[2:5].reshape(-1), some)
    assert len(set(whole.tolist())) == len(whole)
    other = numbered(batch(6), 5, 10).rows.draws
    assert other is not None
    assert not set(other.tolist()) & set(whole.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_numbers_hide_nothing(name: str) -> None:
    model, bare = hiding(name), hiding(name, 0.0)
    assert not any(isinstance(each, Dropout) for each in bare.modules())
    rows = batch(2).rows
    with torch.no_grad():
        assert torch.equal(model(rows), bare(rows))
        noisy = model(numbered(batch(2), 1, 0).rows)
        assert torch.equal(bare(numbered(batch(2), 1, 0).rows), bare(rows))
    assert not torch.allclose(noisy, model(rows))


@pytest.mark.parametrize("name", ["gpt2", "post", "gemma"])
def test_every_branch_and_the_embedding_hide_their_own(name: str) -> None:
    """What a branch says goes through its own mask, whatever the order of the block, and through no other."""
    model, said, read = hiding(name), {}, {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _m, given, found, path=path: said.update({path: (given, found)}))
    model(numbered(batch(2), 1, 0).rows)
    for path, module in model.named_modules():
        if isinstance(module, Dropout):
            (given, _), found = said[path]
            read[int(module.site)] = given
            assert 0.6 < float((found != 0).double().mean()) < 0.8
            after = f"{path.removesuffix('_dropout')}_after"
            branch = (
                "input_position" if path == "dropout" else after if after in said else path.removesuffix("_dropout")
            )
            assert given is said[branch][1], path
    assert sorted(read) == list(range(1 + 2 * model.config.depth))


@pytest.mark.parametrize("name", ["grouped", "hybrid", "post", "gemma"])
def test_micro_batches_and_recomputed_activations_hide_the_same(name: str) -> None:
    model, whole = hiding(name), batch(4)
    wanted = slopes(model, [numbered(whole, 2, 8)])
    found = slopes(model, [numbered(part(whole, i, i + 2), 2, 8 + i) for i in (0, 2)])
    model.checkpointing = True
    again = slopes(model, [numbered(whole, 2, 8)])
    other = slopes(model, [numbered(whole, 2, 9)])
    for key, gradient in wanted.items():
        assert torch.allclose(found[key], gradient, rtol=1e-9, atol=1e-12 * float(gradient.abs().max()) + 1e-15), key
        assert torch.equal(again[key], gradient), key
    assert any(not torch.allclose(other[key], wanted[key]) for key in wanted)


@pytest.mark.slow
def test_compiled_hides_what_is_hidden_otherwise() -> None:
    if devices.compiler() is None:
        pytest.skip("torch.compile needs a C++ compiler")
    part, rows = Dropout(0.3), numbered(batch(4), 2, 8).rows
    part.site.fill_(2)
    compiled = torch.compile(part, fullgraph=True)
    found = []
    for each in (part, compiled):
        x = torch.randn(48, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = each(x, rows)
        y.square().sum().backward()
        assert x.grad is not None
        found.append((y.detach(), x.grad))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert bool((found[0][0] == 0).any())


def test_resumed_run_with_dropout_is_uninterrupted_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    changes = {"model": {**plain("grouped"), "dropout": 0.2}, "batch": {"tokens": 128, "context": 32, "micro": 64}}
    config = read(RunConfig, recipe("grouped", **changes))
    runs.start(config, tmp_path / "whole", prepared)
    asked = At(7, lambda _run: os.kill(os.getpid(), signal.SIGTERM))
    runs.start(config, tmp_path / "cut", prepared, [asked])
    runs.start(config, tmp_path / "cut", prepared, resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)
    runs.start(read(RunConfig, recipe("grouped", batch=changes["batch"])), tmp_path / "none", prepared)
    assert lines(tmp_path / "none")[0]["loss"] != lines(tmp_path / "whole")[0]["loss"]


# ---- initial values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["cs336", "zero-out", "gpt2", "mup"])
@pytest.mark.parametrize("name", NAMES)
def test_every_variant_begins_and_learns_from_every_initial_values(name: str, init: str) -> None:
    config = read(DecoderConfig, {**plain(name), "vocabulary": VOCABULARY, "init": init})
    model = build.build(config, 3, torch.float64)
    assert set(model.roles()) == {key for key, _ in model.named_parameters()}
    made = groups(OptimConfig(), model.roles(), config.narrower)
    optimizer = Optimizer(dict(model.named_parameters()), model.roles(), made, 1e-3)
    losses = []
    for _ in range(3):
        model.zero_grad()
        losses.append(gradients(model, Next(NextConfig()), [batch(4)]).loss)
        optimizer.step(1.0)
    assert all(math.isfinite(each) for each in losses)
    assert losses[2] < losses[0]
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_gpt2_values_have_their_deviations() -> None:
    config = read(DecoderConfig, {**plain("gpt2"), "width": 64, "depth": 8, "init": "gpt2"})
    model = build.build(config, 3)
    residual = 0.02 / math.sqrt(16)
    wanted = {"embedding": 0.02, "unembedding": 0.02, "input_position.table": 0.02}
    for i in range(8):
        wanted |= {f"blocks.{i}.mixer.qkv": 0.02, f"blocks.{i}.mixer.out": residual}
        wanted |= {f"blocks.{i}.ffn.up": 0.02, f"blocks.{i}.ffn.down": residual}
    for name, parameter in model.named_parameters():
        if name in wanted:
            assert float(parameter.detach().std()) == pytest.approx(wanted[name], rel=0.06), name
            assert float(parameter.detach().mean().abs()) < 4 * wanted[name] / math.sqrt(parameter.numel()), name
        else:
            ones = name.endswith("gain") or "norm.weight" in name
            assert torch.equal(parameter, torch.full_like(parameter, float(ones))), name


def test_only_what_training_asks_for_is_left_out_of_what_was_learned() -> None:
    config = read(DecoderConfig, {**plain("gpt2"), "init": "mup", "base_width": 16, "dropout": 0.5})
    bare = config.learned
    assert (bare.init, bare.base_width, bare.dropout) == ("zero-out", None, 0.0)
    assert (bare.pattern, bare.width, bare.input_position) == (config.pattern, config.width, config.input_position)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": "mup", "tied": True}, "tied = false"),
        ({"init": "gpt2", "base_width": 16}, "init = mup"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dropout": -0.1}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(DecoderConfig, {**plain("grouped"), **changes})


# ---- rates over widths ----------------------------------------------------------------------------------------------


def moved(width: int, init: str, rule: AdamWConfig | MuonConfig) -> float:
    """How far the logits of a model of this width move in five steps at the rate of the narrow one: RMS."""
    config = DecoderConfig(
        vocabulary=VOCABULARY, width=width, depth=2, tied=False, init="mup" if init == "mup" else "cs336",
        base_width=64 if init == "mup" else None,
        pattern=(BlockConfig(mixer=AttentionConfig(heads=width // 16), ffn=GeluConfig()),),
    )  # fmt: skip
    model, given = build.build(config, 1), batch(8, 32)
    optimizer = Optimizer(
        dict(model.named_parameters()), model.roles(), groups(OptimConfig(matrix=rule), model.roles(), config.narrower),
        0.01,
    )  # fmt: skip

    def logits() -> Tensor:
        with torch.no_grad():
            return model.head.logits(model(given.rows))

    before = logits()
    for _ in range(5):
        model.zero_grad()
        gradients(model, Next(NextConfig()), [given])
        optimizer.step(1.0)
    return float((logits() - before).square().mean().sqrt())


@pytest.mark.parametrize(
    "rule",
    [AdamWConfig(), MuonConfig(products="float32"), MuonConfig(scale="mup", products="float32")],
    ids=["adamw", "moonlight", "mup"],
)
def test_logits_move_as_far_at_every_width(rule: AdamWConfig | MuonConfig) -> None:
    narrow, wide = moved(64, "mup", rule), moved(256, "mup", rule)
    assert 0.75 < wide / narrow < 1.25
    assert moved(256, "standard", rule) > 1.6 * moved(64, "standard", rule)


def test_rates_fall_by_the_table_and_the_decay_of_a_step_stays() -> None:
    wide = 0.25
    for rule in (AdamWConfig(weight_decay=0.1), LionConfig(rate=0.5), SignumConfig()):
        assert [carried(rule, kind, wide).rate / rule.rate for kind in ("matrix", "head")] == [wide, wide]
        assert all(carried(rule, kind, wide) == rule for kind in ("embedding", "vector", "dynamics"))
        found = carried(rule, "matrix", wide)
        assert found.rate * found.weight_decay == pytest.approx(rule.rate * rule.weight_decay)
    assert [carried(SgdConfig(), kind, wide).rate for kind in ("matrix", "head", "embedding", "vector")] == [
        1,
        0.25,
        4,
        4,
    ]
    scales = {"plain": 1, "rows-over-columns": 1, "mup": 1, "moonlight": 0.5}
    assert {each: carried(MuonConfig(scale=each), "matrix", wide).rate for each in scales} == scales  # type: ignore[arg-type]


def test_a_run_uses_the_rates_of_its_width(prepared: Prepared, tmp_path: Path) -> None:
    model = {**plain("grouped"), "init": "mup", "base_width": 8}
    optim = {"matrix": {"kind": "adamw"}, "schedule": {"kind": "wsd", "warmup": 2}}
    found = runs.start(read(RunConfig, recipe("grouped", model=model, optim=optim)), tmp_path / "run", prepared).run
    rates = {group.kind: group.rule.rate for group in found.optimizer.groups}
    assert rates == {"matrix": 0.25, "embedding": 1.0, "head": 0.25, "vector": 1.0}


# ---- weight decay ---------------------------------------------------------------------------------------------------


def test_decay_is_that_of_the_role_and_by_default_there_is_none() -> None:
    model = variants.model("hybrid")
    decays = {"matrix": 0.1, "embedding": 0.2, "head": 0.3, "vector": 0.4, "dynamics": 0.5}
    defaults = OptimConfig()
    assert {kind: getattr(defaults, kind).weight_decay for kind in decays} == dict.fromkeys(decays, 0.0)
    config = read(OptimConfig, {kind: {"kind": "adamw", "weight_decay": d, "rate": 1.0} for kind, d in decays.items()})
    roles, named = model.roles(), dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    Optimizer(named, roles, groups(config, roles), 0.01).step(0.5)
    assert {role.kind for role in roles.values()} == set(decays)
    for name, parameter in named.items():
        assert torch.allclose(parameter, before[name] * (1 - 0.005 * decays[roles[name].kind]), rtol=1e-12, atol=0), (
            name
        )


# ---- averaged weights -----------------------------------------------------------------------------------------------


def averaging(**changes: object) -> RunConfig:
    optim = {"schedule": {"kind": "wsd", "warmup": 2}, "average": {"decay": 0.7}}
    return read(RunConfig, recipe("grouped", optim=optim, **changes))


def test_a_run_validates_saves_and_speaks_with_averaged_weights(prepared: Prepared, tmp_path: Path) -> None:
    """The average is made anew here from the weights after each step, by its formula."""
    wanted: dict[str, Tensor] = {}

    class Follow(At):
        def begin(self, run: Run) -> None:
            wanted.update({name: p.detach().clone() for name, p in run.model.named_parameters()})

        def step(self, run: Run, line: object) -> None:
            d = decay_at(run.step, 0.7)
            for name, parameter in run.model.named_parameters():
                wanted[name] = d * wanted[name] + (1 - d) * parameter.detach()

    follow = Follow(0, lambda _: None)
    validate = Validate(6, prepared, 400)
    found = runs.start(averaging(), tmp_path / "run", prepared, [follow, validate])
    weights = Store(tmp_path / "run" / "checkpoints").open(12).weights()
    raw = {name: p.detach() for name, p in found.run.model.named_parameters()}
    for name, array in weights.items():
        assert torch.allclose(torch.from_numpy(array), wanted[name], rtol=1e-5, atol=1e-7), name
    assert any(not torch.allclose(torch.from_numpy(weights[name]), raw[name], rtol=1e-3) for name in raw)
    opened = opener.open(tmp_path / "run")
    model = opened.model()
    documents = (prepared.held.document(i) for i in range(validate.documents))
    said = [line for line in log.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "validate"][-1]
    assert said["step"] == 12
    assert loss.score(model, documents, validate.bytes, 32, 32).loss == pytest.approx(said["loss"], rel=1e-5)


def test_resumed_run_with_an_average_is_uninterrupted_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    runs.start(averaging(), tmp_path / "whole", prepared, [Validate(6, prepared, 400)])
    asked = At(7, lambda _run: os.kill(os.getpid(), signal.SIGTERM))
    runs.start(averaging(), tmp_path / "cut", prepared, [Validate(6, prepared, 400), asked])
    runs.start(averaging(), tmp_path / "cut", prepared, [Validate(6, prepared, 400)], resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)
