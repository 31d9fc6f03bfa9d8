"""Several runs on one page: their curves over each other, their figures below each other."""

from collections.abc import Sequence
from pathlib import Path

from temaki.base import files
from temaki.report import chart, figures, page, run, runs
from temaki.report import folder as folders
from temaki.report.chart import Point, Series
from temaki.report.folder import RunFolder
from temaki.report.page import escape


def write_comparison(run_folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares the runs to the file `out` and give its path. Raises OSError."""
    files.write_text(out, html([folders.read(folder) for folder in run_folders]))
    return out


def html(read: Sequence[RunFolder]) -> str:
    """The comparison as HTML text."""
    head = (
        '<header><div class="brand"><i></i>temaki runs</div>'
        f"<h1>{len(read)} runs compared</h1>"
        f'<p class="lead">{escape(" · ".join(r.name for r in read))}</p></header>'
    )
    curves = [
        _overlay(read, "Validation loss", "validate", "tokens", "nats a token"),
        _overlay(read, "Training loss, smoothed, over tokens", "step", "tokens", "nats a token"),
        _overlay(read, "Training loss, smoothed, over time", "step", "seconds", "nats a token"),
    ]
    return page.page(
        "Runs compared · temaki",
        [
            head,
            page.notes([f"{r.name}: {problem}." for r in read for problem in r.problems]),
            page.section("Curves", f'<div class="charts">{"".join(curves)}</div>'),
            page.section("Figures", _table(read)),
            "<footer>Written by temaki. This file loads nothing from anywhere.</footer>",
        ],
    )


def _overlay(read: Sequence[RunFolder], title: str, kind: str, over: str, unit: str) -> str:
    series = []
    for i, r in enumerate(read):
        points = _over(r, r.curve(kind, "loss"), over)
        look = "dots" if kind == "validate" else "line"
        series.append(Series(r.name, points if look == "dots" else run.smoothed(points), look, i))
    name = {"tokens": "training tokens", "seconds": "seconds of training"}[over]
    return chart.lines(title, series, name, unit, late=True, wide=kind == "validate")


def _over(r: RunFolder, points: Sequence[Point], over: str) -> list[Point]:
    """Points over steps -> over tokens or seconds, as far as the run logged those; between, in proportion."""
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


def _table(read: Sequence[RunFolder]) -> str:
    head = [
        "run",
        "state",
        "steps",
        "parameters",
        "tokens",
        "time",
        "tokens/s",
        "best validation",
        "bits per byte",
    ]
    rows = []
    for r in read:
        info = runs.info(r)
        rows.append(
            [
                r.name,
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
    return page.table(head, rows, numbers=range(2, len(head)))
