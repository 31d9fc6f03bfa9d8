"""`temaki report`: one offline page of a run, or of several side by side."""

from pathlib import Path

import typer


def report(
    runs: list[Path] = typer.Argument(..., help="Run folders; several are compared in one page."),
    out: Path | None = typer.Option(None, help="Page to write; report.html in the run, comparison.html for several."),
) -> None:
    """Write report.html: one offline file with curves, speed, samples and the resolved configuration.

    Example: temaki report runs/demo
    """
    from temaki.base.errors import RunError
    from temaki.report import compare
    from temaki.report import run as report

    for folder in runs:
        if not (folder / "config.toml").exists():
            raise RunError(f"{folder} is not a run", allowed="a folder with config.toml", do="see: temaki runs")
    if len(runs) == 1 and out is None:
        print(report.write(runs[0]))
        return
    page = out or Path("comparison.html")
    if page.is_dir():
        page = page / "comparison.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    compare.write_comparison(runs, page)
    print(page)
