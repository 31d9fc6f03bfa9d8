"""`temaki tokenizer train`: a vocabulary from text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from temaki.batches.config import DataConfig
    from temaki.tokens.tokenizer import Tokenizer


def train(
    recipe: Path | None = typer.Argument(None, help="A TOML recipe; its [data] table is used."),
    changes: list[str] = typer.Argument(None, help="Dotted changes: data.vocabulary=8000", metavar="[KEY=VALUE]..."),
    out: Path = typer.Option(..., help="Folder to write the tokenizer to; must not exist. Several sizes: OUT-SIZE."),
    text: str | None = typer.Option(None, help='A file or folder of text; "stdlib" by default.'),
    kind: str = typer.Option("bpe", help="bpe, bytepiece, wordpiece or characters."),
    vocabulary: str | None = typer.Option(
        None, "--vocab-size", "--vocabulary", help='Size, specials and bytes included; several at once: "8000,16000".'
    ),
    split: str | None = typer.Option(
        None, help="BPE: how text is cut before merging, a pattern's name or a regular expression."
    ),
    special: list[str] = typer.Option(None, help="A special token; may be given again. <|endoftext|> by default."),
    ties: str | None = typer.Option(None, help='BPE: of equally frequent pairs the greatest "bytes", or least "ids".'),
    memory: str | None = typer.Option(None, help="BPE: bytes that counting may take, as 2G; more goes to disk."),
    prune: int | None = typer.Option(None, help="BPE: words that occur less often are left out, and told."),
    min_count: int | None = typer.Option(None, help="BytePiece: how often a piece must occur to be kept."),
    isolate_digits: bool = typer.Option(False, "--isolate-digits", help="BytePiece: no piece holds two digits."),
    normalize: str | None = typer.Option(None, help='BytePiece: "nfc", or "none", so that nothing is lost.'),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a tokenizer on text: BPE, BytePiece, WordPiece or characters.

    Example: temaki tokenizer train --text notes/ --vocab-size 8000 --out tokenizers/notes
    """
    import sys

    from temaki.cli import tokenizer_learn as learning
    from temaki.cli.progress import Work
    from temaki.cli.said import refuse, say
    from temaki.cli.tokenizer_text import Corpus

    given = {"text": text, "split": split, "errors": errors}
    asked = learning.sizes(vocabulary) if vocabulary is not None else []
    settings = data_settings(recipe, changes or [], given | {"vocabulary": asked[0] if asked else None})
    asked = asked or [settings.vocabulary]
    folders = [out] if len(asked) == 1 else [out.with_name(f"{out.name}-{size}") for size in asked]
    for folder in folders:
        refuse(folder)
    options = {
        "ties": ties,
        "memory": None if memory is None else learning.amount(memory),
        "prune": prune,
        "min_count": min_count,
        "isolate_digits": isolate_digits or None,
        "normalize": normalize,
    }
    if kind == "bpe" or split is not None:
        options["split"] = settings.split
    wanted = learning.Learning(kind, asked, special or None, {k: v for k, v in options.items() if v is not None})
    work = Work()
    made = learning.learn(wanted, Corpus(settings, work), work)
    work.close()
    found = [saved(tokenizer, folder, settings) for tokenizer, folder in zip(made, folders, strict=True)]
    lines = [f"{each['folder']}: {each['size']} ids, {each['bytes_per_token']:.2f} bytes a token" for each in found]
    for each, size in zip(found, asked, strict=True):
        if each["size"] < size:
            print(f"{each['folder']}: the text holds no more than {each['size']} of {size} ids", file=sys.stderr)
    if kind == "bytepiece" and made[-1].size == 256 + len(made[-1].special):
        print("no piece was found: the text is too short or says the same again and again; bpe may do", file=sys.stderr)
    whole = found[0] | ({"all": found} if len(found) > 1 else {})
    say(whole, json, "\n".join([*lines, f"next: {following(made[0], folders[0], settings)}"]))


def data_settings(recipe: Path | None, changes: list[str], given: Mapping[str, Any]) -> "DataConfig":
    """The [data] table of a recipe with options and changes over it, printed; without a recipe nothing heavy loads."""
    from temaki.base import config as config_door
    from temaki.batches.config import DataConfig

    if recipe is not None or changes:
        from temaki.cli.resolved import data_table

        return data_table(recipe, changes, given)
    named = {name: value for name, value in given.items() if value is not None}
    settings = config_door.read(DataConfig, named, where="[data]")
    _show(settings)
    return settings


def saved(tokenizer: "Tokenizer", folder: Path, settings: "DataConfig") -> dict[str, Any]:
    """Write a tokenizer into its folder, and tell what it is."""
    from temaki.cli.tokenizer_text import sampled
    from temaki.tokens import files

    files.save(tokenizer, folder)
    size, tokens = sampled(settings, tokenizer)
    return {
        "folder": str(folder),
        "kind": tokenizer.kind,
        "size": tokenizer.size,
        "fingerprint": tokenizer.fingerprint,
        "bytes_per_token": size / max(1, tokens),
    }


def following(tokenizer: "Tokenizer", folder: Path, settings: "DataConfig") -> str:
    """The next command: shards, where the tokenizer knows the boundary between documents."""
    import shlex

    from temaki.batches.prepare import BOUNDARY

    words = ["temaki", "tokenizer", "inspect", str(folder)]
    if BOUNDARY in tokenizer.special:
        words = ["temaki", "data", "prepare", "--text", settings.text, "--tokenizer", str(folder)]
        words += ["--out", f"data/{folder.name}"]
    return shlex.join(words)


def _show(settings: "DataConfig") -> None:
    import sys

    from temaki.base import config as config_door

    told = config_door.mapping(settings)
    lines = config_door.toml({"data": {name: told[name] for name in ("text", "vocabulary", "split", "errors")}})
    print("resolved:\n" + "".join(f"  {line}\n" for line in lines.splitlines()), file=sys.stderr)
