"""Hooks: what hangs on the loop. The loop knows when; folders above fill in what."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from temaki.train.loop import Run


class Hook:
    """Called by the loop; every method does nothing unless a hook fills it in.

    `numbers` travel in the manifest of each checkpoint under the hook's name and are given back on resume.
    """

    name = "hook"
    everywhere = False
    """Whether it acts on all processes of a run, since it computes with the model; others act on the main one."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def begin(self, run: "Run") -> None:
        """Before the first step, or the first after a resume."""

    def step(self, run: "Run", line: Mapping[str, float]) -> None:
        """After each step, with what it measured."""

    def skipped(self, run: "Run") -> None:
        """After a step that was left out because its numbers were not finite."""

    def score(self, run: "Run") -> float | None:
        """What the weights of this very step are judged by, lower is better; None where the hook did not judge them."""
        return None

    def end(self, run: "Run", reason: str) -> None:
        """After the last step, or when an error (its name is the reason) ends the run."""


class Every(Hook):
    """A hook that acts every so many steps and after the last."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def step(self, run: "Run", line: Mapping[str, float]) -> None:
        self.skipped(run)

    def skipped(self, run: "Run") -> None:
        if run.step % self.steps == 0 or run.step == run.plan.steps:
            self.act(run)

    def act(self, run: "Run") -> None:
        """What to do on the cadence."""
        raise AssertionError("a hook on a cadence says what it does")
