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
    scale: Literal["plain", "rows-over-columns", "moonlight", "mup"] = "moonlight"
    """Factor on the orthogonal update: 1; sqrt(max(1, rows/cols)); 0.2 sqrt(max(rows, cols)); sqrt(rows/cols)."""
    weight_decay: Rate = 0.0


OptimizerConfig = Annotated[AdamWConfig | MuonConfig, Field(discriminator="kind")]


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


ScheduleConfig = Annotated[CosineConfig | WsdConfig, Field(discriminator="kind")]


@settings
class OptimConfig:
    """Which rule moves which role, how fast, and when."""

    lr: Annotated[float, Field(gt=0)] = 5e-3
    """The peak learning rate; each rule multiplies it by its own `rate`."""
    matrix: OptimizerConfig = MuonConfig()
    embedding: AdamWConfig = AdamWConfig()
    head: AdamWConfig = AdamWConfig()
    vector: AdamWConfig = AdamWConfig()
    dynamics: AdamWConfig = AdamWConfig(rate=0.3)
    schedule: ScheduleConfig = WsdConfig()
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global norm of the gradient; None: not clipped."""
