"""Fused attention over documents, as one custom operator, and its slow twin with a dense mask.

The operator takes flat queries, keys and values and the cuts between pieces; each piece attends to itself alone.
Pieces of one length share a call of the fused kernel. As one opaque operator it runs unchanged under torch.compile,
activation checkpointing and DDP. Windows, slopes and prefixes are additive biases of the fused kernel, made for a block
of queries at a time; caps take a plain path. Letters: N ids, n pieces, P pieces of one length, H heads, G heads of keys
and values, K head size, T queries, S keys.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base import device as devices
from temaki.model.sight import CAUSAL, Block, Sight, blocks

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def documents_attention(
    q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, sight: Sight = CAUSAL, prefix: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v within each piece: q [N, H, K], k and v [N, G, K], cuts int64 [n+1] -> [N, H, K].

    H is a multiple of G. Positions that turn q and k are already in them. sight: what is seen and how, by default the
    past and itself; prefix int64 [n] on the host: how many ids at a piece's start see each other both ways.

    >>> q = torch.ones(3, 2, 4)
    >>> documents_attention(q, q[:, :1], q[:, :1], torch.tensor([0, 3])).shape
    torch.Size([3, 2, 4])
    """
    flat = (sight.causal, sight.scale, sight.window, sight.slopes, sight.cap)
    # A view of v would keep the whole projection alive; of q and k, which are turned together, nothing else.
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    with torch.autocast(q.device.type, enabled=False):
        return _attention(q, k, v.contiguous(), cuts, prefix, *flat)[0]


# ---- pieces of one length as a batch --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """The pieces of one length: where they start, and which they are."""

    length: int
    starts: list[int]
    pieces: list[int]

    def take(self, x: Tensor, repeat: int = 1) -> Tensor:
        """[N, G, K] -> [P, G * repeat, T, K]."""
        if len(self.starts) * self.length == x.shape[0]:
            batch = x.view(len(self.starts), self.length, *x.shape[1:])
        else:
            batch = torch.stack([x[start : start + self.length] for start in self.starts])
        if repeat > 1:
            batch = batch.repeat_interleave(repeat, 2)
        return batch.transpose(1, 2)

    def put(self, into: Tensor, batch: Tensor) -> None:
        """The inverse of `take` without repeats: [P, H, T, K] into [N, H, K]."""
        batch = batch.transpose(1, 2)
        if len(self.starts) * self.length == into.shape[0]:
            into.view(len(self.starts), self.length, *into.shape[1:]).copy_(batch)
            return
        for i, start in enumerate(self.starts):
            into[start : start + self.length] = batch[i]

    def prefix(self, prefix: Tensor | None) -> Tensor | None:
        return None if prefix is None else prefix[self.pieces]


def buckets(cuts: Tensor) -> list[Bucket]:
    """The pieces by length; empty ones are left out.

    >>> [(each.length, each.starts, each.pieces) for each in buckets(torch.tensor([0, 2, 2, 3, 5]))]
    [(2, [0, 3], [0, 3]), (1, [2], [2])]
    """
    found: dict[int, Bucket] = {}
    for i, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
        if stop > start:
            bucket = found.setdefault(stop - start, Bucket(stop - start, [], []))
            bucket.starts.append(start)
            bucket.pieces.append(i)
    return list(found.values())


# ---- one batch of pieces --------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight, prefix: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(output [P, H, T, K], log-sum-exp of the scores [P, H, T] in float32 or better) of the last T of S places.

    q [P, H, T, K], k and v [P, H, S, K]; prefix int64 [P] on the host.

    >>> x = torch.zeros(1, 1, 2, 4)
    >>> attend(x, x, x, Sight())[1].exp()
    tensor([[[1., 2.]]])
    """
    sight, prefix = _needed(sight, prefix, k.shape[2])
    if sight.plain and prefix is None and (q.shape[2] == k.shape[2] or not sight.causal):
        return _fused(q, k, v, sight, None, sight.causal and q.shape[2] > 1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    sums = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    start = k.shape[2] - q.shape[2]
    for block in _blocks(sight, q, k, prefix):
        at, seen = slice(block.first - start, block.stop - start), slice(block.low, block.high)
        bias = block.bias(sight, q.shape[1], q, prefix)
        out[:, :, at], sums[:, :, at] = _by_path(q[:, :, at], k[:, :, seen], v[:, :, seen], sight, bias)
    return out, sums


def attend_all(q: Tensor, k: Tensor, v: Tensor, sight: Sight, bias: Tensor | None) -> Tensor:
    """`attend` where every query sees all that `bias` leaves: q [P, H, T, K], k and v [P, H, S, K] -> [P, H, T, K].

    >>> attend_all(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1), torch.eye(2)[None, None, :, :1], Sight(), None)
    tensor([[[[0.5000]]]])
    """
    return _by_path(q, k, v, sight, bias)[0]


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, sight: Sight, prefix: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attend` with T = S."""
    sight, prefix = _needed(sight, prefix, k.shape[2])
    if sight.plain and prefix is None:
        return _fused_backward(grad, q, k, v, out, sums, sight, None, sight.causal)
    wide = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    for block in _blocks(sight, q, k, prefix):
        at, seen = slice(block.first, block.stop), slice(block.low, block.high)
        bias = block.bias(sight, q.shape[1], q, prefix)
        back = _fused_backward if sight.cap is None else _plain_backward
        parts = back(
            grad[:, :, at], q[:, :, at], k[:, :, seen], v[:, :, seen], out[:, :, at], sums[:, :, at], sight, bias
        )
        dq[:, :, at] = parts[0]
        dk[:, :, seen] += parts[1]
        dv[:, :, seen] += parts[2]
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _needed(sight: Sight, prefix: Tensor | None, length: int) -> tuple[Sight, Tensor | None]:
    """Without what changes nothing in pieces of this length."""
    if sight.window is not None and sight.window >= length:
        sight = replace(sight, window=None)
    if prefix is not None and int(prefix.min()) >= length:
        sight, prefix = replace(sight, causal=False, window=None), None
    every = not sight.causal and sight.window is None
    if prefix is not None and (every or int(prefix.max()) <= 1):
        prefix = None
    return sight, prefix


def _blocks(sight: Sight, q: Tensor, k: Tensor, prefix: Tensor | None) -> list[Block]:
    reach = 0 if prefix is None else int(prefix.max())
    length = k.shape[2]
    return list(blocks(sight, length, reach, q.shape[0] * q.shape[1], length - q.shape[2]))


def _by_path(q: Tensor, k: Tensor, v: Tensor, sight: Sight, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return (_fused if sight.cap is None else _plain)(q, k, v, sight, bias)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, bias: Tensor | None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    if devices.on_host(q):
        return _FUSED(q, k, v, 0.0, causal, attn_mask=bias, scale=sight.scale)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=sight.scale)
    return y, q.new_zeros(q.shape[:3], dtype=torch.float32)


def _fused_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, sight: Sight, bias: Tensor | None,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if devices.on_host(q):
        return _FUSED_BACKWARD(grad, q, k, v, out, sums, 0.0, causal, attn_mask=bias, scale=sight.scale)
    with torch.enable_grad():
        a, b, c = (x.detach().requires_grad_() for x in (q, k, v))
        y = F.scaled_dot_product_attention(a, b, c, attn_mask=bias, is_causal=causal, scale=sight.scale)
    return torch.autograd.grad(y, (a, b, c), grad)  # type: ignore[return-value]


def _plain(q: Tensor, k: Tensor, v: Tensor, sight: Sight, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_fused` with a cap."""
    scores = _bent(q, k, sight).mul_(_cap(sight))
    if bias is not None:
        scores = scores.add_(bias)
    sums = scores.logsumexp(-1)
    return (scores - sums[..., None]).exp_().to(v.dtype) @ v, sums


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, sight: Sight, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """With t = tanh(s / cap), p = exp(cap t + bias - sums): ds = p (dp - grad.out) (1 - t^2)."""
    bent = _bent(q, k, sight)
    scores = bent * _cap(sight)
    if bias is not None:
        scores = scores.add_(bias)
    p = (scores - sums[..., None]).exp_()
    pull = (grad * out).sum(-1, keepdim=True)
    ds = p * ((grad @ v.mT) - pull) * bent.square_().neg_().add_(1)
    ds = (ds * _scale(q, sight)).to(q.dtype)
    return ds @ k, ds.mT @ q, p.to(grad.dtype).mT @ grad


def _bent(q: Tensor, k: Tensor, sight: Sight) -> Tensor:
    """tanh(s / cap) in float32 or better: [P, H, T, S]."""
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
    return scores.mul_(_scale(q, sight) / _cap(sight)).tanh_()


def _scale(q: Tensor, sight: Sight) -> float:
    return q.shape[-1] ** -0.5 if sight.scale is None else sight.scale


def _cap(sight: Sight) -> float:
    assert sight.cap is not None, "the plain path is for caps"
    return sight.cap


# ---- the operator ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("temaki::documents_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, prefix: Tensor | None, causal: bool, scale: float | None,
    window: int | None, slopes: Sequence[float] | None, cap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output [N, H, K], log-sum-exp of the scores [N, H] in float32 or better)."""
    sight = Sight(causal, scale, window, None if slopes is None else tuple(slopes), cap)
    repeat = q.shape[1] // k.shape[1]
    out, sums = _outputs(q)
    with devices.whole_products():  # the fused kernel's small tiles are up to seven times slower with bfloat16 inside
        for bucket in buckets(cuts):
            keys, values = bucket.take(k, repeat), bucket.take(v, repeat)
            y, lse = attend(bucket.take(q), keys, values, sight, bucket.prefix(prefix))
            bucket.put(sums.unsqueeze(-1), lse.unsqueeze(-1))
            bucket.put(out, y)
    return out, sums


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_zeros(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))


@_attention.register_fake
def _(q: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
    return _outputs(q)


@torch.library.custom_op("temaki::documents_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, cuts: Tensor, prefix: Tensor | None,
    causal: bool, scale: float | None, window: int | None, slopes: Sequence[float] | None, cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sight = Sight(causal, scale, window, None if slopes is None else tuple(slopes), cap)
    repeat = q.shape[1] // k.shape[1]
    grad = grad.contiguous()
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    with devices.whole_products():
        for bucket in buckets(cuts):
            taken = bucket.take(grad), bucket.take(q), bucket.take(k, repeat), bucket.take(v, repeat), bucket.take(out)
            lse = bucket.take(sums.unsqueeze(-1)).squeeze(-1)
            parts = _attend_backward(*taken, lse, sight, bucket.prefix(prefix))
            bucket.put(dq, parts[0])
            bucket.put(dk, fold(parts[1], repeat))
            bucket.put(dv, fold(parts[2], repeat))
    return dq, dk, dv


@_attention_backward.register_fake
def _(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def fold(grad: Tensor, repeat: int) -> Tensor:
    """Sum the gradients of the heads that shared a key or value: [P, G * repeat, T, K] -> [P, G, T, K].

    >>> fold(torch.ones(1, 4, 1, 1), 2).flatten()
    tensor([2., 2.])
    """
    return grad.unflatten(1, (-1, repeat)).sum(2) if repeat > 1 else grad


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cuts, prefix, *sight = inputs
    out, sums = output
    ctx.save_for_backward(q, k, v, out, sums, cuts, prefix)
    ctx.sight = sight
    ctx.mark_non_differentiable(sums)


def _backward(ctx, grad: Tensor, _grad_sums: Tensor):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    dq, dk, dv = torch.ops.temaki.documents_attention_backward(grad, *saved, *ctx.sight)
    return dq, dk, dv, *[None] * 7


_attention.register_autograd(_backward, setup_context=_save)
