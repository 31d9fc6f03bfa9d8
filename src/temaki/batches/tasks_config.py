"""Settings of tasks: examples made by a rule, or of pictures, with an answer to be given. Readable without torch."""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings

Positive = Annotated[int, Field(ge=1)]
Letters = Annotated[int, Field(ge=2, le=26)]


@settings
class CopyConfig:
    """Letters, blanks, a mark, and the letters again. Arjovsky, Shah and Bengio 2016, "Unitary evolution", 4.1."""

    kind: Literal["copy"] = "copy"
    letters: Letters = 8
    """Size of the alphabet."""
    length: Positive = 10
    """Letters to be said again."""
    gap: Annotated[int, Field(ge=0)] = 40
    """Blanks."""
    blanks: Literal["behind", "between"] = "behind"
    """behind: all behind the letters; between: at random places among them (selective copying, Gu and Dao 2023)."""


@settings
class RecallConfig:
    """Pairs of a key and a value, a mark, then keys whose values are asked. Ba et al. 2016, "Fast weights", 4.1."""

    kind: Literal["recall"] = "recall"
    keys: Letters = 26
    values: Letters = 26
    pairs: Positive = 8
    """In an example; no key comes twice."""
    queries: Positive = 1
    """Keys asked; no key is asked twice."""

    def __post_init__(self) -> None:
        if self.pairs > self.keys:
            raise ValueError(f"pairs ({self.pairs}) are more than there are keys ({self.keys})")
        if self.queries > self.pairs:
            raise ValueError(f"queries ({self.queries}) are more than pairs ({self.pairs})")


@settings
class DelayConfig:
    """Random letters; at place t the letter of place t - lag is to be said. One example fills a row."""

    kind: Literal["delay"] = "delay"
    letters: Letters = 16
    lag: Annotated[int, Field(ge=0)] = 1000


@settings
class ListopsConfig:
    """Nested lists of digits under min, max, median or sum; the value is asked. Nangia and Bowman 2018, "ListOps"."""

    kind: Literal["listops"] = "listops"
    depth: Annotated[int, Field(ge=1, le=20)] = 4
    """Lists in lists, at most."""
    arguments: Annotated[int, Field(ge=2)] = 5
    """Of a list, at most; at least 2."""
    longest: Annotated[int, Field(ge=5)] = 100
    """Ids of an expression, at most, brackets included."""


@settings
class PixelsConfig:
    """Pictures read pixel by pixel, row by row; the label is asked at the last one. Le et al. 2015, section 4.3."""

    kind: Literal["pixels"] = "pixels"
    folder: Annotated[str, Field(min_length=1)]
    """IDX files (`train-images-idx3-ubyte`, .. plain or gzip), or ten JSON lists `0.json` .. `9.json`."""
    train: Positive = 8000
    """Pictures to learn from, at most."""
    test: Positive = 2000
    """Held-out pictures, at most."""
    side: Positive | None = None
    """Pictures are shrunk to side x side by averaging; it divides their own side. None: as they are."""
    levels: Annotated[int, Field(ge=2, le=256)] = 256
    """Kinds of grey that are told apart."""
    order: Literal["plain", "permuted"] = "plain"
    """permuted: pixels in one fixed random order, the same for all pictures and runs."""
    answers: Positive = 1
    """Last places of a training picture at which its label is asked; held-out ones are asked at the last alone."""


TaskConfig = Annotated[
    CopyConfig | RecallConfig | DelayConfig | ListopsConfig | PixelsConfig, Field(discriminator="kind")
]
SyntheticConfig = CopyConfig | RecallConfig | DelayConfig | ListopsConfig
"""Tasks whose examples follow from a rule; the others are read from files."""
