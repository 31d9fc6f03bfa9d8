"""Sweeps: many runs of one recipe with other settings, each a run folder of its own, in one folder that can be
gone on with. Data are prepared once and shared. A run that diverges is a point that failed, not the end.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from temaki.base import config as config_door
from temaki.base import files
from temaki.base.errors import NonFiniteError, RunError
from temaki.base.log import MetricLog
from temaki.batches import data as batches
from temaki.batches.prepare import Progress
from temaki.checkpoint.resume import changes
from temaki.report import compare
from temaki.report import folder as folders
from temaki.study import further, grid, pipeline, recipes
from temaki.study.grid import Point
from temaki.train.hooks import Hook

RECIPE = "sweep.toml"
"""The recipe that a folder's runs share."""

FAILED = ("not finite", "spike")
"""What the end of a run that diverged says."""

Made = Callable[[int, int, "Result"], None]
"""(which, of how many, what it gave)."""


@dataclass(frozen=True)
class Result:
    """How a point's run ended."""

    name: str
    settings: Mapping[str, Any]
    state: Literal["finished", "diverged"]
    loss: float | None
    """On the held-out text, after the last step, nats; None where the run diverged."""
    bits_per_byte: float | None
    steps: int
    tokens: int
    seconds: float
    noise: float | None
    """The gradient's noise scale near the end, ids; None where it was not measured."""
    why: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Swept:
    """A sweep, or what was done of it."""

    results: tuple[Result, ...]
    stopped: str | None = None
    """The signal that stopped it."""

    @property
    def best(self) -> "Best | None":
        """The settings that ended lowest, in the mean over their seeds; none of these may have diverged."""
        found = [
            Best({key: value for key, value in group[0].settings.items() if key != "seed"}, sum(ends) / len(ends), ends)
            for group in _by_settings(self.results)
            if len(ends := [each.loss for each in group if each.loss is not None]) == len(group)
        ]
        return min(found, key=lambda each: each.loss, default=None)


@dataclass(frozen=True)
class Best:
    """The settings that ended lowest."""

    settings: Mapping[str, Any]
    """Without the seed."""
    loss: float
    """The mean over the seeds."""
    losses: Sequence[float]
    """A seed each."""


def sweep(
    recipe: Mapping[str, Any],
    points: Sequence[Point],
    folder: Path,
    *,
    hooks: Callable[[str], Sequence[Hook]] = lambda _: (),
    progress: Progress = pipeline.quiet,
    made: Made = lambda _which, _of, _result: None,
    light: bool = False,
) -> Swept:
    """Train every point that is not done yet in `folder`, one after the other.

    `hooks` of a run by its name; `made` hears of each result, also of those that were there. `light`: checkpoints of
    runs that have ended are removed. Raises RunError, before any run, where the folder holds another recipe's.
    """
    claim(recipe, folder)
    shared = dict(_prepared([point.recipe for point in points], folder, progress))
    results: list[Result] = []
    for i, point in enumerate(points):
        result = result_of(folder / point.name, point)
        if result is None:
            reason = _train(point, folder / point.name, shared[grid.data_key(point.recipe)], hooks, progress)
            if reason not in ("finished", "diverged"):
                return Swept(tuple(results), reason)
            result = result_of(folder / point.name, point)
            assert result is not None, "a run that ended says how"
        if light:
            shutil.rmtree(folder / point.name / "checkpoints", ignore_errors=True)
        results.append(result)
        made(i + 1, len(points), result)
    return Swept(tuple(results))


def claim(recipe: Mapping[str, Any], folder: Path) -> None:
    """Make the folder this recipe's. Raises RunError where it is another's, listing what differs."""
    said = {key: value for key, value in recipe.items() if key != "name"}
    path = folder / RECIPE
    if path.exists():
        differences = [str(each) for each in changes(config_door.read_toml(path), said)]
        if differences:
            raise RunError(
                f"{folder} holds the runs of another recipe; nothing was changed",
                found="; ".join(differences), do="choose another --out, or give that recipe",
            )  # fmt: skip
        return
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} holds something that is no sweep; nothing was changed", do="choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(path, config_door.toml(said))


def _prepared(made: Iterable[Mapping[str, Any]], folder: Path, progress: Progress) -> Iterator[tuple[str, str]]:
    """(key, folder) of the data of each recipe; equal [data] tables share one."""
    done: set[str] = set()
    for recipe in made:
        key = grid.data_key(recipe)
        if key in done:
            continue
        done.add(key)
        table = recipes.data(recipe)
        if table.shards is not None:
            yield key, table.shards
            continue
        model = further.opened(recipe)
        given = further.words(model) if model is not None else None
        yield key, str(batches.make(table, folder / f"data-{key}", progress, given=given).folder.resolve())


def _train(point: Point, folder: Path, shards: str, hooks: Callable[[str], Sequence[Hook]], progress: Progress) -> str:
    """Train a point, from its newest checkpoint if it has begun; why it ended."""
    recipe: Mapping[str, Any] = config_door.merge(point.recipe, {"data": {"shards": shards}})
    if (folder / "config.toml").exists():
        recipe = config_door.read_toml(folder / "config.toml")
    try:
        return pipeline.train(pipeline.ready(recipe, folder, progress), "auto", hooks(point.name)).reason
    except RunError as error:
        if isinstance(error, NonFiniteError) and result_of(folder, point) is None:  # found when saving: not told yet
            log = MetricLog(folder / "metrics.jsonl")
            log.write({"kind": "end", "reason": "not finite", "message": error.what})
            log.close()
        if result_of(folder, point) is None:
            raise
        return "diverged"


def result_of(folder: Path, point: Point) -> Result | None:
    """What a point's run gave; None where it has not ended."""
    run = folders.read(folder)
    ended = run.ended
    reason = ended.get("reason") if ended is not None else None
    if reason != "finished" and reason not in FAILED:
        return None
    held = run.last("validate", "loss") if reason == "finished" else None
    diverged = held is None or not math.isfinite(held)
    return Result(
        name=point.name,
        settings=point.settings,
        state="diverged" if diverged else "finished",
        loss=None if diverged else held,
        bits_per_byte=None if diverged else run.last("validate", "bits_per_byte"),
        steps=run.step,
        tokens=round(run.last("step", "tokens") or 0),
        seconds=run.last("step", "seconds") or 0.0,
        noise=run.last("step", "noise_scale"),
        why=str(ended.get("message", "the loss is not finite")) if diverged and ended is not None else "",
    )


def written(folder: Path, swept: Swept) -> Path:
    """Write the folder's results.json and comparison page; the page's path."""
    best = swept.best
    files.write_json(
        folder / "results.json",
        {
            "best": asdict(best) if best is not None else None,
            "stopped": swept.stopped,
            "points": [asdict(each) for each in swept.results],
        },
    )
    return compare.write_comparison([folder / each.name for each in swept.results], folder / "comparison.html")


def table(swept: Swept) -> str:
    """The results as lines, best first, and the noise between seeds where there are several."""
    order = sorted(swept.results, key=lambda each: math.inf if each.loss is None else each.loss)
    wide = max((len(each.name) for each in order), default=4)
    lines = [f"{'settings':<{wide}}  {'loss':>8}  {'bits/byte':>9}  {'steps':>7}  {'seconds':>8}"]
    lines += [
        f"{each.name:<{wide}}  {_shown(each.loss):>8}  {_shown(each.bits_per_byte):>9}  {each.steps:>7,}  "
        f"{each.seconds:>8.1f}"
        for each in order
    ]
    noise = spread(swept.results)
    if noise is not None:
        lines.append(f"between seeds the loss varies by {noise:.2%} (one deviation)")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"


def spread(results: Iterable[Result]) -> float | None:
    """The deviation of the loss between seeds of the same settings, a share of the loss; None without such."""
    groups = [[math.log(each.loss) for each in group if each.loss is not None] for group in _by_settings(results)]
    groups = [group for group in groups if len(group) > 1]
    squares = sum((x - sum(group) / len(group)) ** 2 for group in groups for x in group)
    return math.sqrt(squares / sum(len(group) - 1 for group in groups)) if groups else None


def _by_settings(results: Iterable[Result]) -> list[list[Result]]:
    """The results of the same settings but for the seed."""
    groups: dict[str, list[Result]] = {}
    for each in results:
        rest = {key: value for key, value in each.settings.items() if key != "seed"}
        groups.setdefault(grid.named(rest), []).append(each)
    return list(groups.values())
