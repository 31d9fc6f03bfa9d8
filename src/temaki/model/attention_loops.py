"""Softmax over a stretch of each row and its gradient, as one loop each, for float32 in the processor's memory.

Letters: R rows of scores, S keys.
"""
# pyright: basic

import math

import numpy as np
from torch import Tensor

from temaki.base import team
from temaki.base.team import exp32, floats, given, integers, larger, real, span


@team.loop
def _soft_row(s, scale):
    """The row s becomes exp(scale s) / sum; returns the log of the sum. Not for empty rows."""
    top = s[0]
    for j in range(s.shape[0]):
        top = larger(top, s[j])
    total = np.float32(0)
    for j in range(s.shape[0]):
        e = exp32(scale * (s[j] - top))
        s[j] = e
        total += e
    share = np.float32(1) / total
    for j in range(s.shape[0]):
        s[j] *= share
    return scale * top + np.float32(math.log(total))


@team.loop
def _back_row(s, d, scale, log):
    """The row s of scores becomes p = exp(scale s - log), the row d of p's gradient that of s."""
    pull = np.float32(0)
    for j in range(s.shape[0]):
        p = exp32(scale * s[j] - log)
        s[j] = p
        pull += p * d[j]
    for j in range(s.shape[0]):
        d[j] = s[j] * (d[j] - pull) * scale


@team.loop
def _clear(s):
    for j in range(s.shape[0]):
        s[j] = 0


@team.task
def _soft_task(data):
    told = given(data)
    width, queries, share, scale = told[4], told[5], told[6], real(told[7])
    part, low, high = span(data)
    while part >= 0:
        scores, logs = floats(told[0], high * width), floats(told[1], high)
        begins, ends = (
            integers(told[2], (high // share + 1) * queries),
            integers(told[3], (high // share + 1) * queries),
        )
        for row in range(low, high):
            at = row // share * queries + row % queries
            one, begin, end = scores[row * width : (row + 1) * width], begins[at], ends[at]
            _clear(one[:begin])
            logs[row] = _soft_row(one[begin:end], scale)
            _clear(one[end:])
        part, low, high = span(data)


@team.task
def _back_task(data):
    told = given(data)
    width, queries, share, scale = told[5], told[6], told[7], real(told[8])
    part, low, high = span(data)
    while part >= 0:
        scores, grads, logs = floats(told[0], high * width), floats(told[1], high * width), floats(told[2], high)
        begins, ends = (
            integers(told[3], (high // share + 1) * queries),
            integers(told[4], (high // share + 1) * queries),
        )
        for row in range(low, high):
            at = row // share * queries + row % queries
            one, two, begin, end = (
                scores[row * width : (row + 1) * width], grads[row * width : (row + 1) * width], begins[at], ends[at],
            )  # fmt: skip
            _clear(one[:begin])
            _clear(two[:begin])
            _back_row(one[begin:end], two[begin:end], scale, logs[row])
            _clear(one[end:])
            _clear(two[end:])
        part, low, high = span(data)


def soft_(scores: Tensor, begins: Tensor, ends: Tensor, scale: float) -> Tensor:
    """Scores [P, H, T, S] become softmax(scale s) over the keys begin..end-1 of each query, 0 elsewhere.

    begins and ends: int64 [P, T], each query sees at least one key. Returns the log-sum-exp [P, H, T].
    """
    begins, ends, logs = begins.contiguous(), ends.contiguous(), scores.new_empty(scores.shape[:3])
    pieces, heads, queries, width = scores.shape
    rows = pieces * heads * queries
    told = (width, queries, heads * queries, float(scale))
    _soft_task(rows, team.parts(rows, 4 * width), scores, logs, begins, ends, *told)
    return logs


def soft_back_(scores: Tensor, grads: Tensor, begins: Tensor, ends: Tensor, scale: float, logs: Tensor) -> None:
    """Scores become probabilities again, and the probabilities' gradients those of the scores, both [P, H, T, S]."""
    begins, ends, logs = begins.contiguous(), ends.contiguous(), logs.contiguous()
    pieces, heads, queries, width = scores.shape
    rows = pieces * heads * queries
    told = (width, queries, heads * queries, float(scale))
    _back_task(rows, team.parts(rows, 4 * width), scores, grads, logs, begins, ends, *told)
