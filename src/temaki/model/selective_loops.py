"""The selective scan of Mamba as compiled loops: outputs, states, and gradients from checkpoints.

h_t = e^(d_t A) h_{t-1} + d_t u_t B_t, y_t = sum_s C_{t,s} h_{t,s}: a step d and an input u for each channel, B and C
shared by all. States are kept before every 16th id and made again on the way back. 16 channels are one vector
(`base/lanes`); gradients of B and C are summed over four such blocks of channels at a time, and added up by the caller.
Letters: N ids, E channels, a multiple of 16, S states a channel.
"""
# pyright: basic

import torch
from torch import Tensor

from temaki.base import team
from temaki.base.lanes import LANES, exp, fma, load, settled, spread, store, total
from temaki.base.team import floats, given, integers, span
from temaki.model.scan_loops import BLOCK, clear, fetch, put

_TILE = BLOCK * LANES
_JOINED = 4
"""Blocks of 16 channels whose shares in the gradients of B and C are summed in one go."""


@team.loop
def _tile(tiles, i):
    return tiles[i * _TILE : (i + 1) * _TILE]


@team.loop
def _copy(source, target):
    for i in range(0, target.shape[0], LANES):
        store(target, i, load(source, i))


@team.loop
def _times(a, b, product, count):
    for t in range(count):
        store(product, t * LANES, load(a, t * LANES) * load(b, t * LANES))


@team.loop
def _kept_at(begin, piece, chunk):
    """The place of the checkpoint before a chunk of 16 ids of a piece: no two are the same."""
    return piece + begin // BLOCK + chunk


@team.loop
def _ahead(a, h, d, added, bc, y, states, count):
    """Up to BLOCK ids on from h [S, 16]: steps d, inputs d u and outputs y [count, 16]; a [S, 16]; bc [count, 2, S]."""
    clear(y, count * LANES)
    for s in range(states):
        rate, state = load(a, s * LANES), load(h, s * LANES)
        for t in range(count):
            at, place = t * LANES, 2 * t * states + s
            state = fma(exp(load(d, at) * rate), state, load(added, at) * spread(bc[place]))
            store(y, at, fma(spread(bc[place + states]), state, load(y, at)))
        store(h, s * LANES, settled(state))


@team.loop
def _again(rate, state, d, added, bc, s, states, decays, faded, count):
    """Of one state: its decays, and what is left of it at each id from the id before: [count, 16] both."""
    for t in range(count):
        at = t * LANES
        decay = exp(load(d, at) * rate)
        left = decay * state
        store(decays, at, decay)
        store(faded, at, left)
        state = left + load(added, at) * spread(bc[2 * t * states + s])


@team.loop
def _back(a, kept, run, of_a, bc, of_bc, tiles, states, count):
    """Up to BLOCK ids backwards: run [S, 16] on, the gradient of the state after them; a, kept [S, 16].

    of_a [S, 16] and of_bc [count, 2, S, 16] grow; tiles: u, d, g, gradients of u and d to be written, and room for 3.
    """
    u, d, g, of_u, of_d = _tile(tiles, 0), _tile(tiles, 1), _tile(tiles, 2), _tile(tiles, 3), _tile(tiles, 4)
    added, decays, faded = _tile(tiles, 5), _tile(tiles, 6), _tile(tiles, 7)
    _times(u, d, added, count)
    clear(of_u, count * LANES)
    clear(of_d, count * LANES)
    for s in range(states):
        rate = load(a, s * LANES)
        _again(rate, load(kept, s * LANES), d, added, bc, s, states, decays, faded, count)
        m, mine = load(run, s * LANES), load(of_a, s * LANES)
        for back in range(count):
            t = count - 1 - back
            at, place = t * LANES, 2 * t * states + s
            b, c, grad = spread(bc[place]), spread(bc[place + states]), load(g, at)
            more, left = load(added, at), load(faded, at)
            m = fma(c, grad, m)
            of_b, of_c = place * LANES, (place + states) * LANES
            store(of_bc, of_c, fma(grad, fma(more, b, left), load(of_bc, of_c)))
            store(of_bc, of_b, fma(m, more, load(of_bc, of_b)))
            store(of_u, at, fma(m, b, load(of_u, at)))  # of d u as yet
            pull = m * left
            store(of_d, at, fma(pull, rate, load(of_d, at)))
            mine = fma(pull, load(d, at), mine)
            m = m * load(decays, at)
        store(run, s * LANES, settled(m))
        store(of_a, s * LANES, mine)
    for t in range(count):
        at = t * LANES
        pull = load(of_u, at)
        store(of_d, at, fma(pull, load(u, at), load(of_d, at)))
        store(of_u, at, pull * load(d, at))


@team.task
def _ahead_task(data):
    """given: u, d, a, bc, y, kept or 0, states of all pieces or 0, cuts, groups, scratch, E, S, pieces."""
    told = given(data)
    width, states, pieces = told[10], told[11], told[12]
    blocks, size = width // LANES, states * LANES
    part, first, last = span(data)
    while part >= 0:
        scratch = floats(told[9] + 4 * part * (size + 3 * _TILE), size + 3 * _TILE)
        h, tiles = scratch[:size], scratch[size:]
        u, d, y = _tile(tiles, 0), _tile(tiles, 1), _tile(tiles, 2)
        for item in range(first, last):
            group, block = item // blocks, item % blocks
            bounds, cuts = integers(told[8], group + 2), integers(told[7], pieces + 1)
            a = floats(told[2] + 4 * block * size, size)
            for piece in range(bounds[group], bounds[group + 1]):
                begin, end = cuts[piece], cuts[piece + 1]
                carried = floats(told[6] + 4 * (piece * blocks + block) * size, size)
                clear(h, size)
                if told[6] != 0:
                    _copy(carried, h)
                for low in range(begin, end, BLOCK):
                    count = min(BLOCK, end - low)
                    if told[5] != 0:
                        at = _kept_at(begin, piece, (low - begin) // BLOCK) * blocks + block
                        _copy(h, floats(told[5] + 4 * at * size, size))
                    fetch(floats(told[0], end * width), width, block * LANES, low, count, u)
                    fetch(floats(told[1], end * width), width, block * LANES, low, count, d)
                    _times(u, d, u, count)
                    _ahead(a, h, d, u, floats(told[3] + 8 * low * states, 2 * count * states), y, states, count)
                    put(y, floats(told[4], end * width), width, block * LANES, low, count)
                if told[6] != 0:
                    _copy(h, carried)
        part, first, last = span(data)


@team.task
def _back_task(data):
    """given: u, d, g, gradients of u and d, a, gradient of a (each group), bc, gradient of bc (each joined), kept,
    cuts, groups, scratch, E, S, pieces, N."""
    told = given(data)
    width, states, pieces, ids = told[13], told[14], told[15], told[16]
    blocks, size = width // LANES, states * LANES
    joins, wide = (blocks + _JOINED - 1) // _JOINED, 2 * BLOCK * size
    room = _JOINED * size + wide + 8 * _TILE
    part, first, last = span(data)
    while part >= 0:
        scratch = floats(told[12] + 4 * part * room, room)
        run, of_bc, tiles = scratch[: _JOINED * size], scratch[_JOINED * size :], scratch[_JOINED * size + wide :]
        for item in range(first, last):
            group, join = item // joins, item % joins
            bounds, cuts = integers(told[11], group + 2), integers(told[10], pieces + 1)
            block0, blocks_here = join * _JOINED, min(_JOINED, blocks - join * _JOINED)
            every_a = floats(told[6] + 4 * (group * blocks + block0) * size, blocks_here * size)
            clear(every_a, blocks_here * size)
            for piece in range(bounds[group], bounds[group + 1]):
                begin, end = cuts[piece], cuts[piece + 1]
                chunks = (end - begin + BLOCK - 1) // BLOCK
                clear(run, _JOINED * size)
                for back in range(chunks):
                    chunk = chunks - 1 - back
                    low = begin + chunk * BLOCK
                    count = min(BLOCK, end - low)
                    bc = floats(told[7] + 8 * low * states, 2 * count * states)
                    clear(of_bc, 2 * count * size)
                    for i in range(blocks_here):
                        block = block0 + i
                        kept = (_kept_at(begin, piece, chunk) * blocks + block) * size
                        for which in range(3):
                            every = floats(told[which], end * width)
                            fetch(every, width, block * LANES, low, count, _tile(tiles, which))
                        _back(
                            floats(told[5] + 4 * block * size, size), floats(told[9] + 4 * kept, size),
                            run[i * size :], every_a[i * size :], bc, of_bc, tiles, states, count,
                        )  # fmt: skip
                        for which in range(3, 5):
                            every = floats(told[which], end * width)
                            put(_tile(tiles, which), every, width, block * LANES, low, count)
                    of = floats(told[8] + 8 * (join * ids + low) * states, 2 * count * states)
                    for i in range(2 * count * states):
                        of[i] = total(load(of_bc, i * LANES))
        part, first, last = span(data)


Kept = tuple[Tensor, Tensor]


def selective_ahead(
    u: Tensor, d: Tensor, a: Tensor, bc: Tensor, cuts: Tensor, groups: Tensor, carried: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """(y [N, E], checkpoints or None) of u, d [N, E], a [E/16, S, 16], bc [N, 2, S]; cuts, groups as `scan_ahead`.

    carried [n, E/16, S, 16]: each piece goes on from its state and leaves there the one after it; None: from zero.
    """
    (ids, width), (blocks, states, _) = u.shape, a.shape
    items, pieces, y = (len(groups) - 1) * blocks, len(cuts) - 1, torch.empty_like(u)
    kept = u.new_empty(pieces + ids // BLOCK, *a.shape) if keep else None
    parts = min(32, items)
    scratch = u.new_empty(parts, states * LANES + 3 * _TILE)
    _ahead_task(items, parts, u, d, a, bc, y, kept, carried, cuts, groups, scratch, width, states, pieces)
    return y, kept


def selective_back(
    u: Tensor, d: Tensor, g: Tensor, a: Tensor, bc: Tensor, kept: Tensor, cuts: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, d, a and bc from that of y, g [N, E]."""
    (ids, width), (blocks, states, _) = u.shape, a.shape
    joins, pieces, many = -(-blocks // _JOINED), len(cuts) - 1, len(groups) - 1
    items = many * joins
    parts = min(32, items)
    du, dd = torch.empty_like(u), torch.empty_like(d)
    of_a, of_bc = a.new_empty(many, *a.shape), bc.new_empty(joins, *bc.shape)
    scratch = u.new_empty(parts, (_JOINED + 2 * BLOCK) * states * LANES + 8 * _TILE)
    _back_task(
        items, parts, u, d, g, du, dd, a, of_a, bc, of_bc, kept, cuts, groups, scratch, width, states, pieces, ids
    )  # fmt: skip
    return du, dd, of_a.sum(0), of_bc.sum(0)
