"""Matrices in tiles of 16 outputs, packed by `pack`, and their products with rows of activations.

A matrix is bytes of an arena, from a multiple of 64 on: tile after tile, so matrices of one kind and width whose
outputs are a multiple of 16 join by lying side by side. A tile of 16 outputs holds

- FLOAT: float32 [columns][16];
- EIGHT: float16 scales d [groups][16], padded to 64 bytes, then bytes q + 128, [groups][8][16][4] (4 columns of an
  output beside each other);
- FOUR: float16 d and m, [groups][2][16], then nibbles [groups][4][16][4]: low halves are columns 0..15 of a group, high
  ones 16..31;
- CENTRED: as FOUR with m = -8 d, which is not kept: scales as EIGHT.

A row of activations is float32 [columns] for FLOAT; else a record of 48 bytes for each group: int8 q [32], float32 s
and s * sum, int32 -8 sum and -128 sum, where x = s q and sum adds up q.

A group is 32 columns. Columns beyond the last are never seen: their activations are zeros.
"""
# pyright: basic, reportCallIssue=false

import numpy as np
from numpy import ndarray

from temaki.base.compile import bare_kernel
from temaki.compiled.activations import read_group
from temaki.compiled.packing import pack_blocks, scales_bytes, tile_bytes
from temaki.compiled.products import (
    BLOCKS,
    CENTRED,
    EIGHT,
    FLOAT,
    FOUR,
    GROUP,
    NUMBER_BYTES,
    PAIR,
    RECORD,
    SCALE_BYTES,
    TILE,
)
from temaki.compiled.vectors import half_at
from temaki.model.quantise import Blocks, Stored, quantise

KINDS = {"Q8_0": EIGHT, "Q4_1": FOUR, "Q4_0": CENTRED}
"""Blocks that are kept as they are."""
_WRITTEN = {kind: name for name, kind in KINDS.items()}
AHEAD = 16384
"""Bytes ahead of those in use that are asked for."""
CHUNK = 16
"""Rows from which on float32 products are bound by the processor, not by memory."""
ALIGNED = 64
"""Bytes."""
SLICE = 1 << 18
"""Numbers that are dequantised or quantised at a time."""


def kind_of(stored: Stored, bits: int | None = None) -> int:
    """What a stored matrix is packed as: blocks as they are or in 8 bits, floats in float32 or in 8 or 4 bits."""
    if isinstance(stored, Blocks) and stored.kind != "BF16":
        return KINDS.get(stored.kind, EIGHT)
    return {None: FLOAT, 8: EIGHT, 4: FOUR}[bits]


def packed_bytes(kind: int, outs: int, columns: int) -> int:
    """Bytes of a matrix [outs, columns] of a kind: a multiple of 64."""
    return -(-outs // TILE) * tile_bytes(kind, columns)


def act_bytes(columns: int) -> int:
    """Bytes of one row of activations, enough for every kind, a multiple of 64.

    >>> act_bytes(33)
    256
    """
    return 4 * GROUP * -(-columns // GROUP)


def pack(stored: Stored, rows: ndarray | None, kind: int, out: ndarray) -> None:
    """Write a matrix [outs, columns] to `out`, uint8 [packed_bytes].

    `rows`: int64 [outs], which stored row each output is; None: as they lie. Blocks whose own kind is asked for keep
    their integers and scales; all others are dequantised and quantised anew by `model/quantise`, a few rows at a time.
    Raises FormatError for numbers that the kind cannot hold.
    """
    outs, columns = stored.shape
    assert out.dtype == np.uint8, f"bytes are uint8, not {out.dtype}"
    assert out.shape == (packed_bytes(kind, outs, columns),), f"{out.shape} for {stored.shape}"
    order = np.arange(outs) if rows is None else rows.astype(np.int64)
    if isinstance(stored, Blocks) and KINDS.get(stored.kind) == kind:
        groups = columns // GROUP
        pack_blocks(stored.data.reshape(outs, groups, -1), order, kind, out)
        return
    size, step = tile_bytes(kind, columns), max(TILE, SLICE // columns // TILE * TILE)
    for first in range(0, outs, step):
        chosen = order[first : first + step]
        tiles = out[first // TILE * size : -(-(first + len(chosen)) // TILE) * size]
        numbers = _rows(stored, chosen)
        if kind == FLOAT:
            whole = np.zeros((-(-len(chosen) // TILE) * TILE, columns), np.float32)
            whole[: len(chosen)] = numbers
            tiles.view(np.float32).reshape(-1, columns, TILE)[:] = whole.reshape(-1, TILE, columns).swapaxes(1, 2)
            continue
        numbers = np.pad(numbers, ((0, 0), (0, -columns % GROUP)), "edge")
        blocks = quantise(_WRITTEN[kind], numbers)
        pack_blocks(
            blocks.data.reshape(len(chosen), numbers.shape[1] // GROUP, -1), np.arange(len(chosen)), kind, tiles
        )


def _rows(stored: Stored, chosen: ndarray) -> ndarray:
    """Rows of a stored matrix as floats."""
    if isinstance(stored, ndarray):
        return stored[chosen]
    lines = stored.data.reshape(stored.shape[0], -1)[chosen]
    return Blocks(stored.kind, (len(chosen), stored.shape[1]), lines.reshape(-1)).dequantise()


@bare_kernel
def read_row(x, x_at, columns, kind, acts, acts_at):
    """One row of float32 -> activations for matrices of a kind; a number that is none makes all of its outputs none."""
    if kind == FLOAT:
        row = acts[acts_at : acts_at + 4 * columns].view(np.float32)
        for k in range(columns):
            row[k] = x[x_at + k]
        return
    for g in range((columns + GROUP - 1) // GROUP):
        read_group(x, x_at + GROUP * g, columns - GROUP * g, acts, acts_at + RECORD * g)


def _product_of(kind):
    """The product of one kind: for each tile, eight rows at a time, then the rest in one block of its own.

    The first rows of a tile ask for the weights some tiles ahead, which memory is slow to give: 1.75 times as fast.
    Each block costs a pass over the tile, so three rows are one block, not two and one: two thirds of the time.
    """
    one, two, three, four, five, six, seven, eight = (BLOCKS[kind, rows, True] for rows in range(1, 9))
    further = BLOCKS[kind, 8, False]

    def rows_of(w, at, size, outs, steps, acts, acts_at, stride, rows, out, out_at, out_stride, first, last):
        rest = rows % 8
        for tile in range(first, last):
            place, left, to, x = at + tile * size, outs - 16 * tile, out_at + 16 * tile, acts_at
            ahead = min(AHEAD, (last - tile - 1) * size)
            for number in range(rows // 8):
                if number == 0:
                    eight(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
                else:
                    further(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
                x, to = x + 8 * stride, to + 8 * out_stride
            if rest == 1:
                one(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
            elif rest == 2:
                two(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
            elif rest == 3:
                three(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
            elif rest == 4:
                four(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
            elif rest == 5:
                five(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
            elif rest == 6:
                six(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)
            elif rest == 7:
                seven(w, place, size, steps, acts, x, stride, out, to, out_stride, left, ahead)

    return bare_kernel(rows_of)


_float, _eight, _four, _centred = (_product_of(kind) for kind in (FLOAT, EIGHT, FOUR, CENTRED))


@bare_kernel
def _float_chunk(weights, at, size, outs, columns, acts, acts_at, stride, rows, out, out_at, out_stride, first, last):
    """As `_float`, for many rows: two tiles share each number that is read, as far as they go."""
    eights, paired = rows // 8, first + (last - first) // 2 * 2
    for tile in range(first, paired, 2):
        x, to = acts_at, out_at + TILE * tile
        for _ in range(eights):
            PAIR(weights, at + tile * size, size, columns, acts, x, stride, out, to, out_stride, outs - TILE * tile, 0)
            x, to = x + 8 * stride, to + 8 * out_stride
    x, to, left = acts_at + 8 * eights * stride, out_at + 8 * eights * out_stride, rows - 8 * eights
    _float(weights, at, size, outs, columns, acts, x, stride, left, out, to, out_stride, first, paired)
    _float(weights, at, size, outs, columns, acts, acts_at, stride, rows, out, out_at, out_stride, paired, last)


@bare_kernel
def product(
    weights, at, kind, outs, columns, acts, acts_at, acts_stride, rows, out, out_at, out_stride, first_tile, last_tile
):
    """out[r, o] = sum over k of x[r, k] * w[o, k], for the outputs of tiles first_tile..last_tile-1."""
    size = tile_bytes(kind, columns)
    here = (outs, columns if kind == FLOAT else (columns + GROUP - 1) // GROUP, acts, acts_at, acts_stride, rows)
    there = (out, out_at, out_stride, first_tile, last_tile)
    if kind == FLOAT and rows >= CHUNK:
        _float_chunk(weights, at, size, *here, *there)
    elif kind == FLOAT:
        _float(weights, at, size, *here, *there)
    elif kind == EIGHT:
        _eight(weights, at, size, *here, *there)
    elif kind == FOUR:
        _four(weights, at, size, *here, *there)
    else:
        _centred(weights, at, size, *here, *there)


@bare_kernel
def embed(weights, at, kind, outs, columns, id, out, out_at):
    """out[k] = w[id, k]: a row of a matrix as float32, its stored numbers to the bit."""
    tile, lane = at + id // TILE * tile_bytes(kind, columns), id % TILE
    if kind == FLOAT:
        row = weights[tile : tile + 4 * TILE * columns].view(np.float32)
        for k in range(columns):
            out[out_at + k] = row[TILE * k + lane]
        return
    for g in range((columns + GROUP - 1) // GROUP):
        scale = tile + SCALE_BYTES[kind] * g + 2 * lane
        d, m = half_at(weights, scale), np.float32(0)
        if kind == FOUR:
            m = half_at(weights, scale + 2 * TILE)
        block = tile + scales_bytes(kind, columns) + NUMBER_BYTES[kind] * g + 4 * lane
        for c in range(min(GROUP, columns - GROUP * g)):
            column = c if kind == EIGHT else c % 16
            q = np.int32(weights[block + 64 * (column // 4) + column % 4])
            if kind == EIGHT:
                q -= 128
            else:
                q = (q & 15 if c < 16 else q >> 4) - (8 if kind == CENTRED else 0)
            number = np.float32(q) * d
            out[out_at + GROUP * g + c] = number + m if kind == FOUR else number
