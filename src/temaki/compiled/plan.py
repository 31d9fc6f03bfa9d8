"""A decoder laid out for kernels: all matrices packed in one arena, all vectors in another, tables of where they are.

A plan knows nothing of slots or room; executors share it. Letters: L layers, D width, V vocabulary.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy import ndarray

from temaki.base.errors import CheckpointError
from temaki.compiled.cache import Heads
from temaki.compiled.matrix import kind_of, pack, packed_bytes
from temaki.compiled.products import EIGHT, FLOAT, TILE
from temaki.model.angles import alibi_slopes
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    BucketsConfig,
    DecoderConfig,
    ExpertsConfig,
    GegluConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    NormConfig,
    PlainFfnConfig,
    ReluConfig,
    RmsNormConfig,
    RopeConfig,
    SoftmaxConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.model.quantise import Blocks, Stored

Bits = Literal[8, 4]
PIECE = 1 << 21
"""Numbers of a matrix that are packed at a time."""

# ---- the tables' columns ---------------------------------------------------------------------------------------------

COLUMNS, FORM, FIRST, SEGMENTS, TILES, OUTS, BIASED, BIAS = range(8)
"""A linear layer: columns, which activations it reads (a kind), its segments, their tiles, outputs; its bias."""
AT, KIND, ROWS, TO, TILED = range(5)
"""A segment of a linear layer: where its matrix begins, its kind, outputs, its first output in the layer, tiles."""
ORDER, MIXER_NORM, FFN_NORM, MIXER_AFTER, FFN_AFTER, QK_GAINS, ROPE, GATED, ACTIVATION, HIDDEN = range(10)
"""A layer: codes below, and where its norms lie among the numbers (0: there is none)."""
PRE, POST, SANDWICH = 0, 1, 2
SILU, GELU, GELU_ERF, RELU, SQUARED = range(5)
RMS, LAYER = 1.0, 2.0
EPS, NORM_KIND, GAIN = 0, 1, 16
"""A norm among the numbers: eps, which kind, from GAIN on the gain [D padded], then (LAYER) the bias."""
QKV, OUT, UP, DOWN = range(4)
"""The linear layers of a layer: row 4 * layer + one of these; the head is the last row."""


class Held(Protocol):
    """A weight that can be read: `formats.weights.Weight`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def array(self) -> ndarray: ...
    def blocks(self) -> list[tuple[Stored, ndarray | None]] | None: ...


@dataclass(frozen=True)
class Plan:
    """What the step kernel reads of a model."""

    config: DecoderConfig
    weights: ndarray
    """uint8: the packed matrices."""
    numbers: ndarray
    """float32: norms and biases."""
    layers: ndarray
    """int64 [L, ..]."""
    linears: ndarray
    """int64 [4 L + 1, ..]."""
    segments: ndarray
    """int64 [.., 5]."""
    embedding: tuple[int, int]
    """Where it begins and its kind."""
    learned: ndarray | None
    """float32 [places, D]: learned input positions."""

    @property
    def heads(self) -> tuple[Heads, ...]:
        """The attention of each layer, as the cache wants it."""
        return tuple(_heads(block.mixer, self.config.width) for block in self.config.blocks)  # type: ignore[arg-type]

    @property
    def quantised(self) -> bool:
        """Whether any matrix is kept in less than float32."""
        return bool((self.segments[:, KIND] != FLOAT).any())

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return self.weights.nbytes + self.numbers.nbytes + (0 if self.learned is None else self.learned.nbytes)


def padded(count: int) -> int:
    """Rounded up to whole vectors of 16.

    >>> padded(17)
    32
    """
    return -(-count // TILE) * TILE


def refusal(config: DecoderConfig) -> str | None:
    """Why no plan can be made of a model, so that torch must run it; None if one can."""
    for block in config.pattern:
        if not isinstance(block.mixer, AttentionConfig):
            return f"a mixer of kind {block.mixer.kind} has no compiled kernel"
        if block.mixer.mask != "causal":
            return f"a mask of kind {block.mixer.mask} has no compiled kernel"
        if not isinstance(block.mixer.map, SoftmaxConfig):
            return f"a map of kind {block.mixer.map.kind} has no compiled kernel"
        if isinstance(block.mixer.position, BucketsConfig):
            return f"positions of kind {block.mixer.position.kind} have no compiled kernel"
        if not isinstance(block.norm, RmsNormConfig | LayerNormConfig):
            return f"a norm of kind {block.norm.kind} has no compiled kernel"
        if isinstance(block.ffn, ExpertsConfig):
            return "a mixture of experts has no compiled kernel"
    return None


def plan(config: DecoderConfig, weights: Mapping[str, Held], bits: Bits | None = None) -> Plan:
    """Lay out a model. bits: what floats are quantised to (the head and the embedding to 8 at least); None: they stay
    float32. Blocks of files keep their bits.

    Raises CheckpointError for weights that do not fit the configuration, FormatError for numbers that cannot be
    quantised. `refusal` must be None.
    """
    found = refusal(config)
    assert found is None, found
    _fits(config, weights)
    return _Builder(config, weights, bits).built()


def _heads(mixer: AttentionConfig, width: int) -> Heads:
    slopes = alibi_slopes(mixer.heads) if isinstance(mixer.position, AlibiConfig) else None
    return Heads(
        mixer.heads, mixer.groups, mixer.head_size(width), mixer.scale, mixer.window, mixer.cap, slopes
    )  # fmt: skip


@dataclass
class _Part:
    """A matrix to pack: how to get it, the order of its rows, its kind and shape."""

    read: Callable[[], Stored]
    rows: ndarray | None
    kind: int
    outs: int
    columns: int


@dataclass
class _Builder:
    """Lists that become the tables of a plan."""

    config: DecoderConfig
    held: Mapping[str, Held]
    bits: Bits | None
    parts: list[_Part] = field(default_factory=list)
    end: int = 0
    numbers: list[ndarray] = field(default_factory=lambda: [np.zeros(TILE, np.float32)])
    linears: list[tuple[int, ...]] = field(default_factory=list)
    segments: list[tuple[int, ...]] = field(default_factory=list)

    def built(self) -> Plan:
        config = self.config
        layers = [self._layer(f"blocks.{i}", block) for i, block in enumerate(config.blocks)]
        above = None if self.bits is None else 8
        last = self._norm("norm", config.blocks[-1].norm)
        head = "embedding" if config.tied else "unembedding"
        self._linear(head, None, above)
        first = self.segments[self.linears[-1][FIRST]]
        embedding = (first[AT], first[KIND])
        if not config.tied:
            (part,) = _unified(self._parts("embedding", above))
            embedding = (self._place(part), part.kind)
        learned = None
        if isinstance(config.input_position, LearnedConfig):
            learned = np.ascontiguousarray(self.held["input_position.table"].array(), np.float32)
        layers.append((0, last, *(0,) * 8))
        return Plan(
            config, self._packed(), np.concatenate(self.numbers), np.array(layers, np.int64),
            np.array(self.linears, np.int64), np.array(self.segments, np.int64), embedding, learned,
        )  # fmt: skip

    def _layer(self, name: str, block: BlockConfig) -> tuple[int, ...]:
        mixer, ffn = block.mixer, block.ffn
        assert isinstance(mixer, AttentionConfig)
        assert not isinstance(ffn, ExpertsConfig)
        biases = (mixer.bias != "none", mixer.bias == "all", ffn.bias, ffn.bias)
        for which, biased in zip(("mixer.qkv", "mixer.out", "ffn.up", "ffn.down"), biases, strict=True):
            self._linear(f"{name}.{which}", f"{name}.{which}_bias" if biased else None, self.bits)
        after = [0, 0]
        if block.order == "sandwich":
            after = [self._norm(f"{name}.{which}_after", block.norm) for which in ("mixer", "ffn")]
        gains = 0
        if mixer.qk_norm:
            both = [self.held[f"{name}.mixer.{which}_gain"].array() for which in "qk"]
            gains = self._add(np.array([block.eps] + [0] * (GAIN - 1), np.float32), *both)
        rope = 0
        if isinstance(mixer.position, RopeConfig):
            rope = 1 if mixer.position.pairs == "half" else 2
        return (
            {"pre": PRE, "post": POST, "sandwich": SANDWICH}[block.order],
            self._norm(f"{name}.mixer_norm", block.norm), self._norm(f"{name}.ffn_norm", block.norm), *after,
            gains, rope, int(isinstance(ffn, SwigluConfig | GegluConfig)), _activation(ffn),
            ffn_width(ffn, self.config.width),
        )  # fmt: skip

    def _add(self, *vectors: ndarray) -> int:
        """Append vectors to the numbers, each padded; returns where the first begins."""
        start = sum(map(len, self.numbers))
        for vector in vectors:
            self.numbers.append(np.pad(vector.astype(np.float32), (0, -len(vector) % TILE)))
        return start

    def _norm(self, name: str, norm: NormConfig) -> int:
        assert isinstance(norm, RmsNormConfig | LayerNormConfig), "seen by `refusal`"
        biased = isinstance(norm, LayerNormConfig)
        beginning = np.zeros(GAIN, np.float32)
        beginning[EPS], beginning[NORM_KIND] = norm.eps, LAYER if biased else RMS
        vectors = [beginning, self.held[f"{name}.gain"].array()]
        if isinstance(norm, LayerNormConfig):
            vectors.append(self.held[f"{name}.bias"].array() if norm.bias else np.zeros(self.config.width))
        return self._add(*vectors)

    def _parts(self, name: str, bits: Bits | None) -> list[_Part]:
        weight = self.held[name]
        blocks = weight.blocks()
        if blocks is None:
            return [_Part(weight.array, None, FLOAT if bits is None else kind_of(np.empty(0), bits), *weight.shape)]
        return [
            _Part(lambda stored=stored: stored, rows, kind_of(stored, bits), *stored.shape)  # type: ignore[misc]
            for stored, rows in blocks
        ]

    def _linear(self, name: str, bias: str | None, bits: Bits | None) -> None:
        parts = _unified(self._parts(name, bits))
        if sum(part.outs for part in parts) != self.held[name].shape[0]:
            raise CheckpointError(f"{name}: its parts do not add up to {self.held[name].shape[0]} rows")
        first, to, joined = len(self.segments), 0, False
        for part in parts:
            at = self._place(part)
            before = self.segments[-1] if joined else None
            if before is not None and before[KIND] == part.kind and before[ROWS] % TILE == 0:
                outs = before[ROWS] + part.outs
                self.segments[-1] = (before[AT], part.kind, outs, before[TO], -(-outs // TILE))
            else:
                self.segments.append((at, part.kind, part.outs, to, -(-part.outs // TILE)))
            to, joined = to + part.outs, True
        own = self.segments[first:]
        bias_at = 0 if bias is None else self._add(self.held[bias].array())
        tiles = sum(segment[TILED] for segment in own)
        self.linears.append(
            (parts[0].columns, own[0][KIND], first, len(own), tiles, to, int(bias is not None), bias_at)
        )

    def _place(self, part: _Part) -> int:
        """Note a matrix; returns where it will begin."""
        at = self.end
        self.parts.append(part)
        self.end += packed_bytes(part.kind, part.outs, part.columns)
        return at

    def _packed(self) -> ndarray:
        """The arena, one matrix after the other; pages of files are let go as soon as they were read."""
        arena = _aligned(self.end)
        at = 0
        for part in self.parts:
            stored = part.read()
            for some, rows in _pieces(stored, part.rows):
                size = packed_bytes(part.kind, *some.shape)
                pack(some, rows, part.kind, arena[at : at + size])
                _let_go(some)
                at += size
        return arena


def _pieces(stored: Stored, rows: ndarray | None) -> Iterator[tuple[Stored, ndarray | None]]:
    """A matrix cut into runs of whole tiles, about PIECE numbers each, so that little of a mapped file is held at once;
    whole if its rows are to be put in another order.
    """
    outs, columns = stored.shape
    step = max(TILE, PIECE // columns // TILE * TILE)
    if rows is not None or outs <= step:
        yield stored, rows
        return
    size = len(stored.data) // outs if isinstance(stored, Blocks) else 0
    for first in range(0, outs, step):
        last = min(outs, first + step)
        if isinstance(stored, Blocks):
            yield Blocks(stored.kind, (last - first, columns), stored.data[first * size : last * size]), None
        else:
            yield stored[first:last], None


def _unified(parts: list[_Part]) -> list[_Part]:
    """Parts that read the same activations: beside quantised ones, floats are quantised to 8 bits."""
    if len({part.kind == FLOAT for part in parts}) > 1:
        for part in parts:
            part.kind = EIGHT if part.kind == FLOAT else part.kind
    return parts


def _activation(ffn: PlainFfnConfig) -> int:
    if isinstance(ffn, GegluConfig | GeluConfig):
        return GELU if ffn.form == "tanh" else GELU_ERF
    if isinstance(ffn, ReluConfig):
        return RELU if ffn.power == 1 else SQUARED
    return SILU


def _aligned(size: int) -> ndarray:
    """uint8 zeros whose first byte lies at a multiple of 64."""
    whole = np.zeros(size + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


def _let_go(stored: Stored) -> None:
    """Tell the system that the pages of a mapped file are not needed for now."""
    owner: object = stored.data if isinstance(stored, Blocks) else stored
    while isinstance(owner, ndarray | memoryview):
        owner = owner.base if isinstance(owner, ndarray) else owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _fits(config: DecoderConfig, weights: Mapping[str, Held]) -> None:
    """Raises CheckpointError naming the first weights that are missing or ill-shaped."""
    for name, shape in _shapes(config).items():
        if name not in weights:
            raise CheckpointError(f"the weights do not fit the configuration: {name} is missing")
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"the weights do not fit the configuration: {name}", found=str(weights[name].shape), allowed=str(shape)
            )


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The weights that a model of this configuration has, heads of further ids left out."""
    width = config.width
    found: dict[str, tuple[int, ...]] = {"embedding": (config.vocabulary, width)}
    if not config.tied:
        found["unembedding"] = (config.vocabulary, width)
    if isinstance(config.input_position, LearnedConfig):
        found["input_position.table"] = (config.input_position.room, width)

    def norm(name: str, kind: NormConfig) -> None:
        found[f"{name}.gain"] = (width,)
        if isinstance(kind, LayerNormConfig) and kind.bias:
            found[f"{name}.bias"] = (width,)

    for i, block in enumerate(config.blocks):
        name, mixer, ffn = f"blocks.{i}", block.mixer, block.ffn
        assert isinstance(mixer, AttentionConfig)
        assert not isinstance(ffn, ExpertsConfig)
        size, hidden = mixer.head_size(width), ffn_width(ffn, width)
        rows = (2 if isinstance(ffn, SwigluConfig | GegluConfig) else 1) * hidden
        for which in ("mixer_norm", "ffn_norm", *(("mixer_after", "ffn_after") if block.order == "sandwich" else ())):
            norm(f"{name}.{which}", block.norm)
        stacked = (mixer.heads + 2 * mixer.groups) * size
        found |= {
            f"{name}.mixer.qkv": (stacked, width), f"{name}.mixer.out": (width, mixer.heads * size),
            f"{name}.ffn.up": (rows, width), f"{name}.ffn.down": (width, hidden),
        }  # fmt: skip
        if mixer.bias != "none":
            found[f"{name}.mixer.qkv_bias"] = (stacked,)
        if mixer.bias == "all":
            found[f"{name}.mixer.out_bias"] = (width,)
        if mixer.qk_norm:
            found |= {f"{name}.mixer.{which}_gain": (size,) for which in "qk"}
        if ffn.bias:
            found |= {f"{name}.ffn.up_bias": (rows,), f"{name}.ffn.down_bias": (width,)}
    norm("norm", config.blocks[-1].norm)
    return found
