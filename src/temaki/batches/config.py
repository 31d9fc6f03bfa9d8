"""Settings of data and batches, readable without torch."""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings
from temaki.batches.tasks_config import TaskConfig

Positive = Annotated[int, Field(ge=1)]


@settings
class DataConfig:
    """Which text becomes which ids."""

    text: Annotated[str, Field(min_length=1)] = "stdlib"
    """A file or folder; "stdlib": the source text of this Python's standard library."""
    kind: Literal["bpe", "characters"] = "bpe"
    """What tokenizer is trained; characters: an id for each character of the whole text, and `<|unknown|>`."""
    vocabulary: Annotated[int, Field(ge=257)] = 4096
    """Size of the BPE that is trained, specials and bytes included; the most characters there may be."""
    special: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """Special tokens that the tokenizer is trained with beside the one between documents, such as `<|mask|>`."""
    split: Annotated[str, Field(min_length=1)] = "gpt2"
    """How text is cut before merging: a pattern's name or a regular expression."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the text kept from training."""
    held: Literal["documents", "tail"] = "documents"
    """What is kept: documents chosen by the hash of their text, or the last characters of all."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8."""
    tokenizer: str | None = None
    """Folder of a tokenizer to use; None: one is trained on the training text."""
    boundary: Annotated[str, Field(min_length=1)] | None = None
    """The special token between documents; None: `<|endoftext|>`, else what its frame puts before a text."""
    shards: str | None = None
    """Folder of prepared shards to use; None: they are made from the text."""
    task: TaskConfig | None = None
    """Examples with answers instead of text: of this table only `shards` counts beside it. None: text."""


@settings
class DropoutConfig:
    """BPE-dropout: each merge of a tokenizer that merges is left out with probability `drop`."""

    kind: Literal["dropout"] = "dropout"
    drop: Annotated[float, Field(gt=0, le=1)] = 0.1


@settings
class SampledConfig:
    """A segmentation in proportion to P^alpha, for tokenizers whose pieces have probabilities (unigram, BytePiece)."""

    kind: Literal["sampled"] = "sampled"
    alpha: Annotated[float, Field(ge=0)] = 0.2


SegmentationConfig = Annotated[DropoutConfig | SampledConfig, Field(discriminator="kind")]


@settings
class BatchConfig:
    """How many ids a step reads, and in what rows."""

    tokens: Positive = 2048
    """Ids a step."""
    micro: Positive | None = None
    """Ids a micro-batch; None: the whole step at once."""
    context: Positive = 512
    """Ids a row."""
    halves: Positive | None = 16
    """Every so many steps one that is read at once is read in two halves instead, so that the gradient's noise can be
    measured (`train/noise.py`); None: never."""
    segmentation: SegmentationConfig | None = None
    """Training text is cut into ids anew at random each time it is read, see `stochastic.py`; None: as it was."""

    def __post_init__(self) -> None:
        if self.tokens % self.context:
            raise ValueError(f"batch.tokens ({self.tokens}) must be a multiple of batch.context ({self.context})")
        if self.micro is not None and (self.micro % self.context or self.tokens % self.micro):
            raise ValueError(
                f"batch.micro ({self.micro}) must be a multiple of batch.context ({self.context}) and divide "
                f"batch.tokens ({self.tokens})"
            )

    @property
    def rows(self) -> int:
        """Rows a step."""
        return self.tokens // self.context

    @property
    def micro_rows(self) -> int:
        """Rows a micro-batch."""
        return (self.micro or self.tokens) // self.context
