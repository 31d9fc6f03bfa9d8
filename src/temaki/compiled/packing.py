"""Blocks of ggml's kinds -> tiles of 16 outputs: the same integers and scales in another order."""

from temaki.base.compile import bare_kernel
from temaki.compiled.products import EIGHT, FLOAT, GROUP, NUMBER_BYTES, SCALE_BYTES, TILE


@bare_kernel
def scales_bytes(kind, columns):
    """Bytes of all scales of a tile, a multiple of 64; its numbers begin there."""
    groups = (columns + GROUP - 1) // GROUP
    return (SCALE_BYTES[kind] * groups + 63) & ~63


@bare_kernel
def tile_bytes(kind, columns):
    """Bytes of a tile of a matrix with so many columns."""
    if kind == FLOAT:
        return 4 * TILE * columns
    return scales_bytes(kind, columns) + NUMBER_BYTES[kind] * ((columns + GROUP - 1) // GROUP)


@bare_kernel
def _pack_row(blocks, row, lane, tile, kind, out):
    """One row of blocks -> a lane of the tile that begins at byte `tile`."""
    groups = blocks.shape[1]
    count = SCALE_BYTES[kind] // (2 * TILE)  # of scales in a block: d, or d and m
    of_lane, zero = NUMBER_BYTES[kind] // TILE, 128 if kind == EIGHT else 0
    numbers = tile + scales_bytes(kind, GROUP * groups) + 4 * lane
    for g in range(groups):
        for scale in range(count):
            at = tile + SCALE_BYTES[kind] * g + 2 * TILE * scale + 2 * lane
            out[at], out[at + 1] = blocks[row, g, 2 * scale], blocks[row, g, 2 * scale + 1]
        for byte in range(of_lane):
            place = numbers + NUMBER_BYTES[kind] * g + 4 * TILE * (byte // 4) + byte % 4
            out[place] = blocks[row, g, 2 * count + byte] ^ zero


@bare_kernel
def pack_blocks(blocks, order, kind, out):
    """Write rows `order` of blocks, uint8 [rows][groups][bytes], to tiles; outputs beyond them have scales of zero."""
    columns = GROUP * blocks.shape[1]
    size = tile_bytes(kind, columns)
    for tile in range((len(order) + TILE - 1) // TILE):
        first, last = TILE * tile, min(TILE * tile + TILE, len(order))
        start = tile * size
        out[start : start + (scales_bytes(kind, columns) if last - first == TILE else size)] = 0
        for lane in range(last - first):
            _pack_row(blocks, order[first + lane], lane, start, kind, out)
