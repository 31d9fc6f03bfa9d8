"""Objectives: what they hide and show, that accumulated is one batch, and that tiny runs learn by them."""

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import variants
from temaki.base import log
from temaki.base.config import read
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch
from temaki.batches import packing
from temaki.batches.config import DataConfig
from temaki.batches.prepare import Prepared, Words, prepare
from temaki.checkpoint.store import Store
from temaki.evaluate import loss
from temaki.model import build
from temaki.model.build import Model
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, NoPositionConfig, SinusoidalConfig
from temaki.study import pipeline
from temaki.study.pipeline import Ready
from temaki.tokens import bpe_train
from temaki.train import objectives
from temaki.train import run as runs
from temaki.train.config import MaskedConfig, NextConfig, ObjectiveConfig, PrefixConfig, RunConfig
from temaki.train.hooks import Hook
from temaki.train.loop import Run
from temaki.train.objectives import MASK, Masked, Objective, Prefix, objective
from temaki.train.step import gradients, measured

SPECIALS = {"<|endoftext|>": 0, MASK: 1}
V = variants.VOCABULARY
CONFIGS: dict[str, ObjectiveConfig] = {"next": NextConfig(), "masked": MaskedConfig(), "prefix": PrefixConfig()}
FITTING = {"next": "causal", "masked": "bidirectional", "prefix": "prefix"}


def model(mask: str, dtype: torch.dtype = torch.float64) -> Model:
    mixer = AttentionConfig(heads=2, position=NoPositionConfig(), mask=mask)  # type: ignore[arg-type]
    config = DecoderConfig(
        vocabulary=V, width=16, depth=2, pattern=(BlockConfig(mixer=mixer),), init="cs336",
        input_position=SinusoidalConfig(),
    )  # fmt: skip
    return build.build(config, 1, dtype)


def batch(rows: int, length: int, seed: int = 0) -> TokenBatch:
    """Rows of ids 0..V-1, each cut in two or three pieces."""
    generator = np.random.default_rng(seed)
    stretches = generator.integers(0, V, (rows, length + 1))
    cuts = [0]
    for i in range(rows):
        inside = sorted(generator.choice(np.arange(1, length), 1 + i % 2, replace=False).tolist())
        cuts += [i * length + cut for cut in inside] + [(i + 1) * length]
    return packing.batch(stretches, np.array(cuts))


def split(whole: TokenBatch, rows: int) -> list[TokenBatch]:
    """Micro-batches of so many rows."""
    assert whole.rows.shape is not None
    count, length = whole.rows.shape
    found = []
    for first in range(0, count, rows):
        span = slice(first * length, (first + rows) * length)
        cuts = whole.rows.cuts[(whole.rows.cuts >= span.start) & (whole.rows.cuts <= span.stop)] - span.start
        part = replace(
            whole.rows, ids=whole.rows.ids[span], cuts=cuts, positions=whole.rows.positions[span], shape=(rows, length)
        )
        found.append(TokenBatch(part, whole.targets[span], whole.weights[span]))
    return found


def made(kind: str, **changes: Any) -> Objective:
    return objective(replace(CONFIGS[kind], **changes), V, SPECIALS, seed=4)


# ---- what is hidden and shown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_read_depends_on_the_rows_places_alone(kind: str) -> None:
    whole, task = batch(6, 20), made(kind)
    one = task.prepared(whole, 10)
    parts = [task.prepared(part, 10 + 2 * i) for i, part in enumerate(split(whole, 2))]
    for name in ("targets", "weights"):
        assert torch.equal(getattr(one, name), torch.cat([getattr(part, name) for part in parts]))
    assert torch.equal(one.rows.ids, torch.cat([part.rows.ids for part in parts]))
    if kind == "prefix":
        shown = [part.rows.prefix for part in parts]
        assert one.rows.prefix is not None
        assert torch.equal(one.rows.prefix, torch.cat([each for each in shown if each is not None]))
    again = task.prepared(whole, 10)
    assert torch.equal(one.rows.ids, again.rows.ids)
    assert torch.equal(one.weights, again.weights)
    other = task.prepared(whole, 11)
    assert kind == "next" or not torch.equal(one.weights, other.weights)


def test_masked_places_are_as_many_as_asked_and_their_ids_are_the_targets() -> None:
    whole = batch(40, 500)
    found = made("masked").prepared(whole, 0)
    ids, shown, chosen = whole.rows.ids, found.rows.ids, found.weights.bool()
    assert torch.equal(found.targets, ids)
    assert torch.equal(shown[~chosen], ids[~chosen])
    assert not bool(chosen[ids <= 1].any())  # specials
    ordinary = ids > 1
    share = float(chosen[ordinary].float().mean())
    assert share == pytest.approx(0.15, abs=0.01)
    masked = (shown == SPECIALS[MASK]) & chosen
    changed = (shown != ids) & chosen & ~masked
    assert float(masked.sum() / chosen.sum()) == pytest.approx(0.8, abs=0.03)
    assert float(changed.sum() / chosen.sum()) == pytest.approx(0.1 * (1 - 1 / 51), abs=0.02)
    assert not bool((shown[changed] <= 1).any())
    assert found.rows.cuts is whole.rows.cuts
    all_hidden = made("masked", share=1.0, hidden=1.0, changed=0.0).prepared(whole, 0)
    assert torch.equal(all_hidden.rows.ids[ordinary], torch.full_like(ids[ordinary], 1))


def test_a_prefix_is_uniform_and_what_it_shows_is_not_learned() -> None:
    whole = batch(400, 30)
    found = made("prefix").prepared(whole, 0)
    prefix = found.rows.prefix
    assert prefix is not None
    lengths = whole.rows.cuts.diff()
    assert bool(((prefix >= 1) & (prefix <= lengths)).all())
    shares = (prefix - 0.5) / lengths
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.square().mean()) == pytest.approx(1 / 3, abs=0.03)
    for i, (start, stop) in enumerate(zip(whole.rows.cuts[:-1].tolist(), whole.rows.cuts[1:].tolist(), strict=True)):
        learned = found.weights[start:stop]
        shown = int(prefix[i])
        assert learned[: shown - 1].sum() == 0
        assert bool((learned[shown - 1 :] == 1).all())
    assert torch.equal(found.rows.ids, whole.rows.ids)
    assert torch.equal(found.targets, whole.targets)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_objective_sees_its_answer(kind: str) -> None:
    """Another id at a learned target's own place leaves the logits that are to say it as they are."""
    whole, task, net = batch(2, 12), made(kind), model(FITTING[kind])
    length = 12
    found = task.prepared(whole, 3)
    with torch.no_grad():
        before = net(found.rows)
        for place in found.weights.nonzero().flatten().tolist():
            own = place if kind == "masked" else place + 1  # where the target is read, if it is
            if own % length == 0 and kind != "masked":
                continue
            if kind == "masked" and int(found.rows.ids[own]) != SPECIALS[MASK]:
                continue  # shown, or shown as another
            ids = whole.rows.ids.clone()
            ids[own] = 2 + (ids[own] - 1) % (V - 2)
            other = task.prepared(replace(whole, rows=replace(whole.rows, ids=ids)), 3)
            assert torch.equal(net(other.rows)[place], before[place])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_accumulated_is_one_big_batch(kind: str, dtype: torch.dtype, bound: float) -> None:
    net, task, whole = model(FITTING[kind], dtype), made(kind), batch(6, 20)
    one = [task.prepared(whole, 0)]
    parts = [task.prepared(part, 2 * i) for i, part in enumerate(split(whole, 2))]
    found = []
    for batches in (one, parts):
        net.zero_grad()
        told = gradients(net, task, batches).loss
        assert measured(net, task, batches) == pytest.approx(told, rel=1e-5)
        found.append((told, torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])))
    (a, x), (b, y) = found
    assert a == pytest.approx(b, rel=1e-5)
    assert float((x - y).norm() / y.norm()) <= bound
    assert net.training


def test_the_masked_loss_is_its_formula() -> None:
    net, task = model("bidirectional"), made("masked")
    found = task.prepared(batch(4, 30), 0)
    with torch.no_grad():
        logits = net.head.logits(net(found.rows))
        each = torch.nn.functional.cross_entropy(logits, found.targets, reduction="none")
    chosen = found.weights.bool()
    assert measured(net, task, [found]) == pytest.approx(float(each[chosen].mean()), rel=1e-10)


@pytest.mark.parametrize("kind", CONFIGS)
def test_batches_that_count_nothing_teach_and_judge_nothing(kind: str) -> None:
    net, task, whole = model(FITTING[kind]), made(kind), batch(2, 12)
    none = replace(whole, weights=torch.zeros_like(whole.weights))
    assert measured(net, task, [none]) is None
    assert gradients(net, task, [none]).loss == 0.0
    assert all(p.grad is None for p in net.parameters())
    some = [task.prepared(whole, 0)]
    assert measured(net, task, [none, *some]) == pytest.approx(measured(net, task, some), rel=1e-12)


# ---- which model, which mask id ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("mask", ["causal", "prefix", "bidirectional"])
def test_an_objective_goes_with_its_mask(kind: str, mask: str) -> None:
    net = model(mask).config
    if mask == FITTING[kind] or (kind, mask) == ("next", "prefix"):
        objectives.check(CONFIGS[kind], net)
        return
    with pytest.raises(ConfigError, match=rf'objective\.kind = "{kind}" does not go with .*"{mask}"'):
        objectives.check(CONFIGS[kind], net)


def test_the_mask_id_is_the_tokenizers_or_named() -> None:
    task = made("masked")
    assert isinstance(task, Masked)
    assert task.mask == 1
    assert 0 not in task.ordinary
    other = objective(MaskedConfig(mask_id=7), V, {"<|endoftext|>": 0})
    assert isinstance(other, Masked)
    assert other.mask == 7
    assert 7 not in other.ordinary
    with pytest.raises(ConfigError, match="mask_id is needed"):
        objective(MaskedConfig(), V, {"<|endoftext|>": 0})
    with pytest.raises(ConfigError, match=r"not an id(.|\n)*found: 53"):
        objective(MaskedConfig(mask_id=53), V, SPECIALS)
    with pytest.raises(ConfigError, match="more than all"):
        read(RunConfig, {**recipe("masked"), "objective": {"kind": "masked", "hidden": 0.8, "changed": 0.3}})
    assert isinstance(objective(PrefixConfig()), Prefix)


def test_a_mask_that_would_not_be_trained_is_asked_for_before_work() -> None:
    found = recipe("masked")
    with pytest.raises(ConfigError, match=r'data\.special = \["<\|mask\|>"\]'):
        runs.check_recipe(read(RunConfig, found))
    runs.check_recipe(read(RunConfig, {**found, "data": {"special": [MASK]}}))
    found["objective"]["mask_id"] = 7
    runs.check_recipe(read(RunConfig, found))


def test_a_recipe_trains_the_special_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one and two and three and four\n" * 20)
    (tmp_path / "b.txt").write_text("five and six and seven and eight\n" * 20)
    config = DataConfig(text=str(tmp_path), vocabulary=280, special=(MASK,), held_out=0.5)
    assert dict(prepare(config, tmp_path / "data", lambda *_: None).tokenizer.special) == SPECIALS


def test_a_model_that_reads_both_ways_has_no_bits_per_byte() -> None:
    with pytest.raises(ConfigError, match="sees its answer"):
        loss.score(model("bidirectional"), [np.array([0, 5, 6])], bytes=2, context=4)


# ---- runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Shards of a small corpus of regular sentences, with a tokenizer that has a mask."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text").mkdir()
    generator = np.random.default_rng(1)
    texts = []
    for i in range(40):
        ends = generator.integers(0, 10, (12, 2)).tolist()
        texts.append("\n".join(f"{'ABCDEFGHIJ'[a]} and {a} then {'abcdefghij'[b]} or {b}." for a, b in ends))
        (folder / "text" / f"{i:02d}.txt").write_text(texts[-1], encoding="utf-8")
    tokenizer = bpe_train.train(iter(texts), 300, tuple(SPECIALS), "gpt2", progress=lambda *_: None)
    config = read(RunConfig, recipe("next")).data
    found = replace(config, text=str(folder / "text"), vocabulary=300, held_out=0.2)
    return prepare(found, folder / "data", lambda *_: None, given=Words(tokenizer))


def recipe(kind: str, steps: int = 40) -> dict[str, Any]:
    mixer = {"kind": "attention", "heads": 2, "mask": FITTING[kind]}
    return {
        "name": "test", "seed": 5,
        "model": {"vocabulary": 300, "width": 32, "depth": 2, "pattern": [{"mixer": mixer}], "init": "cs336"},
        "objective": {"kind": kind, **({"share": 0.3} if kind == "masked" else {})},
        "batch": {"tokens": 512, "micro": 256, "context": 64}, "stop": {"steps": steps},
        "save": {"every": 20}, "watch": {"log": 1, "validate": 20, "validate_tokens": 600},
        "optim": {"lr": 1e-2, "schedule": {"kind": "wsd", "warmup": 2}}, "parallel": {"threads": 1},
    }  # fmt: skip


def settings(kind: str, prepared: Prepared, steps: int = 40) -> RunConfig:
    found = {**recipe(kind, steps), "data": {"special": [MASK]}}
    return read(RunConfig, {**found, "model": {**found["model"], "vocabulary": prepared.tokenizer.size}})


class Stop(Hook):
    """Stops a run after five steps, as a user does."""

    def step(self, run: Run, line: Mapping[str, float]) -> None:
        if run.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("kind", ["masked", "prefix"])
def test_a_tiny_run_learns_and_is_judged_by_its_own_loss(kind: str, prepared: Prepared, tmp_path: Path) -> None:
    ready = Ready(settings(kind, prepared), tmp_path / "run", prepared, prepared.folder / "tokenizer")
    assert pipeline.train(ready).reason == "finished"
    lines = list(log.read(tmp_path / "run" / "metrics.jsonl"))
    losses = [float(line["loss"]) for line in lines if line["kind"] == "step"]
    judged = [line for line in lines if line["kind"] == "validate"]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert [line["step"] for line in judged] == [20, 40]
    assert all("bits_per_byte" not in line for line in judged)
    assert float(judged[-1]["loss"]) < 0.75 * losses[0]
    scores = {step: Store(tmp_path / "run" / "checkpoints").open(step).manifest.score for step in (20, 40)}
    assert scores == {line["step"]: line["loss"] for line in judged}


def test_a_masked_run_resumed_is_uninterrupted(prepared: Prepared, tmp_path: Path) -> None:
    config = settings("masked", prepared, 12)
    runs.start(config, tmp_path / "whole", prepared)
    assert runs.start(config, tmp_path / "halves", prepared, [Stop()]).reason == "SIGTERM"
    runs.start(config, tmp_path / "halves", prepared, resuming="auto")
    one, two = (Store(tmp_path / name / "checkpoints").open(12).weights() for name in ("whole", "halves"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("kind", "mask"), [("next", "bidirectional"), ("masked", "causal"), ("prefix", "causal")])
def test_a_recipe_that_would_lie_is_refused_before_work(kind: str, mask: str, prepared: Prepared) -> None:
    found = recipe(kind)
    found["model"]["pattern"][0]["mixer"]["mask"] = mask
    with pytest.raises(ConfigError, match="does not go with"):
        runs.check_recipe(read(RunConfig, found))


def test_a_masked_recipe_cannot_sample(prepared: Prepared) -> None:
    found = {**recipe("masked"), "watch": {"sample": 5}, "data": {"special": [MASK]}}
    with pytest.raises(ConfigError, match="cannot continue"):
        runs.check_recipe(read(RunConfig, found))
