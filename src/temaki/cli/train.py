"""`temaki train`: a recipe becomes a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from temaki.base.dist import World
    from temaki.train.config import RunConfig
    from temaki.train.loop import Run
    from temaki.train.run import Outcome


def train(
    recipe: Path | None = typer.Argument(
        None, help="A TOML recipe, or a run folder to go on with; not needed with --from."
    ),
    changes: list[str] = typer.Argument(
        None, help="Dotted changes: model.depth=8 optim.lr=3e-3", metavar="[KEY=VALUE]..."
    ),
    model: str | None = typer.Option(
        None, "--from", help="Train this model further: a run, a model file or folder, or a name such as smollm2."
    ),
    text: str | None = typer.Option(None, help='Text to learn: a file or folder; short for data.text="..".'),
    errors: str | None = typer.Option(None, help='Bytes that are not UTF-8: "strict" stops, "replace" goes on.'),
    minutes: float | None = typer.Option(None, help="One dial: size and steps that fill so many minutes here."),
    depth: int | None = typer.Option(None, help="One dial: size and steps by the number of layers."),
    out: Path | None = typer.Option(None, help="Folder of the run; runs/NAME by default."),
    max_minutes: float | None = typer.Option(
        None, help="At most so many minutes: where the recipe takes longer, it ends earlier, its rate down."
    ),
    resume: str = typer.Option("never", help='"auto" goes on from the newest whole checkpoint.'),
    allow_change: list[str] = typer.Option(
        None, metavar="KEY[,KEY]", help="Keys that may differ from the save that --resume goes on from."
    ),
    sweep: Path | None = typer.Option(None, help="A TOML grid: train every combination in --out, and compare."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a model by a recipe: tokenizer and shards are made first where the recipe names none.

    Examples: temaki train recipes/demo.toml --text notes/ --minutes 10 --out runs/notes;
    temaki train runs/notes --resume auto stop.steps=4000 --allow-change stop;
    torchrun --nproc-per-node 2 -m temaki train recipes/demo.toml
    """
    from temaki.base import dist

    world = dist.meet()
    allowed = [name for each in allow_change or [] for name in each.split(",") if name]
    if max_minutes is not None:
        changes, allowed = [*(changes or []), f"stop.max_minutes={max_minutes}"], [*allowed, "stop.max_minutes"]
    recipe, changes = _recipe(recipe, changes or [], model)
    dials = Dials(model, text, errors, minutes, depth)
    if sweep is not None:
        _sweep(recipe, changes, dials, sweep, out, json, world.size)
        return
    folder, found = world.first(lambda: _found(recipe, changes, dials, out, resume))
    code = _train(found, Path(folder), resume, allowed, json, world)
    dist.end(code)
    if code:
        raise SystemExit(code)  # what a stop has to say is said; typer would add its own line


@dataclass(frozen=True)
class Dials:
    """Options that only a new run takes."""

    model: str | None
    text: str | None
    errors: str | None
    minutes: float | None
    depth: int | None

    def named(self) -> dict[str, object]:
        """Each by its name on the command line."""
        return {
            "--from": self.model, "--text": self.text, "--minutes": self.minutes, "--depth": self.depth,
            "--errors": self.errors,
        }  # fmt: skip


def _loaded(recipe: Path | None, model: str | None) -> dict[str, Any]:
    """The recipe as it is written, with the model of --from."""
    from temaki.cli.named import path
    from temaki.study import further, recipes

    loaded = recipes.load(recipe / "config.toml" if recipe.is_dir() else recipe) if recipe else further.RECIPE
    return {**loaded, **({"begin": {"kind": "model", "path": str(path(model))}} if model is not None else {})}


def _found(
    recipe: Path | None, changes: list[str], dials: Dials, out: Path | None, resume: str
) -> tuple[str, dict[str, Any]]:
    """The run's folder, and its recipe with everything laid over it."""
    from temaki.base import config as config_door
    from temaki.cli.resolved import begun, resolve, resuming
    from temaki.train import run as runs

    how = resuming(resume)
    loaded = _loaded(recipe, dials.model)
    named = config_door.override(loaded, changes)
    folder = out or (recipe if recipe and recipe.is_dir() else Path("runs") / str(named.get("name", "run")))
    runs.claim(folder, how)
    if how == "auto" and (folder / "config.toml").exists():
        return str(folder), begun(folder, changes, dials.named())
    return str(folder), resolve(loaded, changes, dials.text, dials.minutes, dials.depth, dials.errors)


def _train(found: dict[str, Any], folder: Path, resume: str, allowed: list[str], json: bool, world: "World") -> int:
    """Train, and say how it ended; of several processes only the main one speaks. Gives the exit code."""
    import sys

    from temaki.base import config as config_door
    from temaki.cli.progress import TrainingLine, Work
    from temaki.cli.resolved import resuming, show
    from temaki.study import pipeline

    work = Work()
    made = pipeline.ready(found, folder, work)
    work.close()
    if world.main:
        show(config_door.mapping(made.config))
    hooks = [TrainingLine()] if world.main else []

    def warn(line: str) -> None:
        if world.main:
            print(f"warning: {line}", file=sys.stderr)

    outcome = pipeline.train(made, resuming(resume), hooks, warn, allowed)
    if world.main:
        _said(folder, made.config, outcome, json)
    return {"SIGINT": 130, "SIGTERM": 143}.get(outcome.reason, 0)


def _limited(config: "RunConfig", run: "Run") -> str:
    stop = config.stop
    shorter = stop.max_minutes is not None and run.step < stop.steps
    return f" (of {stop.steps}: the limit is {stop.max_minutes:g} minutes)" if shorter else ""


def _losses(run: "Run") -> str:
    """Of the last step, and on the held-out text; a finished run that is resumed makes no step."""
    judged = [hook.numbers for hook in run.hooks if hook.name == "validate"]
    held = {name: value for numbers in judged for name, value in numbers.items() if name != "step"}
    told = [f"training loss {run.told['loss']:.3f} in the last step"] if run.told else []
    told += [f"held-out {name.replace('_', ' ')} {value:.3f}" for name, value in held.items()]
    return "".join(f", {each}" for each in told)


def _said(folder: Path, config: "RunConfig", outcome: "Outcome", json: bool) -> None:
    from temaki.cli.said import say
    from temaki.report.runs import command
    from temaki.train.config import MaskedConfig

    run = outcome.run
    ended = {"folder": str(folder), "reason": outcome.reason, "step": run.step, "seconds": run.seconds}
    result = {**run.told, **ended}  # the last step may have been left out
    if outcome.reason != "finished":
        by = "a file named stop" if outcome.reason == "stop" else outcome.reason
        stopped = f"{folder}: stopped by {by} at step {run.step}; all is saved"
        say(result, json, f"{stopped}\nnext: {command('train', folder, '--resume', 'auto')}")
        return
    done = f"{folder}: finished, {run.step} steps in {run.seconds:.0f} s{_limited(config, run)}{_losses(run)}\n"
    asked = [command("evaluate", folder), command("generate", folder, "--prompt", "your text")]
    if config.data.task is not None:  # its prompts are examples
        asked = [command("evaluate", folder), command("report", folder)]
    if isinstance(config.objective, MaskedConfig):  # it has no next id to be judged by, or to go on with
        asked = [command("report", folder)]
    say(result, json, done + "next: " + "\n      ".join(asked))


def _sweep(
    recipe: Path | None, changes: list[str], dials: Dials, grid: Path, out: Path | None, json: bool, processes: int
) -> None:
    """Every combination of a grid. Raises ConfigError under torchrun."""
    from temaki.base.errors import ConfigError
    from temaki.cli.resolved import resolve
    from temaki.cli.sweep import sweep

    if processes > 1:
        raise ConfigError("a sweep runs in one process", do="start it without torchrun")
    found = resolve(_loaded(recipe, dials.model), changes, dials.text, dials.minutes, dials.depth, dials.errors)
    sweep(found, grid, out or Path("runs") / f"{found.get('name', 'run')}-sweep", json)


def _recipe(recipe: Path | None, changes: list[str], model: str | None) -> tuple[Path | None, list[str]]:
    """The recipe, which --from makes optional: a first word that is a change (KEY=VALUE) is taken as one.

    Raises ConfigError where neither is given.
    """
    from temaki.base.errors import ConfigError

    if recipe is not None and model is not None and "=" in str(recipe) and not recipe.exists():
        return None, [str(recipe), *changes]
    if recipe is None and model is None:
        raise ConfigError("no recipe", do="name one: temaki train recipes/demo.toml; or train a model further: --from")
    return recipe, changes
