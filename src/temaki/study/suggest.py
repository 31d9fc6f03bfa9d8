"""Which learning rate, which batch size: a range test, then short runs that grow longer as fewer settings stay.

All batches read the recipe's ids. Round after round the runs are longer: at an eighth and a quarter of the ids for
every batch, at all of them for the best two; each round looks for each batch's best rate around where the round before
found it, corrected by how it moved with the length. The one training loop does it all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from temaki.base import files
from temaki.base.errors import ConfigError, RunError
from temaki.batches.prepare import Progress
from temaki.report import folder as folders
from temaki.study import fitting, further, pipeline, proxies, range_test, recipes, search, sweep
from temaki.study.grid import Point
from temaki.study.laws import Tradeoff
from temaki.study.proxies import Proxy
from temaki.study.range_test import RangeTest
from temaki.study.search import Vertex
from temaki.study.suggestion import Suggestion
from temaki.study.sweep import Result, Swept
from temaki.train.config import RunConfig
from temaki.train.hooks import Hook

SHARES = (0.125, 0.25, 1.0)
"""Of the ids, in each round."""
FEWEST = 30
"""Steps of the shortest run."""
RUNS = 3.7
"""Runs that finding a best rate takes, about."""
STARTING = 1.5
"""Seconds that a run takes beside its steps, about."""
NEAR = 0.02
"""A second batch goes into the last round if its loss is expected within this share of the best."""
SAME = 0.002
"""Losses nearer than this share are the same; then the faster batch is better."""
FURTHER = 2
"""Batches added on a side where the best lies at the edge."""


@dataclass
class Search:
    """The runs of a suggestion, done or to be done."""

    recipe: Mapping[str, Any]
    config: RunConfig
    folder: Path
    hooks: Callable[[str], Sequence[Hook]]
    progress: Progress
    made: sweep.Made
    results: dict[str, Result] = field(default_factory=dict)

    def run(self, point: Point) -> Result:
        """A run's result; it is trained if it is not there. Raises StoppedError at a signal."""
        if point.name not in self.results:
            many = len(self.results) + 1
            done = sweep.sweep(
                self.recipe, [point], self.folder, hooks=self.hooks, progress=self.progress, light=True,
                made=lambda _which, _of, result: self.made(many, 0, result),
            )  # fmt: skip
            if done.stopped is not None:
                raise StoppedError(done.stopped)
            self.results[point.name] = done.results[0]
        return self.results[point.name]

    def best_rate(self, batch: int, share: float, centre: float) -> Vertex | None:
        """The best rate of a batch at a length."""

        def loss(rate: float) -> float | None:
            return self.run(proxies.point(self.recipe, self.config, Proxy(batch, rate, share))).loss

        return search.best_rate(loss, centre)


class StoppedError(Exception):
    """A signal asked the search to stop."""


def suggest(
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    minutes: float | None = None,
    batches: Sequence[int] | None = None,
    hooks: Callable[[str], Sequence[Hook]] = lambda _: (),
    progress: Progress = pipeline.quiet,
    made: sweep.Made = lambda _which, _of, _result: None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Suggestion | None, Swept]:
    """Search for the best rate and batch of a recipe in `folder`, within about so many minutes, and what was run.

    What is there from an earlier call is used. No suggestion where a signal stopped it. Raises ConfigError for a batch
    that is no multiple of the context or minutes that are too few.
    """
    config = checked(recipe)
    asked = _batches(config, batches)
    looking = Search(recipe, config, folder, hooks, progress, made)
    try:
        found = _search(looking, asked, minutes, grow=batches is None, say=say)
    except StoppedError as stop:
        return None, Swept(tuple(looking.results.values()), str(stop))
    swept = Swept(tuple(looking.results.values()))
    files.write_json(folder / "suggestion.json", asdict(found))
    return found, swept


def checked(recipe: Mapping[str, Any]) -> RunConfig:
    """The recipe, checked; the tokenizer's size may still change."""
    model = further.opened(recipe)
    whole = further.with_model(recipe, model) if model is not None else recipe
    size = model.config.vocabulary if model is not None else recipes.vocabulary(recipes.data(recipe))
    return recipes.complete(whole, size)


def _batches(config: RunConfig, asked: Sequence[int] | None) -> list[int]:
    """The batches to begin with, ids: those asked for, else half, once and twice the recipe's."""
    context, own = config.batch.context, config.batch.tokens
    if asked is None:
        return sorted({max(context, own // 2 // context * context), own, 2 * own})
    odd = [each for each in asked if each < 1 or each % context]
    if odd or len(set(asked)) < len(asked) or not asked:
        raise ConfigError(
            "--batches: not different multiples of the context", found=", ".join(map(str, asked)) or "none",
            allowed=f"multiples of batch.context ({context}), in ids",
        )  # fmt: skip
    return sorted(asked)


def _search(
    looking: Search, batches: list[int], minutes: float | None, grow: bool, say: Callable[[str], None]
) -> Suggestion:
    config = looking.config
    tested = _range(looking)
    say(f"range test: the loss falls fastest at {tested.steepest:.1e} and is least at {tested.least:.1e}")
    shares = _shares(looking, len(batches), max(batches), minutes)
    rounds: dict[float, dict[int, Vertex]] = {}
    start, own = tested.centre, config.batch.tokens
    for share in shares[:-1] if len(shares) > 1 else shares:
        rounds[share] = found = {}
        for batch in sorted(batches, key=lambda each: abs(math.log(each / own))):
            _try(looking, rounds, batch, share, start)
        if not found:
            raise RunError("every run diverged", do="look at the data, or give gentler settings")
        for _ in range(FURTHER if grow else 0):
            edge = _edge(found, config.batch.context)
            if edge is None:
                break
            _try(looking, rounds, edge, share, start)
        batches = sorted(found)
        say(_line(config, share, found))
    full = shares[-1]
    for batch in _finalists(rounds, full) if full not in rounds else ():
        _try(looking, rounds, batch, full, start)
    if full not in rounds:
        raise RunError("every run of the full length diverged", do="give other --batches, or a gentler recipe")
    say(_line(config, full, rounds[full]))
    return _suggestion(looking, rounds, tested)


def _range(looking: Search) -> RangeTest:
    made = range_test.recipe(looking.recipe, range_test.STEPS)
    watch = {key: value for key, value in dict(made["watch"]).items() if key != "sample"}
    watch |= {"validate": range_test.STEPS, "validate_tokens": 1, "log": 1, "trackers": []}
    looking.run(Point("range", {}, {**made, "name": "range", "watch": watch}))
    tested = range_test.read(looking.folder / "range")
    del looking.results["range"]  # it ends at a rate that is far too high: no loss to compare
    return tested


def _shares(looking: Search, count: int, largest: int, minutes: float | None) -> list[float]:
    """The lengths of the rounds: as planned, or as much shorter as the minutes ask for; none below FEWEST steps."""
    config = looking.config
    least = min(1.0, FEWEST * largest / proxies.ids(config))
    scale = 1.0
    if minutes is not None:
        second = _seconds(looking) * proxies.ids(config)
        runs = RUNS * (2 * count + 2)
        unit = RUNS * (count * sum(SHARES[:-1]) + 2 * SHARES[-1]) * second
        scale = min(1.0, (minutes * 60 - runs * STARTING) / unit)
        if scale < least:
            raise ConfigError(
                "--minutes is too short for a search", found=f"{minutes:g}",
                allowed=f"about {(least * unit + runs * STARTING) / 60:.1f} or more; for all of it "
                f"{(unit + runs * STARTING) / 60:.1f}",
            )  # fmt: skip
    made = [max(least, float(f"{share * scale:.3g}")) for share in SHARES]
    return [share for i, share in enumerate(made) if i == len(made) - 1 or made[i + 1] >= 1.7 * share]


def _seconds(looking: Search) -> float:
    """Seconds an id, of the range test."""
    run = folders.read(looking.folder / "range")
    return (run.last("step", "seconds") or 0.0) / max(1.0, run.last("step", "tokens") or 1.0)


def _try(looking: Search, rounds: dict[float, dict[int, Vertex]], batch: int, share: float, start: float) -> None:
    """Find a batch's best rate in a round and keep it, unless all diverged."""
    found = looking.best_rate(batch, share, _centre(rounds, batch, share, start, looking.config.batch.tokens))
    if found is not None:
        rounds.setdefault(share, {})[batch] = found


def _centre(rounds: Mapping[float, Mapping[int, Vertex]], batch: int, share: float, start: float, own: int) -> float:
    """Where to look: by the shorter rounds of this batch, moved as its nearest neighbour moved; else by the nearest
    batch of this round and the square root law; else where the range test says.
    """
    now = rounds.get(share, {})
    before = [(length, found[batch].rate) for length, found in rounds.items() if length < share and batch in found]
    near = min(now, key=lambda each: abs(math.log(each / batch)), default=None)
    if before:
        guess = search.extrapolated([a for a, _ in before], [b for _, b in before], share)
        lengths = [length for length, found in rounds.items() if length < share and near in found]
        if near is not None and lengths:
            theirs = [(length, rounds[length][near].rate) for length in lengths]
            said = search.extrapolated([a for a, _ in theirs], [b for _, b in theirs], share)
            guess *= min(2.0, max(0.5, now[near].rate / said))
        return guess
    if near is not None:
        return now[near].rate * math.sqrt(batch / near)
    return start * math.sqrt(batch / own)


def _edge(found: Mapping[int, Vertex], context: int) -> int | None:
    """The batch beyond the best one, where that lies at the edge."""
    best = min(found, key=lambda batch: found[batch].loss)
    if best == max(found):
        return 2 * best
    smaller = best // 2 // context * context
    return smaller if best == min(found) and smaller else None


def _finalists(rounds: Mapping[float, Mapping[int, Vertex]], full: float) -> list[int]:
    """The batch that is expected to end best at the full length, and the second one where it is near."""
    last = rounds[max(rounds)]
    ends = {batch: _expected(rounds, batch, full) for batch in last}
    order = sorted(ends, key=lambda batch: ends[batch])
    return [batch for batch in order[:2] if ends[batch] <= ends[order[0]] * (1 + NEAR)]


def _expected(rounds: Mapping[float, Mapping[int, Vertex]], batch: int, full: float) -> float:
    """The loss at a length by the last two rounds, straight in log-log."""
    known = [
        (math.log(share), math.log(found[batch].loss)) for share, found in sorted(rounds.items()) if batch in found
    ]
    if len(known) < 2:
        return math.exp(known[-1][1])
    (xa, ya), (xb, yb) = known[-2:]
    return math.exp(yb + (yb - ya) / (xb - xa) * (math.log(full) - xb))


def _suggestion(looking: Search, rounds: Mapping[float, Mapping[int, Vertex]], tested: RangeTest) -> Suggestion:
    config, full = looking.config, max(rounds)
    best = min(rounds[full].values(), key=lambda each: each.loss).loss
    same = [batch for batch, each in rounds[full].items() if each.loss <= best * (1 + SAME)]
    batch = min(same, key=lambda each: _result(looking, rounds[full][each], each, full).seconds)
    found = _confirmed(looking, rounds[full][batch], batch, full)
    shorter = [(share, each[batch].rate) for share, each in sorted(rounds.items()) if batch in each]
    rate = found.rate if full == 1 else search.extrapolated([a for a, _ in shorter], [b for _, b in shorter], 1.0)
    widest = max(rounds, key=lambda share: (len(rounds[share]), share))
    pairs = {each: rounds[widest][each].rate for each in sorted(rounds[widest])}
    return Suggestion(
        batch=batch,
        context=config.batch.context,
        rate=rate,
        loss=found.loss,
        share=full,
        steps=proxies.steps(config, batch),
        settings=proxies.changes(config, Proxy(batch, rate, 1.0)),
        noise=_result(looking, found, batch, full).noise,
        tradeoff=_tradeoff(config, rounds),
        laws=fitting.fit_all(list(pairs), list(pairs.values())),
        pairs=pairs,
        range=tested,
    )


def _confirmed(looking: Search, found: Vertex, batch: int, share: float) -> Vertex:
    """The vertex, run: what is recommended was measured, and no tried rate ended lower."""
    loss = looking.run(proxies.point(looking.recipe, looking.config, Proxy(batch, found.rate, share))).loss
    tried = {**found.tried, found.rate: loss}
    rate = min(tried, key=lambda each: search.height(tried[each]))
    return Vertex(rate, search.height(tried[rate]), tried)


def _result(looking: Search, found: Vertex, batch: int, share: float) -> Result:
    return looking.results[Proxy(batch, found.measured, share).name]


def _tradeoff(config: RunConfig, rounds: Mapping[float, Mapping[int, Vertex]]) -> Tradeoff | None:
    """Steps against ids to the loss that every batch reaches in the last round that has three of them."""
    wide = [share for share, found in rounds.items() if len(found) > 2]
    if not wide:
        return None
    target = max(each.loss for each in rounds[max(wide)].values())
    needed = {batch: _ids_to(config, rounds, batch, target) for batch in rounds[max(wide)]}
    known = {batch: ids for batch, ids in needed.items() if ids is not None}
    if len(known) < 3:
        return None
    return fitting.fit_tradeoff(list(known), [ids / batch for batch, ids in known.items()])


def _ids_to(config: RunConfig, rounds: Mapping[float, Mapping[int, Vertex]], batch: int, target: float) -> float | None:
    """The ids at which runs of a batch end at a loss, straight in log-log between two rounds; None with one round."""
    known = [
        (math.log(share), math.log(found[batch].loss)) for share, found in sorted(rounds.items()) if batch in found
    ]
    pairs = [(a, b) for a, b in pairwise(known) if a[1] > b[1]]
    if not pairs:
        return None
    at = math.log(target)
    (xa, ya), (xb, yb) = next((pair for pair in pairs if pair[1][1] <= at), pairs[-1])
    return proxies.ids(config) * math.exp(xa + (at - ya) / (yb - ya) * (xb - xa))


def _line(config: RunConfig, share: float, found: Mapping[int, Vertex]) -> str:
    each = "; ".join(f"{b} ids: lr {found[b].rate:g}, loss {found[b].loss:.4f}" for b in sorted(found))
    return f"at {share:.0%} of the run's {proxies.ids(config):,} ids: {each}"
