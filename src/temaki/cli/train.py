"""`temaki train`: a recipe becomes a run."""

from pathlib import Path

import typer


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
    resume: str = typer.Option("never", help='"auto" goes on from the newest whole checkpoint.'),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a model by a recipe: tokenizer and shards are made first where the recipe names none.

    Example: temaki train recipes/demo.toml --text notes/ --minutes 10 --out runs/notes
    """
    import sys

    from temaki.base import config as config_door
    from temaki.cli.named import path as model_path
    from temaki.cli.progress import TrainingLine, Work
    from temaki.cli.resolved import begun, resolve, resuming, show
    from temaki.cli.said import say
    from temaki.report.runs import command
    from temaki.study import further, pipeline, recipes
    from temaki.train import run as runs
    from temaki.train.config import MaskedConfig

    how, changes = resuming(resume), changes or []
    recipe, changes = _recipe(recipe, changes, model)
    loaded = recipes.load(recipe / "config.toml" if recipe.is_dir() else recipe) if recipe else further.RECIPE
    begin = {"begin": {"kind": "model", "path": str(model_path(model))}} if model is not None else {}
    loaded = {**loaded, **begin}
    named = config_door.override(loaded, changes)
    folder = out or (recipe if recipe and recipe.is_dir() else Path("runs") / str(named.get("name", "run")))
    runs.claim(folder, how)
    if how == "auto" and (folder / "config.toml").exists():
        found = begun(
            folder,
            changes,
            {"--from": model, "--text": text, "--minutes": minutes, "--depth": depth, "--errors": errors},
        )
    else:
        found = resolve(loaded, changes, text, minutes, depth, errors)
    work = Work()
    made = pipeline.ready(found, folder, work)
    work.close()
    show(config_door.mapping(made.config))
    outcome = pipeline.train(made, how, [TrainingLine()], lambda line: print(f"warning: {line}", file=sys.stderr))
    run = outcome.run
    result = {
        "folder": str(folder),
        "reason": outcome.reason,
        "step": run.step,
        "seconds": run.seconds,
        **run.told,
    }
    if outcome.reason == "finished":
        done = f"{folder}: finished, {run.step} steps in {run.seconds:.0f} s, loss {run.told.get('loss', 0):.3f}\n"
        asked = [command("evaluate", folder), command("generate", folder, "--prompt", "your text")]
        if isinstance(made.config.objective, MaskedConfig):  # it has no next id to be judged by, or to go on with
            asked = [command("report", folder)]
        done += "next: " + "\n      ".join(asked)
        say(result, json, done)
        return
    stopped = f"{folder}: stopped by {outcome.reason} at step {run.step}; all is saved"
    say(result, json, f"{stopped}\nnext: {command('train', folder, '--resume', 'auto')}")
    raise typer.Exit(130 if outcome.reason == "SIGINT" else 143)


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
