"""Sweeps and suggestions: grids, runs that are done once, failures that are points, searches that find the best."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temaki.base import device, log
from temaki.base.errors import ConfigError, RunError
from temaki.cli import suggest as suggest_verb
from temaki.cli import sweep as sweep_verb
from temaki.optim.config import GeometricConfig
from temaki.optim.schedule import factor
from temaki.study import grid, proxies, range_test, search, suggest, suggestion, sweep
from temaki.study.proxies import Proxy
from temaki.train.hooks import Hook
from temaki.train.loop import Run


@pytest.fixture(autouse=True)
def _no_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peak is no part of what is tested here."""
    monkeypatch.setattr(device, "matmul_peak", lambda *_: 1e11)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents."""
    folder = tmp_path_factory.mktemp("text")
    words = [
        "the",
        "cat",
        "saw",
        "a",
        "dog",
        "and",
        "then",
        "it",
        "ran",
        "over",
        "hills",
        "rice",
        "rolled",
        "by",
        "hand",
    ]
    rng = np.random.default_rng(2)
    for i in range(40):
        lines = [" ".join(rng.choice(words, 8)) for _ in range(12)]
        (folder / f"{i:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def recipe(text: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {"text": str(text), "vocabulary": 280, "held_out": 0.2},
        "model": {"width": 16, "depth": 1, "pattern": [{"mixer": {"kind": "attention", "heads": 1}}]},
        "batch": {"tokens": 64, "context": 32, "halves": 2},
        "optim": {"schedule": {"kind": "wsd", "warmup": 2}},
        "stop": {"steps": 12},
        "watch": {"validate_tokens": 512},
        "parallel": {"threads": 1},
    }


GRID = 'seeds = [1, 2]\n[grid]\n"optim.lr" = [1e-2, 1e30]\nbatch.tokens = [32, 64]\n'


def swept(recipe: Mapping[str, Any], file: Path, folder: Path, **more: Any) -> sweep.Swept:
    return sweep.sweep(recipe, grid.points(recipe, grid.read(file)), folder, **more)


class Interrupt(Hook):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int, times: int = 1):
        super().__init__()
        self.at, self.times = step, times

    def step(self, run: Run, line: Mapping[str, float]) -> None:
        if run.step == self.at:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def test_a_sweep_killed_twice_and_gone_on_with_is_the_sweep_that_was_not(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(GRID.replace("[32, 64]", "[64]"))
    whole = swept(recipe, file, tmp_path / "whole")
    assert [each.state for each in whole.results] == ["finished"] * 2 + ["diverged"] * 2
    assert all(each.why for each in whole.results[2:])
    second = whole.results[1].name
    halted = swept(recipe, file, tmp_path / "cut", hooks=lambda name: [Interrupt(5)] if name == second else [])
    assert halted.stopped == "SIGINT"
    assert len(halted.results) == 1
    before = (tmp_path / "cut" / whole.results[0].name / "metrics.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        swept(recipe, file, tmp_path / "cut", hooks=lambda name: [Interrupt(8, 2)] if name == second else [])
    told: list[str] = []
    on = swept(recipe, file, tmp_path / "cut", made=lambda _i, _n, each: told.append(each.name))
    assert told == [each.name for each in whole.results]
    assert [(each.name, each.loss, each.steps) for each in on.results] == [
        (each.name, each.loss, each.steps) for each in whole.results
    ]
    assert (tmp_path / "cut" / whole.results[0].name / "metrics.jsonl").read_bytes() == before
    assert len(list((tmp_path / "cut").glob("data-*"))) == 1


def test_a_sweep_ends_in_a_page_results_and_the_best(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(GRID)
    sweep_verb.sweep(recipe, file, tmp_path / "out", True)
    said = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert said["points"] == kept["points"]
    losses: dict[int, list[float]] = {}
    for each in kept["points"]:
        if each["loss"] is not None:
            losses.setdefault(each["settings"]["batch.tokens"], []).append(each["loss"])
    means = {batch: float(np.mean(each)) for batch, each in losses.items()}
    best = min(means, key=lambda batch: means[batch])
    assert said["best"]["settings"] == {"optim.lr": 0.01, "batch.tokens": best}
    assert said["best"]["loss"] == pytest.approx(means[best])
    deviation = math.sqrt(np.mean([np.var(np.log(each), ddof=1) for each in losses.values()]))
    results = swept(recipe, file, tmp_path / "out")
    assert sweep.spread(results.results) == pytest.approx(deviation)
    assert "between seeds" in sweep.table(results)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert all(each["name"] in page for each in kept["points"])
    with pytest.raises(RunError, match="another recipe") as error:
        swept({**recipe, "stop": {"steps": 13}}, file, tmp_path / "out")
    assert "stop.steps: 12 -> 13" in str(error.value)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="no sweep"):
        swept(recipe, file, other)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "nothing to try"),
        ("grids = 1", "did you mean 'grid'"),
        ("[grid]\n", "grid: not a table"),
        ("grid = 3", "grid: not a table"),
        ('[grid]\n"optim.lr" = []', "grid.optim.lr: not a list"),
        ('[grid]\n"optim.lr" = 0.1', "grid.optim.lr: not a list"),
        ('[grid]\n"optim.lr" = [0.1, 0.1]', "stands there twice"),
        ("[grid]\nseed = [1]", "grid.seed: not for a sweep"),
        ('[grid]\nname = ["a"]', "grid.name: not for a sweep"),
        ("list = [3]", "list: not a list of tables"),
        ('[[list]]\n"optim.lr" = 0.1\n[[list]]\n"optim.lr" = 0.1', "stands there twice"),
        ("seeds = []", "seeds: not a list"),
        ("seeds = [-1]", "seed--1: seed"),
        ('[grid]\n"optim.lrr" = [0.1]', "optim.lrr-0.1: optim.lrr: unknown key"),
        ('[grid]\n"batch.tokens" = [64, 33]', "batch.tokens-33: batch: batch.tokens"),
        ('[grid]\n"optim.schedule.warmup" = [12]', "warmup"),
        ("[grid]\na = [" + ", ".join(map(str, range(10_001))) + "]", "too many runs"),
        ("[grid", "not TOML"),
    ],
)
def test_a_bad_grid_is_a_named_error_before_any_run(
    tmp_path: Path, recipe: dict[str, Any], content: str, said: str
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        swept(recipe, file, tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_grid_is_its_product_its_list_and_its_seeds_with_names_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'seeds = [3, 4]\n[grid]\noptim.lr = [1, 2]\n"model.tied" = [true, false]\n'
        '[[list]]\noptim.schedule = { kind = "cosine", warmup = 3 }\n"model.pattern" = [{ mixer = { heads = 2 } }]\n'
    )
    found = grid.read(file)
    assert len(found) == (2 * 2 + 1) * 2
    assert found[0] == {"optim.lr": 1, "model.tied": True, "seed": 3}
    assert found[-1]["optim.schedule.warmup"] == 3
    names = [grid.named(each) for each in found]
    assert len(set(names)) == len(names)
    assert grid.named({"a": 1}) != grid.named({"a": [1]}) != grid.named({"a": "x y"})
    long = [grid.named({"optim.lr": 0.1, "note": "x" * 39, "more": "y" * 39, "even": f"{i}" * 39}) for i in range(3)]
    assert len(set(long)) == 3
    assert max(map(len, long)) <= grid.LONGEST


def test_the_range_test_grows_the_rate_by_the_same_share_and_names_the_fall_and_the_turn() -> None:
    rates = [1e-4 ** (1 - i / 59) for i in range(60)]
    assert [factor(GeometricConfig(first=1e-4), i, 60) for i in range(60)] == pytest.approx(rates)
    noise = np.random.default_rng(1).normal(0, 0.02, 60)
    losses = [5 - 3 / (1 + (4e-3 / r) ** 2) + (r / 0.1) ** 3 + e for r, e in zip(rates, noise, strict=True)]
    found = range_test.judge(rates, losses)
    assert 1.5e-3 < found.steepest < 1e-2
    assert found.steepest < found.least < 0.1
    assert found.diverged is not None
    assert found.least < found.diverged < 0.4
    cut = range_test.judge(rates, [*losses[:40], *[math.nan] * 20])
    assert cut.diverged == rates[40]
    with pytest.raises(RunError, match="not finite"):
        range_test.judge(rates, [math.nan] * 60)


@pytest.mark.parametrize("best", [1e-4, 0.0031, 0.02, 0.9])
@pytest.mark.parametrize("wall", [math.inf, 3.0])
def test_the_search_finds_the_best_rate_from_afar_and_beside_a_cliff(best: float, wall: float) -> None:
    asked: list[float] = []

    def loss(rate: float) -> float | None:
        asked.append(rate)
        return 2 + 0.02 * math.log(rate / best) ** 2 if rate < best * wall else None

    found = search.best_rate(loss, best * 7)
    assert found is not None
    assert len(asked) == len(set(asked)) <= 8
    assert abs(math.log(found.rate / best)) < math.log(1.4 if wall < 10 else 1.02)
    assert found.loss == pytest.approx(2, rel=3e-3)
    assert search.best_rate(lambda _: None, 0.1) is None


def test_a_proxy_keeps_the_recipe_but_for_length_batch_and_rate(recipe: dict[str, Any]) -> None:
    made = {**recipe, "batch": {"tokens": 256, "micro": 64, "context": 32}, "stop": {"steps": 100, "minutes": 3.0}}
    made["optim"] = {"lr": 1.0, "clip": 0.5, "schedule": {"kind": "cosine", "warmup": 10}}
    config = suggest.checked(made)
    for batch, share, steps, warmup, micro in ((256, 1.0, 100, 10, 64), (128, 0.25, 50, 5, 64), (32, 0.5, 400, 40, 32)):
        point = proxies.point(made, config, Proxy(batch, 0.03, share))
        short = suggest.checked(point.recipe)
        assert (short.stop.steps, short.stop.minutes) == (steps, None)
        assert short.optim.schedule.warmup == warmup
        assert (short.batch.tokens, short.batch.micro, short.optim.lr, short.optim.clip) == (batch, micro, 0.03, 0.5)
        assert steps * batch == share * proxies.ids(config)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of a few steps and rates."""
    monkeypatch.setattr(suggest, "FEWEST", 3)
    monkeypatch.setattr(suggest, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(range_test, "STEPS", 30)
    monkeypatch.setattr(search, "best_rate", _two_more(search.best_rate))


def _two_more(whole: Callable[..., search.Vertex | None]) -> Callable[..., search.Vertex | None]:
    return lambda loss, centre: whole(loss, centre, 4.0, 1)


@pytest.mark.usefixtures("hasty")
def test_a_suggestion_goes_on_after_a_stop_and_its_settings_give_the_loss_it_names(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    halted, done = suggest.suggest(
        recipe, tmp_path / "s", batches=[32, 64], hooks=lambda name: [Interrupt(4)] if "share-1" in name else []
    )
    assert halted is None
    assert done.stopped == "SIGINT"
    said: list[str] = []
    found, all_runs = suggest.suggest(recipe, tmp_path / "s", batches=[32, 64], say=said.append)
    assert found is not None
    names = [each.name for each in done.results]
    assert [each.name for each in all_runs.results][: len(names)] == names
    assert found.batch in (32, 64)
    assert set(found.pairs) == {32, 64}
    assert {each.law.kind for each in found.laws.fitted} == {"square root", "linear"}
    assert len(said) == 3
    config = suggest.checked(recipe)
    at_end = [each for each in all_runs.results if each.settings["share"] == 1 and each.loss is not None]
    mine = [each.loss or 0 for each in at_end if each.settings["batch.tokens"] == found.batch]
    assert found.loss == min(mine)
    assert found.loss <= min(each.loss or 0 for each in at_end) * (1 + suggest.NEAR)
    again = grid.points(recipe, [{"optim.lr": found.rate, **_flat(found.settings)}])
    run = sweep.sweep(recipe, again, tmp_path / "again").results[0]
    assert run.tokens == proxies.ids(config)
    assert run.loss == found.loss
    assert not list((tmp_path / "s").glob("*/checkpoints"))
    words = suggestion.text(found)
    assert f"batch {found.batch // 32} rows ({found.batch} ids)" in words
    assert f"lr = {found.rate}" in words


def _flat(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in found.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


@pytest.mark.usefixtures("hasty")
def test_the_verb_keeps_to_its_minutes_and_refuses_what_it_cannot_use(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from temaki.base import config as config_door

    file = tmp_path / "r.toml"
    file.write_text(config_door.toml(recipe))
    for wrong in ({"batches": "32,x"}, {"batches": "48"}, {"batches": "32,32"}, {"batches": ""}, {"minutes": 0.0}):
        with pytest.raises(ConfigError, match=r"batches|minutes"):
            suggest_verb.suggest(
                file, [], None, None, **{"minutes": None, "batches": None, **wrong}, out=tmp_path / "s", json=False
            )
    with pytest.raises(ConfigError, match="too short for a search"):
        suggest_verb.suggest(file, [], None, None, 0.001, "32", tmp_path / "s", False)
    capsys.readouterr()
    suggest_verb.suggest(file, [], None, None, None, "32", tmp_path / "s", True)
    said = json.loads(capsys.readouterr().out)
    assert said["batch"] == 32
    assert said["rows"] == 1
    assert said["share"] == 1.0
    assert said["laws"]["fitted"] == []
    assert len(said["laws"]["unfitted"]) == 6
    lines = [each for each in log.read(tmp_path / "s" / "range" / "metrics.jsonl") if each["kind"] == "step"]
    assert len(lines) == 30
    shutil.rmtree(tmp_path / "s")
