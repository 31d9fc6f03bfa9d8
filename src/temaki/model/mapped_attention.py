"""Attention over documents under any map: by runs of queries, forward and again backward, so that memory is linear.

Nothing of size T x S is kept: the backward pass makes the weights of a run of queries anew, and asks autograd for the
gradients of q, k, v and what the map has learned. Softmax without a learned bias goes by `kernels`, which is faster.
Letters: N ids, n pieces, P pieces of one length, H heads, G heads of keys and values, K head size, T queries, S keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from temaki.base import device as devices
from temaki.model.gumbel import gumbel_noise
from temaki.model.kernels import Bucket, buckets, fold
from temaki.model.mapped_scores import MappedScores
from temaki.model.sight import Block, blocks, visible

SCORES = 1 << 20
"""Most scores made at once, about: so few that they stay near the processor."""


def mapped_attention(
    q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, by: MappedScores, prefix: Tensor | None = None,
    draws: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """weights(q, k) v within each piece: q [N, H, K], k and v [N, G, K], cuts int64 [n+1] -> [N, H, K].

    by: what makes the weights; prefix int64 [n] on the host: how many ids at a piece's start see each other both ways;
    draws int64 [N]: a number an id, for maps with noise.

    >>> from temaki.model.config import AttentionConfig, SparsemaxConfig
    >>> from temaki.model.sight import Sight
    >>> by = MappedScores(AttentionConfig(heads=2, map=SparsemaxConfig()), Sight())
    >>> q = torch.ones(3, 2, 4)
    >>> mapped_attention(q, q[:, :1], q[:, :1], torch.tensor([0, 3]), by).shape
    torch.Size([3, 2, 4])
    """
    given = _Given(cuts, by, prefix, draws if by.noise is not None else None)
    with torch.autocast(q.device.type, enabled=False):
        return _Mapped.apply(q, k, v, *by.learned, given)


@dataclass(frozen=True)
class _Given:
    """What a call is told beside tensors that learn."""

    cuts: Tensor
    by: MappedScores
    prefix: Tensor | None
    draws: Tensor | None


@dataclass(frozen=True)
class Asked:
    """Queries of P pieces of one length, and the keys that any of them may see."""

    pieces: slice
    at: slice
    """Queries, among those given."""
    seen: slice
    """Keys."""
    back: Tensor
    """int64 [T, S]: the query's place minus the key's."""
    hidden: Tensor | None
    """bool [T, S] or [P, 1, T, S]; None: nothing."""
    noise: Tensor | None
    """[P, H, T, S]."""


def asked(
    q: Tensor, length: int, by: MappedScores, prefix: Tensor | None = None, draws: Tensor | None = None
) -> Iterator[Asked]:
    """The last T of `length` places in runs: q [P, H, T, K], prefix int64 [P], draws int64 [P, T]."""
    count, heads, t, _ = q.shape
    most = max(1, SCORES // (heads * length * min(t, 64)))
    for first in range(0, count, most):
        pieces = slice(first, min(first + most, count))
        ends = None if prefix is None else prefix[pieces]
        reach = 0 if ends is None else int(ends.max())
        rows = heads * (pieces.stop - pieces.start)
        for block in blocks(by.sight, length, reach, rows, length - t, SCORES):
            yield _asked(q, length - t, block, pieces, by, ends, draws)


def _asked(
    q: Tensor, start: int, block: Block, pieces: slice, by: MappedScores, ends: Tensor | None, draws: Tensor | None
) -> Asked:
    queries = torch.arange(block.first, block.stop, device=q.device)
    keys = torch.arange(block.low, block.high, device=q.device)
    at, seen = slice(block.first - start, block.stop - start), slice(block.low, block.high)
    hidden = noise = None
    if by.sight.causal or by.sight.window is not None:
        hidden = ~visible(by.sight, queries, keys, None if ends is None else ends.to(q.device))
    if draws is not None and by.noise is not None:
        wide = torch.promote_types(q.dtype, torch.float32)
        noise = gumbel_noise(draws[pieces, at], by.noise.site, by.heads, keys, wide)
    return Asked(pieces, at, seen, queries[:, None] - keys, hidden, noise)


def attend_mapped(
    q: Tensor, k: Tensor, v: Tensor, by: MappedScores, prefix: Tensor | None = None, draws: Tensor | None = None
) -> Tensor:
    """The last T of S places: q [P, H, T, K], k and v [P, H, S, K], prefix int64 [P], draws [P, T] -> [P, H, T, K].

    >>> from temaki.model.config import AttentionConfig, SigmoidConfig
    >>> from temaki.model.sight import Sight
    >>> by = MappedScores(AttentionConfig(heads=1, map=SigmoidConfig()), Sight())
    >>> x = torch.zeros(1, 1, 2, 1)
    >>> attend_mapped(x, x, x + 1, by).flatten()
    tensor([0.5000, 0.6667])
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for run in asked(q, k.shape[2], by, prefix, draws):
        found = by.weights(q[run.pieces, :, run.at], k[run.pieces, :, run.seen], run.back, run.hidden, run.noise)
        out[run.pieces, :, run.at] = found.to(v.dtype) @ v[run.pieces, :, run.seen]
    return out


class _Mapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, number: Tensor | None, given: _Given):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(q, k, v, table, number)
        ctx.given = given
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        repeat = q.shape[1] // k.shape[1]
        with devices.whole_products():
            for bucket in buckets(given.cuts):
                keys, values = bucket.take(k, repeat), bucket.take(v, repeat)
                y = attend_mapped(bucket.take(q), keys, values, given.by, *_told(bucket, given))
                bucket.put(out, y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        q, k, v, table, number = ctx.saved_tensors
        into = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        learned = [None if x is None else torch.zeros_like(x) for x in (table, number)]
        with devices.whole_products():
            for bucket in buckets(ctx.given.cuts):
                _back(bucket, grad, (q, k, v), (table, number), ctx.given, into, learned)
        return *into, *learned, None


def _told(bucket: Bucket, given: _Given) -> tuple[Tensor | None, Tensor | None]:
    """(prefix [P], draws [P, T]) of the pieces of a bucket."""
    draws = None if given.draws is None else bucket.take(given.draws[:, None, None])[:, 0, :, 0]
    return bucket.prefix(given.prefix), draws


def _back(
    bucket: Bucket, grad: Tensor, qkv: tuple[Tensor, ...], learned: tuple[Tensor | None, ...], given: _Given,
    into: list[Tensor], into_learned: list[Tensor | None],
) -> None:  # fmt: skip
    """Put the gradients of a bucket's q, k and v where they belong, and add those of what is learned."""
    repeat = qkv[0].shape[1] // qkv[1].shape[1]
    grad, q, k, v = (bucket.take(x, n) for x, n in zip((grad, *qkv), (1, 1, repeat, repeat), strict=True))
    dq, (dk, dv) = torch.empty_like(q), (torch.zeros_like(x) for x in (k, v))
    for run in asked(q, k.shape[2], given.by, *_told(bucket, given)):
        at, seen = (run.pieces, slice(None), run.at), (run.pieces, slice(None), run.seen)
        parts, of_learned = _back_run(grad[at], (q[at], k[seen], v[seen]), learned, given.by, run)
        dq[at] = parts[0]
        dk[seen] += parts[1]
        dv[seen] += parts[2]
        for total, part in zip(into_learned, of_learned, strict=True):
            if total is not None and part is not None:
                total += part
    for whole, part in zip(into, (dq, fold(dk, repeat), fold(dv, repeat)), strict=True):
        bucket.put(whole, part)


def _back_run(
    grad: Tensor, qkv: tuple[Tensor, ...], learned: tuple[Tensor | None, ...], by: MappedScores, run: Asked
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The gradients of one run of queries, its weights made anew: of q, k, v, and of what is learned."""
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    table, number = (None if x is None else x.detach().requires_grad_() for x in learned)
    own = [x for x in (table, number) if x is not None]
    with torch.enable_grad():
        y = by.weights(q, k, run.back, run.hidden, run.noise, (table, number)).to(v.dtype) @ v
    found = list(torch.autograd.grad(y, (q, k, v, *own), grad))
    rest = iter(found[3:])
    return found[:3], [None if x is None else next(rest) for x in (table, number)]
