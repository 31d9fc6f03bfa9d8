"""A torch model as what `formats/parity` asks: logits of whole pieces, greedy tokens drawn with a cache."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy import ndarray

from temaki.base import rows
from temaki.formats.opened import Opened
from temaki.generate.executor import Work
from temaki.generate.torch_executor import TorchExecutor


class TorchVoice:
    """A model in float32 on the host."""

    def __init__(self, opened: Opened):
        self.model = opened.model(torch.float32)

    @torch.no_grad()
    def logits(self, pieces: Sequence[ndarray]) -> list[ndarray]:
        """float32 [T, V] for every piece of ids [T], all read in one call."""
        hidden = self.model(rows.rows([torch.as_tensor(piece) for piece in pieces]))
        lengths = [len(piece) for piece in pieces]
        return [self.model.head.logits(each).numpy() for each in hidden.split(lengths)]

    def greedy(self, prompt: ndarray, count: int) -> tuple[list[int], list[float]]:
        """The most probable ids that follow, drawn one by one with a cache, and how far each was ahead in logits."""
        executor = TorchExecutor(self.model, 1, len(prompt) + count)
        executor.open(0)
        ids, ahead, read = [], [], prompt
        for _ in range(count):
            logits = executor.run([Work(0, np.asarray(read, np.int32), "last")]).logits[0]
            best = int(logits.argmax())
            ids.append(best)
            ahead.append(float(logits[best] - np.delete(logits, best).max(initial=-np.inf)))
            read = np.array([best])
        executor.close(0)
        return ids, ahead
