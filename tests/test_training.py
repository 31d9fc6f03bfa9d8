"""Laws of training: resume = uninterrupted, accumulated = one batch, faults leave the weights alone."""

import os
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import variants
from little_runs import At, lines, plain, prepared_in, recipe, same_checkpoints
from temaki.base import device as devices
from temaki.base import files, log
from temaki.base.config import read
from temaki.base.errors import ConfigError, DataError, NonFiniteError, RunError
from temaki.base.rows import TokenBatch
from temaki.batches.bigrams import count as count_bigrams
from temaki.batches.prepare import Prepared, open_prepared, prepare
from temaki.checkpoint.store import Store
from temaki.model import bigrams
from temaki.train import run as runs
from temaki.train.config import NextConfig, RunConfig
from temaki.train.loop import Run
from temaki.train.objectives import Next
from temaki.train.step import gradients
from variants import NAMES


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Shards of a small corpus of varied sentences, with a home-made tokenizer."""
    return prepared_in(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def _peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix peak is not measured for each little run."""
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_is_uninterrupted_to_the_bit(name: str, stop: int, prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe(name))
    runs.start(config, tmp_path / "whole", prepared)
    asked = At(stop, lambda _run: os.kill(os.getpid(), signal.SIGTERM))
    outcome = runs.start(config, tmp_path / "cut", prepared, [asked])
    assert (outcome.reason, outcome.run.step) == ("SIGTERM", stop)
    outcome = runs.start(config, tmp_path / "cut", prepared, resuming="auto")
    assert (outcome.reason, outcome.run.step) == ("finished", 12)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 12
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)


def test_resume_after_a_crash_forgets_what_came_after_the_save(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("hybrid"))
    runs.start(config, tmp_path / "whole", prepared)

    def crash(_run: Run) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        runs.start(config, tmp_path / "cut", prepared, [At(8, crash)])
    assert Store(tmp_path / "cut" / "checkpoints").steps() == [5]
    assert len(lines(tmp_path / "cut")) == 8
    runs.start(config, tmp_path / "cut", prepared, resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)


def test_resume_passes_over_a_damaged_checkpoint(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped"))
    runs.start(config, tmp_path / "whole", prepared)
    runs.start(config, tmp_path / "cut", prepared)
    broken = tmp_path / "cut" / "checkpoints" / "step-00000012" / "model.safetensors"
    content = bytearray(broken.read_bytes())
    content[-3] ^= 1
    broken.write_bytes(content)
    warnings: list[str] = []
    runs.start(config, tmp_path / "cut", prepared, resuming="auto", warn=warnings.append)
    assert "model.safetensors" in warnings[0]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)


def test_a_refused_resume_changes_nothing(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped", stop={"steps": 3}))
    runs.start(config, tmp_path / "run", prepared)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    other = recipe("grouped", model=plain("multi-query"))
    for allow, says in (((), "not that of the save"), (("model", "stop"), "another model")):
        with pytest.raises(RunError, match=says):
            runs.start(read(RunConfig, other), tmp_path / "run", prepared, resuming="auto", allow=allow)
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}


def test_resuming_a_finished_run_keeps_its_checkpoints(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped", stop={"steps": 3}))
    runs.start(config, tmp_path / "run", prepared)
    manifest = tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json"
    before = manifest.read_bytes()
    assert runs.start(config, tmp_path / "run", prepared, resuming="auto").reason == "finished"
    assert manifest.read_bytes() == before


def test_a_run_is_never_overwritten(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped", stop={"steps": 3}))
    runs.start(config, tmp_path / "run", prepared)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    with pytest.raises(RunError, match="holds a run already"):
        runs.start(config, tmp_path / "run", prepared)
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}


def test_one_process_at_a_time_trains_in_a_folder(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped", stop={"steps": 3}))
    with files.only(tmp_path / "run"), pytest.raises(RunError, match="another process is training"):
        runs.start(config, tmp_path / "run", prepared)
    assert list((tmp_path / "run").iterdir()) == []  # nothing was begun, and the folder is free again
    assert runs.start(config, tmp_path / "run", prepared).reason == "finished"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_accumulated_is_one_big_batch(name: str, dtype: torch.dtype, bound: float, prepared: Prepared) -> None:
    """Micro-batches of unequal weight too: the counts are added before any of them runs."""
    from temaki.batches.loader import Loader

    model = build_for(name, dtype)
    loader = Loader(prepared.train, 16, seed=2)
    objective = Next(NextConfig(z=1e-3, smooth=0.1))
    generator = torch.Generator().manual_seed(1)

    def weighted(batch: TokenBatch, seed_rows: int) -> TokenBatch:
        weights = torch.rand(len(batch.targets), generator=generator)
        weights[: seed_rows * 5] = 0
        return TokenBatch(batch.rows, batch.targets, weights)

    parts = [weighted(loader.take(i, 2), i) for i in (0, 2, 4)]
    whole = loader.take(0, 6)
    whole = TokenBatch(whole.rows, whole.targets, torch.cat([part.weights for part in parts]))
    found = []
    for batches in (parts, [whole]):
        model.zero_grad()
        loss = gradients(model, objective, batches).loss
        found.append((loss, torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])))
    (loss_a, a), (loss_b, b) = found
    assert abs(loss_a - loss_b) <= 1e-5
    assert float((a - b).norm() / b.norm()) <= bound


def build_for(name: str, dtype: torch.dtype) -> torch.nn.Module:
    from temaki.model import build

    return build.build(variants.config(name, vocabulary=300), 1, dtype)


def test_a_loss_made_non_finite_stops_and_names_step_and_layer(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped"))
    kept: dict[str, torch.Tensor] = {}

    def poison(run: Run) -> None:
        kept.update({name: p.detach().clone() for name, p in run.model.named_parameters()})
        run.model.blocks[1].mixer.register_forward_hook(lambda _m, _i, output: output * float("inf"))
        last.append(run)

    last: list[Run] = []
    with pytest.raises(NonFiniteError, match=r"step 8: .*not finite") as raised:
        runs.start(config, tmp_path / "run", prepared, [At(7, poison)])
    assert "blocks.1.mixer" in str(raised.value)
    assert all(torch.equal(p, kept[name]) for name, p in last[0].model.named_parameters())
    assert last[0].optimizer.t == 7
    assert Store(tmp_path / "run" / "checkpoints").newest().checkpoint.manifest.step == 5  # type: ignore[union-attr]


def test_weights_that_are_not_finite_are_named(prepared: Prepared, tmp_path: Path) -> None:
    def poison(run: Run) -> None:
        with torch.no_grad():
            run.model.get_parameter("blocks.0.ffn.up")[0, 0] = float("nan")

    with pytest.raises(NonFiniteError, match=r"parameter blocks\.0\.ffn\.up"):
        runs.start(read(RunConfig, recipe("grouped")), tmp_path / "run", prepared, [At(2, poison)])


def test_another_tokenizer_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    import shutil

    from temaki.tokens import bpe_train, files

    shutil.copytree(prepared.folder, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "tokenizer")
    files.save(bpe_train.train(["some other text to learn from"], 270), tmp_path / "data" / "tokenizer")
    with pytest.raises(DataError, match="another tokenizer"):
        open_prepared(tmp_path / "data")


def test_prepared_data_are_whole_or_absent_and_never_of_other_settings(prepared: Prepared, tmp_path: Path) -> None:
    from temaki.batches.config import DataConfig

    text = prepared.folder.parent / "text"
    config = read(DataConfig, {"text": str(text), "vocabulary": 280, "held_out": 0.3})

    def interrupt(what: str, done: int, _of: int) -> None:
        if what.startswith("encoding") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, tmp_path / "data", interrupt)
    assert list(tmp_path.iterdir()) == []
    first = prepare(config, tmp_path / "data", lambda *_: None)
    again = prepare(config, tmp_path / "data", interrupt)
    assert first.train.manifest == again.train.manifest
    other = read(DataConfig, {"text": str(text), "vocabulary": 290})
    with pytest.raises(DataError, match="other settings"):
        prepare(other, tmp_path / "data", lambda *_: None)
    assert prepare(other, tmp_path / "data", lambda *_: None, anew=True).tokenizer.size == 290
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError):
        prepare(other, tmp_path / "mine", lambda *_: None, anew=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_minutes_decide_the_length_once(prepared: Prepared, tmp_path: Path) -> None:
    config = read(RunConfig, recipe("grouped", stop={"steps": 100000, "minutes": 0.05}))
    outcome = runs.start(config, tmp_path / "run", prepared)
    assert outcome.reason == "finished"
    decided = [line for line in log.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "plan"]
    assert [line["steps"] for line in decided] == [outcome.run.step]
    rates = [float(line["lr"]) for line in lines(tmp_path / "run")]  # type: ignore[arg-type]
    assert rates[-1] == pytest.approx(0.02 * config.optim.lr)


def test_compiled_training_is_the_same_run(prepared: Prepared, tmp_path: Path) -> None:
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    schedule = {"lr": 1e-4, "schedule": {"warmup": 2}}
    config = recipe("grouped", stop={"steps": 14}, optim=schedule, batch={"tokens": 512, "context": 32})
    outcome = runs.start(read(RunConfig, config), tmp_path / "plain", prepared)
    cuts = {len(outcome.run.loader.take(16 * step, 16).rows.cuts) for step in range(14)}
    assert len(cuts) > 3
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    runs.start(
        read(RunConfig, {**config, "parallel": {"threads": 1, "compile": True}}),
        tmp_path / "compiled",
        prepared,
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2
    a, b = (np.array([line["loss"] for line in lines(tmp_path / name)]) for name in ("plain", "compiled"))
    assert np.abs(a - b).max() < 1e-4


def test_a_run_that_begins_as_bigrams_is_the_counts_of_its_text(prepared: Prepared, tmp_path: Path) -> None:
    """At full rank but two, the first loss is that of the smoothed bigram model, counted with a dictionary."""
    counts = count_bigrams(prepared.train)
    stream = prepared.train.read(0, len(prepared.train)).tolist()
    pairs = Counter(pairwise(stream))
    assert {(x, y): int(counts[x, y]) for x, y in zip(*np.nonzero(counts), strict=True)} == pairs
    v = prepared.tokenizer.size
    embedding, head = bigrams.factors(torch.from_numpy(counts), v, 5.0, seed=1)
    assert torch.allclose(embedding.square().sum(1), torch.tensor(float(v)), rtol=1e-4)
    after = (counts.sum(0) + 1) / (counts.sum() + v)
    wanted = np.log((counts + 5.0 * after) / (counts.sum(1, keepdims=True) + 5.0))
    seen = counts.sum(1) > 20
    gap = np.abs((embedding @ head.mT).numpy() - wanted)[seen]
    assert np.average(gap, weights=counts[seen] + 1e-9) < 0.05
    assert np.average(np.abs(np.log(after) - wanted[seen]), weights=counts[seen] + 1e-9) > 0.5


def test_bigrams_lower_the_first_loss_and_resume_like_any_run(prepared: Prepared, tmp_path: Path) -> None:
    model = {**plain("grouped"), "tied": False, "init": "zero-out"}
    changed = recipe("grouped", model=model)
    first = []
    for name, begin in (("random", {"kind": "random"}), ("bigrams", {"kind": "bigrams", "smooth": 5.0})):
        config = read(RunConfig, {**changed, "begin": begin})
        runs.start(config, tmp_path / name, prepared)
        first.append(lines(tmp_path / name)[0]["loss"])
    assert first[1] < first[0] - 1.0  # type: ignore[operator]
    runs.start(config, tmp_path / "cut", prepared, [At(4, lambda _run: os.kill(os.getpid(), signal.SIGTERM))])
    runs.start(config, tmp_path / "cut", prepared, resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "bigrams")


def test_bigrams_refuse_what_they_cannot_fill(prepared: Prepared, tmp_path: Path) -> None:
    for change in ({"tied": True, "init": "zero-out"}, {"tied": False, "init": "cs336"}):
        config = read(RunConfig, recipe("grouped", model={**plain("grouped"), **change}, begin={"kind": "bigrams"}))
        with pytest.raises(ConfigError, match="bigrams"):
            runs.start(config, tmp_path / "run", prepared)
