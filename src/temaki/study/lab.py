"""A study is trained, measured and written down: each part is a sweep, in one folder that can be gone on with.

What is in the folder: plan.json (what was asked, steps of each part), a sweep a part, results.json, study.html.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base import files
from temaki.base.errors import ConfigError, RunError
from temaki.batches import data as data_door
from temaki.batches import prepare
from temaki.batches.data import Data
from temaki.batches.prepare import Progress
from temaki.report import study as page
from temaki.study import grid, measures, pace, pipeline, recipes, shuffled, sweep, told
from temaki.study.grid import Point
from temaki.study.pace import Cost
from temaki.study.studies import Asked, Part, Study
from temaki.study.sweep import Made, Result
from temaki.study.variants import Variant
from temaki.train import run as runs
from temaki.train.hooks import Hook

PLAN, RESULTS, PAGE = "plan.json", "results.json", "study.html"
TUNED = 0
"""The seed on which rates are chosen; runs have seeds from 1 on."""
MEASURING = 30.0
"""What the measures of a run take, in training steps, about."""


@dataclass(frozen=True)
class Length:
    """How long a study may be: minutes for all of it, or steps for each run."""

    minutes: float | None = 30.0
    steps: int | None = None
    seeds: int = 3


@dataclass(frozen=True)
class Listener:
    """Who hears of the work."""

    hooks: Callable[[str], Sequence[Hook]] = lambda _: ()
    progress: Progress = pipeline.quiet
    made: Made = lambda _which, _of, _result: None
    say: Callable[[str], None] = lambda _: None


SILENT = Listener()


@dataclass(frozen=True)
class Done:
    """A study, or what was done of it."""

    results: Mapping[str, Any]
    page: Path
    stopped: str | None
    """The signal that stopped it."""


class StoppedError(Exception):
    """A signal asked to stop; its name."""


def run(study: Study, asked: Asked, length: Length, folder: Path, heard: Listener = SILENT) -> Done:
    """Train and measure what is not done yet of a study in `folder`, and write results and page.

    Raises ConfigError for what cannot run and for minutes that are too few, RunError for a folder of another study,
    both before any long run.
    """
    pace.check(length.minutes, length.steps, length.seeds)
    for part in study.parts:
        _check(part)
    busy = RunError(f"another process works on the study in {folder}; nothing was changed", do="wait for its end")
    with files.only(folder, busy):
        lab = _Lab(study, length, folder, heard)
        stopped = None
        try:
            lab.steps = lab.plan(asked)
            for part in study.parts:
                lab.train(part)
        except StoppedError as stop:
            stopped = str(stop)
        return lab.written(stopped)


def _check(part: Part) -> None:
    """Raise ConfigError, naming the variant, where one cannot run."""
    table = recipes.data(part.recipe)
    for variant in part.variants:
        recipe = {**with_variant(pace.paced(part.recipe, pace.LEAST), variant), "name": variant.name}
        try:
            runs.check_recipe(recipes.complete(recipe, recipes.vocabulary(table)))
        except ConfigError as error:
            what = f"{part.name}, {variant.name}: {error.what}"
            raise ConfigError(what, found=error.found, allowed=error.allowed, do=error.do) from None


def with_variant(paced: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """The recipe of a variant, without its data, seed and name."""
    return config_door.merge(paced, variant.changes)


class _Lab:
    """A study at work in its folder."""

    def __init__(self, study: Study, length: Length, folder: Path, heard: Listener):
        self.study, self.length, self.folder, self.heard = study, length, folder, heard
        self.steps: dict[str, int] = {}
        self.plain: dict[str, Data] = {}
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.tuned: dict[str, dict[str, dict[float, float]]] = {}

    # ---- the plan ---------------------------------------------------------------------------------------------------

    def plan(self, asked: Asked) -> dict[str, int]:
        """Steps of each part's runs: those of the folder's plan, or a new one's."""
        said = {"study": self.study.name, "text": asked.text, "pixels": asked.pixels, "changes": list(asked.changes)}
        said |= {"minutes": self.length.minutes, "steps": self.length.steps}
        path = self.folder / PLAN
        if not path.exists():
            if any(self.folder.iterdir()):
                what = f"{self.folder} holds something that is no study; nothing was changed"
                raise RunError(what, do="choose another --out")
            files.write_json(path, {**said, "parts": {}})
        before = files.read_json(path, RunError)
        if not before.get("parts"):
            return self._planned(said)
        odd = [f"{key}: {before.get(key)}, now {value}" for key, value in said.items() if before.get(key) != value]
        odd += [f"no {part.name}" for part in self.study.parts if part.name not in before["parts"]]
        if odd:
            raise RunError(
                f"{self.folder} holds another study; nothing was changed",
                found="; ".join(odd), do="choose another --out",
            )  # fmt: skip
        return {name: int(steps) for name, steps in before["parts"].items()}

    def _planned(self, said: Mapping[str, Any]) -> dict[str, int]:
        begin = time.perf_counter()
        for part in self.study.parts:  # a text or folder that cannot be read is refused before the first run
            self._data(part)
        if self.length.steps is not None:
            steps = {part.name: self.length.steps for part in self.study.parts}
        else:
            costs = {part.name: self._costs(part) for part in self.study.parts}
            assert self.length.minutes is not None, "one of both is given"
            steps = self._fitted(costs, self.length.minutes * 60 - (time.perf_counter() - begin))
        files.write_json(self.folder / PLAN, {**said, "parts": steps})
        self.heard.say("steps a run: " + ", ".join(f"{name} {count:,}" for name, count in steps.items()))
        return steps

    def _costs(self, part: Part) -> dict[str, Cost]:
        paced = config_door.merge(pace.paced(part.recipe, pace.PROBE), {"watch": {"validate_tokens": 1, "log": 1}})
        points = [self._point(part, paced, each, TUNED) for each in part.variants]
        found = pace.probe(part, points, self.folder / "timing" / part.name, self.heard.progress)
        if isinstance(found, str):
            raise StoppedError(found)
        return found

    def _fitted(self, costs: Mapping[str, Mapping[str, Cost]], seconds: float) -> dict[str, int]:
        shares = sum(part.share for part in self.study.parts)
        made, least = {}, 0.0
        for part in self.study.parts:
            many = self.length.seeds + len(part.rates)
            measuring = MEASURING if part.measures else 0.0
            share = part.share / shares
            made[part.name] = pace.fitting(part, costs[part.name], seconds * share, many, measuring)
            least = max(least, pace.needed(part, costs[part.name], many, measuring) / share)
        if min(made.values()) < pace.LEAST:
            raise ConfigError(
                "--minutes is too short for this study", found=f"{self.length.minutes:g}",
                allowed=f"about {math.ceil(least / 60) + 1} or more here",
                do="give more minutes, fewer --seeds, or fewer variants (--only) or parts (--parts)",
            )  # fmt: skip
        return made

    # ---- data and points --------------------------------------------------------------------------------------------

    def _data(self, part: Part) -> Data:
        """The part's data, made once and shared by its runs."""
        if part.name not in self.plain:
            table = recipes.data(part.recipe)
            place = (
                Path(table.shards) if table.shards is not None else self.folder / f"data-{grid.data_key(part.recipe)}"
            )
            self.plain[part.name] = data_door.make(table, place, self.heard.progress)
        return self.plain[part.name]

    def _shards(self, part: Part, variant: Variant) -> Path:
        """The folder of the data that a variant reads."""
        plain = self._data(part)
        if not variant.shuffled:
            return plain.folder
        return shuffled.prepare(
            data_door.text(plain), self.folder / f"mixed-{plain.folder.name}", part.context // 2 * 2
        )

    def _point(
        self, part: Part, paced: Mapping[str, Any], variant: Variant, seed: int, factor: float | None = None
    ) -> Point:
        """A run; `factor`: of the variant's rate, where that is looked for."""
        recipe = config_door.merge(
            with_variant(paced, variant), {"data": {"shards": str(self._shards(part, variant).resolve())}}
        )
        name = f"{variant.name}-{seed}"
        if factor is not None:
            recipe = config_door.merge(recipe, {"optim": {"lr": recipe["optim"]["lr"] * factor}})
            name = f"{name}-x{factor:g}"
        settings = {"variant": variant.name, "seed": seed}
        return Point(name, settings, {**recipe, "seed": seed, "name": name})

    # ---- training ---------------------------------------------------------------------------------------------------

    def train(self, part: Part) -> None:
        """Train what is not done of a part and measure each run that ends. Raises StoppedError at a signal."""
        paced = pace.paced(part.recipe, self.steps[part.name])
        rates = {each.name: self._rate(part, paced, each) for each in part.variants} if part.rates else {}
        seeds = range(1, self.length.seeds + 1)
        points = [
            self._point(part, paced, each, seed, rates.get(each.name)) for seed in seeds for each in part.variants
        ]
        self._sweep(part, paced, points, measuring=True)

    def _rate(self, part: Part, paced: Mapping[str, Any], variant: Variant) -> float:
        """The factor of a variant's rate that ends lowest on the seed TUNED; one further where it is at the edge."""
        ends: dict[float, float] = {}

        def tried(factor: float) -> None:
            (result,) = self._sweep(part, paced, [self._point(part, paced, variant, TUNED, factor)])
            ends[factor] = math.inf if result.loss is None else result.loss

        for factor in part.rates:
            tried(factor)
        low, high = min(part.rates), max(part.rates)
        best = min(ends, key=lambda each: ends[each])
        for edge, further in ((low, low * low / sorted(part.rates)[1]), (high, high * high / sorted(part.rates)[-2])):
            if best == edge:
                tried(further)
        self.tuned.setdefault(part.name, {})[variant.name] = ends
        return min(ends, key=lambda each: ends[each])

    def _sweep(
        self, part: Part, paced: Mapping[str, Any], points: Sequence[Point], measuring: bool = False
    ) -> Sequence[Result]:
        folder = self.folder / part.name
        by_name = {point.name: point for point in points}

        def made(which: int, of: int, result: Result) -> None:
            self.heard.made(which, of, replace(result, name=f"{part.name}/{result.name}"))
            if measuring:
                self._measured(part, by_name[result.name], result)

        done = sweep.sweep(
            paced, points, folder, hooks=self.heard.hooks, progress=self.heard.progress, made=made, light=not measuring
        )
        if done.stopped is not None:
            raise StoppedError(done.stopped)
        return done.results

    def _measured(self, part: Part, point: Point, result: Result) -> None:
        """Measure a run that has ended and keep what the page needs of it."""
        name, seed = point.settings["variant"], point.settings["seed"]
        run = self.folder / part.name / point.name
        variant = next(each for each in part.variants if each.name == name)
        found: Mapping[str, Any] = {}
        if result.state == "finished" and part.measures:
            plain = data_door.text(self._data(part))
            own = prepare.open_prepared(self._shards(part, variant)) if variant.shuffled else plain
            found = measures.of(
                run, measures.wanted(part.measures, seed == 1), own, plain, part.context, self.heard.progress
            )
        if seed != 1:
            measures.tidy(run)
        self.found.setdefault(part.name, {}).setdefault(name, []).append(told.run(run, result, seed, found))

    # ---- what is written --------------------------------------------------------------------------------------------

    def written(self, stopped: str | None) -> Done:
        """Write what is known so far."""
        found = told.study(self.study, self.length, self.steps, self.found, self.tuned, stopped)
        files.write_json(self.folder / RESULTS, found)
        path = self.folder / PAGE
        files.write_text(path, page.html(found))
        return Done(found, path, stopped)
