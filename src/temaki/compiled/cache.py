"""The cache of the compiled executor: keys and values of all layers and slots in one arena.

What belongs to a span of 256 places lies together, all layers of it, so that memory is taken by the span, in pages as
large as the system has. In a span, keys of a head lie in blocks of 16 places, [block][K][16], so that a block's scores
are one vector; values lie [place][K], padded to 16. 8-bit numbers have one scale a place and head, for keys and for
values. A place is a position: nothing is ever moved, and a window keeps all places.
Letters: R slots, C places a slot, G heads of keys and values, K head size.
"""

import contextlib
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.compiled import softmax, tiles
from temaki.compiled.native import Native
from temaki.compiled.table import (
    AT,
    BLOCK,
    CAP,
    FIELDS,
    FLOAT16,
    FLOAT32,
    FLOAT_SCORES,
    FLOAT_WEIGH,
    FOLD,
    GROUP,
    GROUPS,
    HEADS,
    INT8,
    ITEM,
    KEY_SCALES,
    KIND,
    PADDED,
    SCALE,
    SCORES,
    SIZE,
    SLOPED,
    SLOPES,
    SLOT,
    SOFTMAX,
    SPAN,
    STEP,
    UNLIMITED,
    VALUE_SCALES,
    VALUES,
    WEIGH,
    WIDEN,
    WINDOW,
)

_HUGE = 1 << 22
"""Bytes from which on pages may be huge: a long context is read up to three times as fast."""

CacheKind = Literal["float32", "float16", "int8"]

KINDS: dict[CacheKind, int] = {"float32": FLOAT32, "float16": FLOAT16, "int8": INT8}

_SCORES = (tiles.scores_float, tiles.scores_half, tiles.scores_byte)
_WEIGH = (tiles.weigh_float, tiles.weigh_half, tiles.weigh_byte)
_WIDEN: tuple[Native | None, ...] = (None, tiles.widen_half, tiles.widen_byte)


@dataclass(frozen=True)
class Heads:
    """One layer's attention: its shape and how its scores are made, as `model.sight.Sight` says it."""

    heads: int
    groups: int
    size: int
    scale: float | None = None
    """None: 1 / sqrt(K)."""
    window: int | None = None
    cap: float | None = None
    slopes: tuple[float, ...] | None = None


class Cache:
    """Room for `places` ids in each of `slots` slots; spans that nobody wrote to cost nothing.

    Kernels take `data` (uint8), `table` (int64 [layers, FIELDS]) and `numbers` (float32). Lengths are the caller's.

    >>> cache = Cache("float16", slots=2, places=20, layers=[Heads(4, 2, 8)])
    >>> cache.bytes_per_id
    96
    """

    def __init__(self, kind: CacheKind, slots: int, places: int, layers: Sequence[Heads]):
        self.kind: CacheKind = kind
        self.slots = slots
        self.places = places
        self.layers = tuple(layers)
        most = max(layer.heads for layer in layers)
        self.table = np.zeros((len(layers), FIELDS), np.int64)
        self.numbers = np.zeros((len(layers), SLOPES + most), np.float32)
        end = 0
        for i, layer in enumerate(layers):
            end = self._describe(i, layer, end)
        spans = -(-places // SPAN)
        self.table[:, STEP] = end
        self.table[:, SLOT] = end * spans
        self.data = _room(end * spans * slots)
        self._spans = self.data.reshape(slots, spans, end)
        """All layers' bytes of each span of each slot."""

    def _describe(self, i: int, layer: Heads, at: int) -> int:
        """Fill the layer's row of both tables; returns where the next layer begins in a span."""
        kind = KINDS[self.kind]
        padded, scales = _up(layer.size, BLOCK), 4 * SPAN if kind == INT8 else 0
        values = SPAN * layer.size * ITEM[kind]
        key_scales = values + SPAN * padded * ITEM[kind]
        group = key_scales + 2 * scales
        where = {AT: at, GROUP: group, VALUES: values, KEY_SCALES: key_scales, VALUE_SCALES: key_scales + scales}
        shape = {KIND: kind, HEADS: layer.heads, GROUPS: layer.groups, SIZE: layer.size, PADDED: padded}
        window = UNLIMITED if layer.window is None else layer.window
        sight = {WINDOW: window, SLOPED: int(layer.slopes is not None)}
        for field, number in {**where, **shape, **sight, **_natives(kind, layer)}.items():
            self.table[i, field] = number
        self.numbers[i, SCALE] = layer.size**-0.5 if layer.scale is None else layer.scale
        self.numbers[i, CAP] = 0.0 if layer.cap is None else layer.cap
        if layer.slopes is not None:
            self.numbers[i, SLOPES : SLOPES + layer.heads] = layer.slopes
        return at + group * layer.groups

    @property
    def bytes_per_id(self) -> int:
        """Bytes that one more id takes, over all layers."""
        return self._spans.shape[2] // SPAN

    def parts(self, layer: int) -> dict[str, ndarray]:
        """A layer's bytes by what they are, as views [R, spans, G, rows, bytes]: rows are blocks of keys, or places."""
        at, group, values, scales = (int(self.table[layer, field]) for field in (AT, GROUP, VALUES, KEY_SCALES))
        groups = self.layers[layer].groups
        whole = self._spans[..., at : at + group * groups].reshape(*self._spans.shape[:2], groups, group)
        found = {"keys": whole[..., :values], "values": whole[..., values:scales]}
        if self.kind == "int8":
            found |= {"key_scales": whole[..., scales : scales + 4 * SPAN], "value_scales": whole[..., -4 * SPAN :]}
        return {name: part.reshape(*whole.shape[:3], _rows(name, SPAN), -1) for name, part in found.items()}

    def _begun(self, length: int) -> Iterator[tuple[str, ndarray, int]]:
        """Of the span that the first `length` ids do not fill: a name, a part [R, G, rows, bytes], the rows they do."""
        for layer in range(len(self.layers) if length % SPAN else 0):
            for name, part in self.parts(layer).items():
                yield f"{name}.{layer}", part[:, length // SPAN], _rows(name, length % SPAN)

    def fork(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` ids of a slot to another."""
        full = length // SPAN
        self._spans[target, :full] = self._spans[source, :full]
        for _, part, rows in self._begun(length):
            part[target, :, :rows] = part[source, :, :rows]

    def save(self, slot: int, length: int) -> dict[str, ndarray]:
        """The first `length` ids of a slot, copied; nothing more is held."""
        begun = {name: part[slot, :, :rows].copy() for name, part, rows in self._begun(length)}
        return {"spans": self._spans[slot, : length // SPAN].copy(), **begun}

    def load(self, slot: int, saved: Mapping[str, ndarray]) -> None:
        """Put back what `save` gave, into any slot."""
        full = len(saved["spans"])
        self._spans[slot, :full] = saved["spans"]
        if len(saved) > 1:
            for name, part, _ in self._begun(full * SPAN + 1):
                part[slot, :, : saved[name].shape[1]] = saved[name]

    def clear(self, slot: int, length: int) -> None:
        """Zero the first `length` ids of a slot."""
        self._spans[slot, : length // SPAN] = 0
        for _, part, rows in self._begun(length):
            part[slot, :, :rows] = 0


def _natives(kind: int, layer: Heads) -> dict[int, int]:
    """Addresses for the layer's row; they are compiled, or read from the disk, here."""
    shaped = layer.cap is not None or layer.slopes is not None
    widen = _WIDEN[kind]
    found = {SCORES: _SCORES[kind], WEIGH: _WEIGH[kind], FLOAT_SCORES: _SCORES[FLOAT32], FLOAT_WEIGH: _WEIGH[FLOAT32]}
    found |= {SOFTMAX: softmax.softmax_of(shaped, kind == INT8), FOLD: softmax.fold}
    found |= {} if widen is None else {WIDEN: widen}
    return {field: each.address for field, each in found.items()}


def _rows(name: str, places: int) -> int:
    """Rows of a part that hold so many places."""
    return -(-places // BLOCK) if name == "keys" else places


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _room(size: int) -> ndarray:
    """uint8 zeros from the start of a page on; pages that nobody touches take no memory.

    Raises GenerationError where there is no room.
    """
    try:
        if sys.platform == "win32":
            memory = mmap.mmap(-1, size)
        else:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if sys.platform == "linux" and size >= _HUGE:
            with contextlib.suppress(OSError):  # a kernel without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        raise GenerationError(
            "there is no memory for the cache",
            found=f"{size / 1e9:.1f} GB wanted",
            do="ask for fewer slots, for less room in each, or for a cache of a smaller kind",
        ) from error
    return np.frombuffer(memory, np.uint8)
