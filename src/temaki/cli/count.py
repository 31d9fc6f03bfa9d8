"""`temaki count`: what a recipe or a known shape costs, on paper."""

from pathlib import Path

import typer


def count(
    recipe: str = typer.Argument(..., help="A TOML recipe, a run folder, or a known shape such as gpt2."),
    changes: list[str] = typer.Argument(
        None, help="Dotted changes: model.depth=8 batch.tokens=4096", metavar="[KEY=VALUE]..."
    ),
    depth: int | None = typer.Option(None, help="One dial: size and steps by the number of layers."),
    minutes: float | None = typer.Option(None, help="One dial: size and steps that fill so many minutes here."),
    peak: float | None = typer.Option(None, help="Matrix product of a machine, FLOP/s; measured here by default."),
    bandwidth: float | None = typer.Option(None, help="Memory of a machine, bytes/s; measured here by default."),
    json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """Count a model: parameters by part, FLOPs and bytes an id, roofline, memory of a step, Muon's share.

    Example: temaki count recipes/demo.toml model.depth=8
    A known shape on another machine: temaki count gpt2 --peak 312e12 --bandwidth 1.6e12
    """
    from temaki.base.errors import ConfigError
    from temaki.cli.resolved import resolve
    from temaki.cli.said import say
    from temaki.model.roofline import Machine
    from temaki.study import cost

    for name, value in (("--peak", peak), ("--bandwidth", bandwidth)):
        if value is not None and not 0 < value < 1e30:
            raise ConfigError(f"{name} is out of range", found=f"{value:g}", allowed="above 0")
    path = Path(recipe)
    if not path.exists() and path.suffix != ".toml" and path.parent == Path():  # a word, not a path
        found = resolve(cost.named(recipe), changes or [], None, minutes, depth)
    else:
        found = resolve(path / "config.toml" if path.is_dir() else path, changes or [], None, minutes, depth)
    config = cost.completed(found)
    if peak is not None and bandwidth is not None:
        machine = Machine(peak, bandwidth)
    else:
        here = cost.measured()
        machine = Machine(peak or here.peak, bandwidth or here.bandwidth)
    result = cost.cost(config, machine)
    say(result, json, cost.table(result))
