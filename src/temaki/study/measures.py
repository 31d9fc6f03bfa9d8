"""What is measured of a trained run, kept beside it in `measures.json`, so that it is measured once."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from temaki.base import files
from temaki.base.errors import RunError
from temaki.batches.prepare import Prepared, Progress
from temaki.formats import own
from temaki.model.build import Model
from temaki.study import attended, decoding, extrapolation, head_loss, shuffled, spread
from temaki.study.studies import Measure

FILE = "measures.json"
ONCE = ("heads", "maps", "spread")
"""Measured on the first seed alone: they are looked at, not averaged."""

MEASURES: Mapping[str, Callable[[Model, Prepared, Prepared, int], dict[str, Any]]] = {
    "length": lambda model, own_data, _plain, context: extrapolation.measure(model, own_data.held, context),
    "order": lambda model, _own, plain, context: shuffled.measure(model, plain.held, context),
    "heads": lambda model, own_data, _plain, context: head_loss.measure(model, own_data.held, context),
    "maps": lambda model, own_data, _plain, context: attended.measure(model, own_data.held, context),
    "spread": lambda model, own_data, _plain, context: spread.measure(model, own_data.held, context),
    "decoding": lambda model, _own, _plain, _context: decoding.measure(model),
}
"""Measure -> (model, the data it was trained on, the text as it is, ids a row) -> what was found."""


def wanted(measures: Sequence[Measure], first: bool) -> list[Measure]:
    """The measures of a run; `first`: of the first seed."""
    return [each for each in measures if first or each not in ONCE]


def of(
    run: Path,
    names: Sequence[Measure],
    own_data: Prepared,
    plain: Prepared,
    context: int,
    progress: Progress = lambda _what, _done, _of: None,
) -> dict[str, Any]:
    """What the measures found of a run that has finished; those that are kept beside it are not made again."""
    path = run / FILE
    found: dict[str, Any] = files.read_json(path, RunError) if path.exists() else {}
    missing = [name for name in names if name not in found]
    if missing:
        model = own.open(run).model().eval()
        for i, name in enumerate(missing):
            progress(f"measuring {run.name}: parts", i, len(missing) + 1)
            found[name] = MEASURES[name](model, own_data, plain, context)
        files.write_json(path, found)
    return found


def tidy(run: Path) -> None:
    """Remove the checkpoints of a run that is measured."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
