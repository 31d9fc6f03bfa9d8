"""Register blocks of a matrix product: some rows of activations by some tiles of 16 outputs, written in LLVM's words.

For one row and one output the sums run in one order, whatever shares the block: groups of 32 columns one after the
other, in each an exact sum of integers, then `sum += integers * (d s)` and, with a least number m, `sum += m * (s *
integers of x)`. Only how the integers are summed depends on the processor.

Letters: W lanes of a register (outputs), d and m a group's scale and least number, s an activation group's scale.
"""
# pyright: basic

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from temaki.compiled.vectors import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    call,
    data,
    features,
    filled,
    load,
    multiply_add,
    splat,
    store,
    want,
    whole,
    widen,
)

FLOAT, EIGHT, FOUR, CENTRED = 0, 1, 2, 3
TILE = 16
"""Outputs of a tile."""
GROUP = 32
"""Columns that share a scale."""
SCALE_BYTES = (0, 2 * TILE, 4 * TILE, 2 * TILE)
"""Of a group of a tile, by kind."""
NUMBER_BYTES = (0, TILE * GROUP, TILE * GROUP // 2, TILE * GROUP // 2)
RECORD = 48
"""Bytes of a group of activations: its integers, then float32 s and s * sum, int32 -8 sum and -128 sum."""
SCALE, SCALED = 32, 36
LESS = (0, 44, 0, 40)
"""Where the number stands that the integers begin at, by kind: weights are kept 128 or 8 too high."""


class Dot(NamedTuple):
    """How products of bytes are summed in fours: `start(i32 [W])`, `step(state, unsigned, signed)`, `stop(state)`."""

    start: Callable[[Any, Any], Any]
    step: Callable[[Any, Any, Any, Any], Any]
    stop: Callable[[Any, Any], Any]


class Target(NamedTuple):
    """What a processor is given."""

    lanes: int
    rows: int
    """Rows at most in a register block."""
    vnni: bool
    """Whether it sums four products of bytes in one step."""
    avx2: bool

    @property
    def signed(self) -> bool:
        """Whether bytes are taken with their sign, as pairs of them do not fit into 16 bits without."""
        return self.avx2 and not self.vnni


def target() -> Target:
    """By what the processor can do."""
    known = features()
    if {"avx512f", "avx512bw", "avx512vnni"} <= known:
        return Target(16, 8, vnni=True, avx2=True)
    if "avx2" in known:
        return Target(8, 4, vnni=bool(known & {"avxvnni", "avx512vnni"}), avx2=True)
    return Target(8, 4, vnni=False, avx2=False)


# ---- sums of four products of bytes -------------------------------------------------------------------------------


def _keep(_builder: Any, state: Any) -> Any:
    return state


def _dot(way: Target, kind: int) -> Dot:
    if way.vnni:
        return Dot(_keep, _vnni, _keep)
    if not way.avx2:
        return Dot(_keep, _plain, _keep) if kind == EIGHT else Dot(_pairs_start, _plain_pairs, _plain_stop)
    return Dot(_keep, _signs, _keep) if kind == EIGHT else Dot(_pairs_start, _pairs, _pairs_stop)


def _vnni(builder: Any, state: Any, unsigned: Any, signed: Any) -> Any:
    return call(
        builder,
        f"llvm.x86.avx512.vpdpbusd.{32 * state.type.count}",
        state.type,
        [state, builder.bitcast(unsigned, state.type), builder.bitcast(signed, state.type)],
    )


def _pairs_start(builder: Any, start: Any) -> Any:
    return [start, ir.Constant(ir.VectorType(I16, 2 * start.type.count), None)]


def _pairs(builder: Any, state: Any, unsigned: Any, signed: Any) -> Any:
    """Nibbles: eight sums of two products of at most 15 * 127 fit into 16 bits."""
    start, sums = state
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", sums.type, [unsigned, signed])
    return [start, builder.add(sums, pairs)]


def _pairs_stop(builder: Any, state: Any) -> Any:
    start, sums = state
    fours = call(builder, "llvm.x86.avx2.pmadd.wd", start.type, [sums, filled(sums.type, 1)])
    return builder.add(start, fours)


def _signs(builder: Any, state: Any, unsigned: Any, signed: Any) -> Any:
    """Bytes: |q| times x with q's sign, so that two products are at most 2 * 128 * 127; q comes as `unsigned`."""
    kind = unsigned.type
    zero = ir.Constant(kind, None)
    size = builder.select(builder.icmp_signed("<", unsigned, zero), builder.sub(zero, unsigned), unsigned)
    turned = call(builder, "llvm.x86.avx2.psign.b", kind, [signed, unsigned])
    words = ir.VectorType(I16, kind.count // 2)
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", words, [size, turned])
    return builder.add(state, call(builder, "llvm.x86.avx2.pmadd.wd", state.type, [pairs, filled(words, 1)]))


def _halved(builder: Any, pairs: Any) -> Any:
    """int16 [2 W] -> int32 [W]: the two of each lane added."""
    words = ir.VectorType(I32, pairs.type.count // 2)
    both = builder.bitcast(pairs, words)
    low = builder.ashr(builder.shl(both, filled(words, 16)), filled(words, 16))
    return builder.add(low, builder.ashr(both, filled(words, 16)))


def _products(builder: Any, unsigned: Any, signed: Any) -> list[Any]:
    """Products of the even bytes and of the odd ones: at most 255 * 127, which fits into 16 bits."""
    pairs = ir.VectorType(I16, unsigned.type.count // 2)
    left, right, eight = builder.bitcast(unsigned, pairs), builder.bitcast(signed, pairs), filled(pairs, 8)
    even = builder.mul(builder.and_(left, filled(pairs, 255)), builder.ashr(builder.shl(right, eight), eight))
    return [even, builder.mul(builder.lshr(left, eight), builder.ashr(right, eight))]


def _plain_pairs(builder: Any, state: Any, unsigned: Any, signed: Any) -> Any:
    """As `_pairs`, on any processor."""
    start, sums = state
    for product in _products(builder, unsigned, signed):
        sums = builder.add(sums, product)
    return [start, sums]


def _plain_stop(builder: Any, state: Any) -> Any:
    return builder.add(state[0], _halved(builder, state[1]))


def _plain(builder: Any, state: Any, unsigned: Any, signed: Any) -> Any:
    for product in _products(builder, unsigned, signed):
        state = builder.add(state, _halved(builder, product))
    return state


# ---- one register block -------------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """W outputs: where their tile lies, and which of its lanes they begin at."""

    weights: Any
    lane: int


Sums = list[list[Any]]
"""One a row and unit."""


def _zeros(builder: Any, rows: int, units: int, kind: Any) -> Sums:
    """Places for sums, which LLVM keeps in registers."""
    zero = ir.Constant(kind, None)
    places = [[cgutils.alloca_once(builder, kind) for _ in range(units)] for _ in range(rows)]
    for place in (one for row in places for one in row):
        builder.store(zero, place)
    return places


def _scalar(builder: Any, pointer: Any, at: int, kind: Any, lanes: int) -> Any:
    """The number at a byte of `pointer` in every lane."""
    return splat(builder, load(builder, builder.gep(pointer, [whole(at)]), kind, 4), lanes)


def _ask(builder: Any, pointer: Any, first: Any, size: int) -> None:
    """Ask for the lines of `size` bytes from `first` on, which are read later: into the second cache."""
    for line in range(0, size, 64):
        want(builder, builder.gep(pointer, [builder.add(first, whole(line))]))


def _floats(builder: Any, units: list[Unit], rows: list[Any], columns: Any, lanes: int, ahead: Any) -> Sums:
    """sum += x[k] * w[k], one column after the other."""
    kind = ir.VectorType(F32, lanes)
    sums = _zeros(builder, len(rows), len(units), kind)
    with cgutils.for_range(builder, columns, intp=I64) as loop:
        at = builder.mul(loop.index, whole(4))
        x = [_scalar(builder, builder.gep(row, [at]), 0, F32, lanes) for row in rows]
        line = builder.mul(loop.index, whole(4 * TILE))
        if ahead is not None:
            _ask(builder, units[0].weights, builder.add(line, ahead), 64)
        for u, unit in enumerate(units):
            place = builder.gep(unit.weights, [builder.add(line, whole(4 * unit.lane))])
            w = load(builder, place, kind, 4)
            for r, value in enumerate(x):
                builder.store(multiply_add(builder, value, w, builder.load(sums[r][u])), sums[r][u])
    return [[builder.load(one) for one in row] for row in sums]


def _numbers(builder: Any, kind: int, way: Target, block: Any, lane: int) -> list[tuple[int, Any]]:
    """(first of four columns, their weights for W outputs) of a group, as the sums want them."""
    bytes_, pairs = ir.VectorType(I8, 4 * way.lanes), ir.VectorType(I16, 2 * way.lanes)
    found = []
    for line in range(NUMBER_BYTES[kind] // 64):
        q = load(builder, builder.gep(block, [whole(64 * line + 4 * lane)]), bytes_, 4)
        if kind == EIGHT:
            found.append((4 * line, builder.xor(q, filled(bytes_, 128)) if way.signed else q))
            continue
        high = builder.lshr(builder.bitcast(q, pairs), filled(pairs, 4))
        found.append((4 * line, builder.and_(q, filled(bytes_, 15))))
        found.append((16 + 4 * line, builder.and_(builder.bitcast(high, bytes_), filled(bytes_, 15))))
    return found


def _quantised(builder: Any, kind: int, way: Target, unit: Unit, rows: list[Any], groups: Any, ahead: Any) -> Sums:
    """The sums of 4-bit or 8-bit weights; activations lie as `read_row` writes them."""
    floats, words, halves = (ir.VectorType(each, way.lanes) for each in (F32, I32, F16))
    dot = _dot(way, kind)
    sums = _zeros(builder, len(rows), 1, floats)
    blocks = builder.gep(unit.weights, [_padded(builder, builder.mul(groups, whole(SCALE_BYTES[kind])))])
    with cgutils.for_range(builder, groups, intp=I64) as loop:
        g = loop.index
        if ahead is not None:
            size = SCALE_BYTES[kind] + NUMBER_BYTES[kind]
            _ask(builder, unit.weights, builder.add(builder.mul(g, whole(size)), ahead), size)
        x = [builder.gep(row, [builder.mul(g, whole(RECORD))]) for row in rows]
        scale = builder.gep(unit.weights, [builder.add(builder.mul(g, whole(SCALE_BYTES[kind])), whole(2 * unit.lane))])
        d = widen(builder, load(builder, scale, halves, 2))
        m = widen(builder, load(builder, builder.gep(scale, [whole(2 * TILE)]), halves, 2)) if kind == FOUR else None
        integers = []
        for record in x:
            moved = kind == CENTRED or (kind == EIGHT and not way.signed)
            start = _scalar(builder, record, LESS[kind], I32, way.lanes) if moved else ir.Constant(words, None)
            integers.append(dot.start(builder, start))
        block = builder.gep(blocks, [builder.mul(g, whole(NUMBER_BYTES[kind]))])
        for column, q in _numbers(builder, kind, way, block, unit.lane):
            for r, record in enumerate(x):
                four = builder.bitcast(_scalar(builder, record, column, I32, way.lanes), q.type)
                integers[r] = dot.step(builder, integers[r], q, four)
        for r, record in enumerate(x):
            found = builder.sitofp(dot.stop(builder, integers[r]), floats)
            scaled = builder.fmul(d, _scalar(builder, record, SCALE, F32, way.lanes))
            total = multiply_add(builder, found, scaled, builder.load(sums[r][0]))
            if m is not None:
                total = multiply_add(builder, m, _scalar(builder, record, SCALED, F32, way.lanes), total)
            builder.store(total, sums[r][0])
    return [[builder.load(row[0])] for row in sums]


def _padded(builder: Any, size: Any) -> Any:
    """The next multiple of 64."""
    return builder.and_(builder.add(size, whole(63)), whole(-64))


def _write(builder: Any, sums: Any, pointer: Any, left: Any) -> None:
    """Write W outputs, or the `left` of them that are there."""
    lanes = sums.type.count
    with builder.if_else(builder.icmp_signed(">=", left, whole(lanes)), likely=True) as (all_, some):
        with all_:
            store(builder, sums, pointer, 4)
        with some:
            place = cgutils.alloca_once(builder, sums.type)
            builder.store(sums, place)
            first = builder.bitcast(place, F32.as_pointer())
            count = builder.select(builder.icmp_signed(">", left, whole(0)), left, whole(0))
            with cgutils.for_range(builder, count, intp=I64) as loop:
                at = [loop.index]
                builder.store(builder.load(builder.gep(first, at)), builder.gep(pointer, at))


def _passes(way: Target, kind: int, rows: int, tiles: int) -> list[tuple[range, list[tuple[int, int]]]]:
    """(rows, (tile, lane) of the units) of each pass over the weights: what fits into the registers."""
    units = [(tile, lane) for tile in range(tiles) for lane in range(0, TILE, way.lanes)]
    tops = [range(top, min(top + way.rows, rows)) for top in range(0, rows, way.rows)]
    step = max(1, 2 * way.rows // min(rows, way.rows)) if kind == FLOAT else 1
    return [(here, units[first : first + step]) for first in range(0, len(units), step) for here in tops]


def _block(kind: int, rows: int, tiles: int, asking: bool) -> Any:
    """`block(weights, at, tile bytes, steps, acts, acts_at, acts_stride, out, out_at, out_stride, left, ahead)`.

    out[r, o] for the first `rows` rows and `tiles` tiles from `at` on, of which `left` outputs are there. `steps`:
    columns, or groups of them. `ahead`: how far beyond here the weights lie that are asked for, if `asking`.
    """

    def typed(_context, weights, at, size, steps, acts, acts_at, acts_stride, out, out_at, out_stride, left, ahead):
        def generate(context, builder, signature, args):
            way = target()
            _, at, size, steps, _, acts_at, acts_stride, _, out_at, out_stride, left, ahead = args
            matrix = builder.gep(data(context, builder, signature, args, 0), [at])
            read = builder.gep(data(context, builder, signature, args, 4), [acts_at])
            written = builder.gep(data(context, builder, signature, args, 7), [out_at])
            for number, (here, chosen) in enumerate(_passes(way, kind, rows, tiles)):
                further = ahead if asking and number == 0 else None
                x = [builder.gep(read, [builder.mul(acts_stride, whole(row))]) for row in here]
                units = [Unit(builder.gep(matrix, [builder.mul(size, whole(tile))]), lane) for tile, lane in chosen]
                if kind == FLOAT:
                    sums = _floats(builder, units, x, steps, way.lanes, further)
                else:
                    sums = _quantised(builder, kind, way, units[0], x, steps, further)
                for row, line in zip(here, sums, strict=True):
                    for (tile, lane), found in zip(chosen, line, strict=True):
                        place = whole(TILE * tile + lane)
                        where = builder.add(builder.mul(out_stride, whole(row)), place)
                        _write(builder, found, builder.gep(written, [where]), builder.sub(left, place))
            return context.get_dummy_value()

        n = types.int64
        return types.void(weights, n, n, n, acts, n, n, out, n, n, n, n), generate

    return intrinsic(typed)


BLOCKS = {
    (kind, rows, asking): _block(kind, rows, 1, asking)
    for kind in (FLOAT, EIGHT, FOUR, CENTRED)
    for rows, asking in (*((rows, True) for rows in range(1, 9)), (8, False))
}
"""By kind, rows and whether weights further on are asked for."""

PAIR = _block(FLOAT, 8, 2, False)
"""Eight rows by two tiles."""
