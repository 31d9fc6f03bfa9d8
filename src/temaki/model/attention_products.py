"""Attention of short rows by batched matrix products: from stacked projections to the sum of values, as one operator.

Where rows are short the fused kernel of the processor is no faster than the products it is made of, cannot use the
processor's bfloat16 units for float32 numbers, and needs a call for each length of piece. Here a frame, a whole row of
pieces, is one product a head; which keys a query sees is a stretch begin..end-1, so that many pieces in a row cost no
more than one. Long frames go block of queries by block, so that only the past is multiplied. Only the projections and
the log-sum-exp are kept for the gradient; all else is made again. `model/kernels` has the fused kernel for the rest.
Letters: N ids, P frames of T ids, H heads, G heads of keys and values, r = H / G, K head size, Q queries of a block,
S keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.model import attention_loops, turn_loops

LONGEST = 512
"""Longer frames are left to the fused kernel, which is as fast there."""
QUERIES = 128
"""Queries of a block."""
SCORES = 1 << 21
"""About how many scores are held at a time."""


@dataclass(frozen=True)
class Shape:
    """How heads lie in the stacked projections, what is seen, and the norm's and the scores' constants."""

    heads: int
    groups: int
    causal: bool
    scale: float | None
    eps: float

    def size(self, stacked: Tensor) -> int:
        return stacked.shape[1] // (self.heads + 2 * self.groups)


def framed_attention(
    stacked: Tensor, gains: tuple[Tensor, Tensor] | None, angles: tuple[Tensor, Tensor] | None,
    spans: tuple[Tensor, Tensor], shape: Shape,
) -> Tensor:  # fmt: skip
    """softmax(scale q k^T) v over each id's own stretch of its frame: stacked [N, (H + 2G) K] -> [N, H K].

    gains: of the norms of q and k, each [K]; angles: cosine and sine [N, 1, K/2] that turn them; spans: see `spans`.
    """
    told = (*(gains or (None, None)), *(angles or (None, None)), *spans)
    flat = (shape.heads, shape.groups, shape.causal, shape.scale, shape.eps)
    with torch.autocast(stacked.device.type, enabled=False):  # scores stay float32
        if torch.compiler.is_compiling():
            return _operator(stacked.contiguous(), *told, *flat)[0]
        return _Framed.apply(stacked.contiguous(), *told, *flat)


def spans(ids: Tensor, cuts: Tensor, length: int, causal: bool) -> tuple[Tensor, Tensor]:
    """(begin, end) of what each of N ids sees of its frame of T ids, both int64 [P, T]; no piece leaves its frame.

    >>> spans(torch.zeros(4), torch.tensor([0, 1, 4]), 4, causal=True)
    (tensor([[0, 1, 1, 1]]), tensor([[1, 2, 3, 4]]))
    >>> spans(torch.zeros(4), torch.tensor([0, 1, 4]), 4, causal=False)[1]
    tensor([[1, 4, 4, 4]])
    """
    return (_spans_operator if torch.compiler.is_compiling() else _spans)(ids, cuts, length, causal)


def _spans(ids: Tensor, cuts: Tensor, length: int, causal: bool) -> tuple[Tensor, Tensor]:
    total = len(ids)
    sizes, places = cuts.diff(), torch.arange(total)
    offsets = places // length * length
    begins = (cuts[:-1].repeat_interleave(sizes, output_size=total) - offsets).view(-1, length)
    assert total == 0 or int(begins.min()) >= 0, "a piece lies in two rows"
    ends = places + 1 if causal else cuts[1:].repeat_interleave(sizes, output_size=total)
    return begins, (ends - offsets).view(-1, length)


@torch.library.custom_op("temaki::spans", mutates_args=())
def _spans_operator(ids: Tensor, cuts: Tensor, length: int, causal: bool) -> tuple[Tensor, Tensor]:
    return _spans(ids, cuts, length, causal)


@_spans_operator.register_fake
def _(ids: Tensor, _cuts: Tensor, length: int, _causal: bool) -> tuple[Tensor, Tensor]:
    shape = (ids.shape[0] // length, length)
    return ids.new_empty(shape, dtype=torch.int64), ids.new_empty(shape, dtype=torch.int64)


# ---- forward and backward -------------------------------------------------------------------------------------------


def _turned(
    stacked: Tensor, gains: turn_loops.Pair, angles: turn_loops.Pair, length: int, shape: Shape
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [P, H, T, K], k and v [P, G, T, K], and what the norms divided by."""
    frames, size = len(stacked) // length, shape.size(stacked)
    q = stacked.new_empty(frames, shape.heads, length, size)
    k, v = stacked.new_empty(2, frames, shape.groups, length, size)
    return q, k, v, turn_loops.turn(stacked, q, k, v, gains, angles, shape.eps)


def _forward(
    stacked: Tensor, gains: turn_loops.Pair, angles: turn_loops.Pair, begins: Tensor, ends: Tensor, shape: Shape
) -> tuple[Tensor, Tensor]:
    """(output [N, H K], log-sum-exp [P, H, T])."""
    frames, length = begins.shape
    q, k, v, _ = _turned(stacked, gains, angles, length, shape)
    scale = _scale(shape, q)
    out, logs = stacked.new_empty(frames, length, shape.heads, q.shape[3]), stacked.new_empty(q.shape[:3])
    placed = out.transpose(1, 2)  # [P, H, T, K]
    for some in _chunks(frames, shape.heads, length):
        keys, values = k[some].flatten(0, 1), v[some].flatten(0, 1)  # [P G, T, K]
        for at in _blocks(length, shape.causal):
            p = torch.bmm(_block(q[some], at, keys), _seen(keys, at, shape.causal).mT)  # [P G, r Q, S]
            four = p.view(-1, shape.heads, at.stop - at.start, p.shape[-1])
            log = attention_loops.soft_(four, begins[some, at], ends[some, at], scale)
            logs[some, :, at] = log
            into = placed[some, :, at]
            into.copy_(torch.bmm(p, _seen(values, at, shape.causal)).view(into.shape))
    return out.view(len(stacked), -1), logs


def _backward(
    grad: Tensor, stacked: Tensor, gains: turn_loops.Pair, angles: turn_loops.Pair, begins: Tensor, ends: Tensor,
    logs: Tensor, shape: Shape,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of the projections and of both gains [2, K]."""
    frames, length = begins.shape
    q, k, v, shrinks = _turned(stacked, gains, angles, length, shape)
    scale = _scale(shape, q)
    g = grad.view(frames, length, shape.heads, -1).transpose(1, 2).contiguous()  # [P, H, T, K]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for some in _chunks(frames, shape.heads, length):
        keys, values, into_k, into_v = (x[some].flatten(0, 1) for x in (k, v, dk, dv))
        for at in reversed(_blocks(length, shape.causal)):
            queries, pulls = _block(q[some], at, keys), _block(g[some], at, keys)
            seen, heard = _seen(keys, at, shape.causal), _seen(values, at, shape.causal)
            p, ds = torch.bmm(queries, seen.mT), torch.bmm(pulls, heard.mT)  # [P G, r Q, S]
            four = (-1, shape.heads, at.stop - at.start, p.shape[-1])
            span = (begins[some, at], ends[some, at], scale, logs[some, :, at])
            attention_loops.soft_back_(p.view(four), ds.view(four), *span)
            into = dq[some, :, at]
            into.copy_(torch.bmm(ds, seen).view(into.shape))
            if at.stop == length:
                torch.bmm(ds.mT, queries, out=into_k)
                torch.bmm(p.mT, pulls, out=into_v)
            else:
                _seen(into_k, at, shape.causal).baddbmm_(ds.mT, queries)
                _seen(into_v, at, shape.causal).baddbmm_(p.mT, pulls)
    return turn_loops.turn_back(stacked, dq, dk, dv, gains, angles, shrinks)


def _scale(shape: Shape, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if shape.scale is None else shape.scale


def _block(x: Tensor, at: slice, keys: Tensor) -> Tensor:
    """The queries of a block of [P, H, T, K], heads of a group in one: [P G, r Q, K]."""
    return x[:, :, at].reshape(len(keys), -1, x.shape[3])


def _seen(x: Tensor, at: slice, causal: bool) -> Tensor:
    """What the queries of a block see of keys or values [P G, T, K]."""
    return x[:, : at.stop] if causal and at.stop < x.shape[1] else x


def _chunks(frames: int, heads: int, length: int) -> list[slice]:
    """Frames, by as many as have about `SCORES` scores."""
    step = max(1, SCORES // (heads * min(QUERIES, length) * length))
    return [slice(i, min(i + step, frames)) for i in range(0, frames, step)]


def _blocks(length: int, causal: bool) -> list[slice]:
    step = QUERIES if causal and length >= 2 * QUERIES else length
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


# ---- the operator ---------------------------------------------------------------------------------------------------


def _pair(a: Tensor | None, b: Tensor | None) -> turn_loops.Pair:
    return None if a is None or b is None else (a, b)


class _Framed(torch.autograd.Function):
    """The operator without the dispatcher: a tenth of a millisecond less a call, which small models feel."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, stacked: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, cos: Tensor | None, sin: Tensor | None,
        begins: Tensor, ends: Tensor, *shape,
    ) -> Tensor:  # fmt: skip
        ctx.shape = Shape(*shape)
        out, logs = _forward(stacked, _pair(q_gain, k_gain), _pair(cos, sin), begins, ends, ctx.shape)
        ctx.save_for_backward(stacked, q_gain, k_gain, cos, sin, begins, ends, logs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        stacked, q_gain, k_gain, cos, sin, begins, ends, logs = ctx.saved_tensors
        pairs = _pair(q_gain, k_gain), _pair(cos, sin)
        into, gains = _backward(grad.contiguous(), stacked, *pairs, begins, ends, logs, ctx.shape)
        return into, *((None, None) if gains is None else gains), *[None] * 9


@torch.library.custom_op("temaki::framed_attention", mutates_args=())
def _operator(
    stacked: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    begins: Tensor, ends: Tensor, heads: int, groups: int, causal: bool, scale: float | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = Shape(heads, groups, causal, scale, eps)
    return _forward(stacked, _pair(q_gain, k_gain), _pair(cos, sin), begins, ends, shape)


@_operator.register_fake
def _(
    stacked: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    begins: Tensor, ends: Tensor, heads: int, groups: int, causal: bool, scale: float | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    size = stacked.shape[1] // (heads + 2 * groups)
    return stacked.new_empty(stacked.shape[0], heads * size), stacked.new_empty(begins.shape[0], heads, begins.shape[1])


@torch.library.custom_op("temaki::framed_attention_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, stacked: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, cos: Tensor | None,
    sin: Tensor | None, begins: Tensor, ends: Tensor, logs: Tensor, heads: int, groups: int, causal: bool,
    scale: float | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = _pair(q_gain, k_gain), _pair(cos, sin)
    shape = Shape(heads, groups, causal, scale, eps)
    into, gains = _backward(grad.contiguous(), stacked, *pairs, begins, ends, logs, shape)
    return into, stacked.new_empty(0) if gains is None else gains


@_operator_backward.register_fake
def _(_grad: Tensor, stacked: Tensor, q_gain: Tensor | None, *_rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(stacked), stacked.new_empty(0 if q_gain is None else (2, q_gain.shape[0]))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, logs = output
    ctx.save_for_backward(*inputs[:7], logs)
    ctx.shape = inputs[7:]
    ctx.mark_non_differentiable(logs)


def _pull(ctx, grad: Tensor, _grad_logs: Tensor):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    into, gains = torch.ops.temaki.framed_attention_backward(grad, *saved, *ctx.shape)
    return into, *((None, None) if saved[1] is None else (gains[0], gains[1])), *[None] * 9


_operator.register_autograd(_pull, setup_context=_save)
