"""`temaki suggest`: which learning rate, which batch size."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.study.sweep import Result


def suggest(
    recipe: Path = typer.Argument(..., help="A TOML recipe."),
    changes: list[str] = typer.Argument(
        None, help="Dotted changes: model.depth=8 stop.steps=500", metavar="[KEY=VALUE]..."
    ),
    text: str | None = typer.Option(None, help='Text to learn: a file or folder; short for data.text="..".'),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    minutes: float | None = typer.Option(None, help="About how long to search; as long as it takes by default."),
    batches: str | None = typer.Option(
        None, help="Ids a step to try, 512,1024,..; half, once and twice the recipe's by default, and on where better."
    ),
    out: Path | None = typer.Option(None, help="Folder of the search; runs/NAME-suggest by default."),
    json: bool = typer.Option(False, "--json", help="Print the suggestion as JSON."),
) -> None:
    """Find the learning rate and the batch size for a recipe: a range test, then short runs that grow longer.

    Example: temaki suggest recipes/demo.toml --text notes/ --minutes 20
    """
    import sys
    from dataclasses import asdict

    from temaki.base import dist
    from temaki.base.errors import ConfigError
    from temaki.cli.progress import TrainingLine, Work
    from temaki.cli.resolved import resolve
    from temaki.cli.said import say
    from temaki.study import suggest as engine
    from temaki.study import sweep
    from temaki.study.suggestion import text as told_in_words

    if dist.meet().size > 1:
        raise ConfigError("a search runs in one process", do="start it without torchrun")
    found = resolve(recipe, changes or [], text, None, None, errors)
    folder = out or Path("runs") / f"{found.get('name', 'run')}-suggest"
    work = Work()
    suggestion, swept = engine.suggest(
        found,
        folder,
        minutes=_minutes(minutes),
        batches=_numbers(batches),
        hooks=lambda _: [TrainingLine()],
        progress=work,
        made=told,
        say=lambda line: print(line, file=sys.stderr),
    )
    work.close()
    page = sweep.written(folder, swept)
    if suggestion is None:
        print(f"{folder}: stopped by {swept.stopped}; what is done stays, and the same command goes on from there")
        raise typer.Exit(130 if swept.stopped == "SIGINT" else 143)
    plain = {
        **asdict(suggestion),
        "rows": suggestion.rows,
        "beyond": suggestion.beyond,
        "runs": len(swept.results),
        "page": str(page),
    }
    say(plain, json, f"{told_in_words(suggestion)}\n{len(swept.results)} runs compared: {page}")


def told(which: int, _of: int, result: "Result") -> None:
    """Say on standard error how a run ended."""
    import sys

    how = f"loss {result.loss:.4f} in {result.seconds:.0f} s" if result.loss is not None else "diverged"
    print(f"run {which}, {result.name}: {how}", file=sys.stderr)


def _minutes(found: float | None) -> float | None:
    """Raises ConfigError for minutes that are none."""
    from temaki.base.errors import ConfigError

    if found is not None and not 0 < found < 1e6:
        raise ConfigError("--minutes is out of range", found=f"{found:g}", allowed="above 0")
    return found


def _numbers(found: str | None) -> list[int] | None:
    """The value of --batches. Raises ConfigError for what is no list of numbers."""
    from temaki.base.errors import ConfigError

    if found is None:
        return None
    parts = [each.strip() for each in found.split(",")]
    if not all(each.isascii() and each.isdigit() and len(each) < 10 for each in parts):
        raise ConfigError("--batches: not a list of numbers", found=found, allowed="ids a step, such as 512,1024")
    return [int(each) for each in parts]
