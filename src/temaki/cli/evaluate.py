"""`temaki evaluate`: bits per byte beside honest yardsticks."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from temaki.batches.tasks_data import Exercises
    from temaki.formats.opened import Opened
    from temaki.train.config import RunConfig

LONGEST = 1024
"""Ids a window where a model that is no run was made for more."""
ROWS = 200
"""Rows of a task's examples that a run is asked; of pictures, all."""


def evaluate(
    model: str = typer.Argument(..., help="A run folder; with --text any model, or a name such as smollm2."),
    changes: list[str] = typer.Argument(None, help="Dotted changes: data.shards=FOLDER", metavar="[KEY=VALUE]..."),
    text: str | None = typer.Option(None, help="Measure any model on this file or folder of text instead."),
    context: int | None = typer.Option(None, min=1, help="Ids a window; the training context by default."),
    yardsticks: bool = typer.Option(True, help="Measure zstd and PPMd on the same text too."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Measure a run on its held-out text: bits per byte, beside zstd -22 and PPMd after the same training text.

    A run of a task: how many of its answers are right. Example: temaki evaluate runs/demo
    """
    import sys
    import tempfile

    from temaki.base import config as config_door
    from temaki.base import device as devices
    from temaki.base.errors import ConfigError
    from temaki.batches.tasks_data import Exercises
    from temaki.cli import named
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.formats import open as opener
    from temaki.report import run as report
    from temaki.study import pipeline, recipes

    run = named.path(model)
    opened = opener.open(run)
    for warning in opened.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if text is not None or "data" not in opened.settings:
        _text(opened, text, context or min(opened.context or LONGEST, LONGEST), json)
        return
    config = recipes.complete(config_door.override(opened.settings, changes or []), opened.config.vocabulary)
    data = pipeline.data_of(config, run)
    pipeline.same_data(opened, data)
    if isinstance(data, Exercises):
        if context is not None:
            raise ConfigError("--context is for text: a task is read in rows as it was trained", do="leave it out")
        _task(opened, config, data, run, json)
        return
    window = context or config.batch.context
    print(
        f"step {opened.step}, {data.folder}, windows of {window} ids moving by {max(1, window // 2)}", file=sys.stderr
    )
    with tempfile.TemporaryDirectory() as folder:
        measuring = pipeline.yards(data, Path(folder)) if yardsticks else None
        try:
            measured = opened.model().to(devices.choose())
            work, total = Work(), data.held.manifest.ids
            found = pipeline.score(
                measured,
                data,
                window,
                lambda done: work("evaluating: ids", done, total),
            )
            work.close()
            result = pipeline.scored(found, opened.step, window)
            if measuring is not None:
                if not measuring.done():
                    print("measuring the yardsticks (zstd, PPMd) ..", file=sys.stderr)
                yards = measuring.result()
                result |= {"zstd": yards.zstd, "ppmd": yards.ppmd}
        finally:
            if measuring is not None and not measuring.done():
                measuring.cancel()
    if (run / "config.toml").exists() and (run / "checkpoints").exists():
        pipeline.results(run, **result)
        report.write(run)
    say(result, json, pipeline.table(result))


def _task(opened: "Opened", config: "RunConfig", data: "Exercises", run: Path, json: bool) -> None:
    """How often a run gives the answers of its task."""
    from temaki.base import device as devices
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.report import run as report
    from temaki.study import pipeline

    work = Work()
    model = opened.model().to(devices.choose())
    found = pipeline.answers(model, data, config, ROWS, work)
    work.close()
    result = pipeline.answered_table(found, opened.step, data)
    if (run / "checkpoints").exists():
        pipeline.results(run, **result)
        report.write(run)
    said = f"{found.asked:,} answers to examples that were not learned from\n"
    said += f"accuracy {found.accuracy:.4f} (one of {data.answers} by chance)\nloss {found.loss:.4f} nats an answer"
    say(result, json, said)


def _text(opened: "Opened", text: str | None, window: int, json: bool) -> None:
    """Bits per byte of any model on any text. Raises RunError where no text is given."""
    import sys

    from temaki.base import device as devices
    from temaki.base.errors import RunError
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.study import pipeline

    if text is None:
        raise RunError(f"{opened.folder} is no run, so it has no held-out text", do="name a text: --text FILE")
    print(f"{opened.folder}, {text}, windows of {window} ids moving by {max(1, window // 2)}", file=sys.stderr)
    model = opened.model().to(devices.choose())
    work = Work()
    found = pipeline.score_text(opened, model, Path(text), window, work)
    work.close()
    result = pipeline.scored(found, opened.step, window)
    say(result, json, pipeline.table(result))
