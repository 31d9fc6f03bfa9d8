"""Medusa heads in compiled products: the logits of SiLU(W1 h) + h under W2, for what a model's own head reads.

Letters: D width, V vocabulary, R rows. Cai et al. 2024, "Medusa", section 2.1.1.
"""

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from temaki.compiled.packed import Packed
from temaki.compiled.plan import Bits, Held
from temaki.model.config import DecoderConfig, MedusaHeadsConfig


class MedusaHeads:
    """A model's Medusa heads, in float32 or in 8 or 4 bits; for one thread at a time."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Held], bits: Bits | None = None):
        assert config.further is not None, "no heads of further ids"
        assert isinstance(config.further.heads, MedusaHeadsConfig), "these heads have blocks"
        self.count = config.further.ids - 1
        self.cap = config.cap
        names = [f"heads.{k}" for k in range(self.count)]
        self._residuals = [Packed(weights[f"{name}.residual"].array(), bits) for name in names]
        self._unembeddings = [Packed(weights[f"{name}.unembedding"].array(), bits) for name in names]

    def logits(self, k: int, hidden: ndarray) -> ndarray:
        """What head k (0 the first) says of hidden [R, D]: float32 [R, V]."""
        turned = self._residuals[k].times(hidden)
        with np.errstate(over="ignore"):  # e^-x beyond float32 is inf, and x / inf is 0
            vectors = turned / (1 + np.exp(-turned)) + hidden
        return capped(self._unembeddings[k].times(vectors), self.cap)


def capped(logits: ndarray, cap: float | None) -> ndarray:
    """cap * tanh(logits / cap), or the logits as they are."""
    return logits if cap is None else cap * np.tanh(logits / np.float32(cap))
