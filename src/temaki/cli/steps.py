"""The main job, told in order: what `temaki demo` does and says."""

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.batches import data as batches
from temaki.cli.progress import TrainingLine, Work, clock
from temaki.cli.resolved import begun, resolve, resuming, show
from temaki.report import run as report
from temaki.report.runs import command
from temaki.study import pipeline
from temaki.train import run as runs

RECIPE: Mapping[str, Any] = {"name": "demo", "watch": {"validate": 200}, "save": {"every": 200}}
"""The demo's recipe: all else follows from the dial."""
TRAINING = 0.94
"""Share of the minutes that the loop may fill; the rest is a margin for a machine that slows down."""


def demo(changes: list[str], text: str | None, errors: str | None, minutes: float, out: Path, resume: str) -> None:
    """Tokenizer, shards, training, evaluation, continuations, report, and what to try next."""
    how = resuming(resume)
    runs.claim(out, how)
    if how == "auto" and (out / "config.toml").exists():
        found = begun(out, changes, {"--text": text, "--errors": errors})
    else:
        found = resolve({**RECIPE, "name": out.name}, changes, text, minutes, None, errors, TRAINING)
    heading("1. text, tokenizer, shards")
    work = Work()
    made = pipeline.ready(found, out, work)
    work.close()
    data = batches.text(made.data)
    for name, split in (("training", data.train.manifest), ("held out", data.held.manifest)):
        print(f"{name}: {split.documents} documents, {split.bytes / 1e6:.2f} MB, {split.ids:,} ids")
    heading("2. training")
    show(config_door.mapping(made.config))
    outcome = pipeline.train(made, how, [TrainingLine()], lambda line: print(f"warning: {line}"))
    if outcome.reason != "finished":
        print(f"stopped by {outcome.reason} at step {outcome.run.step}; all is saved")
        print(f"next: temaki demo --out {shlex.quote(str(out))} --resume auto")
        raise SystemExit(130 if outcome.reason == "SIGINT" else 143)
    run = outcome.run
    print(f"{run.step} steps, {run.tokens:,} ids, {clock(run.seconds)} of training")
    heading("3. evaluation on the held-out text")
    total, context = data.held.manifest.ids, made.config.batch.context
    with tempfile.TemporaryDirectory() as folder:
        measuring = pipeline.yards(data, Path(folder))
        try:
            score = pipeline.score(run.model, data, context, lambda done: work("evaluating: ids", done, total))
            work.close()
            if not measuring.done():
                print("measuring the yardsticks (zstd, PPMd) ..")
            yards = measuring.result()
        finally:
            if not measuring.done():
                measuring.cancel()
    result = pipeline.scored(score, run.step, context)
    result |= {"zstd": yards.zstd, "ppmd": yards.ppmd, "train_seconds": run.seconds}
    print(pipeline.table(result))
    heading("4. three continuations")
    pipeline.results(out, **result)
    samples = pipeline.continuations(run.model, data, made.config.seed)
    pipeline.results(out, samples=samples)
    for each in samples:
        print(f"--- {each['prompt'] or '(from nothing)'!r}\n{each['prompt']}{each['text']}\n")
    page = report.write(out)
    heading("5. next")
    print(
        f"open {page}\n"
        f"{command('generate', out, '--prompt', 'your text')}\n"
        f"{command('evaluate', out)}\n"
        f"{command('runs', out.parent)}\n"
        f"temaki demo --text YOUR_FILE_OR_FOLDER --minutes {minutes:g} --out {shlex.quote(str(out.parent / 'mine'))}"
    )


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)
