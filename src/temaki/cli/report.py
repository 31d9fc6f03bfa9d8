"""`temaki report`: one offline page of a run, or of several side by side, once or while they run."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.report.runs import RunInfo

PAUSE = 5.0
"""Seconds between two writings of a page that is watched."""
SHARE = 0.05
"""Share of the time, at most, that writing a watched page takes."""


def report(
    runs: list[Path] = typer.Argument(..., help="Run folders; several are compared in one page."),
    out: Path | None = typer.Option(None, help="Page to write; report.html in the run, comparison.html for several."),
    watch: bool = typer.Option(False, "--watch", help="Write it anew while a run goes on; Ctrl-C ends that."),
) -> None:
    """Write report.html: one offline file with curves, speed, samples and the resolved configuration.

    Example: temaki report runs/demo
    Several, while they run: temaki report runs/a runs/b --watch
    """
    from temaki.base.errors import RunError

    for folder in runs:
        if not (folder / "config.toml").exists():
            raise RunError(f"{folder} is not a run", allowed="a folder with config.toml", do="see: temaki runs")
    page = None if len(runs) == 1 and out is None else out or Path("comparison.html")
    if page is not None:
        page = page / "comparison.html" if page.is_dir() else page
        page.parent.mkdir(parents=True, exist_ok=True)
    if watch:
        watched(runs, page)
    else:
        print(written(runs, page))


def written(runs: list[Path], page: Path | None) -> Path:
    """Write the page, in the run's own folder where there is none, and give its path."""
    from temaki.report import compare
    from temaki.report import run as report

    return report.write(runs[0]) if page is None else compare.write_comparison(runs, page)


def watched(runs: list[Path], page: Path | None) -> None:
    """Write the page every few seconds while any of the runs goes on, and once when none does any more."""
    import sys
    import time

    from temaki.cli.progress import Line
    from temaki.report import folder as folders
    from temaki.report import runs as listing

    line = Line()
    try:
        while True:
            clock = time.monotonic()
            path = written(runs, page)
            found = [listing.info(folders.read(folder)) for folder in runs]
            going = any(info.state == "running" for info in found)
            line.show(f"{path}: {'; '.join(told(info) for info in found)}", final=not going)
            if not going:
                break
            time.sleep(max(PAUSE, (time.monotonic() - clock) / SHARE))
    except KeyboardInterrupt:
        line.close()
        print("no longer watched; the runs go on", file=sys.stderr)
    print(written(runs, page))


def told(info: "RunInfo") -> str:
    """A run in a few words."""
    from temaki.report import figures, run

    loss = f", validation {figures.fixed(info.loss)}" if info.loss is not None else ""
    return f"{info.name} {info.state}, {run.progress(info)}{loss}"
