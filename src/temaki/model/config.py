"""Every model variant as a small frozen dataclass, readable without loading torch; `build.py` maps each to its module.

The unions below are the registry: a variant exists when it is a member here and has a row in the table of `build.py`.
Positions, maps and attention stand in `config_attention.py`, mixers with a state in `config_recurrent.py`.
Real architectures are configurations of these parts, see `presets.py`.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings
from temaki.model.config_attention import (
    AlibiConfig as AlibiConfig,
)
from temaki.model.config_attention import (
    AttentionConfig as AttentionConfig,
)
from temaki.model.config_attention import (
    BucketsConfig as BucketsConfig,
)
from temaki.model.config_attention import (
    EntmaxConfig as EntmaxConfig,
)
from temaki.model.config_attention import (
    GumbelConfig as GumbelConfig,
)
from temaki.model.config_attention import (
    InputPositionConfig as InputPositionConfig,
)
from temaki.model.config_attention import (
    LearnedConfig as LearnedConfig,
)
from temaki.model.config_attention import (
    LinearScalingConfig as LinearScalingConfig,
)
from temaki.model.config_attention import (
    Llama3ScalingConfig as Llama3ScalingConfig,
)
from temaki.model.config_attention import (
    MapConfig as MapConfig,
)
from temaki.model.config_attention import (
    NoPositionConfig as NoPositionConfig,
)
from temaki.model.config_attention import (
    NtkScalingConfig as NtkScalingConfig,
)
from temaki.model.config_attention import (
    PerturbConfig as PerturbConfig,
)
from temaki.model.config_attention import (
    PositionConfig as PositionConfig,
)
from temaki.model.config_attention import (
    RopeConfig as RopeConfig,
)
from temaki.model.config_attention import (
    ScalableConfig as ScalableConfig,
)
from temaki.model.config_attention import (
    ScalingConfig as ScalingConfig,
)
from temaki.model.config_attention import (
    SigmoidConfig as SigmoidConfig,
)
from temaki.model.config_attention import (
    SinkConfig as SinkConfig,
)
from temaki.model.config_attention import (
    SinusoidalConfig as SinusoidalConfig,
)
from temaki.model.config_attention import (
    SoftmaxConfig as SoftmaxConfig,
)
from temaki.model.config_attention import (
    SparsemaxConfig as SparsemaxConfig,
)
from temaki.model.config_attention import (
    TaylorConfig as TaylorConfig,
)
from temaki.model.config_attention import (
    TopKConfig as TopKConfig,
)
from temaki.model.config_attention import (
    YarnScalingConfig as YarnScalingConfig,
)
from temaki.model.config_recurrent import (
    DeltaNetConfig as DeltaNetConfig,
)
from temaki.model.config_recurrent import (
    GruConfig as GruConfig,
)
from temaki.model.config_recurrent import (
    LruConfig as LruConfig,
)
from temaki.model.config_recurrent import (
    LstmConfig as LstmConfig,
)
from temaki.model.config_recurrent import (
    Mamba2Config as Mamba2Config,
)
from temaki.model.config_recurrent import (
    MambaConfig as MambaConfig,
)
from temaki.model.config_recurrent import (
    RecurrentConfig as RecurrentConfig,
)
from temaki.model.config_recurrent import (
    RetNetConfig as RetNetConfig,
)
from temaki.model.config_recurrent import (
    RnnConfig as RnnConfig,
)
from temaki.model.config_recurrent import (
    RtfConfig as RtfConfig,
)
from temaki.model.config_recurrent import (
    RwkvConfig as RwkvConfig,
)
from temaki.model.config_recurrent import (
    S4Config as S4Config,
)
from temaki.model.config_recurrent import (
    S4DConfig as S4DConfig,
)
from temaki.model.config_recurrent import (
    S5Config as S5Config,
)
from temaki.model.config_recurrent import (
    fits,
)

Positive = Annotated[int, Field(ge=1)]
Above = Annotated[float, Field(gt=0)]


# ---- mixers ---------------------------------------------------------------------------------------------------------


MixerConfig = Annotated[AttentionConfig | RecurrentConfig, Field(discriminator="kind")]


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


@settings
class BatchNormConfig:
    """(x - mean) * gain / sqrt(var + eps) + bias over all places of a micro-batch; running means outside training.

    Sees other rows and later places while it learns: a contrast to the others. Ioffe and Szegedy 2015.
    """

    kind: Literal["batch"] = "batch"
    eps: Above = 1e-5
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How far a step moves the running means."""


@settings
class NoNormConfig:
    """x as it is."""

    kind: Literal["none"] = "none"


NormConfig = Annotated[RmsNormConfig | LayerNormConfig | BatchNormConfig | NoNormConfig, Field(discriminator="kind")]


@settings
class BlockConfig:
    """A mixer and a feed-forward layer, each with its norm and a way past it."""

    mixer: MixerConfig
    ffn: FfnConfig = SwigluConfig()
    norm: NormConfig = RmsNormConfig()
    order: Literal["pre", "post", "sandwich"] = "pre"
    """pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + norm(f(norm(x)))."""

    @property
    def eps(self) -> float:
        """What norms add below the root; that of queries' and keys' too."""
        return RmsNormConfig().eps if isinstance(self.norm, NoNormConfig) else self.norm.eps


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
            else:
                fits(block.mixer, self.width)
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
    def draws(self) -> bool:
        """Whether training draws at random: dropout, noisy attention."""
        maps = [block.mixer.map for block in self.pattern if isinstance(block.mixer, AttentionConfig)]
        return bool(self.dropout) or any(isinstance(each, GumbelConfig) for each in maps)

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
