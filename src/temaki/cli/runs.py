"""`temaki runs`: what there is, how it stands, what to do next."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.report.runs import RunInfo


def runs(
    folder: Path = typer.Argument(Path("runs"), help="Folder of runs, or one run."),
    json: bool = typer.Option(False, "--json", help="Print the runs as JSON."),
) -> None:
    """List runs: state, best, next command.

    Example: temaki runs
    """
    from temaki.base.errors import RunError
    from temaki.cli.said import say
    from temaki.report import runs as listing

    if not folder.is_dir():
        raise RunError(f"no such folder: {folder}", do="make a run: temaki demo")
    found = listing.runs(folder)
    plain = [{**vars(each), "folder": str(each.folder)} for each in found]
    say({"runs": plain}, json, table(found) if found else f"{folder} holds no runs; make one: temaki demo")


def table(found: "list[RunInfo]") -> str:
    """A line a run, and below it the next command."""
    lines = [f"{'name':<20} {'state':<9} {'step':>15} {'bits/byte':>10}"]
    for each in found:
        step = f"{each.step:,} of {each.steps:,}" if each.steps else f"{each.step:,}"
        bits = f"{each.bits_per_byte:.4f}" if each.bits_per_byte is not None else "-"
        lines.append(f"{each.name:<20} {each.state:<9} {step:>15} {bits:>10}" + (f"  {each.why}" if each.why else ""))
        lines.append(f"  next: {each.next}")
    return "\n".join(lines)
