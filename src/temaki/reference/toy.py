"""The smallest language model there is to play with: seven words, one block, one sentence to learn."""

import numpy as np

from temaki.reference import use
from temaki.reference.gpt import Array, Tree, gpt2

WORDS = ["all", "not", "heroes", "the", "wear", ".", "capes"]
"""The word of each id."""
SENTENCE = "not all heroes wear capes"
HEADS = 2


def encode(text: str) -> list[int]:
    """Ids of words with spaces between. Raises ValueError for a word that is not known.

    >>> encode("not all heroes wear")
    [1, 0, 2, 4]
    """
    return [WORDS.index(word) for word in text.split()]


def decode(ids: list[int]) -> str:
    """Words with spaces between.

    >>> decode([1, 0])
    'not all'
    """
    return " ".join(WORDS[each] for each in ids)


def untrained() -> Tree:
    """Random parameters: 16 wide, 8 positions."""
    return use.random_gpt2(np.random.default_rng(0), len(WORDS), 8, 16, 1)


def gpt(inputs: list[int], params: Tree | None = None) -> Array:
    """Logits [T, 7] of the next word at each place."""
    return gpt2(inputs, **(params or untrained()), n_head=HEADS)


def generate(inputs: list[int], n_tokens_to_generate: int, params: Tree | None = None) -> list[int]:
    """The most probable next ids.

    >>> len(generate([1, 0], 3))
    3
    """
    return use.generate(inputs, params or untrained(), n_tokens_to_generate, n_head=HEADS)


def lm_loss(inputs: list[int], params: Tree) -> Array:
    """Nats a word."""
    return use.lm_loss(inputs, params, n_head=HEADS)


def train(texts: list[list[int]], params: Tree | None = None, steps: int = 100) -> tuple[Tree, list[float]]:
    """Learn texts of ids by JAX; the parameters and the losses. After SENTENCE, `generate([1, 0], 3)` is [2, 4, 6]."""
    return use.train(texts, params or untrained(), steps, rate=0.5, n_head=HEADS)
