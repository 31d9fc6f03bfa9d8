"""`temaki coefficients`: Muon's polynomial, fitted to the shape of one's own matrices."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.optim.coefficients import Fitted


def coefficients(
    rows: int = typer.Argument(1024, min=1, max=16384, help="Rows of the matrices."),
    cols: int = typer.Argument(1024, min=1, max=16384, help="Their columns."),
    steps: int = typer.Option(5, min=1, max=20, help="Newton-Schulz steps."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Fit Muon's coefficients to random matrices of a shape.

    Example: temaki coefficients 384 1024
    """
    import sys
    from dataclasses import asdict

    from temaki.cli.said import say
    from temaki.optim.coefficients import fit, spectrum

    print(f"fitting three coefficients to the singular values of {rows} x {cols} ..", file=sys.stderr, flush=True)
    found = fit(spectrum(rows, cols), steps)
    say({"rows": rows, "cols": cols, "steps": steps, **asdict(found)}, json, table(rows, cols, steps, found))


def table(rows: int, cols: int, steps: int, found: "Fitted") -> str:
    """Both sets with their errors, and the line for a recipe."""
    from temaki.optim.coefficients import OFFICIAL

    lines = [
        f"Newton-Schulz, {steps} steps, random {rows} x {cols}; error: mean squared distance of singular values from 1",
        f"{'':<9} {'a':>8} {'b':>8} {'c':>8} {'error':>10}",
    ]
    for name, (a, b, c), error in (("fitted", found.coefficients, found.error), ("official", OFFICIAL, found.official)):
        lines.append(f"{name:<9} {a:>8.4f} {b:>8.4f} {c:>8.4f} {error:>10.2g}")
    pasted = ", ".join(f"{each:.4f}" for each in found.coefficients)
    return "\n".join([*lines, "", "[optim.matrix]", f"steps = {steps}", f"coefficients = [{pasted}]"])
