"""`temaki inspect`: what a model file holds."""

import typer


def inspect(
    model: str = typer.Argument(..., help="Any model file or folder, a run, or a name such as smollm2."),
    json: bool = typer.Option(False, "--json", help="Print all of it as JSON."),
) -> None:
    """Describe a model: format, shape, parameters, types of its numbers, tokenizer, and what it can be exported to.

    Example: temaki inspect runs/demo
    """
    from temaki.cli import named
    from temaki.cli.said import say
    from temaki.formats import open as opener
    from temaki.formats import told

    found = told.told(opener.open(named.path(model)))
    say(found, json, told.lines(found))
