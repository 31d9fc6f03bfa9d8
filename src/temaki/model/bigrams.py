"""A decoder that begins as a bigram model: embedding and head from counts, by a weighted truncated factorisation.

With zero output projections a fresh decoder is head(norm(embedding)): a product of two thin matrices. The best such
product for log p(y | x) is found from counts C in about a second, and training starts from there instead of from
nothing. Letters: V vocabulary, D width, x an id, y the next one.

    p(y | x) = (C_xy + s p(y)) / (n_x + s),   M_xy = log p(y | x) - log p(y) ~ a_x . b_y   (rank D - 2, singular values)
    embedding_x = (a_x, c, f_x) Q,   head_y = (b_y, log p(y) / c, 0) Q

The singular value decomposition is weighted by sqrt(n_x) and sqrt(p(y)), so that what is frequent fits best; c is a
constant; f_x makes all rows of the embedding equally long, so that the norm takes nothing from them; Q is a random
rotation, so that no coordinate is special.
"""

import math

import torch
from torch import Tensor

from temaki.base.errors import ConfigError
from temaki.model.decoder import Decoder

LARGEST = 1 << 13
"""Largest vocabulary whose dense counts [V, V] are taken."""


def check(vocabulary: int, width: int, tied: bool, init: str) -> None:
    """Raise ConfigError for a decoder that cannot begin as a bigram model."""
    if tied or init != "zero-out":
        raise ConfigError(
            'begin.kind = "bigrams" needs an untied decoder with zero output projections',
            found=f"model.tied = {str(tied).lower()}, model.init = {init!r}",
            allowed='model.tied = false, model.init = "zero-out"',
        )
    if vocabulary > LARGEST or not 4 <= width <= vocabulary:
        raise ConfigError(
            'begin.kind = "bigrams" counts all pairs of ids',
            found=f"vocabulary {vocabulary}, width {width}",
            allowed=f"a vocabulary of at most {LARGEST}, a width from 4 to the vocabulary",
            do='choose begin.kind = "random"',
        )


def factors(counts: Tensor, width: int, smooth: float, seed: int) -> tuple[Tensor, Tensor]:
    """Embedding (rows of length sqrt(D)) and head, float32 [V, D] each, from counts float32 [V, V] of (x, y).

    embedding @ head^T approaches log p(y | x).
    """
    total = counts.sum()
    after = (counts.sum(0) + 1) / (total + len(counts))
    seen = counts.sum(1, keepdim=True)
    gain = ((counts + smooth * after) / (seen + smooth)).log_() - after.log()
    by_row, by_column = (seen + 1).sqrt(), after.sqrt()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(gain.mul_(by_row).mul_(by_column), q=width - 2, niter=4)
        turn = torch.linalg.qr(torch.randn(width, width)).Q
    a = u * s.sqrt() / by_row
    b = v * s.sqrt() / by_column[:, None]
    squares = a.square().sum(1, keepdim=True)
    length = math.sqrt(float(squares.max()) * 4 / 3) + 1e-6
    c = torch.full_like(squares, length / 2)
    filler = (length**2 - squares - c.square()).clamp(min=0).sqrt()
    embedding = torch.cat([a, c, filler], 1) @ turn
    head = torch.cat([b, after.log()[:, None] / c, torch.zeros_like(c)], 1) @ turn
    size = math.sqrt(width) / length
    return embedding * size, head / size


@torch.no_grad()
def fill(model: Decoder, counts: Tensor, smooth: float, seed: int) -> None:
    """Give an untied decoder with zero output projections the embedding and head of a bigram model."""
    config = model.config
    check(config.vocabulary, config.width, config.tied, config.init)
    embedding, head = factors(counts, config.width, smooth, seed)
    model.embedding.copy_(embedding)
    model.head.weight.copy_(head)
