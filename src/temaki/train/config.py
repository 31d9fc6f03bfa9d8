"""The configuration of a run: one recipe, every table of it."""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings
from temaki.batches.config import BatchConfig, DataConfig
from temaki.checkpoint.speaking import Speaking
from temaki.model.config import FurtherConfig, HeadsConfig, ModelConfig, ParallelHeadsConfig
from temaki.optim.config import OptimConfig

Positive = Annotated[int, Field(ge=1)]


@settings
class CrossEntropyLossConfig:
    """-log softmax at the target, in nats."""

    kind: Literal["cross-entropy"] = "cross-entropy"


@settings
class SparsemaxLossConfig:
    """The loss of sparsemax: 0 once the target's score leads all others by 1. Martins and Astudillo 2016."""

    kind: Literal["sparsemax"] = "sparsemax"


@settings
class EntmaxLossConfig:
    """The loss of entmax, between cross-entropy (alpha = 1) and sparsemax (2). Peters, Niculae and Martins 2019."""

    kind: Literal["entmax"] = "entmax"
    alpha: Annotated[float, Field(ge=1, le=4)] = 1.5


@settings
class TopKLossConfig:
    """logsumexp over the k largest - the target's score: to fine-tune with, where targets mostly are among them."""

    kind: Literal["top-k"] = "top-k"
    k: Positive = 64


@settings
class TaylorLossConfig:
    """-log of Taylor softmax at the target."""

    kind: Literal["taylor"] = "taylor"
    order: Annotated[int, Field(ge=2, le=8, multiple_of=2)] = 2


LossConfig = Annotated[
    CrossEntropyLossConfig | SparsemaxLossConfig | EntmaxLossConfig | TopKLossConfig | TaylorLossConfig,
    Field(discriminator="kind"),
]
"""Margin softmax is a function alone (`model.map_losses`): it learns cosines, and no model here speaks by them."""


@settings
class NextConfig:
    """Predict the next id."""

    kind: Literal["next"] = "next"
    smooth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: this much mass is spread over all ids."""
    z: Annotated[float, Field(ge=0)] = 0.0
    """z-loss: this times logsumexp^2 is added."""
    loss: LossConfig = CrossEntropyLossConfig()
    """Of which map to probabilities. Generation and the scores of `temaki evaluate` are by softmax whatever it is."""

    def __post_init__(self) -> None:
        if (self.smooth or self.z) and not isinstance(self.loss, CrossEntropyLossConfig):
            raise ValueError(f"smooth and z belong to loss.kind = cross-entropy, found {self.loss.kind}")


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


@settings
class SeveralConfig:
    """Predict the next ids, several at once: multi-token prediction. With ids = 1 it is the plain loss."""

    kind: Literal["several"] = "several"
    ids: Annotated[int, Field(ge=1, le=16)] = 4
    """How many ids are predicted from each place, the next one included."""
    heads: HeadsConfig = ParallelHeadsConfig()
    """What says the further ids."""
    trunk: Literal["learns", "frozen"] = "learns"
    """frozen: the model that the run begins with stays as it is; the heads alone learn."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What the further ids weigh together beside the next one, shared among them by `falls`."""
    falls: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each further id weighs this times the one before."""
    smooth: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: this much mass is spread over all ids."""
    z: Annotated[float, Field(ge=0)] = 0.0
    """z-loss: this times logsumexp^2 is added."""

    def __post_init__(self) -> None:
        if self.trunk == "frozen" and self.ids == 1:
            raise ValueError("trunk = frozen leaves the heads of further ids to learn, and ids = 1 has none")

    @property
    def further(self) -> FurtherConfig | None:
        """The heads that the model needs; None: its own is enough."""
        return FurtherConfig(ids=self.ids, heads=self.heads) if self.ids > 1 else None


ObjectiveConfig = Annotated[NextConfig | SeveralConfig | MaskedConfig | PrefixConfig, Field(discriminator="kind")]


def freezes(config: ObjectiveConfig) -> bool:
    """Whether an objective leaves all but the heads of further ids as it is."""
    return isinstance(config, SeveralConfig) and config.trunk == "frozen"


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
    back: tuple[Positive, ...] = ()
    """How many ids back each head of the first layer looks at first, one distance a head; the rest begin at random."""


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
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """At most so long: where `steps` would take longer, fewer are decided, once, so that the rate can still fall."""

    def __post_init__(self) -> None:
        if self.minutes is not None and self.max_minutes is not None:
            raise ValueError("minutes fixes the length and max_minutes limits it; give one of them")


@settings
class StopAtSpikeConfig:
    """Stop with an error."""

    kind: Literal["stop"] = "stop"


@settings
class WarnAtSpikeConfig:
    """Say so and go on."""

    kind: Literal["warn"] = "warn"


@settings
class RollBackAtSpikeConfig:
    """Go back to the last healthy checkpoint and on with other rows: those up to the spike are passed over."""

    kind: Literal["roll-back"] = "roll-back"
    most: Positive = 3
    """How often in a run; then it stops."""


AtSpike = Annotated[StopAtSpikeConfig | WarnAtSpikeConfig | RollBackAtSpikeConfig, Field(discriminator="kind")]


@settings
class SpikeConfig:
    """When a loss counts as a spike: above the mean of the window by so many deviations, so many steps in a row."""

    window: Annotated[int, Field(ge=4)] = 50
    """Steps."""
    deviations: Annotated[float, Field(gt=0)] = 6.0
    steps: Positive = 3
    """In a row."""
    do: AtSpike = WarnAtSpikeConfig()


@settings
class GuardConfig:
    """What a run does when its numbers go wrong."""

    non_finite: Literal["stop", "skip"] = "stop"
    """stop: with an error that names the first layer; skip: leave the update out, say so, and go on."""
    skips: Positive = 10
    """Most steps skipped in a row; then the run stops."""
    spike: SpikeConfig = SpikeConfig()


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
    norms: Positive | None = 10
    """Norms of gradients, weights and updates by role, every so many steps; None: never."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where metric lines go beside metrics.jsonl; each needs its package."""


@settings
class ParallelConfig:
    """What a run computes with."""

    device: str | None = None
    """None: the best device of this machine."""
    threads: Positive | None = None
    """None: torch's own choice."""
    precision: Literal["float32", "products-bf16", "autocast-bf16"] = "float32"
    """products-bf16: float32 kept, matrix products in bfloat16 inside; autocast-bf16: torch's mixed precision."""
    data: Literal["replicate", "shard"] = "replicate"
    """Several processes: each holds the whole model (DDP), or its share of every parameter (FSDP2)."""
    tensor: Positive = 1
    """Processes that share the heads and hidden columns of one copy of the model (tensor parallel)."""
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
    guard: GuardConfig = GuardConfig()
    save: SaveConfig = SaveConfig()
    watch: WatchConfig = WatchConfig()
    parallel: ParallelConfig = ParallelConfig()
    generation: Speaking | None = None
    """How the model wants to be asked; None: by the usual boundary between documents."""
