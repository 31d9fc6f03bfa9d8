"""Stacked projections to queries, keys and values: cut, norm and turn in one loop, and the gradient in another.

For float32 in the processor's memory and pairs that are halves; `Attention.project` has the same in separate steps. The
results lie frame by frame and head by head, as products want them (`model/attention_products`). Letters: N ids, P
frames of T ids, H heads, G heads of keys and values, K head size.
"""
# pyright: basic

from typing import Any

import torch
from torch import Tensor

from temaki.base import team
from temaki.base.team import floats, given, real, span
from temaki.model.norm_loops import norm_back_row, norm_row, shrink


@team.loop
def _turn_row(x, cos, sin):
    half = cos.shape[0]
    a, b = x[:half], x[half : 2 * half]
    for i in range(half):
        y, z = a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]
        a[i] = y
        b[i] = z


@team.loop
def _turn_back_row(x, cos, sin):
    half = cos.shape[0]
    a, b = x[:half], x[half : 2 * half]
    for i in range(half):
        y, z = a[i] * cos[i] + b[i] * sin[i], b[i] * cos[i] - a[i] * sin[i]
        a[i] = y
        b[i] = z


@team.loop
def _copy_row(x, y):
    for i in range(x.shape[0]):
        y[i] = x[i]


@team.loop
def _place(which, n, h, heads, groups, length, size):
    """Where the row of id n and stacked head h begins in q, k or v, numbers 0, 1 and 2."""
    head, many = (h, heads) if which == 0 else (h - heads - (which - 1) * groups, groups)
    return (((n // length) * many + head) * length + n % length) * size


@team.loop
def _which(h, heads, groups):
    return 0 if h < heads else (1 if h < heads + groups else 2)


@team.task
def _turn_task(data):
    """given: stacked, q, k, v, gain of q, gain of k, cos, sin, shrinks, H, G, K, T, eps."""
    told = given(data)
    heads, groups, size, length, eps = told[9], told[10], told[11], told[12], real(told[13])
    whole = heads + 2 * groups
    part, low, high = span(data)
    while part >= 0:
        x = floats(told[0], high * whole * size)
        for n in range(low, high):
            for h in range(whole):
                which = _which(h, heads, groups)
                at = _place(which, n, h, heads, groups, length, size)
                row = x[(n * whole + h) * size : (n * whole + h + 1) * size]
                into = floats(told[1 + which] + 4 * at, size)
                if which < 2 and told[4] != 0:
                    s = shrink(row, eps)
                    floats(told[8], high * (heads + groups))[n * (heads + groups) + h] = s
                    norm_row(row, floats(told[4 + which], size), s, into)
                else:
                    _copy_row(row, into)
                if which < 2 and told[6] != 0:
                    half = size // 2
                    _turn_row(into, floats(told[6] + 4 * n * half, half), floats(told[7] + 4 * n * half, half))
        part, low, high = span(data)


@team.task
def _turn_back_task(data):
    """As `_turn_task`, with dq, dk, dv to read, then: gradient of stacked, partial gradients of both gains."""
    told = given(data)
    heads, groups, size, length = told[9], told[10], told[11], told[12]
    whole = heads + 2 * groups
    part, low, high = span(data)
    while part >= 0:
        x, dx = floats(told[0], high * whole * size), floats(told[14], high * whole * size)
        if told[4] != 0:
            partial = floats(told[15] + 4 * part * 2 * size, 2 * size)
            for i in range(2 * size):
                partial[i] = 0
        for n in range(low, high):
            for h in range(whole):
                which = _which(h, heads, groups)
                at = _place(which, n, h, heads, groups, length, size)
                into = dx[(n * whole + h) * size : (n * whole + h + 1) * size]
                _copy_row(floats(told[1 + which] + 4 * at, size), into)
                if which < 2 and told[6] != 0:
                    half = size // 2
                    _turn_back_row(into, floats(told[6] + 4 * n * half, half), floats(told[7] + 4 * n * half, half))
                if which < 2 and told[4] != 0:
                    row = x[(n * whole + h) * size : (n * whole + h + 1) * size]
                    s = floats(told[8], high * (heads + groups))[n * (heads + groups) + h]
                    gain = floats(told[4 + which], size)
                    mine = floats(told[15] + 4 * (part * 2 + which) * size, size)
                    norm_back_row(row, gain, into, s, into, mine)
        part, low, high = span(data)


Pair = tuple[Tensor, Tensor] | None


def turn(
    stacked: Tensor, q: Tensor, k: Tensor, v: Tensor, gains: Pair, angles: Pair, eps: float
) -> Tensor:  # fmt: skip
    """Fill q [P, H, T, K], k and v [P, G, T, K] from stacked [N, (H + 2G) K]; returns 1 / rms of q and k [N, H + G].

    gains: of q and k, each [K]; angles: cosine and sine [N, 1, K/2]. All dense.
    """
    shrinks = stacked.new_empty(0 if gains is None else len(stacked) * (q.shape[1] + k.shape[1]))
    _turn_task(*_told(stacked, q, k, v, gains, angles, eps, shrinks))
    return shrinks


def turn_back(
    stacked: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, gains: Pair, angles: Pair, shrinks: Tensor
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(gradient of stacked, gradients of both gains [2, K]) from those of what `turn` filled."""
    told = _told(stacked, dq, dk, dv, gains, angles, 0.0, shrinks)
    into = torch.empty_like(stacked)
    partial = None if gains is None else stacked.new_empty(told[1], 2, dq.shape[3])
    _turn_back_task(*told, into, partial)
    return into, None if partial is None else partial.sum(0)


def _told(
    stacked: Tensor, q: Tensor, k: Tensor, v: Tensor, gains: Pair, angles: Pair, eps: float, shrinks: Tensor
) -> tuple[Any, ...]:  # fmt: skip
    _, heads, length, size = q.shape
    groups, ids = k.shape[1], len(stacked)
    tensors = (stacked, q, k, v, *(gains or (None, None)), *(angles or (None, None)), shrinks)
    return ids, team.parts(ids, 2 * stacked.shape[1]), *tensors, heads, groups, size, length, float(eps)
