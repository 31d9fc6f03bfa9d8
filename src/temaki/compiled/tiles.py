"""Register tiles of attention: scores of some rows with blocks of keys, weighted sums of values; natives.

Each loops over rows and places by itself, a tile of rows at a time, so that keys and values are loaded once for all
rows of a tile. A row's own sums do not know the tile: keys in `multiply_add` after `multiply_add` with one lane a
place, values place after place. A row of scores is SPAN numbers long.
Letters: K head size.
"""
# pyright: basic

from collections.abc import Callable
from typing import Any

from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

from temaki.compiled import vectors as v
from temaki.compiled.addresses import BYTES, accumulators, along, floats, keep, one, runs, soon, stored, written
from temaki.compiled.native import native
from temaki.compiled.table import BLOCK, FLOAT16, FLOAT32, INT8, ITEM, SPAN

intrinsic: Any = _intrinsic

DIRECT = 8
"""Most rows for which keys and values are widened on their way into a register; for more they are widened once."""
_WIDE = {12: 2, 8: 2, 4: 4, 3: 4, 2: 4, 1: 8}
"""Rows of a tile -> vectors beside each other, where there are 32 registers of 16 numbers."""
_NARROW = {4: 1, 2: 2, 1: 4}
"""The same where there are 16 of 8."""
_FEW = 4
"""Rows whose sums take less time than to fetch what they read from memory."""
_AHEAD = 4096
"""How many bytes further values are asked for; keys are by the length of a tile."""


def _tiles(kind: int) -> dict[int, int]:
    tiles = _WIDE if "avx512f" in v.features() else _NARROW
    return tiles if kind == FLOAT32 else {rows: beside for rows, beside in tiles.items() if rows <= _FEW}


def _scores_tile(builder: Any, kind: int, args: Any, rows: int, row: Any, beside: int, block: Any) -> None:
    """Rows row, row + 1, .. with blocks block, block + 1, ..: one pass over k."""
    queries, stride, _, keys, size, _, into, _ = args
    sums = accumulators(builder, rows * beside)
    for each in sums:
        builder.store(v.filled(v.FLOATS, 0.0), each)
    length = builder.mul(size, v.whole(BLOCK * ITEM[kind]))
    first, q = along(builder, keys, (block, length)), along(builder, queries, (row, stride))
    with cgutils.for_range(builder, size, intp=v.I64) as loop:
        at = along(builder, first, (loop.index, BLOCK * ITEM[kind]))
        key = [stored(builder, kind, along(builder, at, (length, b))) for b in range(beside)]
        if rows <= _FEW:
            for b in range(beside, 2 * beside):
                soon(builder, along(builder, at, (length, b)))
        for r in range(rows):
            x = v.splat(builder, one(builder, along(builder, q, (loop.index, 4), (stride, r))))
            for b in range(beside):
                total = sums[r * beside + b]
                builder.store(v.multiply_add(builder, x, key[b], builder.load(total)), total)
    there = along(builder, into, (row, 4 * SPAN), (block, BYTES))
    for i, each in enumerate(sums):
        keep(builder, builder.load(each), builder.add(there, v.whole(4 * SPAN * (i // beside) + BYTES * (i % beside))))


def _scores(kind: int) -> Callable[[Any, Any], None]:
    def write(builder: Any, args: Any) -> None:
        def some_rows(rows: int, row: Any) -> None:
            beside = (tiles[rows], 1) if tiles[rows] > 1 else (1,)
            runs(builder, args[5], beside, lambda b, block: _scores_tile(builder, kind, args, rows, row, b, block))

        tiles = _tiles(kind)
        runs(builder, args[2], tuple(tiles), some_rows)

    return write


def _weigh_tile(builder: Any, kind: int, args: Any, rows: int, row: Any, beside: int, column: Any) -> None:
    """Rows row, row + 1, .. and vectors column, column + 1, ..: one pass over the places."""
    weights, _, values, columns, places, into, stride, _ = args
    where = along(builder, into, (row, stride), (column, BYTES))
    each = [along(builder, where, (stride, r), (v.whole(c), BYTES)) for r in range(rows) for c in range(beside)]
    sums = accumulators(builder, rows * beside)
    for total, at in zip(sums, each, strict=True):
        builder.store(floats(builder, at), total)
    step, weight = builder.mul(columns, v.whole(v.LANES * ITEM[kind])), along(builder, weights, (row, 4 * SPAN))
    first = along(builder, values, (column, v.LANES * ITEM[kind]))
    with cgutils.for_range(builder, places, intp=v.I64) as loop:
        at = along(builder, first, (loop.index, step))
        x = [stored(builder, kind, builder.add(at, v.whole(c * v.LANES * ITEM[kind]))) for c in range(beside)]
        if rows <= _FEW:
            for ahead in range(_AHEAD, _AHEAD + beside * v.LANES * ITEM[kind], 64):
                soon(builder, builder.add(at, v.whole(ahead)))
        for r in range(rows):
            p = v.splat(builder, one(builder, along(builder, weight, (loop.index, 4), (v.whole(r), 4 * SPAN))))
            for c in range(beside):
                total = sums[r * beside + c]
                builder.store(v.multiply_add(builder, p, x[c], builder.load(total)), total)
    for total, at in zip(sums, each, strict=True):
        keep(builder, builder.load(total), at)


def _weigh(kind: int) -> Callable[[Any, Any], None]:
    def write(builder: Any, args: Any) -> None:
        def some_rows(rows: int, row: Any) -> None:
            beside = tuple(n for n in (8, 4, 2, 1) if n <= tiles[rows])
            runs(builder, args[3], beside, lambda c, column: _weigh_tile(builder, kind, args, rows, row, c, column))

        tiles = _tiles(kind)
        runs(builder, args[1], tuple(tiles), some_rows)

    return write


def _widen(kind: int) -> Callable[[Any, Any], None]:
    def write(builder: Any, args: Any) -> None:
        with cgutils.for_range(builder, args[1], intp=v.I64) as loop:
            x = stored(builder, kind, along(builder, args[0], (loop.index, v.LANES * ITEM[kind])))
            keep(builder, x, along(builder, args[2], (loop.index, BYTES)))

    return write


@intrinsic
def _scores_float(_context, a, b, c, d, e, f, g, h):
    return written(_scores(FLOAT32))


@intrinsic
def _scores_half(_context, a, b, c, d, e, f, g, h):
    return written(_scores(FLOAT16))


@intrinsic
def _scores_byte(_context, a, b, c, d, e, f, g, h):
    return written(_scores(INT8))


@intrinsic
def _weigh_float(_context, a, b, c, d, e, f, g, h):
    return written(_weigh(FLOAT32))


@intrinsic
def _weigh_half(_context, a, b, c, d, e, f, g, h):
    return written(_weigh(FLOAT16))


@intrinsic
def _weigh_byte(_context, a, b, c, d, e, f, g, h):
    return written(_weigh(INT8))


@intrinsic
def _widen_half(_context, a, b, c, d, e, f, g, h):
    return written(_widen(FLOAT16))


@intrinsic
def _widen_byte(_context, a, b, c, d, e, f, g, h):
    return written(_widen(INT8))


@native
def scores_float(queries, stride, rows, keys, size, blocks, into, none):
    """into[r, block 16 + place] = sum over k of queries[r, k] keys[block, k, place]: float32 keys [blocks, K, 16].

    stride: bytes from query to query.
    """
    _scores_float(queries, stride, rows, keys, size, blocks, into, none)


@native
def scores_half(queries, stride, rows, keys, size, blocks, into, none):
    """As `scores_float`, for float16 keys."""
    _scores_half(queries, stride, rows, keys, size, blocks, into, none)


@native
def scores_byte(queries, stride, rows, keys, size, blocks, into, none):
    """As `scores_float`, for int8 keys, whose scales are not looked at."""
    _scores_byte(queries, stride, rows, keys, size, blocks, into, none)


@native
def weigh_float(weights, rows, values, columns, places, into, stride, none):
    """into[r] += sum over places of weights[r, place] values[place]: float32 values, `columns` vectors of 16 a place.

    stride: bytes from row to row of `into`.
    """
    _weigh_float(weights, rows, values, columns, places, into, stride, none)


@native
def weigh_half(weights, rows, values, columns, places, into, stride, none):
    """As `weigh_float`, for float16 values."""
    _weigh_half(weights, rows, values, columns, places, into, stride, none)


@native
def weigh_byte(weights, rows, values, columns, places, into, stride, none):
    """As `weigh_float`, for int8 values, whose scales are in the weights already."""
    _weigh_byte(weights, rows, values, columns, places, into, stride, none)


@native
def widen_half(numbers, many, into, d, e, f, g, h):
    """`many` vectors of 16 float16 numbers as float32."""
    _widen_half(numbers, many, into, d, e, f, g, h)


@native
def widen_byte(numbers, many, into, d, e, f, g, h):
    """`many` vectors of 16 int8 numbers as float32."""
    _widen_byte(numbers, many, into, d, e, f, g, h)
