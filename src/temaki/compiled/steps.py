"""All layers for the rows of one call, on all threads of a crew: the one kernel that decodes and reads prompts.

A row is one id. Rows of one call may belong to any slots; each goes through sums of its own in an order of its own, so
neither its neighbours nor the number of threads changes its bits. Where there are FEW rows, each thread does what is
row by row (norms, rounding of activations) for itself into memory of its own, which is cheaper than to meet.
Letters: N rows, M wanted rows, D width, V vocabulary, G groups of heads.
"""
# pyright: basic

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic
from numba.np import arrayobj

from temaki.base.compile import bare_kernel
from temaki.compiled.attend import (
    attend,
    attend_span,
    first_span,
    fold_spans,
    last_span,
)
from temaki.compiled.crew import CREW, LINE, add, called, gather, meet
from temaki.compiled.formulas import (
    cap_numbers,
    normalise,
)
from temaki.compiled.job import (
    ACT,
    CAP,
    COUNT,
    DEPTH,
    FEW,
    HELPERS,
    HIDDENS,
    LOGITS,
    MADE,
    MAKE,
    OWN,
    OWNED,
    PADDED,
    PARTIAL,
    PARTIALS,
    PHASES,
    RAISE,
    RAISED,
    RUN_IDS,
    RUN_PLACES,
    RUN_ROWS,
    RUN_SLOTS,
    RUNS,
    SEE,
    SEEN,
    SPANS,
    STACK,
    STACKED,
    VOCABULARY,
    WANTED,
    WANTS,
    WIDTH,
    X,
)  # fmt: skip
from temaki.compiled.matrix import (
    product,
    read_row,
)
from temaki.compiled.plan import (
    AT,
    COLUMNS,
    DOWN,
    FFN_AFTER,
    FFN_NORM,
    FIRST,
    FORM,
    KIND,
    MIXER_AFTER,
    MIXER_NORM,
    OUT,
    QKV,
    ROWS,
    SEGMENTS,
    TILED,
    TILES,
    TO,
    UP,
)  # fmt: skip
from temaki.compiled.rows import (
    begun,
    between,
    read,
    took,
    turned,
)
from temaki.compiled.table import (
    GROUPS,
)

intrinsic: Any = _intrinsic

AHEAD = 4
"""Parts that the tiles of a product are cut into, for each thread."""


@intrinsic
def _floats(_context, address, size):
    """The float32 numbers at an address, which somebody else keeps."""
    kind = types.Array(types.float32, 1, "C")

    def generate(context, builder, _signature, args):
        array = context.make_array(kind)(context, builder)
        pointer = builder.inttoptr(args[0], ir.FloatType().as_pointer())
        sizes = {"shape": [args[1]], "strides": [ir.Constant(args[1].type, 4)]}
        arrayobj.populate_array(array, pointer, **sizes, itemsize=ir.Constant(args[1].type, 4), meminfo=None)
        return array._getvalue()

    return kind(types.int64, types.int64), generate


@bare_kernel
def linear(
    tickets, ticket, linears, segments, weights, which, acts, acts_at, act, rows, out, out_at, stride, crew
):  # fmt: skip
    """out[r, ..] = a linear layer without its bias: the crew takes part after part of its tiles."""
    told = linears[which]
    tiles = told[TILES]
    step = tiles
    if crew > 1:
        step = (tiles // (AHEAD * crew) + 4) & ~3
    while True:
        begin = add(tickets, LINE * ticket, 1) * step
        if begin >= tiles:
            return
        end, before = min(begin + step, tiles), 0
        for s in range(told[FIRST], told[FIRST] + told[SEGMENTS]):
            here = segments[s]
            first, last = max(begin - before, 0), min(end - before, here[TILED])
            if first < last:
                product(
                    weights, here[AT], here[KIND], here[ROWS], told[COLUMNS], acts, acts_at, act, rows, out,
                    out_at + here[TO], stride, first, last,
                )  # fmt: skip
            before += here[TILED]


@bare_kernel
def _attention(job, tickets, ticket, data, shapes, sights, floats, layer, scratch):
    """What the heads of each run and group see; tasks are taken one after the other."""
    groups = shapes[layer, GROUPS]
    while True:
        task = add(tickets, LINE * ticket, 1)
        if task >= job[RUNS] * groups:
            return
        run, group = task // groups, task % groups
        row = job[RUN_ROWS + run]
        attend(
            data, shapes, sights, layer, job[RUN_SLOTS + run], group, job[RUN_PLACES + run], job[RUN_IDS + run],
            floats, job[STACKED] + row * job[STACK], job[STACK], floats, job[SEEN] + row * job[SEE], job[SEE],
            floats, scratch,
        )  # fmt: skip


@bare_kernel
def _spanned(job, board, tickets, ticket, data, shapes, sights, floats, layer, scratch, crew):
    """As `_attention`, each span a task of its own: for few long contexts."""
    groups, most = shapes[layer, GROUPS], job[SPANS]
    while True:
        task = add(tickets, LINE * ticket, 1)
        if task >= job[RUNS] * groups * most:
            break
        run, group, span = task // most // groups, task // most % groups, task % most
        place, ids = job[RUN_PLACES + run], job[RUN_IDS + run]
        span += first_span(shapes, layer, place)
        if span <= last_span(place + ids - 1):
            into = job[PARTIALS] + task * job[PARTIAL]
            attend_span(
                data, shapes, sights, layer, job[RUN_SLOTS + run], group, place, ids, span, floats,
                job[STACKED] + job[RUN_ROWS + run] * job[STACK], job[STACK], floats, into, floats, scratch,
            )  # fmt: skip
    meet(board, crew)
    while True:
        task = add(tickets, LINE * (ticket + 1), 1)
        if task >= job[RUNS] * groups:
            return
        run, group = task // groups, task % groups
        place, ids = job[RUN_PLACES + run], job[RUN_IDS + run]
        spans = last_span(place + ids - 1) - first_span(shapes, layer, place) + 1
        fold_spans(
            shapes, layer, group, ids, spans, floats, job[PARTIALS] + task * most * job[PARTIAL], job[PARTIAL],
            floats, job[SEEN] + job[RUN_ROWS + run] * job[SEE], job[SEE],
        )  # fmt: skip


@bare_kernel
def step(
    board, tickets, job, layers, linears, segments, weights, numbers, tables, data, shapes, sights, floats, acts, me,
    crew,
):  # fmt: skip
    """One thread's share of a call."""
    rows, stride, act = job[COUNT], job[PADDED], job[ACT]
    few = rows <= FEW
    first, last = (0, rows) if few else (rows * me // crew, rows * (me + 1) // crew)
    x = job[X] + (me * FEW * stride if few else 0)
    mine = me * FEW * act if few else 0  # activations
    own = job[OWN] + me * job[OWNED]
    raised = job[RAISED]
    depth = job[DEPTH]
    for r in range(first, last):
        begun(job, floats, weights, tables, r, x + r * stride)
    for layer in range(depth):
        told, ticket = layers[layer], PHASES * layer
        qkv, out, up, down = 4 * layer + QKV, 4 * layer + OUT, 4 * layer + UP, 4 * layer + DOWN
        for r in range(first, last):
            row = x + r * stride
            if layer:
                before = layers[layer - 1]
                said = linears[4 * layer - 4 + DOWN]
                took(job, floats, row, raised, own, r, before, before[FFN_AFTER], before[FFN_NORM], numbers, said)
            read(told, floats, row, own, told[MIXER_NORM], job, numbers, linears[qkv], acts, mine + r * act)
        _met(board, crew, few)
        linear(
            tickets, ticket, linears, segments, weights, qkv, acts, mine, act, rows, floats, job[STACKED],
            job[STACK], crew,
        )  # fmt: skip
        meet(board, crew)
        for r in range(rows * me // crew, rows * (me + 1) // crew):
            turned(job, layers, linears, numbers, tables, data, shapes, floats, layer, r)
        meet(board, crew)
        if job[SPANS]:
            _spanned(job, board, tickets, ticket + 1, data, shapes, sights, floats, layer, own, crew)
        else:
            _attention(job, tickets, ticket + 1, data, shapes, sights, floats, layer, own)
        meet(board, crew)
        for r in range(first, last):
            read_row(floats, job[SEEN] + r * job[SEE], linears[out, COLUMNS], linears[out, FORM], acts, mine + r * act)
        _met(board, crew, few)
        linear(
            tickets, ticket + 3, linears, segments, weights, out, acts, mine, act, rows, floats, raised, job[RAISE],
            crew,
        )  # fmt: skip
        meet(board, crew)
        for r in range(first, last):
            row = x + r * stride
            took(job, floats, row, raised, own, r, told, told[MIXER_AFTER], told[MIXER_NORM], numbers, linears[out])
            read(told, floats, row, own, told[FFN_NORM], job, numbers, linears[up], acts, mine + r * act)
        _met(board, crew, few)
        linear(
            tickets, ticket + 4, linears, segments, weights, up, acts, mine, act, rows, floats, job[MADE],
            job[MAKE], crew,
        )  # fmt: skip
        meet(board, crew)
        for r in range(first, last):
            between(job, told, floats, r, own, numbers, linears[up], linears[down], acts, mine + r * act)
        _met(board, crew, few)
        linear(
            tickets, ticket + 5, linears, segments, weights, down, acts, mine, act, rows, floats, raised,
            job[RAISE], crew,
        )  # fmt: skip
        meet(board, crew)
    _said(
        board, tickets, job, layers, linears, segments, weights, numbers, tables, floats, acts, x, mine, own, me,
        crew, few,
    )  # fmt: skip
    meet(board, crew)


@bare_kernel
def _met(board, crew, few):
    """Meet where rows were shared; what each did for itself needs nobody."""
    if not few:
        meet(board, crew)


@bare_kernel
def _said(
    board, tickets, job, layers, linears, segments, weights, numbers, tables, floats, acts, x, mine, own, me, crew, few
):  # fmt: skip
    """What the wanted rows say: the last norm, the head, the cap."""
    depth, width, stride, act, wanted = job[DEPTH], job[WIDTH], job[PADDED], job[ACT], job[WANTED]
    if wanted == 0:
        return
    told, norm, head = layers[depth - 1], layers[depth, MIXER_NORM], 4 * depth
    said = linears[head - 4 + DOWN]
    first, last = (0, wanted) if few else (wanted * me // crew, wanted * (me + 1) // crew)
    for w in range(first, last):
        r = job[WANTS + w]
        row = x + r * stride
        took(job, floats, row, job[RAISED], own, r, told, told[FFN_AFTER], told[FFN_NORM], numbers, said)
        normalise(floats, row, width, stride, numbers, norm, floats, own)
        read_row(floats, own, width, linears[head, FORM], acts, mine + w * act)
        if job[HIDDENS] and (me == 0 or not few):
            hiddens = _floats(job[HIDDENS], wanted * width)
            for k in range(width):
                hiddens[w * width + k] = floats[own + k]
    _met(board, crew, few)
    size = job[VOCABULARY]
    logits = _floats(job[LOGITS], wanted * size)
    linear(tickets, PHASES * depth, linears, segments, weights, head, acts, mine, act, wanted, logits, 0, size, crew)
    if tables[CAP] > 0:
        meet(board, crew)
        for w in range(wanted * me // crew, wanted * (me + 1) // crew):
            cap_numbers(logits, w * size, size, tables[CAP])


@bare_kernel
def serve(
    board, helper, tickets, job, layers, linears, segments, weights, numbers, tables, data, shapes, sights, floats, acts
):  # fmt: skip
    """A thread's part. helper -1 is the caller, who takes what helpers there are; a helper stays until it is away."""
    if helper < 0:
        for i in range(LINE * (PHASES * job[DEPTH] + 1)):
            if i % LINE == 0:
                tickets[i] = 0
        crew = gather(board, job[HELPERS])
        step(
            board, tickets, job, layers, linears, segments, weights, numbers, tables, data, shapes, sights, floats,
            acts, 0, crew,
        )  # fmt: skip
        return
    while True:
        me = called(board, helper)
        if me == 0:
            return
        step(
            board, tickets, job, layers, linears, segments, weights, numbers, tables, data, shapes, sights, floats,
            acts, me, board[CREW],
        )  # fmt: skip
