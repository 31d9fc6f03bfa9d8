"""What hangs on the loop while it runs: validation, samples, a growing report."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice

from temaki.base import rows as base_rows
from temaki.batches.loader import Loader
from temaki.batches.prepare import Prepared, texts
from temaki.batches.tasks_data import Exercises
from temaki.evaluate import answered, loss
from temaki.generate import text
from temaki.generate.config import SamplingConfig
from temaki.generate.torch_executor import TorchExecutor
from temaki.report import run as report
from temaki.train import objectives, parallel
from temaki.train.config import NextConfig
from temaki.train.hooks import Every, Hook
from temaki.train.loop import Run
from temaki.train.step import measured

FRESH = 10.0
"""Seconds between two writings of a report."""
SHARE = 0.005
"""Share of a run's time, at most, that writing its report takes."""


class Validate(Every):
    """Bits per byte on the first documents of the held-out text; by it the best checkpoint is judged."""

    name = "validate"
    everywhere = True

    def __init__(self, steps: int, data: Prepared, tokens: int):
        super().__init__(steps)
        self.data = data
        held = data.held
        self.documents, taken = 0, 0
        while self.documents < held.manifest.documents and taken < tokens:
            taken += len(held.document(self.documents))
            self.documents += 1
        self.bytes = sum(len(each) for each in islice(texts(data.held, data.tokenizer), self.documents))

    def act(self, run: Run) -> None:
        documents = (self.data.held.document(i) for i in range(self.documents))
        context = run.config.batch.context
        with parallel.speaking(run.model, run.optimizer):
            found = loss.score(run.model, documents, self.bytes, context, context)
        self.numbers = {"step": run.step, "bits_per_byte": found.bits_per_byte}
        run.log.write({"kind": "validate", "step": run.step, "loss": found.loss, "bits_per_byte": found.bits_per_byte})

    def score(self, run: Run) -> float | None:
        return self.numbers["bits_per_byte"] if self.numbers.get("step") == run.step else None


class ValidateObjective(Every):
    """The objective's own loss on held-out rows, where that is no next id's: a model that reads its answer, or a
    beginning both ways, has no bits per byte. By it the best checkpoint is judged.
    """

    name = "validate"
    everywhere = True

    def __init__(self, steps: int, data: Prepared, tokens: int):
        super().__init__(steps)
        self.held, self.tokens = data.held, tokens

    def act(self, run: Run) -> None:
        batch, seed = run.config.batch, run.config.seed
        loader = Loader(self.held, max(1, min(batch.context, len(self.held) - 1)), seed)
        rows = max(1, min(loader.rows, self.tokens // loader.context))
        batches = [
            base_rows.to(run.objective.prepared(loader.take(i, min(batch.micro_rows, rows - i)), i), run.device)
            for i in range(0, rows, batch.micro_rows)
        ]
        with parallel.speaking(run.model, run.optimizer):
            found = measured(run.model, run.objective, batches)
        if found is None:
            what = "the held-out rows hold nothing that this objective learns; raise watch.validate_tokens"
            run.log.write({"kind": "warning", "step": run.step, "message": what})
            return
        self.numbers = {"step": run.step, "loss": found}
        run.log.write({"kind": "validate", "step": run.step, "loss": found})

    def score(self, run: Run) -> float | None:
        return self.numbers["loss"] if self.numbers.get("step") == run.step else None


class ValidateTask(Every):
    """Loss and accuracy of a task's answers on held-out examples; by the loss the best checkpoint is judged."""

    name = "validate"
    everywhere = True

    def __init__(self, steps: int, data: Exercises, tokens: int):
        super().__init__(steps)
        self.data, self.tokens = data, tokens

    def act(self, run: Run) -> None:
        batch, objective = run.config.batch, run.config.objective
        assert isinstance(objective, NextConfig), "`check_task` has looked"
        held, rows = self.data.held(batch.context), max(1, self.tokens // batch.context)
        scored = objectives.scored(objective.loss)
        with parallel.speaking(run.model, run.optimizer):
            found = answered.judge(run.model, held, batch.context, rows, batch.micro_rows, scored=scored)
        self.numbers = {"step": run.step, "loss": found.loss, "accuracy": found.accuracy}
        run.log.write({"kind": "validate", **self.numbers})

    def score(self, run: Run) -> float | None:
        return self.numbers["loss"] if self.numbers.get("step") == run.step else None


def ends(data: Prepared) -> text.Ends:
    """The boundary between documents begins a prompt and ends what follows it."""
    boundary = (data.train.manifest.boundary,)
    return text.Ends(boundary, boundary)


class Sample(Every):
    """A continuation of each prompt."""

    name = "sample"
    everywhere = True

    def __init__(self, steps: int, data: Prepared, prompts: Sequence[str], sampling: SamplingConfig):
        super().__init__(steps)
        self.data, self.prompts, self.sampling = data, prompts, sampling

    def act(self, run: Run) -> None:
        tokenizer, between = self.data.tokenizer, ends(self.data)
        room = text.room(tokenizer, self.prompts, self.sampling, between)
        with parallel.speaking(run.model, run.optimizer, whole=True):
            executor = TorchExecutor(run.model, len(self.prompts), room)
            seed = run.config.seed
            said = text.complete(executor, tokenizer, self.prompts, self.sampling, seed=seed, ends=between)
        for found in said:
            prompt = self.prompts[found.index]
            run.log.write({"kind": "sample", "step": run.step, "prompt": prompt, "text": found.text})


class Report(Hook):
    """`report.html`, written anew when the run begins, every FRESH seconds, and at the end.

    Less often where the log has grown long, so that writing takes at most SHARE of the time.
    """

    name = "report"

    def __init__(self) -> None:
        super().__init__()
        self._written, self._took = 0.0, 0.0

    def begin(self, run: Run) -> None:
        self._write(run)

    def step(self, run: Run, line: Mapping[str, float]) -> None:
        passed = time.perf_counter() - self._written
        if passed > max(FRESH, self._took / SHARE):
            self._write(run)

    def end(self, run: Run, reason: str) -> None:
        self._write(run, over=True)

    def _write(self, run: Run, over: bool = False) -> None:
        if not run.world.main:
            return
        start = time.perf_counter()
        try:
            report.write(run.folder, over)
        except OSError as error:  # a page that cannot be written is no reason to stop training
            run.log.write({"kind": "warning", "step": run.step, "message": f"report.html: {error}"})
        self._written = time.perf_counter()
        self._took = self._written - start
