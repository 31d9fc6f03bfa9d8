"""`temaki quantize`: a model in blocks of few bits, as a GGUF file, with what it cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from temaki.evaluate.rounding import Rounded
    from temaki.formats.carry import Carried
    from temaki.formats.opened import Opened

KINDS = ("Q8_0", "Q4_0", "Q4_1")


def quantize(
    model: str = typer.Argument(..., help="A run, a checkpoint, a model file or folder, or a name such as smollm2."),
    out: Path = typer.Argument(..., help="The GGUF file to write; must not exist."),
    kind: str = typer.Option(
        "Q4_1",
        help="Q8_0: 8 bits; Q4_0, Q4_1: 4 bits, embedding and head in 8. Blocks of 32 share a scale (Q4_1: and a least "
        "number).",
    ),
    measure: Path | None = typer.Option(
        None, help="A text file or folder: perplexity on it before and after.", metavar="TEXT"
    ),
    context: int = typer.Option(512, min=2, help="Ids a window of the text that is measured."),
    json: bool = typer.Option(False, "--json", help="Print all as JSON, every matrix with its error."),
) -> None:
    """Write a model in 8 or 4 bits: each matrix's kind, size and error, proved before the file takes its name.

    What GGUF has no words for can be made small when it is opened: temaki generate MODEL --bits 4

    Example: temaki quantize runs/demo demo.gguf --kind Q8_0
    """
    import sys

    from temaki.base.errors import FormatError
    from temaki.cli import named

    if kind.upper() not in KINDS:
        raise FormatError("not a kind of block that is written", found=repr(kind), allowed=", ".join(KINDS))
    if out.exists():
        raise FormatError(f"{out} exists already; nothing was changed", do="choose another name or remove it")
    path = named.path(model)
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.compiled import plan
    from temaki.evaluate import rounding
    from temaki.formats import carry
    from temaki.formats import open as opener
    from temaki.study.voice import TorchVoice

    source = opener.open(path)
    for warning in [*source.warnings, *_again(source, kind.upper())]:
        print(f"warning: {warning}", file=sys.stderr)
    refused = carry.refusal(source, "gguf")
    if refused is not None:
        small = "let it be made small when it is opened: --bits 8 or --bits 4 of temaki generate"
        raise FormatError(
            f"GGUF cannot hold this model: {refused.splitlines()[0]}",
            do="keep it as it is" + (f" and {small}" if plan.refusal(source.config) is None else ""),
        )
    work = Work()
    before = _perplexity(source, measure, context, "before", work)
    made = carry.carry(source, out, "gguf", TorchVoice, kind.lower(), lambda line: print(f"{line} ..", file=sys.stderr))
    for line in made.lost:
        print(f"warning: {line}", file=sys.stderr)
    trunk = source.trunk().weights()
    rounded = rounding.rounded(trunk, made.after.weights(), lambda done: work("errors: matrices", done, len(trunk)))
    after = _perplexity(made.after, measure, context, "after", work)
    work.close()
    say(_facts(made, rounded, before, after), json, _text(made, rounded, before, after))


def _again(source: "Opened", kind: str) -> list[str]:
    """What to say of a model that is in blocks of few bits already: it was rounded before."""
    from temaki.model.quantise import Blocks
    from temaki.model.quantise_kinds import KINDS as BLOCKS

    bits = {name: 8 * each.bytes / each.numbers for name, each in BLOCKS.items()}
    parts = (stored for weight in source.trunk().weights().values() for stored, _ in weight.parts)
    held = {each.kind for each in parts if isinstance(each, Blocks) and BLOCKS[each.kind].numbers > 1}
    if not held:
        return []
    said = ", ".join(f"{name} of {bits[name]:g} bits a number" for name in sorted(held, key=lambda name: bits[name]))
    grows = bits[kind] > min(bits[name] for name in held)
    what = "the file grows, and what was rounded away does not come back" if grows else "it is rounded once more"
    return [f"the model is in blocks already ({said}); as {kind} ({bits[kind]:g} bits) {what}"]


def _perplexity(opened: "Opened", text: Path | None, context: int, when: str, work: Any) -> "float | None":
    """Perplexity of a model as it will run here; None where no text is given."""
    if text is None:
        return None
    from temaki.study import judging

    return judging.score_text(
        opened, text, context, progress=lambda what, done, of: work(f"perplexity {when}: ids", done, of)
    ).perplexity


def _facts(made: "Carried", rounded: "list[Rounded]", before: float | None, after: float | None) -> dict[str, Any]:
    from dataclasses import asdict

    from temaki.formats import parity

    return {
        "written": [str(path) for path in made.paths],
        "bytes": {"before": sum(each.before for each in rounded), "after": sum(each.after for each in rounded)},
        "proof": parity.facts(made.proof),
        "loss": parity.facts(made.loss) if made.loss is not None else None,
        "matrices": [asdict(each) for each in rounded],
        "perplexity": None if before is None else {"before": before, "after": after},
        "lost": list(made.lost),
    }


def _table(found: "list[Rounded]") -> str:
    """Lines of what is alike in all layers together: how many, kind, sizes, errors."""
    import re

    from temaki.report.figures import size

    alike: dict[tuple[str, str], list[Rounded]] = {}
    for each in found:
        alike.setdefault((re.sub(r"\.\d+\.", ".*.", each.name), each.kind), []).append(each)
    wide = max(len(name) for name, _ in alike)
    lines = [f"{'weight':<{wide}}  {'count':>5}  {'kind':<9}{'before':>9}  {'after':>9}  error, mean and most"]
    for (name, kind), group in alike.items():
        sizes = f"{size(sum(each.before for each in group)):>9}  {size(sum(each.after for each in group)):>9}"
        errors = [each.error for each in group]
        said = f"{sum(errors) / len(errors):.2%} {max(errors):.2%}" if any(errors) else "none"
        lines.append(f"{name:<{wide}}  {len(group):>5}  {kind:<9}{sizes}  {said}")
    return "\n".join(lines)


def _text(made: "Carried", rounded: "list[Rounded]", before: float | None, after: float | None) -> str:
    from temaki.report.figures import size
    from temaki.report.runs import command

    held = sum(each.before for each in rounded), sum(each.after for each in rounded)
    lines = [_table(rounded), f"weights: {size(held[0])} before, {size(held[1])} after"]
    lines += [f"proved against the weights rounded in memory: {made.proof}"]
    if made.loss is not None:
        lines.append(f"what rounding cost: {made.loss}")
        if made.loss.agreed < made.loss.tokens:
            lines.append(
                "  one greedy token that was nearly a tie and falls otherwise changes all behind it, so few may be "
                "equal; what judges are the errors above and the perplexity"
                + ("" if before is not None else " (--measure TEXT)")
            )
    if before is not None and after is not None:
        lines.append(f"perplexity: {before:.3f} before, {after:.3f} after ({after / before - 1:+.2%})")
    lines.append(f"{made.paths[-1]}, {size(made.paths[-1].stat().st_size)}")
    lines.append(f"next: {command('generate', made.paths[-1], '--prompt', 'your text')}")
    return "\n".join(lines)
