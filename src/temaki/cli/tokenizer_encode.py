"""`temaki tokenizer encode` and `decode`: text to ids and back, through files and pipes."""

from pathlib import Path

import typer

TOKENIZER = "A tokenizer: a folder or file of any known format, or a run."
SPLIT = "For a file of ranks, which does not say it: how text is split, as cl100k."


def encode(
    tokenizer: Path = typer.Argument(..., help=TOKENIZER),
    file: list[Path] = typer.Argument(None, help='Files of UTF-8 text; "-" or none: standard input.'),
    lines: bool = typer.Option(False, "--lines", help="Each line is a document, not each file."),
    special: str = typer.Option("none", help='Special tokens that may arise from the text: none, all, or "A,B".'),
    pieces: bool = typer.Option(False, "--pieces", help="Show the pieces instead of their ids."),
    split: str | None = typer.Option(None, help=SPLIT),
    out: Path | None = typer.Option(None, help="Write the ids to FILE.npy or FILE.bin."),
    json: bool = typer.Option(False, "--json", help="One JSON object a document."),
) -> None:
    """Turn text into ids: one line of numbers a document. Files of any size pass through in constant memory.

    Example: temaki tokenizer encode tokenizers/notes notes/a.txt --special all
    """
    import sys
    from contextlib import ExitStack

    from temaki.base.errors import ConfigError
    from temaki.cli import tokenizer_ids as ids
    from temaki.cli.pieces import coloured
    from temaki.formats import tokenizer as opener

    if out is not None and (json or pieces):
        raise ConfigError("--out takes ids alone", found="--json" if json else "--pieces", do="leave one of them out")
    opened = opener.open(tokenizer, split)
    names = ids.asked_special(opened, special)
    with ExitStack() as stack:
        target = ids.IdFile(out, opened.size, stack) if out is not None else None
        for name, chunks in ids.documents(file or [Path("-")], lines):
            found = ids.encoded(opened, name, chunks, names)
            if target is not None:
                target.write(found)
            elif json:
                ids.print_json(opened, name, found, pieces)
            elif pieces:
                ids.print_pieces(opened, found, coloured())
            else:
                ids.print_ids(found)
        if target is not None:
            target.finish()
            said = f"{target.path}: {target.ends[-1]:,} ids of {len(target.ends) - 1:,} documents, {target.kind}"
            print(said, file=sys.stderr)


def decode(
    tokenizer: Path = typer.Argument(..., help=TOKENIZER),
    file: Path = typer.Argument(Path("-"), help='A text of ids, FILE.npy or FILE.bin; "-": standard input.'),
    split: str | None = typer.Option(None, help=SPLIT),
    lines: bool = typer.Option(False, "--lines", help="Each line of ids is a document and becomes a line."),
    json: bool = typer.Option(False, "--json", help="One JSON object a document, its bytes read as UTF-8."),
) -> None:
    """Turn ids back into exactly the bytes they stand for.

    Example: temaki tokenizer encode tokenizers/notes a.txt | temaki tokenizer decode tokenizers/notes
    """
    import sys

    from temaki.base.errors import ConfigError
    from temaki.cli import tokenizer_ids as ids
    from temaki.cli.said import say
    from temaki.formats import tokenizer as opener

    if lines and file.suffix in (".npy", ".bin"):
        raise ConfigError("--lines reads a text of ids", found=str(file), do="leave --lines out")
    opened = opener.open(tokenizer, split)
    source = ids.read_lines(file) if lines else ids.read_ids(file, opened.size)
    if json:
        whole = source if lines else [[id for some in source for id in some.tolist()]]
        for each in whole:
            say({"text": opened.decode(each)}, True, "")
        return
    for part in ids.decoded_lines(opened, source) if lines else ids.decoded(opened, source):
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()
