"""What `temaki import` and `temaki export` do and say: write, prove, tell."""

import sys
from pathlib import Path
from typing import Any

from temaki.cli import named
from temaki.cli.said import say
from temaki.formats import carry, parity
from temaki.formats import open as opener
from temaki.formats.carry import Carried
from temaki.model.quantise_kinds import KINDS
from temaki.report.runs import command
from temaki.study.voice import TorchVoice


def carried(model: str, out: Path, to: str, type: str | None, json: bool) -> None:
    """Carry a model into a format and print the proof."""
    carry.check(out, to, type)
    source = opener.open(named.path(model))
    for warning in source.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    made = carry.carry(source, out, to, TorchVoice, type, lambda line: print(f"{line} ..", file=sys.stderr))
    for line in made.lost:
        print(f"warning: {line}", file=sys.stderr)
    say(_facts(made, to), json, _text(made, to, type))


def _facts(made: Carried, to: str) -> dict[str, Any]:
    return {
        "written": [str(path) for path in made.paths],
        "format": to,
        "proof": parity.facts(made.proof),
        "loss": parity.facts(made.loss) if made.loss is not None else None,
        "texts": made.texts,
        "lost": list(made.lost),
    }


def _text(made: Carried, to: str, type: str | None) -> str:
    what = "the weights as they are" if made.loss is None else "the weights rounded to this type, in memory"
    lines = [
        f"{', '.join(map(str, made.paths))}: {to}, {sum(map(_size, made.paths)) / 1e6:,.1f} MB",
        f"proved against {what}: {made.proof}",
    ]
    if made.loss is not None:
        lines.append(f"what rounding cost: {made.loss}")
    lines += _finer(made, to, type)
    if made.texts is not None:
        lines.append(f"tokenizer: the same ids on {made.texts:,} nasty texts")
    if to == "native":
        lines.append(f"next: {command('generate', made.paths[-1], '--prompt', 'your text')}")
    return "\n".join(lines)


def _finer(made: Carried, to: str, type: str | None) -> list[str]:
    """What was kept finer than it was asked for, because it cannot be cut into blocks."""
    block = KINDS.get((type or "").upper())
    kinds = made.after.facts.get("kinds")
    if to != "gguf" or block is None or not isinstance(kinds, dict) or "F16" not in kinds:
        return []
    return [f"kept as f16: {kinds['F16']} matrices whose rows are no multiple of {block.numbers} numbers"]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
