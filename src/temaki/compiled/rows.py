"""What happens to single rows between the products of a layer: embedding, norms, rotation, activation.

x, said, own, .. are where a row begins among the floats. Letters: D width.
"""
# pyright: basic

import numpy as np

from temaki.base.compile import bare_kernel
from temaki.compiled.formulas import (
    activate,
    normalise,
)
from temaki.compiled.job import (
    AT_PLACES,
    EMBEDDED,
    EMBEDDING,
    IDS,
    LISTS,
    MADE,
    MAKE,
    PADDED,
    PLACED,
    RAISE,
    SCALE,
    SLOTS,
    STACK,
    STACKED,
    VOCABULARY,
    WIDTH,
)
from temaki.compiled.matrix import (
    embed,
    read_row,
)
from temaki.compiled.plan import (
    ACTIVATION,
    BIAS,
    BIASED,
    FORM,
    GAIN,
    GATED,
    HIDDEN,
    ORDER,
    OUTS,
    POST,
    QK_GAINS,
    QKV,
    ROPE,
    SANDWICH,
)
from temaki.compiled.rotary import (
    norm_heads,
    rotate,
    store_row,
)
from temaki.compiled.table import (
    GROUPS,
    HEADS,
    SIZE,
)


@bare_kernel
def add_bias(x, at, numbers, told):
    if told[BIASED]:
        for k in range(told[OUTS]):
            x[at + k] += numbers[told[BIAS] + k]


@bare_kernel
def taken_in(floats, x, said, layer, after, norm, width, stride, numbers, told):
    """x takes in what a branch said, by the order of the block; `said` is used up."""
    add_bias(floats, said, numbers, told)
    if layer[ORDER] == SANDWICH:
        normalise(floats, said, width, stride, numbers, after, floats, said)
    for k in range(width):
        floats[x + k] += floats[said + k]
    if layer[ORDER] == POST:
        normalise(floats, x, width, stride, numbers, norm, floats, x)


@bare_kernel
def took(job, floats, x, raised, own, r, told, after, norm, numbers, said):
    """`taken_in` of row r of what a branch said, which stays as it is: others may read it too."""
    width, at = job[WIDTH], raised + r * job[RAISE]
    for k in range(width):
        floats[own + k] = floats[at + k]
    taken_in(floats, x, own, told, after, norm, width, job[PADDED], numbers, said)


@bare_kernel
def begun(job, floats, weights, tables, row, x):
    """The embedding of a row's id, scaled, and its position."""
    width = job[WIDTH]
    embed(weights, job[EMBEDDED], job[EMBEDDING], job[VOCABULARY], width, job[IDS + row], floats, x)
    if tables[SCALE] != np.float32(1):
        for k in range(width):
            floats[x + k] *= tables[SCALE]
    if job[PLACED]:
        at = job[PLACED] + job[AT_PLACES + row] * width
        for k in range(width):
            floats[x + k] += tables[at + k]


@bare_kernel
def turned(job, layers, linears, numbers, tables, data, shapes, floats, layer, row):
    """A row's queries, keys, values: biased, normed, turned; keys and values go to the cache."""
    told, shape = layers[layer], shapes[layer]
    heads, groups, size = shape[HEADS], shape[GROUPS], shape[SIZE]
    at = job[STACKED] + row * job[STACK]
    place = job[AT_PLACES + row]
    add_bias(floats, at, numbers, linears[4 * layer + QKV])
    if told[QK_GAINS]:
        gains = told[QK_GAINS] + GAIN
        eps = numbers[told[QK_GAINS]]
        norm_heads(floats, at, heads, size, numbers, gains, eps)
        norm_heads(floats, at + heads * size, groups, size, numbers, gains + (size + 15) // 16 * 16, eps)
    if told[ROPE]:
        angle = place * (size // 2)
        cosines, sines = job[LISTS + 2 * layer] + angle, job[LISTS + 2 * layer + 1] + angle
        rotate(floats, at, heads + groups, size, told[ROPE] - 1, tables, cosines, sines)
    key = at + heads * size
    store_row(data, shapes, layer, job[SLOTS + row], place, floats, key, key + groups * size)


@bare_kernel
def read(told, floats, x, own, norm, job, numbers, into, acts, at):
    """A row as the next layer reads it: normed first, unless norms come after."""
    if told[ORDER] == POST:
        read_row(floats, x, job[WIDTH], into[FORM], acts, at)
    else:
        normalise(floats, x, job[WIDTH], job[PADDED], numbers, norm, floats, own)
        read_row(floats, own, job[WIDTH], into[FORM], acts, at)


@bare_kernel
def between(job, told, floats, r, own, numbers, up, down, acts, at):
    """A row between the two matrices of a feed-forward layer."""
    made, hidden = job[MADE] + r * job[MAKE], told[HIDDEN]
    if up[BIASED]:
        for k in range(up[OUTS]):
            floats[own + k] = floats[made + k] + numbers[up[BIAS] + k]
        made = own
    other = made + hidden if told[GATED] else made
    activate(told[ACTIVATION], floats, made, other, hidden, floats, own)
    read_row(floats, own, hidden, down[FORM], acts, at)
