"""What fewer bits did to the weights: kind, size and error of every one, before and after. No torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.formats.weights import Weight
from temaki.model.quantise import Blocks, Stored

DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64"}
"""What GGUF calls plain arrays."""


@dataclass(frozen=True)
class Rounded:
    """One of our weights, before and after."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """What it is kept as now; stacked parts of several kinds are named with a plus."""
    before: int
    """Bytes."""
    after: int
    """Bytes."""
    error: float
    """Root of the mean square of the differences, in parts of that of the numbers; 0 where nothing was rounded."""


def rounded(
    before: Mapping[str, Weight], after: Mapping[str, Weight], progress: Callable[[int], None] = lambda _: None
) -> list[Rounded]:
    """Compare weights of the same names, one after the other; `progress` is told how many are done."""
    found = []
    for done, (name, was) in enumerate(before.items(), start=1):
        now = after[name]
        found.append(Rounded(name, was.shape, _kind(now), _bytes(was), _bytes(now), error(was.array(), now.array())))
        progress(done)
    return found


def error(numbers: ndarray, rounded: ndarray) -> float:
    """sqrt(sum (a - b)^2 / sum a^2), 0 for two arrays of zeros.

    >>> error(np.array([3.0, 4.0]), np.array([3.0, 3.0]))
    0.2
    """
    difference = np.subtract(numbers, rounded, dtype=np.float64).reshape(-1)
    flat = numbers.reshape(-1).astype(np.float64)
    whole = float(flat @ flat)
    return math.sqrt(float(difference @ difference) / whole) if whole else 0.0


def _kind(weight: Weight) -> str:
    kinds = [stored.kind if isinstance(stored, Blocks) else DTYPES[stored.dtype.name] for stored, _ in weight.parts]
    return "+".join(dict.fromkeys(kinds)) or "none"


def _bytes(weight: Weight) -> int:
    return sum(_held(stored) for stored, _ in weight.parts)


def _held(stored: Stored) -> int:
    return len(stored.data) if isinstance(stored, Blocks) else stored.nbytes
