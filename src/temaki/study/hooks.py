"""What hangs on the loop while it runs: validation, samples, a growing report."""

from collections.abc import Sequence
from itertools import islice

from temaki.base import rows as base_rows
from temaki.batches.loader import Loader
from temaki.batches.prepare import Prepared, texts
from temaki.evaluate import loss
from temaki.generate import text
from temaki.generate.config import SamplingConfig
from temaki.generate.torch_executor import TorchExecutor
from temaki.report import run as report
from temaki.train.hooks import Every
from temaki.train.loop import Run
from temaki.train.step import measured


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


class ValidateObjective(Every):
    """The objective's own loss on held-out rows, where that is no next id's: a model that reads its answer, or a
    beginning both ways, has no bits per byte. By it the best checkpoint is judged.
    """

    name = "validate"

    def __init__(self, steps: int, data: Prepared, tokens: int):
        super().__init__(steps)
        self.held, self.tokens = data.held, tokens
        self.judged = -1
        """The step validated last."""

    def act(self, run: Run) -> None:
        batch, seed = run.config.batch, run.config.seed
        loader = Loader(self.held, max(1, min(batch.context, len(self.held) - 1)), seed)
        rows = max(1, min(loader.rows, self.tokens // loader.context))
        batches = [
            base_rows.to(run.objective.prepared(loader.take(i, min(batch.micro_rows, rows - i)), i), run.device)
            for i in range(0, rows, batch.micro_rows)
        ]
        found = measured(run.model, run.objective, batches)
        if found is None:
            what = "the held-out rows hold nothing that this objective learns; raise watch.validate_tokens"
            run.log.write({"kind": "warning", "step": run.step, "message": what})
            return
        self.judged = run.step
        self.numbers["loss"] = found
        run.log.write({"kind": "validate", "step": run.step, "loss": self.numbers["loss"]})

    def score(self, run: Run) -> float | None:
        return self.numbers["loss"] if self.judged == run.step else None


def ends(data: Prepared) -> text.Ends:
    """The boundary between documents begins a prompt and ends what follows it."""
    boundary = (data.train.manifest.boundary,)
    return text.Ends(boundary, boundary)


class Sample(Every):
    """A continuation of each prompt."""

    name = "sample"

    def __init__(self, steps: int, data: Prepared, prompts: Sequence[str], sampling: SamplingConfig):
        super().__init__(steps)
        self.data, self.prompts, self.sampling = data, prompts, sampling

    def act(self, run: Run) -> None:
        tokenizer, between = self.data.tokenizer, ends(self.data)
        room = text.room(tokenizer, self.prompts, self.sampling, between)
        executor = TorchExecutor(run.model, len(self.prompts), room)
        seed = run.config.seed
        for found in text.complete(executor, tokenizer, self.prompts, self.sampling, seed=seed, ends=between):
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
