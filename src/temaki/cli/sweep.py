"""`temaki train RECIPE --sweep FILE`: every combination of a grid, each a run, and a page that compares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from temaki.study.sweep import Result


def sweep(recipe: Mapping[str, Any], file: Path, folder: Path, json: bool) -> None:
    """Train what `file` asks for in `folder`, print the results, and name the best.

    What is done already is not done again. Raises ConfigError for a bad grid before any run.
    """
    import shlex
    from dataclasses import asdict

    from temaki.cli.progress import TrainingLine, Work
    from temaki.cli.said import say
    from temaki.study import grid, sweep

    points = grid.points(recipe, grid.read(file))
    work = Work()
    swept = sweep.sweep(recipe, points, folder, hooks=lambda _: [TrainingLine()], progress=work, made=told)
    work.close()
    page = sweep.written(folder, swept)
    best = swept.best
    lines = [sweep.table(swept), f"{page}"]
    if best is not None:
        chosen = " ".join(shlex.quote(f"{key}={grid.text(value)}") for key, value in best.settings.items())
        mean = f" in the mean of {len(best.losses)} seeds" if len(best.losses) > 1 else ""
        lines.append(f"best: {chosen or 'the recipe as it is'}, loss {best.loss:.4f}{mean}")
    if swept.stopped is not None:
        lines.append(f"stopped by {swept.stopped}; all is saved, and the same command goes on from there")
    found = {"folder": str(folder), "stopped": swept.stopped, "best": asdict(best) if best is not None else None}
    say({**found, "points": [asdict(each) for each in swept.results]}, json, "\n".join(lines))
    if swept.stopped is not None:
        raise typer.Exit(130 if swept.stopped == "SIGINT" else 143)


def told(which: int, of: int, result: "Result") -> None:
    """Say on standard error how a run ended."""
    import sys

    how = f"loss {result.loss:.4f} in {result.seconds:.0f} s" if result.loss is not None else f"failed: {result.why}"
    print(f"{which} of {of}: {result.name}: {how}", file=sys.stderr)
