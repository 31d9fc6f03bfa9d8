"""Several ids at once: ids = 1 is the plain loss, heads leave the model's own logits alone, nothing is read early."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import variants
from temaki.base import log
from temaki.base import rows as base_rows
from temaki.base.config import read
from temaki.base.errors import ConfigError
from temaki.base.rows import TokenBatch
from temaki.batches import packing
from temaki.batches.config import DataConfig
from temaki.batches.loader import Loader
from temaki.batches.prepare import Prepared, prepare
from temaki.checkpoint.store import Store
from temaki.formats import carry
from temaki.formats import open as opener
from temaki.model import build
from temaki.model.build import Model
from temaki.model.config import (
    FurtherConfig,
    HeadsConfig,
    MedusaHeadsConfig,
    ParallelHeadsConfig,
    SequentialHeadsConfig,
)
from temaki.model.count import count, flops_per_token
from temaki.model.prune import prune_heads
from temaki.study import further, pipeline, recipes
from temaki.study.voice import TorchVoice
from temaki.train import objectives
from temaki.train import run as runs
from temaki.train.config import NextConfig, RunConfig, SeveralConfig
from temaki.train.hooks import Hook
from temaki.train.loop import Run
from temaki.train.objectives import Next, objective
from temaki.train.several import Several, agreement, shares
from temaki.train.step import gradients

V = variants.VOCABULARY
HEADS: dict[str, HeadsConfig] = {
    "parallel": ParallelHeadsConfig(),
    "sequential": SequentialHeadsConfig(),
    "medusa": MedusaHeadsConfig(),
}
BODIES = ["grouped", "hybrid", "gpt2", "gemma", "experts"]


def several(heads: str, ids: int = 4, **rest: Any) -> SeveralConfig:
    return SeveralConfig(ids=ids, heads=HEADS[heads], **rest)


def model(heads: str | None, body: str = "grouped", ids: int = 4, tied: bool = False, **rest: Any) -> Model:
    """A tiny model with or without heads, in float64; every parameter says something."""
    more = None if heads is None else FurtherConfig(ids=ids, heads=HEADS[heads])
    made = build.build(replace(variants.config(body, tied), further=more, **rest), 3, torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("heads."):
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return made


def batch(lengths: list[int], seed: int = 0, rows: int = 1) -> TokenBatch:
    """`rows` equal rows, each of pieces of these lengths; some places weigh less than one."""
    generator = np.random.default_rng(seed)
    length = sum(lengths)
    cuts = np.cumsum([0, *(lengths * rows)])
    made = packing.batch(generator.integers(0, V, (rows, length + 1)), cuts)
    weights = torch.from_numpy(generator.choice([0.0, 0.5, 1.0, 1.0], rows * length).astype(np.float32))
    return replace(made, weights=weights)


def loss(net: Model, task: objectives.Objective, *batches: TokenBatch) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step and its gradient."""
    net.zero_grad(set_to_none=True)
    found = gradients(net, task, batches).loss
    return found, {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def away(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    """Relative norm of the difference of two gradients."""
    assert one.keys() == two.keys()
    off, size = (
        torch.stack([x.norm() for x in each]).norm() for each in ([one[n] - two[n] for n in one], one.values())
    )
    return float(off / size)


def slow(net: Model, whole: TokenBatch, config: SeveralConfig) -> float:
    """The loss by its definition: place by place, head by head, piece by piece."""
    cuts, ids = whole.rows.cuts.tolist(), config.ids
    weigh = [1.0] + [config.falls**k for k in range(ids - 1)]
    falls = sum(weigh[1:])
    with torch.no_grad():
        hidden = net(whole.rows, ahead=True)
    total = 0.0
    for start, stop in pairwise(cuts):
        for i in range(start, stop):
            for k in range(config.trunk == "frozen", ids):
                if i + k >= stop:
                    continue
                head = net.head if net.heads is None else net.heads.head(k, net.head)
                logits = head.logits(hidden[k, i : i + 1])[0].detach()
                lse = float(logits.logsumexp(0))
                said = (1 - config.smooth) * float(logits[whole.targets[i + k]]) + config.smooth * float(logits.mean())
                share = 1.0 if k == 0 else config.weight * weigh[k] / falls
                total += share * float(whole.weights[i + k]) * (lse - said + config.z * lse**2)
    return total / float(whole.weights.double().sum())


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rest", [{}, {"smooth": 0.1, "z": 0.01}])
def test_one_id_is_the_plain_loss_bit_for_bit(heads: str, rest: dict[str, Any]) -> None:
    net, whole = model(None), batch([7, 3, 9])
    plain = loss(net, Next(NextConfig(**rest)), whole)
    found = loss(net, objective(several(heads, 1, **rest)), whole)
    assert found[0] == plain[0]
    assert all(torch.equal(found[1][name], plain[1][name]) for name in plain[1])
    assert found[1].keys() == plain[1].keys()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    "rest", [{}, {"weight": 0.3, "falls": 0.8}, {"smooth": 0.1, "z": 0.01, "weight": 3.0}, {"trunk": "frozen"}]
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_its_definition(heads: str, rest: dict[str, Any], tied: bool) -> None:
    net, whole, config = model(heads, tied=tied), batch([7, 1, 3, 9, 2], rows=2), several(heads, **rest)
    found, _ = loss(net, Several(config), whole)
    assert found == pytest.approx(slow(net, whole, config), rel=1e-10)


def test_shares_are_what_the_papers_say() -> None:
    assert shares(several("parallel", 4, weight=3.0)) == (1.0, 1.0, 1.0, 1.0)  # Gloeckle et al.
    assert shares(several("sequential", 2, weight=0.3)) == (1.0, 0.3)  # DeepSeek-V3: lambda / D
    fallen = shares(several("medusa", 4, falls=0.8))  # lambda_k = 0.8^k, but for a factor
    assert [b / a for a, b in pairwise(fallen[1:])] == pytest.approx([0.8, 0.8])
    assert sum(fallen[1:]) == pytest.approx(1.0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_the_gradient_is_that_of_autograd(heads: str, body: str) -> None:
    """All logits whole, cross entropy by torch, against the chunked loss of all heads in one call."""
    net, whole, config = model(heads, body), batch([7, 4, 9]), several(heads, weight=0.7, falls=0.9)
    found, ours = loss(net, Several(config), whole)
    net.zero_grad(set_to_none=True)
    hidden, cuts, total = net(whole.rows, ahead=True), whole.rows.cuts.tolist(), torch.zeros((), dtype=torch.float64)
    for k, share in enumerate(shares(config)):
        assert net.heads is not None
        logits = net.heads.head(k, net.head).logits(hidden[k])
        for start, stop in pairwise(cuts):
            n = max(0, stop - start - k)
            at, to = slice(start, start + n), slice(start + k, start + k + n)
            each = torch.nn.functional.cross_entropy(logits[at], whole.targets[to], reduction="none")
            total = total + share * (whole.weights[to] * each).sum()
    total = total / whole.weights.double().sum()
    total.backward()
    theirs = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert found == pytest.approx(float(total.detach()), rel=1e-10)
    assert away(ours, theirs) < 1e-10


@pytest.mark.parametrize("heads", HEADS)
def test_accumulated_is_one_big_batch(heads: str) -> None:
    """Micro-batches that hold unlike numbers of further ids too."""
    net, task = model(heads), Several(several(heads))
    parts = [batch([8, 4], 1), batch([3, 3, 1, 5], 2), batch([12], 3)]
    cuts = torch.cat([torch.tensor([0]), *[part.rows.cuts[1:] + 12 * i for i, part in enumerate(parts)]])
    rows = base_rows.Rows(
        torch.cat([p.rows.ids for p in parts]), cuts, torch.cat([p.rows.positions for p in parts]), (3, 12)
    )
    whole = TokenBatch(rows, torch.cat([p.targets for p in parts]), torch.cat([p.weights for p in parts]))
    one, many = loss(net, task, whole), loss(net, task, *parts)
    assert many[0] == pytest.approx(one[0], rel=1e-12)
    assert away(one[1], many[1]) < 1e-12


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_packed_is_separate(heads: str, body: str) -> None:
    net, lengths = model(heads, body), [5, 1, 8, 2]
    whole = batch(lengths)
    with torch.no_grad():
        packed = net(whole.rows, ahead=True)
        start = 0
        for n in lengths:
            alone = net(base_rows.rows([whole.rows.ids[start : start + n]]), ahead=True)
            for k in range(min(4, n)):  # beyond a piece's end the vectors mean nothing
                variants.close(packed[k, start : start + n - k], alone[k, : n - k])
            start += n


def test_pieces_too_short_for_any_further_id_teach_the_next_one_alone() -> None:
    net, whole = model("parallel"), batch([1] * 9)
    found, grads = loss(net, Several(several("parallel")), whole)
    assert found == pytest.approx(loss(net, Next(NextConfig()), whole)[0], rel=1e-12)
    assert not any(bool(grad.any()) for name, grad in grads.items() if name.startswith("heads."))


# ---- what is read, and what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_heads_leave_the_models_own_vectors_alone(heads: str, body: str) -> None:
    whole = batch([7, 3, 9])
    plain, net = model(None, body), model(heads, body)
    with torch.no_grad():
        wanted = plain(whole.rows)
        assert torch.equal(net(whole.rows), wanted)
        assert torch.equal(net(whole.rows, ahead=True)[0], wanted)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", ["grouped", "hybrid"])
def test_no_head_reads_its_answer(heads: str, body: str) -> None:
    """Head k at place i says the id at i + k + 1: another id there leaves it; sequential heads read up to it."""
    net, whole, length = model(heads, body), batch([10]), 10
    with torch.no_grad():
        before = net(whole.rows, ahead=True)
        for at in range(1, length):
            ids = whole.rows.ids.clone()
            ids[at] = (ids[at] + 1) % V
            after = net(replace(whole.rows, ids=ids), ahead=True)
            for k in range(4):
                moved = (after[k] - before[k]).abs().amax(-1)[: length - k] > 1e-12
                first = max(0, at - k if heads == "sequential" else at)  # the first place that may read it
                assert not bool(moved[:first].any())
                assert first >= length - k or bool(moved[first])


@pytest.mark.parametrize("tied", [False, True])
def test_medusas_heads_begin_as_the_models_own(tied: bool) -> None:
    more = FurtherConfig(ids=4, heads=MedusaHeadsConfig())
    net = build.build(replace(variants.config("gemma", tied), further=more), 3, torch.float64)
    whole = batch([9])
    with torch.no_grad():
        hidden = net(whole.rows, ahead=True)
        assert net.heads is not None
        wanted = net.head.logits(hidden[0])
        for k in range(1, 4):
            assert torch.equal(net.heads.head(k, net.head).logits(hidden[k]), wanted)
            assert net.heads.head(k, net.head).weight is not net.head.weight


@pytest.mark.parametrize("heads", HEADS)
def test_recomputed_activations_change_no_bit(heads: str) -> None:
    net, whole, task = model(heads), batch([7, 3, 9]), Several(several(heads))
    one = loss(net, task, whole)
    net.checkpointing = True
    two = loss(net, task, whole)
    assert one[0] == two[0]
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("body", [*BODIES, "s4d"])
@pytest.mark.parametrize("tied", [False, True])
def test_all_parameters_are_counted_and_have_a_role(heads: str, body: str, tied: bool) -> None:
    net, plain = model(heads, body, tied=tied), model(None, body, tied=tied)
    found, without = count(net.config), count(plain.config)
    assert found.total == sum(p.numel() for p in net.parameters())
    assert replace(found, further=0) == without
    assert list(net.roles()) == [name for name, _ in net.named_parameters()]
    kinds = {role.kind for name, role in net.roles().items() if name.startswith("heads.")}
    assert "embedding" not in kinds
    assert ("head" in kinds) == (heads == "medusa")
    own = sum(p.numel() for n, p in net.named_parameters() if n.startswith("heads.") and p.ndim > 1)
    shared = 0 if heads == "medusa" else 3 * net.head.weight.numel()
    more = flops_per_token(net.config, 64) - flops_per_token(plain.config, 64)
    assert more > 0
    frozen = flops_per_token(plain.config, 64) / 3 - 2 * plain.head.weight.numel()  # forward alone, without its head
    assert flops_per_token(net.config, 64, frozen=True) == pytest.approx(frozen + more)
    if body == "s4d" and heads == "parallel":  # no attention: 6 for each entry of a matrix that an id meets
        dynamics = sum(p.numel() for n, p in net.named_parameters() if n.startswith("heads.") and p.ndim > 1
                       and net.roles()[n].kind != "matrix")  # fmt: skip
        assert more == 6 * (own - dynamics + shared)


def test_a_pruned_model_has_no_heads() -> None:
    net = model("parallel", "attention-half")
    assert prune_heads(net, 1, [0]).config.further is None


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Sentences in which the next ids follow from the ones before."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "text").mkdir()
    generator = np.random.default_rng(1)
    lines = ["the cat saw a dog\n", "rice is rolled by hand\n", "over the hills it ran\n"]
    for i in range(12):
        (folder / "text" / f"{i}.txt").write_text("".join(generator.choice(lines, 14)), encoding="utf-8")
    table = {"text": str(folder / "text"), "vocabulary": 280, "held_out": 0.2}
    return prepare(read(DataConfig, table), folder / "data", lambda *_: None)


def recipe(data: Prepared, task: SeveralConfig, **rest: Any) -> dict[str, Any]:
    mixer = {"kind": "attention", "heads": 2}
    return {
        "name": "several",
        "model": {"width": 32, "depth": 2, "pattern": [{"mixer": mixer, "ffn": {"kind": "swiglu", "width": 64}}]},
        "objective": {"kind": "several", "ids": task.ids, "heads": {"kind": task.heads.kind}, "trunk": task.trunk},
        "data": {"shards": str(data.folder)},
        "batch": {"tokens": 192, "context": 48},
        "optim": {"lr": 0.02, "schedule": {"kind": "wsd", "warmup": 2}},
        "stop": {"steps": 8},
        "save": {"every": 4},
        "watch": {"log": 1, "validate": 8, "validate_tokens": 200},
        "parallel": {"threads": 1},
        **rest,
    }


def steps(folder: Path) -> list[float]:
    return [line["loss"] for line in log.read(folder / "metrics.jsonl") if line["kind"] == "step"]


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    opened = Store(folder / "checkpoints").open(step)
    return {**opened.weights(), **{f"optimizer/{k}": v for k, v in (opened.optimizer() or {}).items()}}


class Kill(Hook):
    """Asks the run to end after a step."""

    name = "kill"

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def step(self, run: Run, line: Mapping[str, float]) -> None:
        if run.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def trained(found: dict[str, Any], folder: Path, resume: bool = False, hooks: Sequence[Hook] = ()) -> None:
    pipeline.train(pipeline.ready(found, folder), "auto" if resume else "never", hooks)


@pytest.mark.parametrize("heads", HEADS)
def test_resumed_is_uninterrupted_and_the_checkpoint_opens_by_itself(
    heads: str, data: Prepared, tmp_path: Path
) -> None:
    found, one, two = recipe(data, several(heads, 3)), tmp_path / "one", tmp_path / "two"
    trained(found, one)
    trained(found, two, hooks=[Kill(4)])
    assert len(steps(two)) == 4
    trained(found, two, resume=True)
    assert steps(one) == steps(two)
    assert steps(one)[-1] < steps(one)[0]
    left, right = arrays(one, 8), arrays(two, 8)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)
    opened = opener.open(two)
    assert opened.config.further == FurtherConfig(ids=3, heads=HEADS[heads])
    net = opened.model()
    assert all(np.array_equal(left[name], p.detach().numpy()) for name, p in net.named_parameters())
    lines = [line for line in log.read(two / "metrics.jsonl") if line["kind"] == "validate"]
    assert "bits_per_byte" in lines[-1]  # by the trunk, as any run is judged
    agreed = [line for line in log.read(two / "metrics.jsonl") if line["kind"] == "agreement"]
    assert [len(line["heads"]) for line in agreed] == [3]


@pytest.fixture(scope="module")
def trunk(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without heads."""
    folder = tmp_path_factory.mktemp("several") / "trunk"
    trained(recipe(data, several("parallel", 1)), folder)
    return folder


def upon(folder: Path, data: Prepared, task: SeveralConfig, **rest: Any) -> dict[str, Any]:
    """The recipe of a run that begins with another's model."""
    found = recipe(data, task, begin={"kind": "model", "path": str(folder)}, **rest)
    del found["model"]
    return found


@pytest.mark.parametrize("heads", HEADS)
def test_heads_on_a_frozen_trunk(heads: str, data: Prepared, trunk: Path, tmp_path: Path) -> None:
    """The trunk stays to the bit, heads learn, and exports are the trunk's."""
    before = arrays(trunk, 8)
    trained(upon(trunk, data, several(heads, 3, trunk="frozen")), tmp_path / "heads")
    after = arrays(tmp_path / "heads", 8)
    kept = {name for name in before if not name.startswith("optimizer/")}
    assert all(np.array_equal(before[name], after[name]) for name in kept)
    added = {name.removeprefix("optimizer/") for name in after.keys() - kept} - {"t"}
    assert added
    assert all(name.startswith("heads.") for name in added)  # weights and moments
    begun = next(line for line in log.read(tmp_path / "heads" / "metrics.jsonl") if line["kind"] == "start")
    assert begun["trainable"] == sum(each.size for name, each in after.items() if name.startswith("heads."))
    assert steps(tmp_path / "heads")[-1] < steps(tmp_path / "heads")[0]
    lines = [line for line in log.read(tmp_path / "heads" / "metrics.jsonl") if line["kind"] == "validate"]
    assert "loss" in lines[-1]
    assert "bits_per_byte" not in lines[-1]  # the trunk's do not move

    plain, own = opener.open(trunk), opener.open(tmp_path / "heads")
    made = carry.carry(own, tmp_path / "exported", "hf", TorchVoice, say=lambda _: None)
    assert any("further ids" in line for line in made.lost)
    rows = base_rows.rows([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = plain.model()(rows)
        assert torch.equal(own.model()(rows), wanted)
        assert torch.equal(own.trunk().model()(rows), wanted)
        variants.close(opener.open(tmp_path / "exported").model()(rows), wanted)
    again = carry.carry(own, tmp_path / "native", "native", TorchVoice, say=lambda _: None)
    assert again.after.config.further == own.config.further


def test_heads_go_on_with_their_like_and_stay_behind_otherwise(data: Prepared, tmp_path: Path) -> None:
    trained(recipe(data, several("medusa", 3), stop={"steps": 3}), tmp_path / "one")
    own = opener.open(tmp_path / "one")
    for task, same in ((several("medusa", 3), True), (several("medusa", 4), False), (several("medusa", 1), False)):
        config = recipes.complete(further.with_model(upon(tmp_path / "one", data, task), own), 280)
        net = build.build(config.model, 1)
        own.fill(net)
        weights = own.weights()
        for name, parameter in net.named_parameters():
            if same or not name.startswith("heads."):
                assert np.array_equal(parameter.detach().numpy(), weights[name].array())
        if not same and net.heads is not None:
            assert all(torch.equal(net.heads.head(k, net.head).weight, net.head.weight) for k in range(1, 4))


@pytest.mark.parametrize("heads", HEADS)
def test_heads_learn_to_say_what_comes(heads: str, data: Prepared, tmp_path: Path) -> None:
    """Of a text that repeats itself, trained heads say far more of the further ids than heads that did not learn."""
    found = recipe(data, several(heads, 3, weight=2.0), stop={"steps": 50}, save={"every": 50})
    trained(found, tmp_path)
    net = opener.open(tmp_path).model()
    raw = build.build(net.config, 9)
    loader = Loader(data.held, 48, 1)
    held = [loader.take(0, loader.rows)]
    learned, unlearned = agreement(net, held), agreement(raw, held)
    assert len(learned) == 3
    assert all(one > two + 0.3 for one, two in zip(learned, unlearned, strict=True)), (learned, unlearned)


def test_agreement_counts_by_hand() -> None:
    net, whole = model("sequential", ids=3), batch([4, 2, 5])
    found = agreement(net, [whole, whole])
    assert net.heads is not None
    with torch.no_grad():
        hidden = net(whole.rows, ahead=True)
    for k in range(3):
        best = net.heads.head(k, net.head).logits(hidden[k]).argmax(-1)
        pairs = [
            (i, i + k)
            for start, stop in [(0, 4), (4, 6), (6, 11)]
            for i in range(start, stop - k)
            if whole.weights[i + k] > 0
        ]
        assert found[k] == pytest.approx(sum(bool(best[i] == whole.targets[j]) for i, j in pairs) / len(pairs))


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_the_recipe_names_heads_once(data: Prepared) -> None:
    found = recipe(data, several("parallel"))
    made = recipes.complete(found, 280)
    assert made.model.further == FurtherConfig(ids=4, heads=ParallelHeadsConfig())
    assert read(RunConfig, recipes.config_door.mapping(made)) == made
    one = recipes.complete(recipe(data, several("parallel", 1)), 280)
    assert one.model.further is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model": {"further": {"ids": 3}}}, "model.further is not what the objective teaches"),
    "heads untaught": ({"objective": None, "model": {"further": {"ids": 3}}}, "does not teach the heads"),
    "beyond a row": ({"objective": {"ids": 9}, "batch": {"tokens": 64, "context": 8}}, "looks beyond a row"),
    "nothing learned": ({"objective": {"trunk": "frozen"}}, "needs a model that has learned"),
    "no heads to learn": ({"objective": {"trunk": "frozen", "ids": 1}}, "ids = 1 has none"),
    "both ways": (
        {"model": {"pattern": [{"mixer": {"kind": "attention", "heads": 2, "mask": "bidirectional"}}]}},
        "does not go with model.pattern.mixer.mask",
    ),
    "too many": ({"objective": {"ids": 17}}, "objective.*ids"),
    "no such heads": ({"objective": {"heads": {"kind": "eagle"}}}, "eagle"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_learned_is_refused_before_it_begins(what: str, data: Prepared) -> None:
    changes, words = WRONG[what]
    found = recipe(data, several("parallel"))
    for table, keys in changes.items():
        found[table] = {"kind": "next"} if keys is None else {**found[table], **keys}
    with pytest.raises(ConfigError, match=words):
        runs.check_recipe(recipes.complete(found, 280))
