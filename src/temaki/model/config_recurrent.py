"""Settings of mixers with a state of fixed size: state spaces, linear attention, recurrent networks.

Readable without torch; members of the union `MixerConfig` in `config.py`.
"""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings

Positive = Annotated[int, Field(ge=1)]
Above = Annotated[float, Field(gt=0)]


def _check_steps(low: float, high: float) -> None:
    """Raise ValueError for steps that are no range."""
    if low > high:
        raise ValueError(f"step_min ({low}) is above step_max ({high})")


@settings
class S4DConfig:
    """A diagonal state space a channel (S4D-Lin): A_n = -1/2 + i pi n, zero-order hold. Gu et al. 2022, section 4."""

    kind: Literal["s4d"] = "s4d"
    states: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """N: real states a channel, kept as N/2 conjugate pairs."""
    step_min: Above = 1e-3
    step_max: Above = 1e-1

    def __post_init__(self) -> None:
        _check_steps(self.step_min, self.step_max)


@settings
class S4Config:
    """A state space a channel with HiPPO-LegS dynamics, normal plus rank one. Gu, Goel and Re 2021, "S4", section 3."""

    kind: Literal["s4"] = "s4"
    states: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """N: real states a channel, kept as N/2 conjugate pairs."""
    step_min: Above = 1e-3
    step_max: Above = 1e-1
    length: Positive = 1024
    """L: ids of the longest piece that training convolves at once; what is learned is C* (I - Abar^L)."""

    def __post_init__(self) -> None:
        _check_steps(self.step_min, self.step_max)


@settings
class RtfConfig:
    """A rational transfer function a channel. Parnichkun et al. 2024, "State-free inference of state-space models"."""

    kind: Literal["rtf"] = "rtf"
    states: Positive = 64
    """d: the order of the polynomials."""
    length: Positive = 1024
    """L: ids of the longest piece that training convolves at once; the numerator belongs to it."""

    def __post_init__(self) -> None:
        if self.states >= self.length:
            raise ValueError(f"states ({self.states}) must be below length ({self.length})")


@settings
class S5Config:
    """One state space for all channels, diagonal, zero-order hold. Smith, Warrington and Linderman 2022, "S5"."""

    kind: Literal["s5"] = "s5"
    states: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """P: real states of the layer, kept as P/2 conjugate pairs."""
    step_min: Above = 1e-3
    step_max: Above = 1e-1

    def __post_init__(self) -> None:
        _check_steps(self.step_min, self.step_max)


@settings
class LruConfig:
    """A diagonal complex recurrence inside the unit circle. Orvieto et al. 2023, "Resurrecting RNNs", section 3."""

    kind: Literal["lru"] = "lru"
    states: Positive = 64
    """Complex states of the layer."""
    radius_min: Annotated[float, Field(ge=0, lt=1)] = 0.9
    radius_max: Annotated[float, Field(gt=0, lt=1)] = 0.999
    phase_max: Above = 6.283185307179586

    def __post_init__(self) -> None:
        if self.radius_min >= self.radius_max:
            raise ValueError(f"radius_min ({self.radius_min}) must be below radius_max ({self.radius_max})")


@settings
class MambaConfig:
    """A selective state space: step, B and C follow from the input. Gu and Dao 2023, "Mamba", section 3."""

    kind: Literal["mamba"] = "mamba"
    expand: Positive = 2
    """E = expand * width channels."""
    states: Positive = 16
    """N: states a channel."""
    conv: Positive = 4
    """Places of the short convolution before it."""
    rank: Positive | None = None
    """Of the step's projection; None: width / 16, rounded up."""
    step_min: Above = 1e-3
    step_max: Above = 1e-1

    def __post_init__(self) -> None:
        _check_steps(self.step_min, self.step_max)

    def step_rank(self, width: int) -> int:
        """R: of the step's projection."""
        return self.rank or -(-width // 16)


@settings
class Mamba2Config:
    """A selective state space with one decay a head, by products. Dao and Gu 2024, "Mamba-2", section 7."""

    kind: Literal["mamba2"] = "mamba2"
    heads: Positive = 4
    expand: Positive = 2
    """E = expand * width channels, E / heads a head."""
    states: Positive = 64
    """N: states a channel."""
    conv: Positive = 4
    """Places of the short convolution before it."""
    step_min: Above = 1e-3
    step_max: Above = 1e-1

    def __post_init__(self) -> None:
        _check_steps(self.step_min, self.step_max)


@settings
class RetNetConfig:
    """Retention: rotated queries and keys, one fixed decay a head, no softmax. Sun et al. 2023, section 2."""

    kind: Literal["retnet"] = "retnet"
    heads: Positive = 4
    theta: Above = 10_000.0
    """Of the rotation."""


@settings
class RwkvConfig:
    """A state a head that decays by the input, token shift, a bonus for the newest. Peng et al. 2024, "RWKV-6"."""

    kind: Literal["rwkv"] = "rwkv"
    heads: Positive = 4
    rank: Positive = 16
    """Of the projection that gives the decay."""


@settings
class DeltaNetConfig:
    """Linear attention that writes by the delta rule, with a gate. Yang et al. 2024, "Gated delta networks"."""

    kind: Literal["deltanet"] = "deltanet"
    heads: Positive = 4
    conv: Positive = 4
    """Places of the short convolution of queries, keys and values."""


@settings
class RnnConfig:
    """h = tanh(W x + U h + b). Elman 1990."""

    kind: Literal["rnn"] = "rnn"
    size: Positive | None = None
    """Of the hidden vector; None: the model's width."""


@settings
class GruConfig:
    """Gated recurrent unit. Cho et al. 2014; the reset gate as in torch and cuDNN."""

    kind: Literal["gru"] = "gru"
    size: Positive | None = None
    """Of the hidden vector; None: the model's width."""


@settings
class LstmConfig:
    """Long short-term memory. Hochreiter and Schmidhuber 1997; Gers et al. 2000 (forget gate, begins at 1)."""

    kind: Literal["lstm"] = "lstm"
    size: Positive | None = None
    """Of the hidden vector; None: the model's width."""


RecurrentConfig = (
    S4DConfig
    | S4Config
    | RtfConfig
    | S5Config
    | LruConfig
    | MambaConfig
    | Mamba2Config
    | RetNetConfig
    | RwkvConfig
    | DeltaNetConfig
    | RnnConfig
    | GruConfig
    | LstmConfig
)


def fits(config: RecurrentConfig, width: int) -> None:
    """Raise ValueError for a mixer whose heads do not divide the channels of a model of this width.

    >>> fits(RetNetConfig(heads=4), 32)
    """
    match config:
        case Mamba2Config(heads=heads, expand=expand):
            channels, what = expand * width, f"expand * width ({expand * width})"
        case RetNetConfig(heads=heads) | RwkvConfig(heads=heads) | DeltaNetConfig(heads=heads):
            channels, what = width, f"width ({width})"
        case _:
            return
    if channels % heads:
        raise ValueError(f"{what} must be a multiple of the heads of {config.kind} ({heads})")
    if isinstance(config, RetNetConfig) and channels // heads % 2:
        raise ValueError(
            f"retention turns pairs: the head size ({channels // heads}; width {width}, heads {heads}) must be even"
        )
