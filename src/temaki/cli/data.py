"""`temaki data`: text into shards."""

from pathlib import Path

import typer

app = typer.Typer(help="Turn text into shards of ids.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Turn text into shards of ids."""


@app.command()
def prepare(
    recipe: Path | None = typer.Argument(None, help="A TOML recipe; its [data] table is used."),
    changes: list[str] = typer.Argument(None, help="Dotted changes: data.vocabulary=8000", metavar="[KEY=VALUE]..."),
    out: Path = typer.Option(..., help="Folder to write to; must not exist."),
    text: str | None = typer.Option(None, help='A file or folder of text; "stdlib" by default.'),
    tokenizer: str | None = typer.Option(None, help="Folder of a tokenizer; without it one is trained."),
    vocabulary: int | None = typer.Option(None, help="Size of the tokenizer that is trained."),
    boundary: str | None = typer.Option(None, help="Special token between documents; <|endoftext|> by default."),
    held_out: float | None = typer.Option(None, help="Share of documents kept from training."),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Turn text into memory-mapped shards: a training and a held-out part, and the tokenizer.

    Example: temaki data prepare --text notes/ --out data/notes
    """
    import shlex

    from temaki.base.errors import ConfigError
    from temaki.batches import prepare
    from temaki.cli.progress import Work
    from temaki.cli.resolved import data_table
    from temaki.cli.said import refuse, say

    refuse(out)
    given = {
        "text": text,
        "tokenizer": tokenizer,
        "vocabulary": vocabulary,
        "boundary": boundary,
        "held_out": held_out,
        "errors": errors,
    }
    settings = data_table(recipe, changes or [], given)
    if settings.task is not None:
        raise ConfigError("a task has no text to prepare: its examples are made as it is trained", do="temaki train")
    work = Work()
    made = prepare.prepare(settings, out, work)
    work.close()
    splits = {"train": made.train.manifest, "held": made.held.manifest}
    found = {"folder": str(out), "vocabulary": made.tokenizer.size} | {
        name: {"documents": m.documents, "ids": m.ids, "bytes": m.bytes} for name, m in splits.items()
    }
    lines = [f"{name}: {m.documents} documents, {m.bytes / 1e6:.2f} MB, {m.ids:,} ids" for name, m in splits.items()]
    say(
        found,
        json,
        "\n".join(
            [
                *lines,
                "next: " + shlex.join(["temaki", "train", "recipes/demo.toml", f"data.shards={out}", "--minutes", "5"]),
            ]
        ),
    )
