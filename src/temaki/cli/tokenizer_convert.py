"""`temaki tokenizer convert`: from one file format to another, with a proof."""

from pathlib import Path

import typer


def convert(
    source: Path = typer.Argument(..., help="A tokenizer: a folder or file of any known format, or a run."),
    out: Path = typer.Argument(
        ..., help="What to write; must not exist. A folder for native, gpt2 and hf, else a file."
    ),
    to: str = typer.Option("native", help="native, gpt2, tiktoken, hf, sentencepiece, bytepiece or llama2c."),
    split: str | None = typer.Option(None, help="For a file of ranks, which does not say it: how text is split."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Write a tokenizer in another format and prove it the same: equal ids and bytes on texts made to break it.

    What the format cannot hold is refused, and nothing is written.

    Example: temaki tokenizer convert tokenizers/notes exported --to hf
    """
    import sys

    from temaki.cli.said import refuse, say
    from temaki.formats import convert as converting

    refuse(out)
    done = converting.convert(source, out, to, split)
    form = converting.FORMATS[to]
    if form.unsaid:
        print(f"{to} does not hold {form.unsaid}; a reader must be told", file=sys.stderr)
    found = {
        "out": str(out),
        "to": to,
        "kind": done.before.kind,
        "size": done.after.size,
        "texts": done.texts,
        "fingerprint": done.after.fingerprint,
    }
    on = (
        "ids (up to ties) on {:,} texts of known characters"
        if done.known
        else "ids and bytes on {:,} texts made to break them"
    )
    say(found, json, f"{out}: {done.after.size:,} ids; the same {on.format(done.texts)}")
