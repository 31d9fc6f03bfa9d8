"""Every model variant as a small frozen dataclass, readable without loading torch; `build.py` maps each to its module.

The unions below are the registry: a variant exists when it is a member here and has a row in the table of `build.py`.
"""

from typing import Annotated, Literal

from pydantic import Field

from temaki.base.config import settings

Positive = Annotated[int, Field(ge=1)]


@settings
class RopeConfig:
    """Rotary positions: pairs of a head's coordinates are turned by position * theta^(-2t/K)."""

    kind: Literal["rope"] = "rope"
    theta: Annotated[float, Field(gt=0)] = 10_000.0
    pairs: Literal["half", "interleaved"] = "half"
    """half: coordinates (t, t + K/2), as Hugging Face and NeoX do; interleaved: (2t, 2t + 1), as Meta's Llama does."""


@settings
class NoPositionConfig:
    """No positions: order is known from the causal mask alone."""

    kind: Literal["none"] = "none"


PositionConfig = Annotated[RopeConfig | NoPositionConfig, Field(discriminator="kind")]


@settings
class AttentionConfig:
    """Grouped-query softmax attention; kv_heads = heads is plain multi-head, kv_heads = 1 multi-query."""

    kind: Literal["attention"] = "attention"
    heads: Positive
    kv_heads: Positive | None = None
    """Heads of keys and values; None: as many as `heads`."""
    position: PositionConfig = RopeConfig()
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys before rotation, with a learned gain."""
    mask: Literal["causal", "bidirectional"] = "causal"

    def __post_init__(self) -> None:
        if self.heads % self.groups:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.groups})")

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads


@settings
class S4DConfig:
    """A diagonal state space a channel (S4D-Lin): A_n = -1/2 + i pi n, zero-order hold. Gu et al. 2022, section 4."""

    kind: Literal["s4d"] = "s4d"
    states: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """N: real states a channel, kept as N/2 conjugate pairs."""
    step_min: Annotated[float, Field(gt=0)] = 1e-3
    step_max: Annotated[float, Field(gt=0)] = 1e-1

    def __post_init__(self) -> None:
        if self.step_min > self.step_max:
            raise ValueError(f"step_min ({self.step_min}) is above step_max ({self.step_max})")


MixerConfig = Annotated[AttentionConfig | S4DConfig, Field(discriminator="kind")]


@settings
class SwigluConfig:
    """W2 (SiLU(W1 x) * W3 x)."""

    kind: Literal["swiglu"] = "swiglu"
    width: Positive | None = None
    """Hidden width; None: 8/3 of the model's width, rounded to a multiple of 64."""


FfnConfig = SwigluConfig


@settings
class RmsNormConfig:
    """x * gain / sqrt(mean(x^2) + eps)."""

    kind: Literal["rms"] = "rms"
    eps: Annotated[float, Field(gt=0)] = 1e-5


NormConfig = RmsNormConfig


@settings
class BlockConfig:
    """x + mixer(norm(x)), then x + ffn(norm(x))."""

    mixer: MixerConfig
    ffn: FfnConfig = SwigluConfig()
    norm: NormConfig = RmsNormConfig()


@settings
class DecoderConfig:
    """A decoder: embedding, blocks, final norm, head."""

    kind: Literal["decoder"] = "decoder"
    vocabulary: Positive
    width: Positive
    depth: Positive
    pattern: Annotated[tuple[BlockConfig, ...], Field(min_length=1)]
    """Kinds of block, repeated down the depth; the depth is a multiple of its length."""
    tied: bool = True
    """The head's matrix is the embedding's."""
    init: Literal["cs336", "zero-out"] = "zero-out"
    """Initial values, see the table in `init.py`."""

    def __post_init__(self) -> None:
        if self.depth % len(self.pattern):
            raise ValueError(f"depth ({self.depth}) must be a multiple of the pattern's length ({len(self.pattern)})")
        for block in self.pattern:
            if isinstance(block.mixer, AttentionConfig):
                self._check(block.mixer)

    def _check(self, mixer: AttentionConfig) -> None:
        if self.width % mixer.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({mixer.heads})")
        if isinstance(mixer.position, RopeConfig) and (self.width // mixer.heads) % 2:
            raise ValueError(
                f"rotary positions turn pairs: the head size ({self.width // mixer.heads} = width {self.width} / "
                f"heads {mixer.heads}) must be even"
            )

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The block of every layer, first to last."""
        return self.pattern * (self.depth // len(self.pattern))


ModelConfig = DecoderConfig


def ffn_width(config: FfnConfig, width: int) -> int:
    """The hidden width of a feed-forward layer: as given, or 8/3 of `width` rounded to a multiple of 64.

    >>> ffn_width(SwigluConfig(), 512), ffn_width(SwigluConfig(), 768)
    (1344, 2048)
    """
    return config.width if config.width is not None else max(64, int(8 * width / 3 / 64 + 0.5) * 64)
