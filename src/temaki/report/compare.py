"""Several runs on one page: their curves over each other, what differs in their recipes, their figures."""

from collections.abc import Sequence
from pathlib import Path

from temaki.base import files
from temaki.report import chart, curves, differences, figures, page, run, runs
from temaki.report import folder as folders
from temaki.report.chart import Point, Series
from temaki.report.folder import RunFolder
from temaki.report.page import escape
from temaki.report.runs import RunInfo

LOUD = 12
"""So many runs at most have a colour of their own; of more, the best TOLD have one, the others are drawn faint."""
TOLD = 8
COLUMNS = 4
"""Settings at most that stand as columns beside the figures."""
LISTED = 8
"""Runs at most whose settings are listed side by side."""

Compared = Sequence[tuple[RunFolder, RunInfo]]


def write_comparison(run_folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares the runs to the file `out` and give its path. Raises OSError."""
    files.write_text(out, html([folders.read(folder) for folder in run_folders]))
    return out


def html(read: Sequence[RunFolder]) -> str:
    """The comparison as HTML text; it loads itself anew while any of the runs goes on."""
    found = [(r, runs.info(r)) for r in read]
    going = sum(info.state == "running" for _, info in found)
    state = f'<span class="state running">{going} running</span><small data-age></small>' if going else ""
    head = (
        '<header><div class="brand"><i></i>temaki runs</div>'
        f'<div class="title"><h1>{len(read)} runs compared</h1>{state}</div>'
        f'<p class="lead">{escape(" · ".join(r.name for r in read[:LOUD]))}'
        f"{escape(f' and {len(read) - LOUD} more') if len(read) > LOUD else ''}</p></header>"
    )
    keys = differences.keys([r.settings for r in read])
    return page.page(
        "Runs compared · temaki",
        [
            head,
            page.notes([f"{r.name}: {problem}." for r in read for problem in r.problems]),
            page.section("By settings", differences.map_of(found, keys)),
            page.section("Figures", _table(found, keys)),
            page.section("Curves", f'<div class="charts">{"".join(_charts(found))}</div>'),
            page.section("What differs", _differing(read, keys)),
            "<footer>Written by temaki. This file loads nothing from anywhere.</footer>",
        ],
        renew=run.RENEW if going else None,
    )


def _charts(found: Compared) -> list[str]:
    loss = "nats a token"
    made = [
        _overlay(found, "Validation loss", "validate", "loss", "tokens", loss),
        _overlay(found, "Validation loss over time", "validate", "loss", "seconds", loss),
        _overlay(found, "Validation loss over steps", "validate", "loss", "step", loss),
        _overlay(found, "Training loss, smoothed, over tokens", "step", "loss", "tokens", loss),
        _overlay(found, "Training loss, smoothed, over time", "step", "loss", "seconds", loss),
        _overlay(found, "Training loss, smoothed, over steps", "step", "loss", "step", loss),
        _overlay(found, "Learning rate", "step", "lr", "step", "rate"),
        _overlay(found, "Gradient norm, smoothed", "step", "grad_norm", "step", "L2, before clipping"),
        _overlay(found, "Speed, smoothed", "step", "tokens_per_second", "seconds", "tokens a second"),
    ]
    if any(r.curve("step", "noise_scale") for r, _ in found):
        made.append(_overlay(found, "Gradient noise scale", "step", "noise_scale", "step", "ids", log=True))
    return made


def _overlay(found: Compared, title: str, kind: str, name: str, over: str, unit: str, log: bool = False) -> str:
    loud = _loud(found)
    back, front = [], []
    for i, (r, _) in enumerate(found):
        points = _over(r, r.curve(kind, name), over)
        dotted = kind == "validate"
        drawn = points if dotted or name in ("lr", "noise_scale") else curves.smoothed(points)
        if i in loud:
            front.append(Series(r.name, drawn, "dots" if dotted else "line", loud.index(i)))
        else:
            back.append(Series(r.name, drawn, "back", 5))
    named = {"tokens": "training tokens", "seconds": "seconds of training", "step": "step"}[over]
    late, wide = name == "loss", kind == "validate" and over == "tokens"
    return chart.lines(title, [*back, *front], named, unit, late=late, log=log, wide=wide, zero=name != "loss")


def _loud(found: Compared) -> list[int]:
    """Which runs are drawn in a colour of their own."""
    if len(found) <= LOUD:
        return list(range(len(found)))
    return _ranked(found)[:TOLD]


def _ranked(found: Compared) -> list[int]:
    """The places of the runs, the least validation loss first, those without one and those that failed last."""
    losses = [None if info.state in differences.FAILED else info.loss for _, info in found]
    return sorted(range(len(found)), key=lambda i: (losses[i] is None, losses[i] or 0.0))


def _over(r: RunFolder, points: Sequence[Point], over: str) -> list[Point]:
    """Points over steps -> over tokens or seconds, as far as the run logged those; between, in proportion."""
    if over == "step":
        return list(points)
    known = [(step, x) for step, x in r.curve("step", over) if x is not None]
    made: list[Point] = []
    place = 0
    for step, y in points:
        while place < len(known) and known[place][0] < step:
            place += 1
        if place == len(known):
            break
        (before, low), (after, high) = known[place - 1] if place else (0.0, 0.0), known[place]
        made.append((low + (high - low) * (step - before) / (after - before) if after > before else high, y))
    return made


def _table(found: Compared, keys: Sequence[str]) -> str:
    shown = [key for key in keys if key not in differences.FIXED][:COLUMNS]
    figures_named = ["state", "steps", "parameters", "tokens", "time", "tokens/s", "best validation", "bits per byte"]
    rows = []
    for r, info in (found[i] for i in _ranked(found)):
        rows.append(
            [
                r.name,
                *(differences.said(r.settings, key) for key in shown),
                info.state,
                figures.count(info.step),
                figures.short(run.params(r)),
                figures.short(r.last("step", "tokens")),
                figures.duration(run.seconds(r)),
                figures.short(run.speed(r)),
                figures.fixed(info.loss),
                figures.fixed(info.bits_per_byte),
            ]
        )
    head = ["run", *shown, *figures_named]
    return page.table(head, rows, numbers=range(2 + len(shown), len(head)))


def _differing(read: Sequence[RunFolder], keys: Sequence[str]) -> str:
    if not keys or len(read) > LISTED:
        return ""
    rows = [[key, *(differences.said(r.settings, key) for r in read)] for key in keys]
    return page.table(["setting", *(r.name for r in read)], rows)
