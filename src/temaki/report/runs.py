"""The list of runs: what state each is in, how far, how good, and what to do next. Pure reading."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from temaki.report import folder as folders
from temaki.report.figures import number
from temaki.report.folder import RunFolder

State = Literal["new", "running", "stopped", "finished", "failed", "damaged"]
FAILED = ("not finite", "spike")
"""Reasons for which a run ended that going on would meet again."""
ALIVE = 60.0
"""Seconds after its last line in which a run without an end line counts as running."""


@dataclass(frozen=True)
class RunInfo:
    """A run in one line."""

    name: str
    folder: Path
    state: State
    why: str
    """What the state comes from, in words; empty where it needs none."""
    step: int
    """Steps made."""
    steps: int | None
    """Steps in all."""
    loss: float | None
    """Best validation loss, nats a token."""
    bits_per_byte: float | None
    """Of the evaluation, else the best validation."""
    next: str
    """A command to try next."""


def runs(folder: Path) -> list[RunInfo]:
    """The runs in a folder of runs by name, or the one run that `folder` is; a damaged one raises nothing."""
    if folders.is_run(folder):
        return [info(folders.read(folder))]
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return [info(folders.read(path)) for path in found if folders.is_run(path)]
    except OSError:
        return []


def info(run: RunFolder, now: float | None = None) -> RunInfo:
    """A run in one line; `now` is the time to judge by, seconds since the epoch."""
    state, why = _state(run, time.time() if now is None else now)
    bits = number(run.results.get("bits_per_byte"))
    return RunInfo(
        name=run.name,
        folder=run.path,
        state=state,
        why=why,
        step=run.step,
        steps=run.steps,
        loss=run.best("validate", "loss"),
        bits_per_byte=run.best("validate", "bits_per_byte") if bits is None else bits,
        next=_next(run, state),
    )


def _state(run: RunFolder, now: float) -> tuple[State, str]:
    if run.problems:
        return "damaged", "; ".join(run.problems)
    if run.ended is not None:
        reason = str(run.ended.get("reason", "no reason given"))
        if reason == "finished":
            return "finished", ""
        return ("failed" if reason in FAILED else "stopped"), reason
    if run.changed is not None and now - run.changed < ALIVE:
        return "running", ""
    if run.step == 0:
        return "new", ""
    return "stopped", "no end line: interrupted"


def _next(run: RunFolder, state: State) -> str:

    match state:
        case "new" | "stopped":
            return command("train", run.path, "--resume", "auto")
        case "finished":
            if run.setting("objective", "kind") == "masked":  # no next id to be judged by, or to go on with
                return command("report", run.path)
            if run.setting("data", "task", "kind") is not None:  # its prompts are examples, no text
                return command("report" if run.results else "evaluate", run.path)
            return command("generate" if run.results else "evaluate", run.path)
        case "failed":
            rate = number(run.setting("optim", "lr"))
            if rate is None:
                return command("report", run.path)
            return command("train", run.path / "config.toml", f"name={run.name}-gentler", f"optim.lr={rate / 2:g}")
        case "running" | "damaged":
            return command("report", run.path)


def command(verb: str, path: Path, *rest: str) -> str:
    """A command line that can be pasted into a shell.

    >>> command("train", Path("my runs") / "config.toml", "--resume", "auto")
    "temaki train 'my runs/config.toml' --resume auto"
    """
    words: Sequence[str] = ("temaki", verb, path.as_posix(), *rest)
    return shlex.join(words)
