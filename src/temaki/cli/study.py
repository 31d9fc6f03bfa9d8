"""`temaki study NAME`: variants of one recipe trained beside each other, and one page that compares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

NAMES = "positions, softmax, mixers, norms or optimizers"


def study(
    name: str = typer.Argument(..., help=f"{NAMES}.", metavar="NAME"),
    changes: list[str] = typer.Argument(
        None, help="Dotted changes of the recipe on text: model.width=64 optim.lr=3e-3", metavar="[KEY=VALUE]..."
    ),
    text: str | None = typer.Option(None, help='Text to learn: a file or folder; "stdlib" by default.'),
    data: Path | None = typer.Option(
        None, help="Folder of pictures for the study of mixers: IDX files, or 0.json to 9.json."
    ),
    minutes: float | None = typer.Option(None, help="About how long all of it may take; 30 by default."),
    steps: int | None = typer.Option(None, help="Steps of each run, in place of --minutes."),
    seeds: int = typer.Option(3, help="Runs of each variant, for the error bars."),
    only: str | None = typer.Option(None, help="Variants to train, a,b,..; all by default."),
    parts: str | None = typer.Option(None, help="Parts of it: text, copy, ..; all by default."),
    out: Path | None = typer.Option(None, help="Folder of the study; runs/study-NAME by default."),
    json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """Train variants on the same data and seeds, measure them, and write one offline page: study.html.

    What is done already is not done again: after Ctrl-C the same command goes on. A run that diverges is a result.

    Example: temaki study positions --minutes 20
    One's own choice: temaki study mixers --only attention,mamba,lstm --text notes/ --seeds 2
    """
    from temaki.base import dist
    from temaki.base.errors import ConfigError
    from temaki.cli.progress import TrainingLine, Work
    from temaki.cli.said import say
    from temaki.cli.sweep import told
    from temaki.study import lab, studies

    if dist.meet().size > 1:
        raise ConfigError("a study runs in one process", do="start it without torchrun")
    asked = studies.Asked(
        text=text,
        pixels=None if data is None else str(data.resolve()),
        changes=tuple(changes or ()),
        only=_named(only),
        parts=_named(parts),
    )
    chosen = studies.study(name, asked)
    fixed = minutes is not None or steps is not None
    length = lab.Length(minutes=minutes if fixed else lab.Length().minutes, steps=steps, seeds=seeds)
    work = Work()
    heard = lab.Listener(hooks=lambda _: [TrainingLine()], progress=work, made=told, say=_say)
    done = lab.run(chosen, asked, length, out or Path("runs") / f"study-{name}", heard)
    work.close()
    lines = [*_table(done.results), str(done.page)]
    if done.stopped is not None:
        lines.append(f"stopped by {done.stopped}; all is saved, and the same command goes on from there")
    say({"page": str(done.page), **_figures(done.results)}, json, "\n".join(lines))
    if done.stopped is not None:
        raise typer.Exit(130 if done.stopped == "SIGINT" else 143)


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr)


def _named(only: str | None) -> tuple[str, ...]:
    return tuple(each.strip() for each in only.split(",") if each.strip()) if only is not None else ()


def _figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a script reads: without curves and pictures."""
    parts = {
        part: {name: {key: each[key] for key in each if key not in ("runs", "says")} for name, each in found.items()}
        for part, found in ((part, made["variants"]) for part, made in results["parts"].items())
    }
    return {"study": results["study"], "stopped": results["stopped"], "parts": parts}


def _table(results: Mapping[str, Any]) -> list[str]:
    """The mean and deviation of every variant, the best first."""
    lines = []
    for made in results["parts"].values():
        answers = any("accuracy" in each for each in made["variants"].values())
        key = "accuracy" if answers else "loss"
        order = sorted(made["variants"].items(), key=lambda item: _place(item[1], key, answers))
        lines.append(f"{made['title']} ({made['steps']} steps a run), {key}")
        for name, each in order:
            figure = "not run"
            if key in each:
                spread = each[key]["deviation"]
                figure = f"{each[key]['mean']:8.4f}" + ("" if spread is None else f" ± {spread:.4f}")
            lost = f"  {each['diverged']} diverged" if each["diverged"] else ""
            lines.append(f"  {name:<16} {figure}{lost}")
    return lines


def _place(variant: Mapping[str, Any], key: str, most_first: bool) -> tuple[bool, float]:
    if key not in variant:
        return True, 0.0
    mean = float(variant[key]["mean"])
    return False, -mean if most_first else mean
