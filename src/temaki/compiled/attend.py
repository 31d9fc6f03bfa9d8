"""Attention over the cache, in kernels: one kv group of one slot, for a few consecutive ids.

softmax(cap tanh(scale q.k / cap) - slope distance) v, over the places position - window + 1 .. position, in spans of
SPAN places: each span has its largest score, its sum and its weighted values by itself, and spans are folded in their
order. So it makes no difference, to the last bit, which thread does a span, how many ids share a call, or in which
chunks they came; a place that an id does not see adds nothing, whatever stands there.
Letters: H heads, G groups, K head size, J = H / G heads of a group.

How a layer is done, after its ids' q, k, v stand in a float32 arena (a row: q [H, K], k [G, K], v [G, K]):
- for each id: `norm_heads`, `rotate` (compiled/rotary.py) on q and on k, then `store_row`;
- a barrier; then tasks in any order on any thread. Either `attend` (slot, group, at most TILE ids): all spans at once;
  or, for one long context, `attend_span` (slot, group, ids, span) for each of `first_span` .. `last_span`, a barrier,
  and `fold_spans` (slot, group, ids). Both give the same bits.
- numbers are given as variables: a literal in a call has Numba compile all of this for it anew;
- `attend` and `attend_span` need `scratch_floats(cache, ids)` float32 numbers for each thread; one span's partial takes
  `partial_floats(cache, ids)`.
"""
# pyright: basic

import numpy as np

from temaki.base.compile import bare_kernel
from temaki.compiled.addresses import address_of, clear
from temaki.compiled.cache import Cache
from temaki.compiled.native import call_native
from temaki.compiled.rotary import store_row as store_row
from temaki.compiled.table import (
    AT,
    BLOCK,
    CAP,
    EXTRA,
    FLOAT32,
    FLOAT_SCORES,
    FLOAT_WEIGH,
    FOLD,
    GROUP,
    GROUPS,
    HEADS,
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
    VALUE_SCALES,
    VALUES,
    WEIGH,
    WIDEN,
    WINDOW,
)
from temaki.compiled.tiles import DIRECT

TILE = 32
"""Ids that one call of `attend` takes at most."""
TOGETHER = 12
"""Rows that share each load of keys and values, where a group has no more heads than that."""


def partial_floats(cache: Cache, ids: int) -> int:
    """Float32 numbers that one span's partial takes, for `ids` ids of one group, in the largest layer."""
    return max(ids * each[HEADS] // each[GROUPS] * (each[PADDED] + EXTRA) for each in cache.table.tolist())


def scratch_floats(cache: Cache, ids: int) -> int:
    """Float32 numbers of scratch that a thread needs for `attend` or `attend_span` of at most `ids` ids."""
    return max(_needed(each, ids) for each in cache.table.tolist())


def _needed(told: list[int], ids: int) -> int:
    """Settings, queries, partials of all spans and of one, scores, widened keys and values."""
    many, size, padded = told[HEADS] // told[GROUPS], told[SIZE], told[PADDED]
    rows, together = ids * many, max(many, TOGETHER)
    wide = SPAN * (size + padded) if told[KIND] != FLOAT32 else 0
    return EXTRA * many + rows * size + BLOCK + 2 * rows * (padded + EXTRA) + together * SPAN + wide


@bare_kernel
def first_span(table, layer, place):
    """The first span that an id at a place sees."""
    return max(0, place - table[layer, WINDOW] + 1) // SPAN


@bare_kernel
def last_span(place):
    """The last span that an id at a place sees, its own."""
    return place // SPAN


@bare_kernel
def _seen(told, place, start):
    """The places first..last-1, counted from a span's start, that an id at a place sees of it; none: first >= last."""
    return max(0, place - told[WINDOW] + 1 - start), min(SPAN, place + 1 - start)


@bare_kernel
def _softmax(told, ids, place, start, base, scores, settings, partials):
    """The softmax of each row of a tile over what it sees of the span; a row that sees nothing gets the sum 0."""
    many, row = told[HEADS] // told[GROUPS], told[PADDED] + EXTRA
    for i in range(ids):
        low, high = _seen(told, place + i, start)
        if high <= low:
            low, high = 0, 0
        first, back = base + 4 * (low // BLOCK * BLOCK), place + i - start
        for j in range(many):
            call_native(
                told[SOFTMAX],
                scores + 4 * SPAN * (i * many + j),
                low,
                high,
                partials + 4 * ((i * many + j) * row + told[PADDED]),
                settings + 4 * EXTRA * j,
                back,
                first + told[KEY_SCALES],
                first + told[VALUE_SCALES],
            )


@bare_kernel
def _weigh(told, kind, rows, low, high, values, scores, partials):
    """Add the values at low..high-1, weighted, to some rows of a tile."""
    if low < high:
        call_native(
            told[FLOAT_WEIGH] if kind == FLOAT32 else told[WEIGH],
            scores + 4 * low,
            rows,
            values + low * told[PADDED] * (4 >> kind),
            told[PADDED] // BLOCK,
            high - low,
            partials,
            4 * (told[PADDED] + EXTRA),
            0,
        )


@bare_kernel
def _weigh_each(told, kind, ids, place, start, low, high, values, scores, partials):
    """Add what each id of a tile sees of low..high-1, id after id."""
    many = told[HEADS] // told[GROUPS]
    for i in range(ids):
        first, last = _seen(told, place + i, start)
        weights, into = scores + 4 * SPAN * many * i, partials + 4 * (told[PADDED] + EXTRA) * many * i
        _weigh(told, kind, many, max(first, low), min(last, high), values, weights, into)


@bare_kernel
def _tile(told, ids, place, start, base, kind, keys, values, q, stride, scores, settings, partials):
    """The partials of a tile of ids in the span at place `start`; kind, keys, values: as they lie there, or widened.

    Places that all ids of the tile see are weighted for all rows at once, those before and after for each id by itself,
    so that what an id does not see is never multiplied.
    """
    many, size = told[HEADS] // told[GROUPS], told[SIZE]
    first, last = _seen(told, place, start)[0], _seen(told, place + ids - 1, start)[1]
    block = first // BLOCK
    blocks = (last + BLOCK - 1) // BLOCK - block
    key = keys + block * BLOCK * size * (4 >> kind)
    scorer = told[FLOAT_SCORES] if kind == FLOAT32 else told[SCORES]
    call_native(scorer, q, stride, ids * many, key, size, blocks, scores + 4 * BLOCK * block, 0)
    clear(partials, ids * many * (told[PADDED] + EXTRA) // BLOCK)
    _softmax(told, ids, place, start, base, scores, settings, partials)
    low, high = _seen(told, place + ids - 1, start)[0], _seen(told, place, start)[1]
    low = min(low, high)
    _weigh_each(told, kind, ids, place, start, first, low, values, scores, partials)
    _weigh(told, kind, ids * many, low, high, values, scores, partials)
    _weigh_each(told, kind, ids, place, start, high, last, values, scores, partials)


@bare_kernel
def _widened(told, place, ids, start, keys, values, wide):
    """Write what ids see of a span's keys and values as float32: keys [SPAN / 16, K, 16], then values [SPAN, K]."""
    low, high = _seen(told, place, start)[0], _seen(told, place + ids - 1, start)[1]
    size, columns, item = told[SIZE], told[PADDED] // BLOCK, BLOCK * (4 >> told[KIND])
    first = low // BLOCK
    blocks = (high + BLOCK - 1) // BLOCK - first
    to = wide + 4 * SPAN * size
    call_native(told[WIDEN], keys + first * size * item, blocks * size, wide + 64 * first * size, 0, 0, 0, 0, 0)
    call_native(
        told[WIDEN], values + low * columns * item, (high - low) * columns, to + 64 * low * columns, 0, 0, 0, 0, 0
    )


@bare_kernel
def _span(data, told, slot, group, place, ids, span, q, stride, settings, partials, scratch):
    """The partials of one span for all ids.

    q, settings, partials, scratch: addresses; stride: bytes from row to row of q. scratch: scores, widened numbers.
    """
    many, size, padded, kind = told[HEADS] // told[GROUPS], told[SIZE], told[PADDED], told[KIND]
    base = address_of(data, told[AT] + slot * told[SLOT] + span * told[STEP] + group * told[GROUP])
    start, keys, values = span * SPAN, base, base + told[VALUES]
    together = min(ids, max(1, TOGETHER // many))
    if kind != FLOAT32 and ids * many > DIRECT:
        wide = scratch + 4 * SPAN * together * many
        _widened(told, place, ids, start, keys, values, wide)
        kind, keys, values = FLOAT32, wide, wide + 4 * SPAN * size
    for first in range(0, ids, together):
        rows = first * many
        into = partials + 4 * rows * (padded + EXTRA)
        _tile(
            told, min(together, ids - first), place + first, start, base, kind, keys, values, q + rows * stride, stride,
            scratch, settings, into,
        )  # fmt: skip


@bare_kernel
def _begin(told, said, group, ids, x, q_at, q_stride, scratch, at):
    """Write each head's settings to scratch[at], and after them, where there are more ids, their queries.

    Returns the address of the queries, and where scratch goes on.
    """
    many, size = told[HEADS] // told[GROUPS], told[SIZE]
    for j in range(many):
        row = at + EXTRA * j
        scratch[row] = said[SCALE]
        scratch[row + 1] = said[CAP]
        scratch[row + 2] = said[SLOPES + group * many + j] if told[SLOPED] else np.float32(0)
    queries, rows = at + EXTRA * many, many * size
    if ids == 1:
        return address_of(x, q_at + group * rows), queries
    for i in range(ids):
        source, row = q_at + i * q_stride + group * rows, queries + i * rows
        for k in range(rows):
            scratch[row + k] = x[source + k]
    return address_of(scratch, queries), queries + (ids * rows + BLOCK - 1) // BLOCK * BLOCK


@bare_kernel
def _fold(told, into, new):
    call_native(told[FOLD], into, new, told[PADDED] // BLOCK, 0, 0, 0, 0, 0)


@bare_kernel
def _finish(told, group, ids, partials, at, out, out_at, out_stride):
    """Write the weighted values over their sums."""
    size, padded, many = told[SIZE], told[PADDED], told[HEADS] // told[GROUPS]
    for i in range(ids):
        for j in range(many):
            row = at + (i * many + j) * (padded + EXTRA)
            part = np.float32(1) / partials[row + padded + 1]
            into = out_at + i * out_stride + (group * many + j) * size
            for k in range(size):
                out[into + k] = partials[row + k] * part


@bare_kernel
def attend_span(
    data, table, numbers, layer, slot, group, place, ids, span, x, q_at, q_stride, partials, partials_at, scratch,
    scratch_at,
):  # fmt: skip
    """The partial of one span, for ids at place, place + 1, ..: what `fold_spans` reads, at partials[partials_at].

    q of id i begins at x[q_at + i q_stride] with head 0 of the model. A partial: for each id and head of the group the
    weighted values [K padded to 16], the largest score, the sum; `partial_floats` numbers in all.
    """
    told = table[layer]
    q, rest = _begin(told, numbers[layer], group, ids, x, q_at, q_stride, scratch, scratch_at)
    settings, into = address_of(scratch, scratch_at), address_of(partials, partials_at)
    _span(data, told, slot, group, place, ids, span, q, 4 * told[SIZE], settings, into, address_of(scratch, rest))


@bare_kernel
def fold_spans(table, layer, group, ids, spans, partials, partials_at, partials_stride, out, out_at, out_stride):
    """Fold `spans` partials in their order, `partials_stride` numbers from one span to the next, and write the output
    of these ids and this group: out[out_at + i out_stride + head K + k]. The first partial is overwritten.
    """
    told = table[layer]
    padded, rows = told[PADDED], ids * (told[HEADS] // told[GROUPS])
    for span in range(1, spans):
        for row in range(rows):
            into = partials_at + row * (padded + EXTRA)
            _fold(told, address_of(partials, into), address_of(partials, into + span * partials_stride))
    _finish(told, group, ids, partials, partials_at, out, out_at, out_stride)


@bare_kernel
def attend(
    data, table, numbers, layer, slot, group, place, ids, x, q_at, q_stride, out, out_at, out_stride, scratch,
    scratch_at,
):  # fmt: skip
    """Attention of one group for ids at place, place + 1, .., whose keys and values stand in the cache already.

    q of id i begins at x[q_at + i q_stride], its output at out[out_at + i out_stride], both with head 0 of the model.
    """
    told = table[layer]
    q, whole = _begin(told, numbers[layer], group, ids, x, q_at, q_stride, scratch, scratch_at)
    settings = address_of(scratch, scratch_at)
    rows = ids * (told[HEADS] // told[GROUPS])
    row = told[PADDED] + EXTRA
    part = whole + rows * row
    first = first_span(table, layer, place)
    for span in range(first, last_span(place + ids - 1) + 1):
        at = address_of(scratch, whole if span == first else part)
        rest = address_of(scratch, part + rows * row)
        _span(data, told, slot, group, place, ids, span, q, 4 * told[SIZE], settings, at, rest)
        if span > first:
            for i in range(rows):
                _fold(told, address_of(scratch, whole + i * row), address_of(scratch, part + i * row))
    _finish(told, group, ids, scratch, whole, out, out_at, out_stride)
