"""The loss of logits and their gradient in one pass over each row, for float32 in the processor's memory.

The twin stands in `model/heads`; it goes over all logits eight times. Letters: N places, V vocabulary.
"""
# pyright: basic

import math

import numpy as np
from torch import Tensor

from temaki.base import team
from temaki.base.team import exp32, floats, given, integers, larger, real, span

_ONE = np.float32(1)


@team.loop
def _exponentials(row):
    """Each l of a row becomes exp(l - max); returns (max, the new sum, the old sum)."""
    top = row[0]
    for j in range(row.shape[0]):
        top = larger(top, row[j])
    total, plain = np.float32(0), np.float32(0)
    for j in range(row.shape[0]):
        plain += row[j]
        e = exp32(row[j] - top)
        row[j] = e
        total += e
    return top, total, plain


@team.loop
def _scaled(row, scale, minus):
    for j in range(row.shape[0]):
        row[j] = row[j] * scale - minus


@team.task
def _nll_task(data):
    told = given(data)
    width, smooth, z = told[4], real(told[5]), real(told[6])
    part, low, high = span(data)
    while part >= 0:
        logits, losses = floats(told[0], high * width), floats(told[3], high)
        targets, weights = integers(told[1], high), floats(told[2], high)
        for i in range(low, high):
            row, w, t = logits[i * width : (i + 1) * width], weights[i], targets[i]
            picked = row[t]
            top, total, plain = _exponentials(row)
            lse = top + np.float32(math.log(total))
            mean = plain / np.float32(width)
            losses[i] = w * (lse - (_ONE - smooth) * picked - smooth * mean + z * lse * lse)
            _scaled(row, w * (_ONE + np.float32(2) * z * lse) / total, w * smooth / np.float32(width))
            row[t] -= w * (_ONE - smooth)
        part, low, high = span(data)


def nll_(logits: Tensor, targets: Tensor, weights: Tensor, smooth: float, z: float) -> Tensor:
    """The weighted loss of each place [N]; its logits [N, V] become their own gradient."""
    losses, targets = logits.new_empty(len(logits)), targets.contiguous()
    width = logits.shape[1]
    if len(targets):  # the loop writes where they point
        least, most = (int(each) for each in targets.aminmax())
        assert 0 <= least <= most < width, f"targets {least}..{most} of {width} classes"
    parts = team.parts(len(logits), 4 * width)
    _nll_task(len(logits), parts, logits, targets, weights, losses, width, float(smooth), float(z))
    return losses
