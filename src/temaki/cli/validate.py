"""`temaki validate`: a recipe checked, and what it will cost; nothing is trained."""

from pathlib import Path

import typer


def validate(
    recipe: Path = typer.Argument(..., help="A TOML recipe."),
    changes: list[str] = typer.Argument(
        None, help="Dotted changes: model.depth=8 optim.lr=3e-3", metavar="[KEY=VALUE]..."
    ),
    text: str | None = typer.Option(None, help='Text to learn: a file or folder; short for data.text="..".'),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    minutes: float | None = typer.Option(None, help="One dial: size and steps that fill so many minutes here."),
    depth: int | None = typer.Option(None, help="One dial: size and steps by the number of layers."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Check a recipe: files, memory, steps, time. Nothing is trained.

    Example: temaki validate recipes/demo.toml model.depth=8
    """
    from dataclasses import asdict

    from temaki.cli.resolved import resolve, show
    from temaki.cli.said import say
    from temaki.study import estimate

    found = resolve(recipe, changes or [], text, minutes, depth, errors)
    result = estimate.estimate(found)
    show(result.recipe)
    say({key: value for key, value in asdict(result).items() if key != "recipe"}, json, estimate.table(result))
