"""What a configuration costs, counted from its fields alone (no torch): parameters by part, FLOPs and bytes."""

from dataclasses import dataclass

from temaki.model.config import AttentionConfig, DecoderConfig, S4DConfig, ffn_width


@dataclass(frozen=True)
class Count:
    """Parameters by part."""

    embedding: int
    mixers: int
    ffns: int
    norms: int
    head: int
    """0 where the head's matrix is the embedding's."""
    matrix: int
    """Parameters that every id is multiplied by: all matrices, the head once, no look-up."""

    @property
    def total(self) -> int:
        return self.embedding + self.mixers + self.ffns + self.norms + self.head


def count(config: DecoderConfig) -> Count:
    """Parameters of a decoder by part.

    >>> from temaki.model.config import BlockConfig, RopeConfig
    >>> course = DecoderConfig(vocabulary=10_000, width=512, depth=4, tied=False,
    ...                        pattern=(BlockConfig(mixer=AttentionConfig(heads=16)),))
    >>> count(course).total, count(course).total - count(course).embedding - count(course).head
    (22696448, 12456448)
    """
    d = config.width
    mixers = mixer_matrices = ffns = norms = 0
    for block in config.blocks:
        match block.mixer:
            case AttentionConfig() as m:
                size = d // m.heads
                matrices = d * (m.heads + 2 * m.groups) * size + d * d
                mixers += matrices + (2 * size if m.qk_norm else 0)
            case S4DConfig() as m:
                matrices = 3 * d * d
                mixers += matrices + 2 * d + 2 * d * m.states
        mixer_matrices += matrices
        ffns += 3 * d * ffn_width(block.ffn, d)
        norms += 2 * d
    table = config.vocabulary * d
    return Count(
        embedding=table,
        mixers=mixers,
        ffns=ffns,
        norms=norms + d,
        head=0 if config.tied else table,
        matrix=mixer_matrices + ffns + table,
    )


def flops_per_token(config: DecoderConfig, context: int) -> float:
    """FLOPs of a training step (forward and backward) an id: 6 x matrix parameters + 6 x attention layers x T x width.

    Causal attention reads half of the context on average: 2 products x 2 FLOPs x T/2 x D forward, twice that backward.
    """
    layers = sum(isinstance(block.mixer, AttentionConfig) for block in config.blocks)
    return 6.0 * count(config).matrix + 6.0 * layers * context * config.width


def forward_flops(config: DecoderConfig, context: int) -> float:
    """FLOPs of one forward over a row of `context` ids by the rule 2mnp a product, all of each product counted."""
    layers = sum(isinstance(block.mixer, AttentionConfig) for block in config.blocks)
    return 2.0 * count(config).matrix * context + 4.0 * layers * context * context * config.width


def training_bytes(config: DecoderConfig, tokens: int, moments: int = 2, bytes_each: int = 4) -> int:
    """Estimated memory of a training step: weights, gradients, moments, and the activations of `tokens` ids."""
    d = config.width
    weights = count(config).total * bytes_each * (2 + moments)
    per_id = sum(12 * d + 4 * ffn_width(block.ffn, d) for block in config.blocks) + 4 * d
    return weights + tokens * per_id * bytes_each
