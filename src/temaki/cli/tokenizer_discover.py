"""`temaki tokenizer discover`: the words that BytePiece training finds in a text."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from temaki.tokens.discover import Found

ORDERS: "Mapping[str, Callable[[Found], float]]" = {
    "count": lambda found: found.count,
    "cohesion": lambda found: found.cohesion,
    "boundary": lambda found: found.boundary,
}
"""What words can be sorted by, the greatest first."""
WORD = r"[\p{L}\p{M}\p{N}](?:[\p{L}\p{M}\p{N} '’-]*[\p{L}\p{M}\p{N}])+"
"""What counts as a word, or as several: letters and digits at both ends."""


def discover(
    text: str = typer.Option("stdlib", help='A file or folder of text; "stdlib": the source of Python\'s library.'),
    size: int = typer.Option(8000, help="Size of the vocabulary that is trained."),
    tokenizer: Path | None = typer.Option(None, help="A BytePiece tokenizer to look with, instead of training one."),
    order: str = typer.Option("count", help="What the words are sorted by: count, cohesion or boundary."),
    least: int = typer.Option(5, min=1, help="Words that occur less often are left out."),
    top: int = typer.Option(50, min=1, help="How many words are shown."),
    every: bool = typer.Option(False, "--every", help="Pieces with punctuation and newlines too, not words alone."),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """List the words that were found without a dictionary: by count, cohesion (what being one piece is worth, in nats)
    and boundary (how free the neighbours are: the lower of the entropies before and after, in nats).

    Example: temaki tokenizer discover --text notes/ --order cohesion
    """
    import regex

    from temaki.base import config as config_door
    from temaki.base.errors import ConfigError
    from temaki.batches.config import DataConfig
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.cli.tokenizer_learn import Learning, learn
    from temaki.cli.tokenizer_text import Corpus
    from temaki.formats import tokenizer as opener
    from temaki.tokens import discover as finding
    from temaki.tokens.bytepiece import BytePiece

    if order not in ORDERS:
        raise ConfigError("--order is out of range", found=order, allowed=", ".join(ORDERS))
    given = {"text": text} | ({"errors": errors} if errors is not None else {})
    work = Work()
    corpus = Corpus(config_door.read(DataConfig, given, where="discover"), work)
    if tokenizer is None:
        model = learn(Learning("bytepiece", [size], None, {}), corpus, work)[0]
    else:
        model = opener.open(tokenizer)
    if not isinstance(model, BytePiece):
        raise ConfigError("words are found by a BytePiece tokenizer", found=f"{tokenizer} is of kind {model.kind}")
    word = regex.compile(WORD)
    found = [
        each
        for each in finding.discover(corpus, model)
        if each.count >= least and (every or word.fullmatch(each.text.strip(" ")))
    ]
    work.close()
    shown = sorted(found, key=lambda each: -ORDERS[order](each))[:top]
    told = {"vocabulary": model.size, "words": len(found), "shown": [_row(each) for each in shown]}
    say(told, json, table(shown, len(found)))


def table(shown: "list[Found]", count: int) -> str:
    """A line a word; below it what the columns mean."""
    from temaki.cli.pieces import shown as visible

    lines = [f"{'count':>9} {'cohesion':>9} {'boundary':>9}  word"]
    for each in shown:
        cohesion = f"{each.cohesion:.2f}" if math.isfinite(each.cohesion) else "-"
        lines.append(f"{each.count:>9,} {cohesion:>9} {each.boundary:>9.2f}  {visible(each.text.encode('utf-8'))}")
    lines.append(f"{len(shown):,} of {count:,} words; cohesion: nats that being one piece is worth; boundary: lower of")
    lines.append("the entropies of what stands before and after, low where it is a part of something longer")
    return "\n".join(lines)


def _row(found: "Found") -> dict[str, Any]:
    return {
        "id": found.id,
        "text": found.text,
        "count": found.count,
        "cohesion": found.cohesion if math.isfinite(found.cohesion) else None,
        "before": found.before,
        "after": found.after,
        "boundary": found.boundary,
    }
