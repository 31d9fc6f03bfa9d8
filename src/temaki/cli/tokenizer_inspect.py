"""`temaki tokenizer inspect`: a tokenizer in figures, or a text as it sees it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from temaki.tokens.tokenizer import Tokenizer

LONGEST = 12
"""Longest pieces that the summary shows."""
WIDE = 40
"""Characters of the longest bar of a histogram."""


def inspect(
    tokenizer: Path = typer.Argument(..., help="A tokenizer: a folder or file of any known format, or a run."),
    text: str | None = typer.Argument(None, help="A text to look at; without it, a summary of the vocabulary."),
    special: str = typer.Option("none", help='Special tokens that may arise from the text: none, all, or "A,B".'),
    merges: bool = typer.Option(False, "--merges", help="BPE: each merge, step by step."),
    lattice: bool = typer.Option(False, "--lattice", help="BytePiece, unigram: the best paths, sampled paths, pieces."),
    alpha: float = typer.Option(0.5, help="--lattice: how sharply paths are sampled; 0 = all alike, 1 = as probable."),
    split: str | None = typer.Option(None, help="For a file of ranks: how text is split, as cl100k."),
    paths: int = typer.Option(8, min=1, help="--lattice: how many best paths are shown."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Show the pieces of a text in colour, merges step by step, the lattice; without a text, the vocabulary in figures.

    Example: temaki tokenizer inspect tokenizers/notes "Once upon a time" --merges
    """
    from temaki.base.errors import ConfigError
    from temaki.cli.said import say
    from temaki.cli.tokenizer_ids import asked_special
    from temaki.formats import tokenizer as opener
    from temaki.tokens import utf8

    opened = opener.open(tokenizer, split)
    if text is None:
        if merges or lattice:
            raise ConfigError("--merges and --lattice need a text to look at", do="give a text behind the tokenizer")
        found = summary(opened)
        say(found, json, described(found, tokenizer))
        return
    names = asked_special(opened, special)
    utf8.checked(text)
    if merges:
        steps = merge_steps(opened, text, names)
        say({"words": steps}, json, steps_text(steps))
    elif lattice:
        from temaki.cli import lattice as lattices

        found = lattices.found(opened, text, alpha, paths)
        say(found, json, lattices.table(found))
    else:
        found = cut(opened, text, names)
        say(found, json, pieces_text(opened, found))


def summary(tokenizer: "Tokenizer") -> dict[str, Any]:
    """A vocabulary in figures."""
    from temaki.cli.pieces import shown

    reserved = set(tokenizer.special.values())
    plain = [token for id, token in enumerate(tokenizer.tokens) if id not in reserved]
    lengths: dict[int, int] = {}
    for token in plain:
        lengths[len(token)] = lengths.get(len(token), 0) + 1
    found: dict[str, Any] = {
        "kind": tokenizer.kind,
        "size": tokenizer.size,
        "fingerprint": tokenizer.fingerprint,
        "special": dict(tokenizer.special),
        "lengths": {str(length): lengths[length] for length in sorted(lengths)},
        "longest": [shown(token) for token in sorted(plain, key=len, reverse=True)[:LONGEST]],
    }
    facts = tokenizer.facts()
    return found | {key: facts[key] for key in ("pattern", "normalize") if key in facts}


def described(found: Mapping[str, Any], path: Path) -> str:
    """The figures as lines, and the lengths as bars."""
    special = ", ".join(f"{text!r} = {id}" for text, id in list(found["special"].items())[:8]) or "none"
    if len(found["special"]) > 8:
        special += f", .. ({len(found['special'])} in all)"
    lines = [f"{path}: {found['kind']}, {found['size']:,} ids", f"special tokens  {special}"]
    lines += [f"{name:<15} {found[name]}" for name in ("pattern", "normalize") if name in found]
    lines += [f"fingerprint     {found['fingerprint']}", "", "longest pieces  " + "  ".join(found["longest"]), ""]
    lines.append("bytes  pieces")
    most = max(found["lengths"].values(), default=1)
    for length, count in found["lengths"].items():
        bar = "█" * max(1, round(WIDE * count / most))
        lines.append(f"{length:>5}  {count:>7,}  {bar}")
    return "\n".join(lines)


def cut(tokenizer: "Tokenizer", text: str, special: Sequence[str]) -> dict[str, Any]:
    """A text's ids and pieces, and whether it comes back."""
    from temaki.cli.pieces import shown

    ids = tokenizer.encode_list(text, special)
    size = len(text.encode("utf-8"))
    return {
        "ids": ids,
        "pieces": [shown(tokenizer.tokens[id]) for id in ids],
        "bytes": size,
        "bytes_per_token": size / max(1, len(ids)),
        "exact": tokenizer.decode(ids) == text,
    }


def pieces_text(tokenizer: "Tokenizer", found: Mapping[str, Any]) -> str:
    """The pieces in colour, their ids, and figures."""
    from temaki.cli import pieces

    tokens = [tokenizer.tokens[id] for id in found["ids"]]
    back = "comes back exactly" if found["exact"] else "does NOT come back exactly"
    return "\n".join(
        [
            pieces.line(tokens, pieces.coloured()),
            " ".join(map(str, found["ids"])),
            f"{len(tokens)} tokens, {found['bytes']} bytes, {found['bytes_per_token']:.2f} bytes a token; {back}",
        ]
    )


def merge_steps(tokenizer: "Tokenizer", text: str, special: Sequence[str]) -> list[dict[str, Any]]:
    """For each pre-token of the text the merges that make its pieces. Raises TokenizerError for other kinds."""
    from temaki.base.errors import TokenizerError
    from temaki.cli.pieces import shown
    from temaki.tokens import split, steps
    from temaki.tokens.bpe import Bpe

    if not isinstance(tokenizer, Bpe):
        raise TokenizerError(f"a {tokenizer.kind} tokenizer has no merges", do="use --lattice, or leave --merges out")
    known = tokenizer.vocabulary
    plain = [token if known.ids.get(token) == id else b"" for id, token in enumerate(known.tokens)]
    ranks = None if known.merges is None else {pair: rank for rank, pair in enumerate(known.merges)}
    splitter = split.Splitter(tokenizer.pattern)
    made: list[dict[str, Any]] = []
    for part, is_special in split.parts(text, special):
        for word in [part] if is_special else splitter.words(part):
            raw = word.encode("utf-8")
            done = steps.merges(raw, steps.by_tokens(plain, raw) if ranks is None else ranks)
            whole = known.whole and raw in known.ids and (not done or done[-1].pieces != (raw,))
            if is_special or whole:  # taken as it is
                made.append({"word": shown(raw), "bytes": [shown(raw)], "merges": []})
                continue
            told = [{"rank": step.rank, "pieces": [shown(piece) for piece in step.pieces]} for step in done]
            made.append({"word": shown(raw), "bytes": [shown(bytes([value])) for value in raw], "merges": told})
    return made


def steps_text(words: Sequence[Mapping[str, Any]]) -> str:
    """The steps of each word, one a line, with the number of the merge in front."""
    lines: list[str] = []
    for word in words:
        lines.append(word["word"])
        lines.append(f"{'bytes':>9}  {' '.join(word['bytes'])}")
        lines += [f"{'#' + str(step['rank']):>9}  {' '.join(step['pieces'])}" for step in word["merges"]]
    return "\n".join(lines)
