"""What hangs on the loop while it runs: validation, samples, a growing report."""

from collections.abc import Sequence
from itertools import islice

from temaki.batches.prepare import Prepared, texts
from temaki.evaluate import loss
from temaki.generate import text
from temaki.generate.config import SamplingConfig
from temaki.generate.torch_executor import TorchExecutor
from temaki.report import run as report
from temaki.train.hooks import Every
from temaki.train.loop import Run


class Validate(Every):
    """Bits per byte on the first documents of the held-out text; by it the best checkpoint is judged."""

    name = "validate"

    def __init__(self, steps: int, data: Prepared, tokens: int):
        super().__init__(steps)
        self.data = data
        held = data.held
        self.documents, taken = 0, 0
        while self.documents < held.manifest.documents and taken < tokens:
            taken += len(held.document(self.documents))
            self.documents += 1
        self.judged = -1
        """The step validated last."""
        self.bytes = sum(len(each) for each in islice(texts(data.held, data.tokenizer), self.documents))

    def act(self, run: Run) -> None:
        documents = (self.data.held.document(i) for i in range(self.documents))
        context = run.config.batch.context
        found = loss.score(run.model, documents, self.bytes, context, context)
        self.judged = run.step
        self.numbers["bits_per_byte"] = found.bits_per_byte
        run.log.write({"kind": "validate", "step": run.step, "loss": found.loss, "bits_per_byte": found.bits_per_byte})

    def score(self, run: Run) -> float | None:
        return self.numbers["bits_per_byte"] if self.judged == run.step else None


class Sample(Every):
    """A continuation of each prompt."""

    name = "sample"

    def __init__(self, steps: int, data: Prepared, prompts: Sequence[str], sampling: SamplingConfig):
        super().__init__(steps)
        self.data, self.prompts, self.sampling = data, prompts, sampling

    def act(self, run: Run) -> None:
        room = text.room(self.data.tokenizer, self.prompts, self.sampling)
        executor = TorchExecutor(run.model, len(self.prompts), room)
        for found in text.complete(executor, self.data.tokenizer, self.prompts, self.sampling, seed=run.config.seed):
            prompt = self.prompts[found.index]
            run.log.write({"kind": "sample", "step": run.step, "prompt": prompt, "text": found.text})


class Report(Every):
    """`report.html`, written anew."""

    name = "report"

    def act(self, run: Run) -> None:
        try:
            report.write(run.folder)
        except OSError as error:  # a page that cannot be written is no reason to stop training
            run.log.write({"kind": "warning", "step": run.step, "message": f"report.html: {error}"})

    def end(self, run: Run, reason: str) -> None:
        self.act(run)
