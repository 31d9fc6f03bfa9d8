"""What a model multiplies and moves, and what that lets a machine reach, counted from the configuration (no torch).

Williams, Waterman and Patterson 2009, "Roofline": a machine of P FLOP/s and M bytes/s does work of I FLOPs a byte at
min(P, I M) at most. Counted are the bytes that must move where all elementwise work is fused into the products: each
weight once a pass, and what goes into each product and comes out of it. Letters as in `count.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    FfnConfig,
    GegluConfig,
    MedusaHeadsConfig,
    MixerConfig,
    SequentialHeadsConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.model.count import count, flops_per_token
from temaki.model.recurrent_shapes import shapes

EACH = 4
"""Bytes a number."""


@dataclass(frozen=True)
class Matrix:
    """Weights [rows, cols] that an id is multiplied by at once."""

    cols: int
    parts: tuple[int, ...]
    """Rows of the matrices stacked in it, each its own matrix to Muon."""
    copies: int = 1
    met: int = 1
    """How many of the copies (experts) an id meets."""
    head: int | None = None
    """Rows of a head, where the parts are stacks of heads."""

    @property
    def rows(self) -> int:
        return sum(self.parts)


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of main memory, an id."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Machine:
    """The two limits of a machine."""

    peak: float
    """FLOP/s of its matrix product."""
    bandwidth: float
    """Bytes/s of its memory."""

    @property
    def ridge(self) -> float:
        """FLOPs a byte from which on the peak is the limit."""
        return self.peak / self.bandwidth

    def share(self, work: Work) -> float:
        """The share of the peak that the roofline leaves.

        >>> Machine(100.0, 10.0).share(Work(flops=50.0, bytes=10.0)), Machine(100.0, 10.0).share(Work(50.0, 1.0))
        (0.5, 1.0)
        """
        return min(1.0, work.intensity / self.ridge)

    def speed(self, work: Work) -> float:
        """Ids a second at most.

        >>> Machine(100.0, 10.0).speed(Work(flops=50.0, bytes=10.0))
        1.0
        """
        return self.peak * self.share(work) / work.flops


def matrices(config: DecoderConfig) -> Iterator[Matrix]:
    """The matrices of the blocks and of heads of further ids, as Muon sees them; neither embedding nor head.

    >>> block = BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2), ffn=SwigluConfig(width=96))
    >>> [(m.rows, m.cols) for m in matrices(DecoderConfig(vocabulary=50, width=32, depth=1, pattern=(block,)))]
    [(64, 32), (32, 32), (192, 32), (32, 96)]
    """
    blocks = list(config.blocks)
    d = config.width
    if config.further is not None:
        heads = config.further.ids - 1
        if isinstance(config.further.heads, MedusaHeadsConfig):
            yield from [Matrix(d, (d,))] * heads
        else:
            blocks += [config.pattern[-1]] * heads
        if isinstance(config.further.heads, SequentialHeadsConfig):
            yield from [Matrix(2 * d, (d,))] * heads
    for block in blocks:
        yield from _mixer(block.mixer, d)
        yield from _ffn(block.ffn, d)


def _mixer(config: MixerConfig, d: int) -> list[Matrix]:
    match config:
        case AttentionConfig():
            size = config.head_size(d)
            queries, keys = config.heads * size, config.groups * size
            return [Matrix(d, (queries, keys, keys), head=size), Matrix(queries, (d,))]
        case _:
            return [Matrix(cols, parts) for cols, parts in shapes(config, d).matrices]


def _ffn(config: FfnConfig, d: int) -> list[Matrix]:
    if isinstance(config, ExpertsConfig):
        router = Matrix(d, (config.experts,))
        stacked = [Matrix(m.cols, m.parts, config.experts, config.top) for m in _ffn(config.expert, d)]
        return [router, *stacked]
    hidden = ffn_width(config, d)
    gated = isinstance(config, SwigluConfig | GegluConfig)
    return [Matrix(d, (hidden, hidden) if gated else (hidden,)), Matrix(hidden, (d,))]


def _moved(config: DecoderConfig) -> float:
    """Numbers an id that go into the products of a forward pass and come out of them, the head's included."""
    heads = 1 if config.further is None else config.further.ids
    inner = sum(m.met * (m.rows + m.cols) for m in matrices(config))
    return inner + config.width + heads * (config.width + config.vocabulary)


def _weights(config: DecoderConfig, ids: int) -> float:
    """Weights that a pass over so many ids reads: of many experts, at most those that the ids can choose."""
    found = count(config)
    own = config.further.ids - 1 if config.further and isinstance(config.further.heads, MedusaHeadsConfig) else 0
    whole = sum(m.rows * m.cols * m.copies for m in matrices(config)) + (1 + own) * config.vocabulary * config.width
    return min(whole, whole - found.matrix + found.active * ids)


def forward(config: DecoderConfig, context: int, ids: int) -> Work:
    """One pass over `ids` in rows of `context`."""
    return Work(flops_per_token(config, context) / 3, EACH * (_moved(config) + _weights(config, ids) / ids))


def training(config: DecoderConfig, context: int, micro: int, step: int, moments: float, frozen: bool = False) -> Work:
    """A training step of `step` ids in micro-batches of `micro`, by a rule with so many moments a parameter.

    A product's two gradients move what it moved, twice. Weights are read forward and backward, their gradients
    written (and read before, where they are summed); the update reads gradients, reads and writes weights and moments.
    frozen: only heads of further ids learn, so FLOPs hold the trunk's forward alone; the bytes are an upper bound.
    """
    summed = 1 if micro < step else 0
    passes = (3 + summed) * _weights(config, micro) / micro
    update = (3 + 2 * moments) * count(config).total / step
    return Work(flops_per_token(config, context, frozen), EACH * (3 * _moved(config) + passes + update))


def decoding(config: DecoderConfig, held: int) -> Work:
    """One id, decoded alone behind `held` others: all that it meets of the weights, and the keys and values held."""
    config, state, products = replace(config, further=None), 0.0, 0.0
    for block in config.blocks:
        seen, inner, keys = _held(block, config.width, held)
        state, products = state + 2 * seen * keys, products + 4 * seen * inner
    active = count(config).active
    return Work(2 * active + products, EACH * (active + state + _moved(config)))


def _held(block: BlockConfig, d: int, held: int) -> tuple[int, int, int]:
    """(ids seen, entries of all heads, entries of all key heads) of a block's attention; zeros without one."""
    mixer = block.mixer
    if not isinstance(mixer, AttentionConfig):
        return 0, 0, 0
    size = mixer.head_size(d)
    return min(held, mixer.window or held), mixer.heads * size, mixer.groups * size
