"""Studies: their variants are all valid, what they measure is what it says, and a folder can be gone on with."""

import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import little_runs
from temaki.base import device as devices
from temaki.base import rows
from temaki.base.errors import ConfigError, DataError, RunError
from temaki.batches.prepare import Prepared
from temaki.cli.main import app
from temaki.model import build
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    LayerNormConfig,
    LearnedConfig,
    NoPositionConfig,
)
from temaki.model.norm import layer_norm
from temaki.model.prune import prune_heads
from temaki.report import study as page
from temaki.study import (
    attended,
    decoding,
    extrapolation,
    head_loss,
    held,
    lab,
    pace,
    recipes,
    shuffled,
    spread,
    studies,
    told,
    worked,
)
from temaki.study.lab import Length, Listener
from temaki.study.pace import Cost
from temaki.study.studies import Asked
from temaki.train import run as runs
from temaki.train.loop import Run

CONTEXT = 16
SMALL = (
    "data.vocabulary=300", "model.width=16", "model.depth=2", "batch.tokens=64", f"batch.context={CONTEXT}",
    "watch.validate_tokens=200", "data.held_out=0.2",
)  # fmt: skip
MEASURED = ("seconds", "tokens_per_second", "written", "machine", "decoding")
"""What is measured by the clock or is the machine's."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return little_runs.prepared_in(tmp_path_factory.mktemp("data"))


def model(**more: Any) -> build.Model:
    """A little decoder in float64 whose projections are not at zero."""
    block = BlockConfig(mixer=AttentionConfig(heads=2, position=NoPositionConfig()))
    made = build.build(DecoderConfig(**{"vocabulary": 300, "width": 16, "depth": 2, "pattern": (block,), **more}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.double().eval()


@torch.no_grad()
def direct(made: build.Model, ids: np.ndarray) -> torch.Tensor:
    """-log p of each id after the first, one stretch at a time, by the plain formula."""
    found = []
    for row in torch.from_numpy(ids):
        logits = made.head.logits(made(rows.rows([row[:-1]])))
        found.append(-logits.log_softmax(-1)[torch.arange(len(row) - 1), row[1:]])
    return torch.stack(found)


# ---- variants -------------------------------------------------------------------------------------------------------


def test_every_variant_of_every_study_is_a_whole_recipe(tmp_path: Path) -> None:
    for name in studies.NAMES:
        asked = Asked(pixels=str(tmp_path)) if name == "mixers" else Asked()
        for part in studies.study(name, asked).parts:
            names = [each.name for each in part.variants]
            assert len(set(names)) == len(names) >= 5
            for variant in part.variants:
                recipe = {**lab.with_variant(pace.paced(part.recipe, 40), variant), "name": variant.name}
                config = recipes.complete(recipe, 1024)
                runs.check_recipe(config)
                assert config.stop.steps == 40
                assert config.batch.context == part.context


def test_variants_can_be_chosen_and_strange_ones_are_named() -> None:
    found = studies.study("mixers", Asked(only=("lstm", "s4d")))
    assert {tuple(each.name for each in part.variants) for part in found.parts} == {("s4d", "lstm")}
    with pytest.raises(ConfigError, match="no such variant") as error:
        studies.study("norms", Asked(only=("rms", "rsm")))
    assert error.value.found == "rsm"
    assert "layer-post" in error.value.allowed
    found = studies.study("mixers", Asked(parts=("copy", "text")))
    assert [part.name for part in found.parts] == ["text", "copy"]
    with pytest.raises(ConfigError, match="no such part"):
        studies.study("mixers", Asked(parts=("texts",)))
    for name, asked in (("position", Asked()), ("norms", Asked(pixels="x")), ("norms", Asked(changes=("batch=1",)))):
        with pytest.raises(ConfigError):
            studies.study(name, asked)


# ---- what is measured -----------------------------------------------------------------------------------------------


def test_stretches_lie_in_documents_and_losses_are_the_plain_formula(data: Prepared) -> None:
    found = held.stretches(data.held, 40, 6)
    whole = data.held.read(0, len(data.held))
    assert found.shape == (6, 41)
    assert all(data.held.manifest.boundary not in each[1:] for each in found)
    assert all(bytes(each.tobytes()) in bytes(whole.tobytes()) for each in found)
    made = model()
    torch.testing.assert_close(held.losses(made, found), direct(made, found), rtol=1e-9, atol=1e-9)


def test_loss_by_length_is_the_direct_loss(data: Prepared) -> None:
    made, most = model(), 5
    found = extrapolation.measure(made, data.held, CONTEXT, most)
    ids = held.stretches(data.held, 4 * CONTEXT, most)
    long = direct(made, ids)
    cut = torch.cat([direct(made, ids[:, i * CONTEXT : (i + 1) * CONTEXT + 1]) for i in range(4)], 1)
    last = CONTEXT // 4
    assert found["short"] == pytest.approx(float(cut.mean()), rel=1e-9)
    for place, end in enumerate((CONTEXT, 2 * CONTEXT, 4 * CONTEXT)):
        assert found["mean"][place] == pytest.approx(float(long[:, :end].mean()), rel=1e-9)
        assert found["last"][place] == pytest.approx(float(long[:, end - last : end].mean()), rel=1e-9)
        assert found["cut"][place] == pytest.approx(float(cut[:, end - last : end].mean()), rel=1e-9)
    assert found["last"][0] == found["cut"][0]
    assert np.mean(found["places"]) == pytest.approx(float(long.mean()), rel=1e-9)


def test_learned_positions_cannot_be_read_further(data: Prepared) -> None:
    found = extrapolation.measure(model(input_position=LearnedConfig(room=CONTEXT)), data.held, CONTEXT, 3)
    assert "position" in found["cannot"]
    assert found["mean"][1:] == [None, None]
    assert found["short"] > 0


def test_mixing_keeps_pairs_and_is_a_function_of_the_text() -> None:
    ids = np.arange(100)
    mixed = shuffled.mix(ids, 20, 7)
    for low in range(0, 100, 20):
        pairs = mixed[low : low + 20].reshape(-1, 2).tolist()
        assert sorted(pairs) == ids[low : low + 20].reshape(-1, 2).tolist() != pairs
    assert np.array_equal(mixed, shuffled.mix(ids, 20, 7))
    assert not np.array_equal(mixed, shuffled.mix(ids, 20, 8))
    assert np.array_equal(shuffled.mix(ids, 30, 1)[90:], ids[90:])


def test_order_is_worth_nothing_to_a_model_that_sees_one_id_alone(data: Prepared) -> None:
    block = BlockConfig(mixer=AttentionConfig(heads=2, window=1, position=NoPositionConfig()))
    found = shuffled.measure(model(pattern=(block,)), data.held, CONTEXT, 20)
    assert found["ordered"] == pytest.approx(found["shuffled"], rel=1e-9)
    other = shuffled.measure(model(), data.held, CONTEXT, 20)
    assert abs(other["ordered"] - other["shuffled"]) > 1e-4


def test_mixed_data_hold_the_same_documents(data: Prepared, tmp_path: Path) -> None:
    folder = shuffled.prepare(data, tmp_path / "mixed", CONTEXT)
    again = shuffled.prepare(data, tmp_path / "mixed", CONTEXT)
    assert folder == again
    mixed = runs_data(folder)
    for split, other in ((data.train, mixed.train), (data.held, mixed.held)):
        for i in range(split.manifest.documents):
            a, b = split.document(i), other.document(i)
            assert a[0] == b[0] == split.manifest.boundary
            assert sorted(a) == sorted(b)
    assert not np.array_equal(data.train.document(0), mixed.train.document(0))


def runs_data(folder: Path) -> Prepared:
    from temaki.batches import prepare

    return prepare.open_prepared(folder)


def test_what_a_head_is_worth_is_the_loss_of_the_pruned_model(data: Prepared) -> None:
    made = model()
    before = [each.clone() for each in made.parameters()]
    found = head_loss.measure(made, data.held, CONTEXT, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    ids = held.stretches(data.held, CONTEXT, 4)
    whole = direct(made, ids).mean()
    for layer in range(2):
        for head in range(2):
            worth = float(direct(prune_heads(made, layer, [head]), ids).mean() - whole)
            assert found["worth"][str(layer)][head] == pytest.approx(worth, rel=1e-6, abs=1e-9)


def test_uniform_attention_spreads_by_one_over_n() -> None:
    found = spread.uniform(width=256, places=(1, 4, 16, 100, 400), draws=6)
    assert found["mean"] == pytest.approx(found["said"], rel=0.15)


def test_spread_of_a_layer_is_told_by_place(data: Prepared) -> None:
    made = model()
    found = spread.measure(made, data.held, CONTEXT, 3)
    assert found["places"] == [1, 2, 4, 8, 16]
    assert set(found["layers"]) == {"0", "1"}
    assert all(each[0] == 1.0 and min(each) > 0 for each in found["layers"].values())


def test_maps_are_kept_as_digits_and_zeros_counted(data: Prepared) -> None:
    found = attended.measure(model(), data.held, CONTEXT)
    assert found["zeros"] == {"0": 0.0, "1": 0.0}
    assert found["sums"] == pytest.approx([1.0, 1.0])
    for heads in found["maps"].values():
        assert len(heads) == 2
        for rows_ in heads:
            assert rows_[0] == "9" + "0" * (CONTEXT - 1)
            assert all(row[i + 1 :] == "0" * (CONTEXT - 1 - i) for i, row in enumerate(rows_))


def test_a_state_that_grows_is_told_from_one_that_does_not() -> None:
    found = decoding.measure(model(), held=(4, 12), steps=2)
    assert 2.9 < found["bytes"][1] / found["bytes"][0] <= 3  # 12 ids of keys and values for 4, and a length
    assert min(found["milliseconds"]) > 0


def test_steps_fill_the_time_and_no_more() -> None:
    part = studies.study("norms", Asked()).parts[0]
    costs = {"a": Cost(step=0.02, run=1.0), "b": Cost(step=0.05, run=2.0)}
    steps = pace.fitting(part, costs, 120.0, 3, 30.0)
    taken = 3 * sum(cost.run + (steps + 30) * cost.step for cost in costs.values())
    assert 119 < taken <= 120
    assert pace.fitting(part, costs, pace.needed(part, costs, 3, 30.0), 3, 30.0) in (pace.LEAST - 1, pace.LEAST)


def test_worked_pictures_hold() -> None:
    found = worked.contrast()
    x = torch.tensor(found["x"], dtype=torch.float64)
    wanted = layer_norm(x, torch.ones(3, dtype=torch.float64), eps=LayerNormConfig().eps)
    torch.testing.assert_close(torch.tensor(found["layer"], dtype=torch.float64), wanted, atol=1e-4, rtol=0)
    assert found["batch"] == [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]
    linear = worked.linear()
    assert sum(linear["linear"]) == pytest.approx(1) == sum(linear["softmax"])
    assert min(linear["linear"]) < 0 < min(linear["softmax"])
    assert None in linear["moved"]["linear"]
    answers = worked.lookup()
    nearest = [round(turn) for turn in answers["turn"] if abs(turn % 1 - 0.5) > 0.2]
    sharp = [x for turn, x in zip(answers["turn"], answers["answers"]["256"], strict=True) if abs(turn % 1 - 0.5) > 0.2]
    assert sharp == pytest.approx(nearest, abs=0.02)


# ---- a whole study --------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sentences; the machine is not measured."""
    monkeypatch.setattr(devices, "matmul_peak", lambda _device: 1e9)
    folder = tmp_path / "text"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for i in range(12):
        lines = [" ".join(generator.choice(little_runs.WORDS, 9)) for _ in range(12)]
        (folder / f"{i:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def asked_for(text: Path, *only: str) -> Asked:
    return Asked(text=str(text), changes=SMALL, only=only)


def unmeasured(found: Any) -> Any:
    """Results without what the clock says."""
    if isinstance(found, Mapping):
        return {key: unmeasured(value) for key, value in found.items() if key not in MEASURED}
    return [unmeasured(each) for each in found] if isinstance(found, list) else found


def interrupting(at: str) -> Callable[[str], list[little_runs.At]]:
    """Hooks that ask for a stop in the middle of a run."""

    def act(_run: Run) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    return lambda name: [little_runs.At(4, act)] if name == at else []


def test_a_study_that_was_stopped_goes_on_to_the_same_results(text: Path, tmp_path: Path) -> None:
    asked, length = asked_for(text, "none", "none-shuffled"), Length(minutes=None, steps=8, seeds=2)
    study = studies.study("positions", asked)
    whole = lab.run(study, asked, length, tmp_path / "whole")
    assert whole.stopped is None
    stopped = lab.run(study, asked, length, tmp_path / "parts", Listener(hooks=interrupting("none-shuffled-1")))
    assert stopped.stopped == "SIGINT"
    assert "Stopped by SIGINT" in stopped.page.read_text(encoding="utf-8")
    again = lab.run(study, asked, length, tmp_path / "parts")
    assert json.dumps(unmeasured(again.results)) == json.dumps(unmeasured(whole.results))
    kept = json.loads((tmp_path / "whole" / lab.RESULTS).read_text(encoding="utf-8"))
    assert unmeasured(kept) == json.loads(json.dumps(unmeasured(whole.results)))
    _complete(kept, ("none", "none-shuffled"), seeds=2)
    _offline(whole.page.read_text(encoding="utf-8"))
    with pytest.raises(RunError, match="another study"):
        lab.run(study, asked, Length(minutes=None, steps=9, seeds=2), tmp_path / "whole")


def _complete(found: Mapping[str, Any], names: tuple[str, ...], seeds: int) -> None:
    part = found["parts"]["text"]
    assert part["steps"] == 8
    assert tuple(part["variants"]) == names
    for each in part["variants"].values():
        assert [run["seed"] for run in each["runs"]] == list(range(1, seeds + 1))
        assert all(run["state"] == "finished" and run["validation"] and run["training"] for run in each["runs"])
        assert each["loss"]["runs"] == seeds
        assert {"length", "order", "spread"} == set(each["runs"][0]["measures"])
        assert {"length", "order"} == set(each["runs"][1]["measures"])


def _offline(html: str) -> None:
    assert re.search(r"""(?:src|href)\s*=|https?://|@import|url\(""", html) is None
    assert "default-src 'none'" in html
    assert "What order is worth" in html
    assert html.count("<section>") >= 3


def test_minutes_give_steps_and_too_few_are_refused_before_any_run(text: Path, tmp_path: Path) -> None:
    asked = asked_for(text, "rms")
    study = studies.study("norms", asked)
    with pytest.raises(ConfigError, match="too short") as error:
        lab.run(study, asked, Length(minutes=1e-4, seeds=2), tmp_path / "study")
    assert "about" in error.value.allowed
    assert not (tmp_path / "study" / "text").exists()
    done = lab.run(study, asked, Length(minutes=0.045, seeds=1), tmp_path / "study")
    assert done.results["parts"]["text"]["steps"] >= pace.LEAST
    with pytest.raises(ConfigError, match="both"):
        lab.run(study, asked, Length(minutes=1, steps=5), tmp_path / "study")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="no study"):
        lab.run(study, asked, Length(minutes=None, steps=5), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["poem.txt"]


def test_pictures_that_cannot_be_read_are_refused_before_any_run(text: Path, tmp_path: Path) -> None:
    asked = Asked(text=str(text), pixels=str(tmp_path / "nowhere"), changes=SMALL, only=("gru",))
    with pytest.raises(DataError, match="holds no pictures"):
        lab.run(studies.study("mixers", asked), asked, Length(minutes=None, steps=2, seeds=1), tmp_path / "study")
    assert not list((tmp_path / "study").rglob("checkpoints"))
    assert not json.loads((tmp_path / "study" / lab.PLAN).read_text())["parts"]


def test_each_optimizer_gets_a_rate_of_its_own_from_another_seed(text: Path, tmp_path: Path) -> None:
    asked = asked_for(text, "sgd")
    done = lab.run(
        studies.study("optimizers", asked), asked, Length(minutes=None, steps=6, seeds=1), tmp_path / "study"
    )
    part = done.results["parts"]["text"]
    ends = {float(factor): loss for factor, loss in part["rates"]["sgd"].items()}
    assert len(ends) >= 3
    best = min((factor for factor in ends if ends[factor] is not None), key=lambda each: ends[each])
    assert best not in (min(ends), max(ends)) or len(ends) == 4
    (run,) = part["variants"]["sgd"]["runs"]
    assert run["lr"] == pytest.approx(0.25 * best)
    assert run["seed"] == 1


def test_a_run_that_diverges_is_a_result(text: Path, tmp_path: Path) -> None:
    asked = Asked(text=str(text), changes=(*SMALL, "optim.lr=1e30", "optim.clip=1e30"), only=("rms",))
    done = lab.run(studies.study("norms", asked), asked, Length(minutes=None, steps=8, seeds=1), tmp_path / "study")
    found = done.results["parts"]["text"]["variants"]["rms"]
    assert found["diverged"] == 1
    assert "loss" not in found
    assert "1 diverged" in done.page.read_text(encoding="utf-8")


def test_the_page_shows_what_was_not_run_yet_and_what_was_lost() -> None:
    study = studies.study("mixers", Asked(only=("rnn", "gru")))
    ran = {"seed": 1, "state": "finished", "loss": 2.0, "accuracy": 0.5, "lr": 0.1, "parameters": 9, "measures": {}}
    ran |= {key: [[1.0, 2.0], [2.0, 1.5]] for key in ("validation", "training", "gradients")}
    lost = {**ran, "state": "diverged", "loss": None, "accuracy": None, "seed": 2, "validation": []}
    made = {"copy": {"rnn": [ran, lost], "gru": [ran]}, "delay": {"gru": [ran]}}
    found = told.study(study, Length(seeds=2), {"copy": 5, "delay": 5}, made, {}, None)
    html = page.html(found)
    assert html.count("Not run yet.") == len(study.parts) - 2
    assert "copy, rnn: 1 of 2 runs diverged." in html
    assert "All at a glance" in html


def test_the_verb_prints_figures(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = ["study", "softmax", *SMALL, "--text", str(text), "--only", "softmax", "--steps", "6", "--seeds", "1"]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["parts"]["text"]["softmax"]["loss"]["runs"] == 1
    html = (out / "study.html").read_text(encoding="utf-8")
    assert "Why not divide by the sum?" in html
    assert "Where heads look" in html
    assert "Loss for each head taken out" in html
    assert len(html) < 1_000_000
