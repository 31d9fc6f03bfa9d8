"""Every model variant as a small frozen dataclass, readable without loading torch; `build.py` maps each to its module.

The unions below are the registry: a variant exists when it is a member here and has a row in the table of `build.py`.
Real architectures are configurations of these parts, see `presets.py`.
"""

from dataclasses import replace
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


PositionConfig = Annotated[RopeConfig | AlibiConfig | NoPositionConfig, Field(discriminator="kind")]


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


# ---- mixers ---------------------------------------------------------------------------------------------------------


@settings
class SoftmaxConfig:
    """Scores to attention weights by softmax."""

    kind: Literal["softmax"] = "softmax"
    cap: Above | None = None
    """Scores become cap * tanh(score / cap) first, as Gemma 2 does; None: as they are."""


MapConfig = SoftmaxConfig


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

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def head_size(self, width: int) -> int:
        """Coordinates a head in a model of this width."""
        return width // self.heads if self.size is None else self.size


@settings
class S4DConfig:
    """A diagonal state space a channel (S4D-Lin): A_n = -1/2 + i pi n, zero-order hold. Gu et al. 2022, section 4."""

    kind: Literal["s4d"] = "s4d"
    states: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """N: real states a channel, kept as N/2 conjugate pairs."""
    step_min: Above = 1e-3
    step_max: Above = 1e-1

    def __post_init__(self) -> None:
        if self.step_min > self.step_max:
            raise ValueError(f"step_min ({self.step_min}) is above step_max ({self.step_max})")


MixerConfig = Annotated[AttentionConfig | S4DConfig, Field(discriminator="kind")]


# ---- feed-forward layers --------------------------------------------------------------------------------------------


@settings
class SwigluConfig:
    """W2 (SiLU(W1 x) * W3 x)."""

    kind: Literal["swiglu"] = "swiglu"
    width: Positive | None = None
    """Hidden width; None: 8/3 of the model's width, rounded to a multiple of 64."""
    bias: bool = False


@settings
class GegluConfig:
    """W2 (GELU(W1 x) * W3 x)."""

    kind: Literal["geglu"] = "geglu"
    width: Positive | None = None
    """Hidden width; None: 8/3 of the model's width, rounded to a multiple of 64."""
    bias: bool = False
    form: Literal["tanh", "erf"] = "tanh"
    """Which GELU."""


@settings
class GeluConfig:
    """W2 GELU(W1 x)."""

    kind: Literal["gelu"] = "gelu"
    width: Positive | None = None
    """Hidden width; None: 4 times the model's width."""
    bias: bool = False
    form: Literal["tanh", "erf"] = "tanh"
    """tanh: GPT-2's approximation; erf: the exact one."""


@settings
class SiluConfig:
    """W2 SiLU(W1 x)."""

    kind: Literal["silu"] = "silu"
    width: Positive | None = None
    """Hidden width; None: 4 times the model's width."""
    bias: bool = False


@settings
class ReluConfig:
    """W2 ReLU(W1 x)^power."""

    kind: Literal["relu"] = "relu"
    width: Positive | None = None
    """Hidden width; None: 4 times the model's width."""
    bias: bool = False
    power: Literal[1, 2] = 1
    """2: squared, as in Primer (So et al. 2021)."""


PlainFfnConfig = Annotated[
    SwigluConfig | GegluConfig | GeluConfig | SiluConfig | ReluConfig, Field(discriminator="kind")
]


@settings
class ExpertsConfig:
    """A mixture of experts: each id is read by the `top` experts whose router scores are largest.

    Balanced without a loss: a bias on the choice (not on the weights) that moves after each update. Wang et al. 2024,
    "Auxiliary-loss-free load balancing strategy for mixture-of-experts".
    """

    kind: Literal["experts"] = "experts"
    experts: Annotated[int, Field(ge=2)]
    top: Positive
    expert: PlainFfnConfig = SwigluConfig()
    renormalise: bool = True
    """Divide the chosen experts' probabilities by their sum."""
    balance: Annotated[float, Field(ge=0)] = 1e-3
    """How far an update moves the bias of an expert that is chosen too often or too seldom; 0: not at all."""

    def __post_init__(self) -> None:
        if self.top > self.experts:
            raise ValueError(f"top ({self.top}) is more than experts ({self.experts})")


FfnConfig = Annotated[
    SwigluConfig | GegluConfig | GeluConfig | SiluConfig | ReluConfig | ExpertsConfig, Field(discriminator="kind")
]


# ---- norms, blocks, models ------------------------------------------------------------------------------------------


@settings
class RmsNormConfig:
    """x * gain / sqrt(mean(x^2) + eps)."""

    kind: Literal["rms"] = "rms"
    eps: Above = 1e-5


@settings
class LayerNormConfig:
    """(x - mean(x)) * gain / sqrt(var(x) + eps) + bias, with the biased variance."""

    kind: Literal["layer"] = "layer"
    eps: Above = 1e-5
    bias: bool = True


NormConfig = Annotated[RmsNormConfig | LayerNormConfig, Field(discriminator="kind")]


@settings
class BlockConfig:
    """A mixer and a feed-forward layer, each with its norm and a way past it."""

    mixer: MixerConfig
    ffn: FfnConfig = SwigluConfig()
    norm: NormConfig = RmsNormConfig()
    order: Literal["pre", "post", "sandwich"] = "pre"
    """pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + norm(f(norm(x)))."""


@settings
class ParallelHeadsConfig:
    """Each further id has a block of its own beside the model's last one; all share norm and matrix."""

    kind: Literal["parallel"] = "parallel"


@settings
class SequentialHeadsConfig:
    """Each further id has a block that also reads the id before it, in a chain; all share embedding and matrix."""

    kind: Literal["sequential"] = "sequential"


@settings
class MedusaHeadsConfig:
    """Each further id has a residual layer and a matrix of its own."""

    kind: Literal["medusa"] = "medusa"


HeadsConfig = Annotated[ParallelHeadsConfig | SequentialHeadsConfig | MedusaHeadsConfig, Field(discriminator="kind")]


@settings
class FurtherConfig:
    """Heads that say the ids after the next one, see `several.py`."""

    ids: Annotated[int, Field(ge=2, le=16)]
    """How many ids are said from each place, the model's own next one included."""
    heads: HeadsConfig = ParallelHeadsConfig()


@settings
class DecoderConfig:
    """A decoder: embedding, blocks, final norm, head. With bidirectional attention it is an encoder."""

    kind: Literal["decoder"] = "decoder"
    vocabulary: Positive
    width: Positive
    depth: Positive
    pattern: Annotated[tuple[BlockConfig, ...], Field(min_length=1)]
    """Kinds of block, repeated down the depth; the depth is a multiple of its length."""
    tied: bool = True
    """The head's matrix is the embedding's."""
    input_position: InputPositionConfig = NoPositionConfig()
    """What is added to the embeddings."""
    embedding_scale: Above = 1.0
    """Multiplies the embeddings as they are read (Gemma, Vaswani et al.: sqrt(width)), not the head."""
    cap: Above | None = None
    """Logits become cap * tanh(logit / cap), as Gemma 2's do; None: as they are."""
    context: Positive | None = None
    """Ids a row that the model was made for; None: not known. No limit by itself."""
    init: Literal["cs336", "zero-out", "gpt2", "mup"] = "zero-out"
    """Initial values, see the table in `init.py`."""
    base_width: Positive | None = None
    """init = mup: the width at which rates were tuned; other widths follow from it. None: this width."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the embeddings' and of each branch's outputs that training hides."""
    further: FurtherConfig | None = None
    """Heads beside the model's own; in a recipe they follow from its objective (kind = several)."""

    def __post_init__(self) -> None:
        if self.depth % len(self.pattern):
            raise ValueError(f"depth ({self.depth}) must be a multiple of the pattern's length ({len(self.pattern)})")
        for block in self.pattern:
            if isinstance(block.mixer, AttentionConfig):
                self._check(block.mixer)
        if isinstance(self.input_position, LearnedConfig) and (self.context or 0) > self.input_position.room:
            raise ValueError(
                f"context ({self.context}) is beyond the learned positions (room {self.input_position.room})"
            )
        if self.init == "mup" and self.tied:
            raise ValueError("init = mup gives embedding and head rates of their own, so it needs tied = false")
        if self.init != "mup" and self.base_width is not None:
            raise ValueError(f"base_width belongs to init = mup, found init = {self.init}")

    def _check(self, mixer: AttentionConfig) -> None:
        if mixer.size is None and self.width % mixer.heads:
            raise ValueError(
                f"width ({self.width}) must be a multiple of heads ({mixer.heads}) where size is not given"
            )
        if isinstance(mixer.position, RopeConfig) and mixer.head_size(self.width) % 2:
            raise ValueError(
                f"rotary positions turn pairs: the head size ({mixer.head_size(self.width)}; width {self.width}, "
                f"heads {mixer.heads}) must be even"
            )

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The block of every layer, first to last."""
        return self.pattern * (self.depth // len(self.pattern))

    @property
    def narrower(self) -> float:
        """What the rates of matrices and head are multiplied by because the model is wider than the one they fit."""
        return 1.0 if self.base_width is None else self.base_width / self.width

    @property
    def learned(self) -> "DecoderConfig":
        """Without what training alone asks for: initial values and dropout. What formats of others can hold."""
        return replace(self, init="zero-out", base_width=None, dropout=0.0)

    @property
    def masks(self) -> frozenset[str]:
        """The masks of the attention layers."""
        return frozenset(block.mixer.mask for block in self.pattern if isinstance(block.mixer, AttentionConfig))


ModelConfig = DecoderConfig


def ffn_width(config: PlainFfnConfig, width: int) -> int:
    """The hidden width of a feed-forward layer: as given, or by its kind's default for a model of this width.

    >>> ffn_width(SwigluConfig(), 512), ffn_width(SwigluConfig(), 768), ffn_width(GeluConfig(), 768)
    (1344, 2048, 3072)
    """
    if config.width is not None:
        return config.width
    if isinstance(config, SwigluConfig | GegluConfig):
        return max(64, int(8 * width / 3 / 64 + 0.5) * 64)
    return 4 * width
