"""Lines that grow while work goes on: one that is redrawn on a terminal, with a bar; a line now and then elsewhere."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from temaki.report.figures import short
from temaki.train.hooks import Hook

if TYPE_CHECKING:
    from temaki.train.loop import Run

REDRAW = 0.2
"""Seconds between two drawings on a terminal."""
QUIET = 15.0
"""Seconds between two lines elsewhere."""
BAR = 16
"""Characters of a terminal's bar."""


class Line:
    """One line on standard error: with a bar and redrawn on a terminal, plain and now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._colours = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._last = 0.0
        self._width = 0

    def show(self, said: str | Sequence[str], final: bool = False, share: float | None = None) -> None:
        """Show a text, or parts of which a narrow terminal drops the last; `share` of the work is done.

        Not if the last one is too fresh; a final one is always shown and ends the line.
        """
        now = time.monotonic()
        if not final and now - self._last < (REDRAW if self._terminal else QUIET):
            return
        self._last = now
        parts = [said] if isinstance(said, str) else said
        if not self._terminal:
            sys.stderr.write("  ".join(parts) + "\n")
            sys.stderr.flush()
            return
        room = shutil.get_terminal_size().columns - 1
        drawn = bar(share, self._colours) if share is not None and room > 3 * BAR else ""
        text = fitting(parts, room - (BAR + 2 if drawn else 0))
        width = len(text) + (BAR + 2 if drawn else 0)
        sys.stderr.write(
            f"\r{drawn}{'  ' if drawn else ''}{text}{' ' * (self._width - width)}" + ("\n" if final else "")
        )
        self._width = 0 if final else width
        sys.stderr.flush()

    def close(self) -> None:
        """End a line that is still open."""
        if self._terminal and self._width:
            sys.stderr.write("\n")
            self._width = 0


def bar(share: float, colours: bool = False) -> str:
    """How much is done, BAR characters wide.

    >>> bar(0.5)
    '━━━━━━━━────────'
    """
    full = min(BAR, int(share * BAR))
    done, rest = "━" * full, "─" * (BAR - full)
    return f"\x1b[32m{done}\x1b[0m\x1b[2m{rest}\x1b[0m" if colours else done + rest


def fitting(parts: Sequence[str], room: int) -> str:
    """The first parts that fit into so many characters; one at least, cut where even that does not fit.

    >>> fitting(["step 3", "loss 2.1", "lr 1e-3"], 18), fitting(["step 3"], 4)
    ('step 3  loss 2.1', 'step')
    """
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > room:
            break
        text += f"  {part}"
    return text[: max(0, room)]


class Work:
    """Progress of work that counts what is done: a line with time left, once it takes longer than two seconds."""

    def __init__(self) -> None:
        self._line = Line()
        self._what = ""
        self._start = 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        """`done` of `of` parts of `what`; a part of 1 of 1 is a plain message."""
        now = time.monotonic()
        if of == 1:
            self._line.close()
            print(what, file=sys.stderr)
            return
        if what != self._what:
            self._line.close()
            self._what, self._start = what, now
        spent = now - self._start
        if spent < 2:
            return
        left = spent / done * (of - done) if done else 0.0
        text = f"{what} {done:,} of {of:,}" + (f", {clock(left)} left" if done < of else f" in {clock(spent)}")
        self._line.show(text, final=done >= of)

    def close(self) -> None:
        self._line.close()


class TrainingLine(Hook):
    """Step, loss, rate, gradient norm, noise scale, speed, share of the machine's matrix peak, time left.

    Under torchrun the main process alone speaks.
    """

    name = "progress"

    def __init__(self) -> None:
        super().__init__()
        self._line = Line()
        self._loss: float | None = None
        """Smoothed; begun anew where a run goes back, since the losses of a spike are none of its own any more."""
        self._step = 0
        self._left_out = 0

    def step(self, run: "Run", line: Mapping[str, float]) -> None:
        before = self._loss if line["step"] > self._step else None
        self._loss = line["loss"] if before is None else 0.9 * before + 0.1 * line["loss"]
        self._step = int(line["step"])
        if run.world.main:
            share = run.step / run.plan.steps
            self._line.show(self._parts(run, line), final=run.step == run.plan.steps, share=share)

    def skipped(self, run: "Run") -> None:
        self._left_out += 1

    def end(self, run: "Run", reason: str) -> None:
        self._line.close()

    def _parts(self, run: "Run", line: Mapping[str, float]) -> list[str]:
        """The line's parts, what matters most first."""
        of = f"{run.plan.steps:,}" if run.plan.settled else f"about {run.plan.steps:,}"
        noise, skips = line.get("noise_scale"), self._left_out
        return [
            f"step {run.step:,} of {of}",
            f"loss {self._loss:.3f}",
            f"{clock(self._left(run, line['seconds']))} left",
            f"{line['tokens_per_second']:,.0f} tok/s",
            f"{line['peak_share']:.0%} of matmul peak",
            f"lr {line['lr']:.2e}",
            f"grad {line['grad_norm']:.3g}",
            *([f"noise {short(noise)} ids"] if noise is not None else []),
            *([f"{skips} left out"] if skips else []),
        ]

    def _left(self, run: "Run", seconds: float) -> float:
        """Seconds that the run will still take, after so many."""
        minutes = run.config.stop.minutes
        if minutes is not None and not run.plan.settled:
            return max(0.0, minutes * 60 - seconds)
        return seconds / run.step * (run.plan.steps - run.step)


def clock(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> clock(9.4), clock(75), clock(3700)
    ('9 s', '1:15', '1:01:40')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
