"""Settings of optimizers and schedules, readable without torch."""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings

Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@settings
class AdamWConfig:
    """AdamW, see `adamw.py`."""

    kind: Literal["adamw"] = "adamw"
    rate: Rate = 1.0
    """This rule's learning rate as a multiple of `optim.lr`."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Rate = 0.0
    order: Literal["torch", "handout"] = "torch"
    """torch: decay first, eps after bias correction; handout (CS336): update, then decay with the uncorrected rate."""


@settings
class MuonConfig:
    """Muon, see `muon.py`; for matrices only."""

    kind: Literal["muon"] = "muon"
    rate: Rate = 1.0
    """This rule's learning rate as a multiple of `optim.lr`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz steps."""
    coefficients: tuple[float, float, float] | None = None
    """Of the Newton-Schulz polynomial a x + b x^3 + c x^5; None: Jordan's. See `temaki coefficients`."""
    per_head: bool = False
    """Each head's queries, keys and values are a matrix of their own."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """What Newton-Schulz multiplies in; auto: bfloat16 where this device multiplies that faster."""
    scale: Literal["plain", "rows-over-columns", "moonlight", "mup"] = "moonlight"
    """Factor on the orthogonal update: 1; sqrt(max(1, rows/cols)); 0.2 sqrt(max(rows, cols)); sqrt(rows/cols)."""
    weight_decay: Rate = 0.0


@settings
class LionConfig:
    """Lion, see `lion.py`: the sign of a moving average; rates are 3 to 10 times below AdamW's."""

    kind: Literal["lion"] = "lion"
    rate: Rate = 1.0
    """This rule's learning rate as a multiple of `optim.lr`."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_decay: Rate = 0.0


@settings
class SignumConfig:
    """Signum, see `sgd.py`: the sign of the momentum; momentum 0 is SignSGD."""

    kind: Literal["signum"] = "signum"
    rate: Rate = 1.0
    """This rule's learning rate as a multiple of `optim.lr`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Rate = 0.0


@settings
class SgdConfig:
    """Stochastic gradient descent with momentum, see `sgd.py`."""

    kind: Literal["sgd"] = "sgd"
    rate: Rate = 1.0
    """This rule's learning rate as a multiple of `optim.lr`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Rate = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, so it needs one above 0")


EntryRule = Annotated[AdamWConfig | LionConfig | SignumConfig | SgdConfig, Field(discriminator="kind")]
"""Rules that move each entry by itself: for parameters of any shape."""
OptimizerConfig = Annotated[
    AdamWConfig | MuonConfig | LionConfig | SignumConfig | SgdConfig, Field(discriminator="kind")
]


@settings
class CosineConfig:
    """Linear warmup, then half a cosine down to `floor`."""

    kind: Literal["cosine"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 20
    """Steps."""
    floor: Share = 0.1
    """Last factor."""


@settings
class WsdConfig:
    """Linear warmup, a stable stretch, then a straight line down to `floor`."""

    kind: Literal["wsd"] = "wsd"
    warmup: Annotated[int, Field(ge=0)] = 20
    """Steps."""
    decay: Share = 0.5
    """Share of all steps that the decay takes."""
    floor: Share = 0.02
    """Last factor."""


@settings
class LinearConfig:
    """Linear warmup, then a straight line down to `floor`."""

    kind: Literal["linear"] = "linear"
    warmup: Annotated[int, Field(ge=0)] = 20
    """Steps."""
    floor: Share = 0.0
    """Last factor."""


@settings
class NoamConfig:
    """Linear warmup, then sqrt(warmup / step). Vaswani et al. 2017, section 5.3, with the peak at 1."""

    kind: Literal["noam"] = "noam"
    warmup: Annotated[int, Field(ge=1)] = 20
    """Steps."""


@settings
class GeometricConfig:
    """The rate grows by the same share every step, from `first` to 1: the learning-rate range test."""

    kind: Literal["geometric"] = "geometric"
    first: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """First factor."""

    @property
    def warmup(self) -> int:
        """There is none."""
        return 0


ScheduleConfig = Annotated[
    CosineConfig | LinearConfig | NoamConfig | WsdConfig | GeometricConfig, Field(discriminator="kind")
]


@settings
class AverageConfig:
    """An exponential moving average of the weights, which is what a checkpoint speaks with."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Held back at first: min(decay, (1 + t) / (10 + t)) after update t."""


@settings
class OptimConfig:
    """Which rule moves which role, how fast, and when."""

    lr: Annotated[float, Field(gt=0)] = 5e-3
    """The peak learning rate; each rule multiplies it by its own `rate`."""
    matrix: OptimizerConfig = MuonConfig()
    embedding: EntryRule = AdamWConfig()
    head: EntryRule = AdamWConfig()
    vector: EntryRule = AdamWConfig()
    dynamics: EntryRule = AdamWConfig(rate=0.3)
    schedule: ScheduleConfig = WsdConfig()
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global norm of the gradient; None: not clipped."""
    average: AverageConfig | None = None
    """None: the weights are what they are."""
