"""Attention by its plain formula: the readable function, and the slow twin of the fused operator over documents.

Letters: N ids, n pieces, H heads, G heads of keys and values, K head size, T queries, S keys.
"""

import itertools

import torch
from torch import Tensor

from temaki.model.mapped_scores import MappedScores
from temaki.model.sight import CAUSAL, Sight, slopes_bias, visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v: q [..., H, T, K], k and v [..., H, S, K] -> [..., H, T, K].

    mask: bool [T, S], True = may attend; a row that may attend nowhere gives zeros. See `attention_weights`.

    >>> attention(torch.zeros(1, 1, 2), torch.zeros(1, 2, 2), torch.tensor([[[0.0, 2.0], [4.0, 0.0]]]))
    tensor([[[2., 1.]]])
    """
    return attention_weights(q, k, mask, scale, bias, cap) @ v


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(cap tanh(scale q k^T / cap) + bias) in float32 or better: [..., T, K], [..., S, K] -> [..., T, S].

    scale: 1 / sqrt(K) by default; mask: bool, True = may attend, a row without any gives zeros; bias: added; cap: none
    by default. Vaswani et al. 2017, equation 1; Gemma 2 (2024), section 2 (cap).

    >>> attention_weights(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([[True, False], [False, False]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    if bias is not None:
        scores = scores + bias
    if mask is None:
        return scores.softmax(-1).to(q.dtype)
    empty = ~mask.any(-1, keepdim=True)
    found = scores.masked_fill(~(mask | empty), float("-inf")).softmax(-1)
    return found.masked_fill(empty, 0.0).to(q.dtype)


def piece_weights(q: Tensor, k: Tensor, sight: Sight, prefix: int = 0) -> Tensor:
    """The attention weights inside one piece by the plain formula: q [T, H, K], k [T, G, K] -> [H, T, T].

    >>> piece_weights(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), Sight())
    tensor([[[1.0000, 0.0000],
             [0.5000, 0.5000]]])
    """
    heads, places = q.shape[1], torch.arange(q.shape[0], device=q.device)
    q, k = q.transpose(0, 1), k.repeat_interleave(heads // k.shape[1], 1).transpose(0, 1)
    ends = torch.tensor([prefix], device=q.device)
    mask = visible(sight, places, places, ends)[0]
    wide = torch.promote_types(q.dtype, torch.float32)
    bias = None if sight.slopes is None else slopes_bias(q.new_tensor(sight.slopes, dtype=wide), places, places)
    return attention_weights(q, k, mask, sight.scale, bias, sight.cap)


def mapped_piece_weights(q: Tensor, k: Tensor, by: MappedScores, prefix: int = 0) -> Tensor:
    """`piece_weights` under any map, all scores at once: q [T, H, K], k [T, G, K] -> [H, T, T].

    >>> from temaki.model.config import AttentionConfig, TopKConfig
    >>> by = MappedScores(AttentionConfig(heads=1, map=TopKConfig(k=1)), Sight())
    >>> mapped_piece_weights(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), by)
    tensor([[[1., 0.],
             [1., 0.]]])
    """
    if not len(q):
        return q.new_zeros(q.shape[1], 0, 0)
    places = torch.arange(len(q), device=q.device)
    seen = visible(by.sight, places, places, torch.tensor([prefix], device=q.device))[0]
    q, k = q.transpose(0, 1)[None], k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1)[None]
    return by.weights(q, k, places[:, None] - places, ~seen)[0].to(q.dtype)


def documents_attention_dense(
    q: Tensor, k: Tensor, v: Tensor, cuts: Tensor, sight: Sight = CAUSAL, prefix: Tensor | None = None
) -> Tensor:
    """The slow twin of `documents_attention`: the plain formula, piece after piece, all scores at once.

    >>> q = torch.ones(3, 2, 4)
    >>> documents_attention_dense(q, q[:, :1], q[:, :1], torch.tensor([0, 3])).shape
    torch.Size([3, 2, 4])
    """
    found = [q[:0]]
    for i, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
        reach = 0 if prefix is None else int(prefix[i])
        here = piece_weights(q[start:stop], k[start:stop], sight, reach)
        values = v[start:stop].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1)
        found.append((here @ values).transpose(0, 1))
    return torch.cat(found)


def document_mask(cuts: Tensor, causal: bool = True) -> Tensor:
    """bool [N, N], True = may attend: same piece, and (causal) not in the future.

    >>> document_mask(torch.tensor([0, 2, 3])).int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    lengths = cuts.diff()
    piece = torch.arange(len(lengths)).repeat_interleave(lengths)
    same = piece[:, None] == piece[None, :]
    return same.tril() if causal else same
