"""`temaki tokenizer`: train one on text."""

from pathlib import Path

import typer

app = typer.Typer(help="Train tokenizers.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def tokenizer() -> None:
    """Train tokenizers."""


@app.command()
def train(
    out: Path = typer.Option(..., help="Folder to write the tokenizer to; must not exist."),
    text: str = typer.Option("stdlib", help='A file or folder of text, or "stdlib".'),
    vocabulary: int = typer.Option(4096, help="Size, specials and bytes included."),
    split: str = typer.Option("gpt2", help="How text is cut before merging: a pattern's name or a regular expression."),
    errors: str = typer.Option("strict", help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a byte-level BPE tokenizer on text.

    Example: temaki tokenizer train --text notes/ --vocabulary 8000 --out tokenizers/notes
    """
    from temaki.base import config
    from temaki.batches import prepare
    from temaki.batches.config import DataConfig
    from temaki.cli.progress import Work
    from temaki.cli.said import refuse, say
    from temaki.tokens import files

    refuse(out)
    settings = config.read(DataConfig, {"text": text, "vocabulary": vocabulary, "split": split, "errors": errors})
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
    say(
        found, json,
        f"{out}: {made.size} ids, {size / max(1, ids):.2f} bytes a token\n"
        f"next: temaki data prepare --text {text} --tokenizer {out} --out data/{out.name}",
    )  # fmt: skip
