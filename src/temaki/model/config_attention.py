"""Settings of attention, of its positions and maps, readable without torch: members of the unions in `config.py`."""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings

Positive = Annotated[int, Field(ge=1)]
Above = Annotated[float, Field(gt=0)]
Stretch = Annotated[float, Field(ge=1)]


# ---- positions ------------------------------------------------------------------------------------------------------


@settings
class LinearScalingConfig:
    """Positions divided by a factor. Chen et al. 2023, "Extending context window ... via position interpolation"."""

    kind: Literal["linear"] = "linear"
    factor: Stretch


@settings
class NtkScalingConfig:
    """theta * factor^(K / (K - 2)): slow pairs are stretched by the factor, the fastest is left (NTK-aware, static)."""

    kind: Literal["ntk"] = "ntk"
    factor: Stretch


@settings
class YarnScalingConfig:
    """Slow pairs are stretched, fast ones left, a ramp between. Peng et al. 2023, "YaRN", section 3.2."""

    kind: Literal["yarn"] = "yarn"
    factor: Stretch
    context: Positive
    """Ids a row before stretching."""
    fast: Above = 32.0
    """Turns over the context from which on a pair is left as it is."""
    slow: Above = 1.0
    """Turns over the context up to which a pair is stretched by the whole factor."""
    magnitude: Above | None = None
    """Multiplies cosine and sine; None: 0.1 ln(factor) + 1."""


@settings
class Llama3ScalingConfig:
    """Slow pairs are stretched, fast ones left, a blend between, as Llama 3.1 does."""

    kind: Literal["llama3"] = "llama3"
    factor: Stretch
    context: Positive
    """Ids a row before stretching."""
    low: Above = 1.0
    """Turns over the context up to which a pair is stretched by the whole factor."""
    high: Above = 4.0
    """Turns over the context from which on a pair is left as it is."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")


ScalingConfig = Annotated[
    LinearScalingConfig | NtkScalingConfig | YarnScalingConfig | Llama3ScalingConfig, Field(discriminator="kind")
]


@settings
class RopeConfig:
    """Rotary positions: pairs of a head's coordinates are turned by position * theta^(-2t/K)."""

    kind: Literal["rope"] = "rope"
    theta: Above = 10_000.0
    pairs: Literal["half", "interleaved"] = "half"
    """half: coordinates (t, t + K/2), as Hugging Face and NeoX do; interleaved: (2t, 2t + 1), as Meta's Llama does."""
    scaling: ScalingConfig | None = None
    """How a longer context than the one trained on is reached; None: not at all."""


@settings
class AlibiConfig:
    """Scores fall by slope * distance, one slope a head. Press et al. 2021, "Train short, test long"."""

    kind: Literal["alibi"] = "alibi"


@settings
class NoPositionConfig:
    """No positions: order is known from the causal mask alone."""

    kind: Literal["none"] = "none"


@settings
class BucketsConfig:
    """A learned number a head and bucket of distance is added to the scores. Raffel et al. 2020, "T5", section 2.1."""

    kind: Literal["buckets"] = "buckets"
    count: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    """Buckets: half of them for single distances, half for ranges that grow with the distance; where both ways are
    seen, each way has half of them all."""
    distance: Annotated[int, Field(ge=2)] = 128
    """From here on all distances share the last bucket."""

    def __post_init__(self) -> None:
        if self.distance <= self.count // 2:
            raise ValueError(
                f"distance ({self.distance}) must be above half of count ({self.count // 2}), which have a bucket each"
            )


PositionConfig = Annotated[RopeConfig | AlibiConfig | BucketsConfig | NoPositionConfig, Field(discriminator="kind")]


@settings
class LearnedConfig:
    """A learned vector a position, added to the embeddings; a longer row is an error."""

    kind: Literal["learned"] = "learned"
    room: Positive
    """Positions there are."""


@settings
class SinusoidalConfig:
    """Sines and cosines of the position, added to the embeddings. Vaswani et al. 2017, section 3.5."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: Above = 10_000.0


InputPositionConfig = Annotated[LearnedConfig | SinusoidalConfig | NoPositionConfig, Field(discriminator="kind")]


# ---- maps from scores to attention weights --------------------------------------------------------------------------


@settings
class SoftmaxConfig:
    """Scores to attention weights by softmax."""

    kind: Literal["softmax"] = "softmax"
    cap: Above | None = None
    """Scores become cap * tanh(score / cap) first, as Gemma 2 does; None: as they are."""


@settings
class SparsemaxConfig:
    """The nearest point of the simplex: small weights become exact zeros. Martins and Astudillo 2016."""

    kind: Literal["sparsemax"] = "sparsemax"


@settings
class EntmaxConfig:
    """Between softmax (alpha = 1) and sparsemax (alpha = 2). Peters, Niculae and Martins 2019."""

    kind: Literal["entmax"] = "entmax"
    alpha: Annotated[float, Field(ge=1, le=4)] = 1.5
    learned: bool = False
    """One alpha a head, in 1..2, learned from `alpha` on. Correia, Niculae and Martins 2019."""

    def __post_init__(self) -> None:
        if self.learned and not 1 < self.alpha < 2:
            raise ValueError(f"a learned alpha stays between 1 and 2, so it must begin there, found {self.alpha:g}")


@settings
class TopKConfig:
    """Softmax over the k largest scores of a query, 0 elsewhere; of equal ones the earliest."""

    kind: Literal["top-k"] = "top-k"
    k: Positive = 8


@settings
class TaylorConfig:
    """f(s) / sum f with f(s) = sum over m <= order of s^m / m!: positive for an even order, not shift-invariant."""

    kind: Literal["taylor"] = "taylor"
    order: Annotated[int, Field(ge=2, le=8, multiple_of=2)] = 2


@settings
class GumbelConfig:
    """softmax((s + Gumbel noise) / temperature) in training, softmax(s / temperature) elsewhere. Jang et al. 2017."""

    kind: Literal["gumbel"] = "gumbel"
    temperature: Above = 1.0


@settings
class PerturbConfig:
    """The probability that a score is the largest once Gaussian noise is added to each, by quadrature."""

    kind: Literal["perturb"] = "perturb"
    points: Annotated[int, Field(ge=8, le=256)] = 32
    """Of the quadrature; with thousands of nearly equal scores 32 are up to a hundredth off."""


@settings
class SigmoidConfig:
    """sigmoid(s - log n), n what a query sees: does not sum to 1. Ramapuram et al. 2024."""

    kind: Literal["sigmoid"] = "sigmoid"


@settings
class SinkConfig:
    """Softmax with one more score a head, learned, whose weight goes nowhere: weights sum to less than 1."""

    kind: Literal["sink"] = "sink"


@settings
class ScalableConfig:
    """softmax(g log(n) s), n what a query sees, g learned for each head. Nakanishi 2025, "Scalable-softmax"."""

    kind: Literal["scalable"] = "scalable"


MapConfig = Annotated[
    SoftmaxConfig
    | SparsemaxConfig
    | EntmaxConfig
    | TopKConfig
    | TaylorConfig
    | GumbelConfig
    | PerturbConfig
    | SigmoidConfig
    | SinkConfig
    | ScalableConfig,
    Field(discriminator="kind"),
]


# ---- attention ------------------------------------------------------------------------------------------------------


@settings
class AttentionConfig:
    """Grouped-query attention; kv_heads = heads is plain multi-head, kv_heads = 1 multi-query."""

    kind: Literal["attention"] = "attention"
    heads: Positive
    kv_heads: Positive | None = None
    """Heads of keys and values; None: as many as `heads`."""
    size: Positive | None = None
    """Coordinates a head; None: the model's width / heads."""
    position: PositionConfig = RopeConfig()
    map: MapConfig = SoftmaxConfig()
    mask: Literal["causal", "prefix", "bidirectional"] = "causal"
    """causal: the past and itself; prefix: also all of a prefix among itself (`Rows.prefix`); bidirectional: all."""
    window: Positive | None = None
    """Places seen, the own one included; None: all that the mask allows."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Which projections add a bias; all: the output's too."""
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys before rotation, with a learned gain; eps is the block's norm's."""
    scale: Above | None = None
    """Multiplies the scores; None: 1 / sqrt(size)."""

    def __post_init__(self) -> None:
        if self.heads % self.groups:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.groups})")
        if self.window is not None and self.mask != "causal":
            raise ValueError(f"a window looks back, so it needs mask = causal, found {self.mask}")
        if isinstance(self.position, BucketsConfig) and self.mask != "causal" and self.position.count % 4:
            raise ValueError(
                f"where both ways are seen (mask = {self.mask}), each has half of the buckets, half of them for single "
                f"distances: position.count must be a multiple of 4, found {self.position.count}"
            )

    @property
    def learned(self) -> int:
        """Numbers a head that the map and the buckets learn."""
        match self.map:
            case EntmaxConfig(learned=True) | SinkConfig() | ScalableConfig():
                own = 1
            case _:
                own = 0
        return own + (self.position.count if isinstance(self.position, BucketsConfig) else 0)

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def cap(self) -> float | None:
        """The cap of the scores, where the map has one."""
        return self.map.cap if isinstance(self.map, SoftmaxConfig) else None

    def head_size(self, width: int) -> int:
        """Coordinates a head in a model of this width."""
        return width // self.heads if self.size is None else self.size
