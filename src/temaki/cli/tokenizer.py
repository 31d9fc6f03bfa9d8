"""`temaki tokenizer`: train one on text."""

from pathlib import Path

import typer

app = typer.Typer(help="Train tokenizers.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def tokenizer() -> None:
    """Train tokenizers."""


@app.command()
def train(
    recipe: Path | None = typer.Argument(None, help="A TOML recipe; its [data] table is used."),
    changes: list[str] = typer.Argument(None, help="Dotted changes: data.vocabulary=8000", metavar="[KEY=VALUE]..."),
    out: Path = typer.Option(..., help="Folder to write the tokenizer to; must not exist."),
    text: str | None = typer.Option(None, help='A file or folder of text; "stdlib" by default.'),
    vocabulary: int | None = typer.Option(None, help="Size, specials and bytes included."),
    split: str | None = typer.Option(
        None, help="How text is cut before merging: a pattern's name or a regular expression."
    ),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a byte-level BPE tokenizer on text.

    Example: temaki tokenizer train --text notes/ --vocabulary 8000 --out tokenizers/notes
    """
    import shlex

    from temaki.batches import prepare
    from temaki.cli.progress import Work
    from temaki.cli.resolved import data_table
    from temaki.cli.said import refuse, say
    from temaki.tokens import files

    refuse(out)
    given = {"text": text, "vocabulary": vocabulary, "split": split, "errors": errors}
    settings = data_table(recipe, changes or [], given)
    work = Work()
    documents, line = prepare.read_whole(settings)
    work(line, 1, 1)
    made = prepare.train_tokenizer(settings, documents, work)
    work.close()
    files.save(made, out)
    sample = documents[: max(1, len(documents) // 20)]
    size = sum(len(document.text.encode()) for document in sample)
    ids = len(made.encode_batch([document.text for document in sample]).ids)
    found = {
        "folder": str(out),
        "size": made.size,
        "fingerprint": made.fingerprint,
        "bytes_per_token": size / max(1, ids),
    }
    following = [
        "temaki",
        "data",
        "prepare",
        "--text",
        settings.text,
        "--tokenizer",
        str(out),
        "--out",
        f"data/{out.name}",
    ]
    say(
        found, json,
        f"{out}: {made.size} ids, {size / max(1, ids):.2f} bytes a token\n"
        f"next: {shlex.join(following)}",
    )  # fmt: skip
