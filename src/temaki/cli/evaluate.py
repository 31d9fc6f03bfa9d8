"""`temaki evaluate`: bits per byte beside honest yardsticks."""

from pathlib import Path

import typer


def evaluate(
    run: Path = typer.Argument(..., help="A run folder."),
    context: int | None = typer.Option(None, help="Ids a window; the training context by default."),
    yardsticks: bool = typer.Option(True, help="Measure zstd and PPMd on the same text too."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Measure a run on its held-out text: bits per byte, beside zstd -22 and PPMd after the same training text.

    Example: temaki evaluate runs/demo
    """
    import sys
    import tempfile

    from temaki.base import device as devices
    from temaki.cli.progress import Work
    from temaki.cli.said import say
    from temaki.formats import open as opener
    from temaki.report import run as report
    from temaki.study import pipeline, recipes

    opened = opener.open(run)
    for warning in opened.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    config = recipes.complete(opened.settings, opened.config.vocabulary)
    data = pipeline.data_of(config, run)
    with tempfile.TemporaryDirectory() as folder:
        measuring = pipeline.yards(data, Path(folder)) if yardsticks else None
        try:
            model = opened.model().to(devices.choose())
            work, total = Work(), data.held.manifest.ids
            found = pipeline.score(
                model,
                data,
                context or config.batch.context,
                lambda done: work("evaluating: ids", done, total),
            )
            work.close()
            result = pipeline.scored(found, opened.step, context or config.batch.context)
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
