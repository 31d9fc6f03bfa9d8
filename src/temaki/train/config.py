"""The configuration of a run: one recipe, every table of it."""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings
from temaki.batches.config import BatchConfig, DataConfig
from temaki.checkpoint.speaking import Speaking
from temaki.model.config import ModelConfig
from temaki.optim.config import OptimConfig

Positive = Annotated[int, Field(ge=1)]


@settings
class NextConfig:
    """Predict the next id."""

    kind: Literal["next"] = "next"
    smooth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: this much mass is spread over all ids."""
    z: Annotated[float, Field(ge=0)] = 0.0
    """z-loss: this times logsumexp^2 is added."""


@settings
class MaskedConfig:
    """Predict hidden ids from both sides, for models whose attention is bidirectional."""

    kind: Literal["masked"] = "masked"
    share: Annotated[float, Field(gt=0, le=1)] = 0.15
    """How many of the places are chosen and learned."""
    hidden: Annotated[float, Field(ge=0, le=1)] = 0.8
    """How many of the chosen show the mask."""
    changed: Annotated[float, Field(ge=0, le=1)] = 0.1
    """How many of the chosen show another id; the rest show their own."""
    mask_id: Annotated[int, Field(ge=0)] | None = None
    """None: the tokenizer's special <|mask|>."""

    def __post_init__(self) -> None:
        if self.hidden + self.changed > 1:
            raise ValueError(f"hidden ({self.hidden}) and changed ({self.changed}) are more than all")


@settings
class PrefixConfig:
    """Predict the rest of a piece from a beginning read both ways, for models whose mask is prefix."""

    kind: Literal["prefix"] = "prefix"


ObjectiveConfig = Annotated[NextConfig | MaskedConfig | PrefixConfig, Field(discriminator="kind")]


@settings
class RandomConfig:
    """Begin with the random initial values of `model.init`."""

    kind: Literal["random"] = "random"


@settings
class BigramsConfig:
    """Begin as a bigram model of the training text, see `model/bigrams.py`; for untied decoders."""

    kind: Literal["bigrams"] = "bigrams"
    smooth: Annotated[float, Field(gt=0)] = 100.0
    """How many draws from the unigram distribution are added to each id's counts."""


@settings
class FromModelConfig:
    """Begin with the weights of a model in any known format, which also gives the shape and the tokenizer."""

    kind: Literal["model"] = "model"
    path: Annotated[str, Field(min_length=1)]


BeginConfig = Annotated[RandomConfig | BigramsConfig | FromModelConfig, Field(discriminator="kind")]


@settings
class StopConfig:
    """When a run ends: after so many steps, or after about so many minutes."""

    steps: Positive
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Once the rate is about to fall, `steps` is decided anew from the measured speed, so that it takes so long."""


@settings
class SaveConfig:
    """When checkpoints are made and which stay."""

    every: Positive = 500
    """Steps."""
    keep: Positive = 2
    """The last so many stay; the best and the last healthy one stay too."""


@settings
class WatchConfig:
    """How often a run looks at itself, in steps."""

    log: Positive = 10
    validate: Positive = 250
    validate_tokens: Positive = 65_536
    """Ids of held-out text that a validation during training reads; the evaluation at the end reads all."""
    sample: Positive | None = None


@settings
class ParallelConfig:
    """What a run computes with."""

    device: str | None = None
    """None: the best device of this machine."""
    threads: Positive | None = None
    """None: torch's own choice."""
    compile: bool = False
    """Compile the model with torch.compile; needs a C++ compiler."""
    checkpoint_activations: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them."""


@settings
class RunConfig:
    """A run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 1
    data: DataConfig = DataConfig()
    model: ModelConfig
    begin: BeginConfig = RandomConfig()
    objective: ObjectiveConfig = NextConfig()
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig()
    stop: StopConfig
    save: SaveConfig = SaveConfig()
    watch: WatchConfig = WatchConfig()
    parallel: ParallelConfig = ParallelConfig()
    generation: Speaking | None = None
    """How the model wants to be asked; None: by the usual boundary between documents."""
