"""Caches of the compiled executor with known content, and attention over them by its kernels; loads no torch."""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from temaki.compiled import attend, rotary
from temaki.compiled.attend import TILE, first_span, last_span
from temaki.compiled.cache import Cache, CacheKind, Heads

TYPES: tuple[CacheKind, ...] = ("float32", "float16", "int8")
HEADS = {
    "grouped": Heads(9, 3, 64),
    "one group": Heads(8, 1, 20, scale=0.3),
    "as many groups": Heads(3, 3, 16),
    "more than a tile": Heads(14, 1, 8),
    "odd size": Heads(4, 2, 7),
    "long heads": Heads(2, 1, 136),
    "window": Heads(4, 2, 8, window=300),
    "narrow window": Heads(4, 2, 8, window=3),
    "own place": Heads(2, 2, 8, window=1),
    "slopes": Heads(4, 2, 8, slopes=(0.5, 0.25, 0.01, 0.001)),
    "cap": Heads(4, 4, 8, cap=2.0, scale=1.0),
    "all": Heads(6, 2, 24, window=270, cap=5.0, scale=0.5, slopes=(0.5, 0.1, 0.05, 0.02, 0.01, 0.001)),
}
LENGTH = 530
"""Ids: three spans, and a tile that lies across their border."""


@dataclass(frozen=True)
class Rows:
    """Random queries [n, H, K], keys and values [n, G, K]."""

    q: ndarray
    k: ndarray
    v: ndarray


def rows(heads: Heads, n: int = LENGTH, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    many = (heads.heads, heads.groups, heads.groups)
    return Rows(*(rng.standard_normal((n, each, heads.size), np.float32) for each in many))


def write(cache: Cache, slot: int, given: Rows, first: int = 0, layer: int = 1) -> None:
    """Put keys and values at places first, first + 1, .."""
    x = np.concatenate([given.k.reshape(len(given.k), -1), given.v.reshape(len(given.v), -1)], 1)
    half = x.shape[1] // 2
    for i in range(len(x)):
        at = i * 2 * half
        rotary.store_row(cache.data, cache.table, layer, slot, first + i, x.reshape(-1), at, at + half)


def filled(kind: CacheKind, heads: Heads, given: Rows, slots: int = 2, slot: int = 1, room: int = LENGTH) -> Cache:
    """A cache of two layers, the second read by one slot; all other bytes are ones: no numbers at all."""
    cache = Cache(kind, slots, room, [Heads(2, 1, 5), heads])
    cache.data[:] = 0xFF
    write(cache, slot, given)
    return cache


def scratch(cache: Cache) -> ndarray:
    return np.full(attend.scratch_floats(cache, TILE) + 16, np.nan, np.float32)


def attended(cache: Cache, slot: int, q: ndarray, place: int, together: int = TILE, layer: int = 1) -> ndarray:
    """The output of ids at place, place + 1, .., so many in a call."""
    out, n, many = np.full_like(q, 7), len(q), cache.layers[layer].groups
    width, temporary = q[0].size, scratch(cache)
    given = cache.data, cache.table, cache.numbers, layer, slot
    for i in range(0, n, together):
        for group in range(many):
            where = group, place + i, min(together, n - i)
            line = q.reshape(-1), i * width, width, out.reshape(-1), i * width, width
            attend.attend(*given, *where, *line, temporary, 0)
    return out


def spanned(cache: Cache, slot: int, q: ndarray, place: int, layer: int = 1) -> ndarray:
    """As `attended`, all ids in one call, by spans that are done from the last to the first."""
    out, width = np.full_like(q, 7), q[0].size
    stride = attend.partial_floats(cache, len(q))
    first, last = first_span(cache.table, layer, place), last_span(place + len(q) - 1)
    partials, temporary = np.full(stride * (last - first + 1), np.nan, np.float32), scratch(cache)
    for group in range(cache.layers[layer].groups):
        for span in range(last, first - 1, -1):
            given = cache.data, cache.table, cache.numbers, layer, slot, group, place, len(q), span
            line = q.reshape(-1), 0, width, partials, (span - first) * stride
            attend.attend_span(*given, *line, temporary, 0)
        line = partials, 0, stride, out.reshape(-1), 0, width
        attend.fold_spans(cache.table, layer, group, len(q), last - first + 1, *line)
    return out


def held(cache: Cache, slot: int, n: int, layer: int = 1) -> tuple[ndarray, ndarray]:
    """The keys and values [n, G, K] of a slot as numbers, read by their layout alone."""
    heads, parts = cache.layers[layer], {name: part[slot].swapaxes(0, 1) for name, part in cache.parts(layer).items()}
    numbers = {"float32": np.float32, "float16": np.float16, "int8": np.int8}[cache.kind]
    k = parts["keys"].copy().view(numbers).reshape(heads.groups, -1, heads.size, 16).swapaxes(2, 3)
    k = k.reshape(heads.groups, -1, heads.size)[:, :n].astype(np.float64)
    padded = -(-heads.size // 16) * 16
    v = parts["values"].copy().view(numbers).reshape(heads.groups, -1, padded)[:, :n, : heads.size].astype(np.float64)
    if cache.kind == "int8":
        for name, x in (("key_scales", k), ("value_scales", v)):
            x *= parts[name].copy().view(np.float32).reshape(heads.groups, -1, 1)[:, :n]
    return k.swapaxes(0, 1), v.swapaxes(0, 1)


def everywhere() -> ndarray:
    """What must be the same on any processor: attention over every kind of cache, and stored numbers."""
    found: list[ndarray] = []
    for kind in TYPES:
        for name in ("grouped", "all", "odd size"):
            heads = HEADS[name]
            given = rows(heads, 290)
            cache = filled(kind, heads, given)
            found.append(attended(cache, 1, given.q[-20:], 270).reshape(-1))
            found += [each.astype(np.float32).reshape(-1) for each in held(cache, 1, 290)]
    return np.concatenate(found)
