"""`temaki tokenizer compare`: tokenizers of every kind on the user's own text, at equal size."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.evaluate.contest import Score


def compare(
    text: str = typer.Option("stdlib", help='A file or folder of text; "stdlib": the source of Python\'s library.'),
    size: str = typer.Option("8000", help='Size of the vocabularies, or several: "4000,8000,16000".'),
    only: str | None = typer.Option(
        None, help='Those that take part: "bpe,bytepiece"; all that are installed if left out.'
    ),
    held_out: float = typer.Option(0.1, help="Share of the text that is measured on and not trained on."),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    out: Path = typer.Option(Path("tokenizers.html"), help="Page to write; an older one is replaced."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train BPE, BytePiece, WordPiece and characters on your text, beside installed packages, and measure them all.

    Each is trained in a process of its own. One that fails is told and left out; Ctrl-C keeps what was measured.

    Example: temaki tokenizer compare --text notes/ --size 8000
    """
    import sys
    import tempfile
    from dataclasses import asdict

    from temaki.base import config as config_door
    from temaki.base.errors import ConfigError, TokenizerError
    from temaki.batches import prepare
    from temaki.batches.config import DataConfig
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.cli.tokenizer_learn import sizes
    from temaki.evaluate import contest
    from temaki.report import tokens as report

    if not out.parent.is_dir():
        raise ConfigError(f"no such folder: {out.parent}", do="make it, or choose another --out")
    asked = sizes(size)
    names, missing = contest.chosen([name.strip() for name in (only or "").split(",") if name.strip()])
    given = {"text": text, "held_out": held_out} | ({"errors": errors} if errors is not None else {})
    settings = config_door.read(DataConfig, given, where="compare")
    train, held, corpus = prepare.read_documents(settings)
    print(corpus, file=sys.stderr)
    for name in missing:
        print(f"{name} is not installed and takes no part", file=sys.stderr)
    scores: list[Score] = []
    failed: dict[str, str] = {}
    work, interrupted = Work(), False
    with tempfile.TemporaryDirectory() as folder:
        trained_on, measured_on = Path(folder) / "train", Path(folder) / "held"
        contest.write(trained_on, [document.text for document in train])
        contest.write(measured_on, [document.text for document in held])
        try:
            for count, name in [(count, name) for count in asked for name in names]:
                try:
                    scores.append(contest.run(name, count, trained_on, measured_on, work))
                except TokenizerError as error:
                    failed[f"{name}, {count:,} ids"] = str(error)
                    print(f"{name}, {count:,} ids: {error}", file=sys.stderr)
                else:
                    print(f"{name}, {count:,} ids: {scores[-1].bytes_per_token:.3f} bytes a token", file=sys.stderr)
        except KeyboardInterrupt:
            interrupted = True
    work.close()
    if not scores and interrupted:
        raise KeyboardInterrupt
    if not scores:
        raise TokenizerError("not one tokenizer could be trained", found="; ".join(failed.values()))
    page = report.write(scores, corpus, out)
    found = {
        "corpus": corpus,
        "scores": [asdict(score) for score in scores],
        "missing": missing,
        "failed": failed,
        "page": str(page),
    }
    say(found, json, f"{table(scores)}\nopen {page}")
    if interrupted:
        print("interrupted; what was measured until then is above and on the page", file=sys.stderr)
        raise typer.Exit(130)


def table(scores: "list[Score]") -> str:
    """All scores as text, and below them the tokens a word of each script."""
    from temaki.report import tokens as report

    lines = columns([list(report.HEAD), *(report.cells(score) for score in scores)])
    scripts = list(dict.fromkeys(script for score in scores for script in score.fertility))
    if scripts:
        rows = [[s.name, *(f"{s.fertility[n]:.2f}" if n in s.fertility else "-" for n in scripts)] for s in scores]
        lines += ["", "tokens a word, by script (where words have no spaces: a character)"]
        lines += columns([["tokenizer", *scripts], *rows])
    return "\n".join(lines)


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of words as lines of columns, the first to the left, the others to the right.

    >>> columns([["name", "ids"], ["bpe", "8,000"]])
    ['name    ids', 'bpe   8,000']
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
