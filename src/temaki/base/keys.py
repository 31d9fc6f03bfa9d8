"""Randomness as a function: every draw is named by (seed, purpose, place), so nothing is carried and nothing drifts.

A key is hashed with BLAKE2b to 128 bits; those seed a counter-based generator (NumPy's Philox) or give one number.
"""

import hashlib

import numpy as np


def key(seed: int, purpose: str, *place: int) -> int:
    """A 128-bit number for (seed, purpose, place)."""
    text = ":".join([str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest(), "little")


def uniform(seed: int, purpose: str, *place: int) -> float:
    """One float64 in [0, 1) for (seed, purpose, place).

    >>> uniform(1, "sample", 5) == uniform(1, "sample", 5)
    True
    """
    return (key(seed, purpose, *place) >> 75) * 2.0**-53


def generator(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """A NumPy generator for (seed, purpose, place)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *place)))


def torch_seed(seed: int, purpose: str, *place: int) -> int:
    """A 63-bit seed for a torch generator."""
    return key(seed, purpose, *place) & ((1 << 63) - 1)
