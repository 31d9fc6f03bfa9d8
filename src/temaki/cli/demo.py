"""`temaki demo`: from text to a language model at work, in minutes."""

from pathlib import Path

import typer


def demo(
    changes: list[str] = typer.Argument(
        None, help="Dotted changes: model.depth=6 data.vocabulary=2048", metavar="[KEY=VALUE]..."
    ),
    text: str | None = typer.Option(
        None, help="Your own text: a file or folder, any language. Default: Python's standard library."
    ),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    minutes: float = typer.Option(5.0, help="Minutes of training."),
    out: Path = typer.Option(Path("runs/demo"), help="Folder of the run; must not hold one."),
    resume: str = typer.Option("never", help='"auto" goes on with a demo that was stopped.'),
) -> None:
    """Turn text into a language model and show it at work: tokenizer, shards, training, evaluation, samples, report.

    Example: temaki demo --text notes/ --minutes 5 --out runs/notes
    """
    from temaki.cli import steps

    steps.demo(changes or [], text, errors, minutes, out, resume)
