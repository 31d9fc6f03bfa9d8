"""What a configuration costs, counted from its fields alone (no torch): parameters by part, FLOPs and bytes.

Letters: D width, F hidden width, H heads, G heads of keys and values, K head size, T context, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from temaki.model.config import (
    AttentionConfig,
    BatchNormConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    FfnConfig,
    GegluConfig,
    LayerNormConfig,
    LearnedConfig,
    MedusaHeadsConfig,
    MixerConfig,
    NoNormConfig,
    NormConfig,
    PlainFfnConfig,
    RmsNormConfig,
    SequentialHeadsConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.model.recurrent_shapes import shapes


@dataclass(frozen=True)
class Count:
    """Parameters by part."""

    embedding: int
    positions: int
    """Learned ones."""
    mixers: int
    ffns: int
    norms: int
    head: int
    """0 where the head's matrix is the embedding's."""
    further: int
    """Those of heads that say further ids; not among the others."""
    matrix: int
    """All matrices, the head once, no look-up."""
    idle: int
    """Those of the matrices that an id does not meet: of the experts it is not read by."""

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.mixers + self.ffns + self.norms + self.head + self.further

    @property
    def active(self) -> int:
        """Parameters that an id is multiplied by."""
        return self.matrix - self.idle


def count(config: DecoderConfig) -> Count:
    """Parameters of a decoder by part.

    >>> course = DecoderConfig(vocabulary=10_000, width=512, depth=4, tied=False,
    ...                        pattern=(BlockConfig(mixer=AttentionConfig(heads=16)),))
    >>> count(course).total, count(course).total - count(course).embedding - count(course).head
    (22696448, 12456448)
    """
    d = config.width
    mixers = [_mixer(block.mixer, d) for block in config.blocks]
    ffns = [_ffn(block.ffn, d) for block in config.blocks]
    table = config.vocabulary * d
    learned = config.input_position.room * d if isinstance(config.input_position, LearnedConfig) else 0
    return Count(
        embedding=table,
        positions=learned,
        mixers=sum(matrices + vectors for matrices, vectors in mixers),
        ffns=sum(matrices + vectors for matrices, vectors, _ in ffns),
        norms=sum(_norms(block, d) for block in config.blocks) + _norm(config.pattern[-1].norm, d),
        head=0 if config.tied else table,
        further=sum(_further(config)),
        matrix=sum(matrices for matrices, _ in mixers) + sum(matrices for matrices, _, _ in ffns) + table,
        idle=sum(idle for _, _, idle in ffns),
    )


def _further(config: DecoderConfig) -> tuple[int, int]:
    """(matrices, the rest) of the heads that say further ids."""
    if config.further is None:
        return 0, 0
    d, block = config.width, config.pattern[-1]
    heads = config.further.ids - 1
    if isinstance(config.further.heads, MedusaHeadsConfig):
        return heads * (d * d + config.vocabulary * d), 0
    mixer, ffn = _mixer(block.mixer, d), _ffn(block.ffn, d)
    matrices, rest = mixer[0] + ffn[0], mixer[1] + ffn[1] + _norms(block, d)
    if isinstance(config.further.heads, SequentialHeadsConfig):
        matrices, rest = matrices + 2 * d * d, rest + 3 * _norm(block.norm, d)
    return heads * matrices, heads * rest


def _mixer(config: MixerConfig, d: int) -> tuple[int, int]:
    """(matrices, vectors and dynamics) of a mixer."""
    match config:
        case AttentionConfig():
            size = config.head_size(d)
            rows, out = (config.heads + 2 * config.groups) * size, config.heads * size
            bias = {"none": 0, "qkv": rows, "all": rows + d}[config.bias]
            return d * (rows + out), bias + (2 * size if config.qk_norm else 0) + config.heads * config.learned
        case _:
            found = shapes(config, d)
            return sum(cols * sum(parts) for cols, parts in found.matrices), found.others


def _ffn(config: FfnConfig, d: int) -> tuple[int, int, int]:
    """(matrices, biases, matrices that an id does not meet) of a feed-forward layer."""
    if isinstance(config, ExpertsConfig):
        matrices, biases = _plain(config.expert, d)
        idle = (config.experts - config.top) * matrices
        return config.experts * (matrices + d), config.experts * biases, idle
    return *_plain(config, d), 0


def _plain(config: PlainFfnConfig, d: int) -> tuple[int, int]:
    """(matrices, biases) of one feed-forward layer."""
    hidden = ffn_width(config, d)
    rows = 2 * hidden if isinstance(config, SwigluConfig | GegluConfig) else hidden
    return d * (rows + hidden), rows + d if config.bias else 0


def _norm(config: NormConfig, d: int) -> int:
    match config:
        case NoNormConfig():
            return 0
        case RmsNormConfig():
            return d
        case LayerNormConfig():
            return 2 * d if config.bias else d
        case BatchNormConfig():
            return 2 * d


def _norms(block: BlockConfig, d: int) -> int:
    return (4 if block.order == "sandwich" else 2) * _norm(block.norm, d)


def flops_per_token(config: DecoderConfig, context: int, frozen: bool = False) -> float:
    """FLOPs of a training step (forward and backward) an id: 6 x active matrix parameters + 12 x sum of seen x H K.

    `seen` is how many ids one of a row of `context` attends to on average: 2 products x 2 FLOPs x seen x H K forward,
    twice that backward. Heads that say further ids are counted, each time that they use the model's own matrix too;
    frozen: they alone learn, the rest is read forward without the model's own head.
    """
    own = 6.0 * count(config).active + 12.0 * _read(_attentions(config), config.width, context)
    if frozen:
        own = (own - 6.0 * config.vocabulary * config.width) / 3
    return own + _further_flops(config, context)


def _read(mixers: Sequence[AttentionConfig], width: int, context: int) -> float:
    """Entries of keys that an id is multiplied by, on average over a row."""
    return sum(_seen(mixer, context) * mixer.heads * mixer.head_size(width) for mixer in mixers)


def _further_flops(config: DecoderConfig, context: int) -> float:
    """FLOPs an id of the heads that say further ids, forward and backward."""
    if config.further is None:
        return 0.0
    matrices, heads, last = _further(config)[0], config.further.ids - 1, config.pattern[-1].mixer
    if isinstance(config.further.heads, MedusaHeadsConfig):
        return 6.0 * matrices
    read = _read([last], config.width, context) if isinstance(last, AttentionConfig) else 0.0
    return 6.0 * (matrices + heads * config.vocabulary * config.width) + 12.0 * heads * read


def _seen(mixer: AttentionConfig, context: int) -> float:
    """Ids that one attends to, on average over a row: half of a causal row; a prefix is counted as all of it.

    >>> _seen(AttentionConfig(heads=1), 64), _seen(AttentionConfig(heads=1, window=16), 64)
    (32.0, 14.0)
    """
    if mixer.mask != "causal":
        return float(context)
    window = context if mixer.window is None else min(mixer.window, context)
    return window - window * window / (2 * context)


def _attentions(config: DecoderConfig) -> list[AttentionConfig]:
    return [block.mixer for block in config.blocks if isinstance(block.mixer, AttentionConfig)]


def forward_flops(config: DecoderConfig, context: int) -> float:
    """FLOPs of one forward over a row of `context` ids by the rule 2mnp a product, all of each product counted."""
    products = sum(
        context * min(context, mixer.window or context) * mixer.heads * mixer.head_size(config.width)
        for mixer in _attentions(config)
    )
    return 2.0 * count(config).active * context + 4.0 * products
