"""Laws of what shows a run while it goes on: the growing report, trackers, the progress line."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from temaki.base.dist import ALONE, World
from temaki.base.errors import ConfigError, RunError
from temaki.base.log import MetricLog, read
from temaki.cli import progress, train
from temaki.report import run as report
from temaki.study import estimate, hooks, pipeline, recipes, trackers
from temaki.train.config import RunConfig

RECIPE = {
    "name": "seen",
    "model": {"vocabulary": 300, "width": 8, "depth": 1, "pattern": [{"mixer": {"kind": "attention", "heads": 2}}]},
    "stop": {"steps": 100},
}


def config(**stop: Any) -> RunConfig:
    return recipes.complete({**RECIPE, "stop": {"steps": 100, **stop}}, 300)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """What hooks ask of a run, without a model."""
    plan = SimpleNamespace(steps=100, settled=True)
    made = SimpleNamespace(
        config=config(),
        folder=tmp_path / "seen",
        log=None,
        world=ALONE,
        step=0,
        seconds=0.0,
        plan=plan,
        hooks=[],
    )
    made.folder.mkdir()
    (made.folder / "config.toml").write_text('name = "seen"\n')
    made.log = MetricLog(made.folder / "metrics.jsonl")
    yield made
    made.log.close()


def line(step: int, **more: float) -> dict[str, Any]:
    measured = {"step": step, "loss": 5.0, "lr": 3e-3, "grad_norm": 0.8, "tokens": 10 * step, "seconds": 2.0 * step}
    return {**measured, "tokens_per_second": 12_345.0, "peak_share": 0.58, **more}


# ---- trackers ----------------------------------------------------------------------------------------------------


class Board:
    """Stands in for each package: remembers what it was told."""

    def __init__(self) -> None:
        self.began: list[dict[str, Any]] = []
        self.got: dict[int, dict[str, float]] = {}
        self.ended = 0
        self.broken = False

    def init(self, **given: Any) -> "Board":
        self.began.append(given)
        return self

    def log(self, found: dict[str, float], step: int | None = None) -> None:
        if self.broken:
            raise ConnectionError("no way out")
        self.got.setdefault(int(found["step"]) if step is None else step, {}).update(found)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.log({name: value}, step)

    def add_text(self, _name: str, text: str, _step: int) -> None:
        self.began[-1]["text"] = text

    def define_metric(self, _name: str, step_metric: str) -> None:
        assert step_metric == "step"

    def finish(self) -> None:
        self.ended += 1

    close = finish

    def summary_writer(self, folder: str, purge_step: int) -> "Board":
        return self.init(folder=folder, purge_step=purge_step)


NAMES = list(trackers.TRACKERS)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """One stand-in for all packages, found as if they were installed."""
    found = Board()
    settings = {"Settings": lambda console: console, "SummaryWriter": found.summary_writer, "__spec__": object()}
    for name in ("torch.utils.tensorboard", *NAMES):
        module = SimpleNamespace(init=found.init, log=found.log, finish=found.finish, **settings)
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_hears_the_numbers_of_the_log(name: str, run: Any, board: Board) -> None:
    (hook,) = trackers.trackers([name, name])
    run.log.write({"kind": "start", "step": 0, "params": 3})
    run.step = 4
    hook.begin(run)
    run.log.write({"kind": "step", **line(5, noise_scale=7.0), "grad_norm/matrix": 0.5, "memory": None})
    run.log.write({"kind": "validate", "step": 5, "loss": 4.0, "bits_per_byte": 1.5})
    run.log.write({"kind": "save", "step": 5, "path": "x"})
    hook.end(run, "finished")
    run.log.write({"kind": "step", **line(6)})
    assert set(board.got) == {5}
    wanted = {**line(5, noise_scale=7.0), "grad_norm/matrix": 0.5, "validate/loss": 4.0, "validate/bits_per_byte": 1.5}
    assert {**board.got[5], "step": 5} == wanted
    assert board.ended == 1
    (began,) = board.began
    if name == "tensorboard":
        assert began["purge_step"] == 5
        assert 'name = "seen"' in began["text"]
        assert Path(began["folder"]) == run.folder / "tensorboard"
    else:
        assert began["config"]["model"]["width"] == 8
        assert began["resume"] == "allow"


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_breaks_is_let_go_and_the_log_goes_on(name: str, run: Any, board: Board) -> None:
    hook = trackers.TRACKERS[name]()
    hook.begin(run)
    board.broken = True
    for step in (1, 2):
        run.log.write({"kind": "step", **line(step)})
    hook.end(run, "finished")
    found = list(read(run.log.path))
    assert [each["kind"] for each in found] == ["step", "warning", "step"]
    assert found[1]["message"] == f"{name} gets no more numbers: ConnectionError: no way out"
    assert board.ended == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_cannot_begin_stops_the_run_before_it_begins(
    name: str, run: Any, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> Board:
        raise PermissionError("no key")

    monkeypatch.setattr(board, "init", refuse)
    for module in ("wandb", "trackio"):
        monkeypatch.setattr(sys.modules[module], "init", refuse)
    with pytest.raises(RunError, match=f"{name} cannot begin[\\s\\S]*no key"):
        trackers.TRACKERS[name]().begin(run)
    assert run.log.listeners == []


def test_only_the_main_process_tracks(run: Any, board: Board) -> None:
    run.world = World(rank=1, size=2)
    for name in NAMES:
        hook = trackers.TRACKERS[name]()
        hook.begin(run)
        hook.end(run, "finished")
    assert (board.began, run.log.listeners) == ([], [])


def test_a_package_that_is_missing_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = {**RECIPE, "watch": {"trackers": ["wandb"]}}
    for ask in (lambda: pipeline.ready(recipe, tmp_path / "new"), lambda: estimate.estimate(recipe)):
        with pytest.raises(ConfigError, match=r"wandb is not installed[\s\S]*pip install 'temaki\[wandb\]'"):
            ask()
    assert not (tmp_path / "new").exists()


def test_tensorboard_itself_reads_what_was_written(run: Any) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for begin in (0, 2):  # the second time the run stands at step 2 again
        run.step = begin
        hook = trackers.TensorBoard()
        hook.begin(run)
        for step in range(begin + 1, 5):
            run.log.write({"kind": "step", **line(step, loss=float(step + 10 * begin))})
        hook.end(run, "finished")
    found = reading.EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]


def test_tensorboard_shows_no_step_that_a_run_went_back_from(run: Any, board: Board) -> None:
    hook = trackers.TensorBoard()
    hook.begin(run)
    run.log.write({"kind": "rollback", "step": 20, "from": 40, "to": 20})
    run.log.write({"kind": "step", **line(21)})
    hook.end(run, "finished")
    assert [each["purge_step"] for each in board.began] == [1, 21]
    assert (board.ended, set(board.got)) == (2, {21})


def test_what_is_said_at_the_end_is_of_the_run_and_not_of_its_last_update(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run.step, run.seconds, run.told = 100, 200.0, {"step": 99, "loss": 4.0, "seconds": 198.0}
    train._said(run.folder, run.config, SimpleNamespace(run=run, reason="finished"), True)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out).items() >= {"step": 100, "seconds": 200.0, "loss": 4.0}.items()
    judge = hooks.Hook()
    judge.name, judge.numbers = "validate", {"step": 100, "bits_per_byte": 1.5}
    run.hooks = [judge]
    train._said(run.folder, run.config, SimpleNamespace(run=run, reason="finished"), False)  # type: ignore[arg-type]
    told = "finished, 100 steps in 200 s, training loss 4.000 in the last step, held-out bits per byte 1.500\n"
    assert told in capsys.readouterr().out
    run.told, run.hooks = {}, []  # it was resumed and had nothing left to do
    train._said(run.folder, run.config, SimpleNamespace(run=run, reason="finished"), False)  # type: ignore[arg-type]
    assert "finished, 100 steps in 200 s\n" in capsys.readouterr().out
    limited = replace(run.config, stop=replace(run.config.stop, steps=400, max_minutes=3.0))
    train._said(run.folder, limited, SimpleNamespace(run=run, reason="finished"), False)  # type: ignore[arg-type]
    assert "100 steps in 200 s (of 400: the limit is 3 minutes)" in capsys.readouterr().out


# ---- the growing report ------------------------------------------------------------------------------------------


def test_the_report_grows_and_takes_a_small_share_of_the_time(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now, cost, written = [1000.0], 0.5, []

    def write(folder: Path, over: bool = False) -> None:
        written.append((now[0], over))
        now[0] += cost

    monkeypatch.setattr(hooks.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(report, "write", write)
    hook = hooks.Report()
    hook.begin(run)
    for step in range(2000):
        now[0] += 0.5
        hook.step(run, line(step))
    hook.end(run, "finished")
    assert written[0] == (1000.0, False)
    assert written[-1][1]
    gaps = [b - a for (a, _), (b, _) in pairwise(written[:-1])]
    assert min(gaps) >= cost / hooks.SHARE
    assert len(written) * cost <= hooks.SHARE * (now[0] - 1000) + 2 * cost
    cost, hook = 0.001, hooks.Report()
    hook.begin(run)
    written.clear()
    for step in range(100):
        now[0] += 0.5
        hook.step(run, line(step))
    assert len(written) == pytest.approx(50 / hooks.FRESH, abs=1)


def test_a_report_that_cannot_be_written_stops_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, over: bool = False) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write", full)
    hooks.Report().begin(run)
    (found,) = read(run.log.path)
    assert "No space left" in found["message"]
    run.world = World(rank=1, size=2)
    hooks.Report().begin(run)
    assert len(list(read(run.log.path))) == 1


def test_a_page_of_a_run_exists_from_its_beginning(run: Any) -> None:
    hook = hooks.Report()
    run.log.write({"kind": "start", "step": 0, "params": 3})
    hook.begin(run)
    page = run.folder / "report.html"
    assert "data-renew" in page.read_text(encoding="utf-8")
    hook.end(run, "RunError")
    assert "data-renew" not in page.read_text(encoding="utf-8")


# ---- the progress line -------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a line shows of a run's steps on a terminal so many columns wide, or (None) in a log file."""

    def draw(run: Any, columns: int | None, *lines: dict[str, Any], skips: int = 0) -> str:
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: columns is not None)
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(progress, "REDRAW", 0.0)
        monkeypatch.setattr(progress, "QUIET", 0.0)
        hook = progress.TrainingLine()
        hook.begin(run)
        for _ in range(skips):
            hook.skipped(run)
        for each in lines:
            run.step = each["step"]
            hook.step(run, each)
        hook.end(run, "finished")
        return screen.getvalue()

    return draw


def test_a_log_file_gets_plain_lines(run: Any, drawn: Callable[..., str]) -> None:
    said = drawn(run, None, line(50), line(100, noise_scale=1234.0, loss=4.0), skips=2)
    assert said.splitlines() == [
        "step 50 of 100  loss 5.000  1:40 left  12,345 tok/s  58% of matmul peak  lr 3.00e-03  grad 0.8  2 left out",
        "step 100 of 100  loss 4.900  0 s left  12,345 tok/s  58% of matmul peak  lr 3.00e-03  grad 0.8  "
        "noise 1.23k ids  2 left out",
    ]


def test_a_run_that_went_back_is_shown_without_its_spike(run: Any, drawn: Callable[..., str]) -> None:
    said = drawn(run, None, line(49), line(50, loss=9e9), line(41, loss=4.0), line(42, loss=5.0))
    assert [each.split("  ")[1] for each in said.splitlines()[2:]] == ["loss 4.000", "loss 4.100"]


@pytest.mark.parametrize("columns", [20, 49, 80, 120, 200])
def test_a_terminal_gets_one_line_that_fits(columns: int, run: Any, drawn: Callable[..., str]) -> None:
    said = drawn(run, columns, line(25), line(50, noise_scale=1234.0), line(100))
    assert said.count("\n") == 1
    assert said.endswith("\n")
    first, *rest = said[:-1].split("\r")[1:]
    assert len(rest) == 2
    assert max(len(each) for each in (first, *rest)) < columns
    assert ("━━━━────────────  step 25 of 100" in first) == (columns >= 50)
    assert ("lr 3.00e-03" in first) == (columns >= 120)
    assert len(rest[1]) >= len(rest[0].rstrip()), "what was longer before is wiped out"


def test_minutes_are_what_is_left_until_the_length_is_known(run: Any, drawn: Callable[..., str]) -> None:
    run.config, run.plan = config(minutes=10.0), SimpleNamespace(steps=100, settled=False)
    assert "step 50 of about 100  loss 5.000  8:20 left" in drawn(run, None, line(50))


def test_only_the_main_process_speaks(run: Any, drawn: Callable[..., str]) -> None:
    run.world = World(rank=1, size=2)
    assert drawn(run, None, line(50), line(100)) == ""


def test_lines_are_json_for_whoever_listens(run: Any) -> None:
    heard: list[Any] = []
    run.log.listeners.append(heard.append)
    run.log.write({"kind": "step", "step": 1, "loss": float("nan")})
    assert json.loads(run.log.path.read_text())["loss"] == "nan"
    assert heard[0]["step"] == 1
