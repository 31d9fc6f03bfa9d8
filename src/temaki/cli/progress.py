"""Lines that grow while work goes on: one line that is redrawn on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from temaki.train.hooks import Hook

if TYPE_CHECKING:
    from temaki.train.loop import Run

REDRAW = 0.2
"""Seconds between two drawings on a terminal."""
QUIET = 15.0
"""Seconds between two lines elsewhere."""


class Line:
    """One line of progress on standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._width = 0

    def show(self, text: str, final: bool = False) -> None:
        """Show the text, unless the last one is too fresh; a final one is always shown and ends the line."""
        now = time.monotonic()
        if not final and now - self._last < (REDRAW if self._terminal else QUIET):
            return
        self._last = now
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width) + ("\n" if final else ""))
            self._width = 0 if final else len(text)
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End a line that is still open."""
        if self._terminal and self._width:
            sys.stderr.write("\n")
            self._width = 0


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
    """Step, loss, speed, share of the machine's matrix peak, time left."""

    name = "progress"

    def __init__(self) -> None:
        super().__init__()
        self._line = Line()
        self._loss = 0.0
        self._first = 0

    def begin(self, run: "Run") -> None:
        self._first = run.step

    def step(self, run: "Run", line: Mapping[str, float]) -> None:
        self._loss = line["loss"] if not self._loss else 0.9 * self._loss + 0.1 * line["loss"]
        self._line.show(self._text(run, line), final=run.step == run.plan.steps)

    def end(self, run: "Run", reason: str) -> None:
        self._line.close()

    def _text(self, run: "Run", line: Mapping[str, float]) -> str:
        left = run.seconds / run.step * (run.plan.steps - run.step)
        if run.config.stop.minutes is not None and not run.plan.settled:
            left = max(0.0, run.config.stop.minutes * 60 - run.seconds)
        of = f"{run.plan.steps:,}" if run.plan.settled else f"about {run.plan.steps:,}"
        return (
            f"step {run.step:,} of {of}  loss {self._loss:.3f}  {line['tokens_per_second']:,.0f} tok/s  "
            f"{line['peak_share']:.0%} of matmul peak  {clock(left)} left"
        )


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
