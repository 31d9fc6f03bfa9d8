"""Fused attention over documents, as one custom operator, and its slow twin with a dense mask.

The operator takes flat queries, keys and values and the cuts between pieces; each piece attends to itself alone.
Pieces of one length share a call of the fused kernel. As one opaque operator it runs unchanged under torch.compile,
activation checkpointing and DDP. Letters: N ids, n pieces, H heads, G heads of keys and values, K head size.
"""

import itertools
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base import device as devices

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def documents_attention(q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, causal: bool = True) -> Tensor:
    """softmax(q k^T / sqrt(K)) v within each piece: q [N, H, K], k and v [N, G, K], cuts int64 [n+1] -> [N, H, K].

    H is a multiple of G. Positions, if any, are already in q and k.

    >>> q = torch.ones(3, 2, 4)
    >>> documents_attention(q, q[:, :1], q[:, :1], torch.tensor([0, 3])).shape
    torch.Size([3, 2, 4])
    """
    return _attention(q.contiguous(), k.contiguous(), v.contiguous(), cuts, causal)[0]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v: q [..., H, T, K], k and v [..., H, S, K] -> [..., H, T, K].

    mask: bool [T, S], True = may attend; a row that may attend nowhere gives zeros.

    >>> attention(torch.zeros(1, 1, 2), torch.zeros(1, 2, 2), torch.tensor([[[0.0, 2.0], [4.0, 0.0]]]))
    tensor([[[2., 1.]]])
    """
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is None:
        return scores.softmax(-1) @ v
    empty = ~mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~(mask | empty), float("-inf")).softmax(-1)
    return weights.masked_fill(empty, 0.0) @ v


def documents_attention_dense(q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, causal: bool = True) -> Tensor:
    """The slow twin of `documents_attention`: the plain function under one [N, N] mask.

    >>> q = torch.ones(3, 2, 4)
    >>> documents_attention_dense(q, q[:, :1], q[:, :1], torch.tensor([0, 3])).shape
    torch.Size([3, 2, 4])
    """
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return attention(q, k, v, document_mask(cuts, causal).to(q.device)).transpose(0, 1)


def document_mask(cuts: Tensor, causal: bool = True) -> Tensor:
    """bool [N, N], True = may attend: same piece, and (causal) not in the future.

    >>> document_mask(torch.tensor([0, 2, 3])).int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    lengths = cuts.diff()
    piece = torch.arange(len(lengths)).repeat_interleave(lengths)
    same = piece[:, None] == piece[None, :]
    return same.tril() if causal else same


def _buckets(cuts: Tensor) -> list[tuple[int, list[int]]]:
    """(length, starts) of the pieces, by length; empty pieces are left out."""
    ends = cuts.tolist()
    found: dict[int, list[int]] = defaultdict(list)
    for start, stop in itertools.pairwise(ends):
        if stop > start:
            found[stop - start].append(start)
    return list(found.items())


def _take(x: Tensor, length: int, starts: list[int], repeat: int = 1) -> Tensor:
    """[N, G, K] -> [pieces, G * repeat, length, K]: the pieces of one length as a batch."""
    if len(starts) * length == x.shape[0]:
        batch = x.view(len(starts), length, *x.shape[1:])
    else:
        batch = torch.stack([x[start : start + length] for start in starts])
    if repeat > 1:
        batch = batch.repeat_interleave(repeat, 2)
    return batch.transpose(1, 2)


def _put(into: Tensor, batch: Tensor, length: int, starts: list[int]) -> None:
    """The inverse of `_take` without repeats: [pieces, H, length, K] into [N, H, K]."""
    batch = batch.transpose(1, 2)
    if len(starts) * length == into.shape[0]:
        into.view(len(starts), length, *into.shape[1:]).copy_(batch)
        return
    for i, start in enumerate(starts):
        into[start : start + length] = batch[i]


@torch.library.custom_op("temaki::documents_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(output [N, H, K], log-sum-exp of the scores [N, H] in float32 or better)."""
    repeat = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    sums = torch.zeros(q.shape[:2], dtype=wide, device=q.device)
    for length, starts in _buckets(cuts):
        batch = (_take(q, length, starts), _take(k, length, starts, repeat), _take(v, length, starts, repeat))
        if devices.on_host(q):
            y, lse = _FUSED(*batch, 0.0, causal)
            _put(sums.unsqueeze(-1), lse.unsqueeze(-1), length, starts)
        else:
            y = F.scaled_dot_product_attention(*batch, is_causal=causal)
        _put(out, y, length, starts)
    return out, sums


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=wide)


@torch.library.custom_op("temaki::documents_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, cuts: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    repeat = q.shape[1] // k.shape[1]
    grad = grad.contiguous()
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for length, starts in _buckets(cuts):
        batch = [_take(q, length, starts), _take(k, length, starts, repeat), _take(v, length, starts, repeat)]
        g = _take(grad, length, starts)
        if devices.on_host(q):
            lse = _take(sums.unsqueeze(-1), length, starts).squeeze(-1)
            parts = _FUSED_BACKWARD(g, *batch, _take(out, length, starts), lse, 0.0, causal)
        else:
            with torch.enable_grad():
                a, b, c = (x.detach().requires_grad_() for x in batch)
                y = F.scaled_dot_product_attention(a, b, c, is_causal=causal)
            parts = torch.autograd.grad(y, (a, b, c), g)
        _put(dq, parts[0], length, starts)
        _put(dk, _fold(parts[1], repeat), length, starts)
        _put(dv, _fold(parts[2], repeat), length, starts)
    return dq, dk, dv


@_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, cuts: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _fold(grad: Tensor, repeat: int) -> Tensor:
    """Sum the gradients of the heads that shared a key or value: [.., G * repeat, T, K] -> [.., G, T, K]."""
    return grad.unflatten(1, (-1, repeat)).sum(2) if repeat > 1 else grad


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cuts, causal = inputs
    out, sums = output
    ctx.save_for_backward(q, k, v, out, sums, cuts)
    ctx.causal = causal
    ctx.mark_non_differentiable(sums)


def _backward(ctx, grad: Tensor, _grad_sums: Tensor):  # type: ignore[no-untyped-def]
    q, k, v, out, sums, cuts = ctx.saved_tensors
    dq, dk, dv = torch.ops.temaki.documents_attention_backward(grad, q, k, v, out, sums, cuts, ctx.causal)
    return dq, dk, dv, None, None


_attention.register_autograd(_backward, setup_context=_save)
