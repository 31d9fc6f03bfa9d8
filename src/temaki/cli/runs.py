"""`temaki runs`: what there is, how it stands, what to do next."""

from pathlib import Path

import typer


def runs(
    folder: Path = typer.Argument(Path("runs"), help="Folder of runs."),
    json: bool = typer.Option(False, "--json", help="Print the runs as JSON."),
) -> None:
    """List runs: state, best, next command.

    Example: temaki runs
    """
    from dataclasses import asdict

    from temaki.cli.said import say
    from temaki.report import runs as listing

    found = listing.runs(folder)
    say({"runs": [asdict(each) for each in found]}, json, listing.table(found))
