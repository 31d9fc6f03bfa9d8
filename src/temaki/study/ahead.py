"""How much of a draft by the heads of further ids would be taken, watched while they learn."""

from temaki.base import rows as base_rows
from temaki.batches.loader import Loader
from temaki.batches.prepare import Prepared
from temaki.train import parallel
from temaki.train.hooks import Every
from temaki.train.loop import Run
from temaki.train.several import agreement

LEAST = 4_096
"""Ids of held-out text that are read, at least, where there are so many."""


class Agreement(Every):
    """The share of held-out places where each head's likeliest id is the one that came, the model's own first."""

    name = "agreement"
    everywhere = True

    def __init__(self, steps: int, data: Prepared):
        super().__init__(steps)
        self.held = data.held

    def act(self, run: Run) -> None:
        batch = run.config.batch
        loader = Loader(self.held, max(1, min(batch.context, len(self.held) - 1)), run.config.seed)
        rows = min(loader.rows, -(-LEAST // loader.context))
        batches = (base_rows.to(loader.take(i, 1), run.device) for i in range(rows))
        with parallel.speaking(run.model, run.optimizer):
            found = agreement(run.model, batches)
        run.log.write({"kind": "agreement", "step": run.step, "heads": [round(each, 6) for each in found]})
