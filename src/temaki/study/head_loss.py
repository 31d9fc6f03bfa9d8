"""What a model would lose with a head of attention taken out: its loss with the head's columns zeroed, less its loss.

Michel et al. 2019, "Are sixteen heads really better than one?", section 3.1. Taking the head out for good
(`model/prune.py`) gives the same. Letters: L layers, H heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from temaki.batches.shards import Shards
from temaki.model.attention import Attention
from temaki.model.build import Model
from temaki.study import held as held_text

STRETCHES = 24


def measure(model: Model, held: Shards, context: int, most: int = STRETCHES) -> dict[str, Any]:
    """Nats an id that each head is worth: by layer with attention, then by head."""
    found = held_text.stretches(held, context, most)
    whole = held_text.losses(model, found)
    worth: dict[str, list[float]] = {}
    for layer, block in enumerate(model.blocks):
        if isinstance(block.mixer, Attention):
            worth[str(layer)] = []
            for head in range(block.mixer.heads):
                with without(block.mixer, head):
                    worth[str(layer)].append(float((held_text.losses(model, found) - whole).mean()))
    return {"loss": float(whole.mean()), "worth": worth}


@contextmanager
def without(mixer: Attention, head: int) -> Iterator[None]:
    """The layer as if the head gave nothing, until the block ends."""
    columns = slice(head * mixer.size, (head + 1) * mixer.size)
    with torch.no_grad():
        kept = mixer.out[:, columns].clone()
        mixer.out[:, columns] = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            mixer.out[:, columns] = kept
