"""A decoder that begins as a bigram model: embedding and head from counts, by a weighted truncated factorisation.

With zero output projections a fresh decoder is head(norm(embedding)): a product of two thin matrices. The best such
product for log p(y | x) is found from counts C in about a second, and training starts from there instead of from
nothing. Letters: V vocabulary, D width, x an id, y the next one.

    p(y | x) = (C_xy + s p(y)) / (n_x + s),   M_xy = log p(y | x) - log p(y) ~ a_x . b_y   (rank D - 2, singular values)
    embedding_x = (a_x, c, f_x) Q,   head_y = (b_y, log p(y) / c, 0) Q

The singular value decomposition is weighted by sqrt(n_x) and sqrt(p(y)), so that what is frequent fits best; c is a
constant; f_x makes all rows of the embedding equally long, so that the norm takes nothing from them; Q is a random
rotation, so that no coordinate is special. A vocabulary below D - 2 needs only its own rank; the rest is zero.

Heads that look back: the same constant lets a head of the first layer ask for a distance and for nothing else, and the
output projection is zero, so the model is still the bigram model, and what stood 1, 2, .. ids before is at hand from
the first step on. Queries and keys of head h are the constant's direction, turned for the distance d_h:
score(m, n) = g^2 sqrt(K) / P sum_(p < P) cos((m - n - d_h) w_p) over the P fastest pairs, of speeds w_p; values are
the embedding's K main coordinates, made equally large. The gain is in `docs/log.md`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.errors import ConfigError
from temaki.model.attention import Attention
from temaki.model.config import (
    AttentionConfig,
    BatchNormConfig,
    BlockConfig,
    NormConfig,
    RopeConfig,
)
from temaki.model.decoder import Decoder
from temaki.model.positions import rope_speeds

LARGEST = 1 << 13
"""Largest vocabulary whose dense counts [V, V] are taken."""
PAIRS = 4
"""P: how many rotary pairs tell distances apart in a head that looks back."""
SHARPNESS = 2.2
"""g: gain of queries and keys in a layer whose heads look back."""


def check(vocabulary: int, width: int, tied: bool, init: str) -> None:
    """Raise ConfigError for a decoder that cannot begin as a bigram model."""
    if tied or init != "zero-out":
        raise ConfigError(
            'begin.kind = "bigrams" needs an untied decoder with zero output projections',
            found=f"model.tied = {str(tied).lower()}, model.init = {init!r}",
            allowed='model.tied = false, model.init = "zero-out"',
        )
    if vocabulary > LARGEST or width < 4:
        raise ConfigError(
            'begin.kind = "bigrams" counts all pairs of ids',
            found=f"vocabulary {vocabulary}, width {width}",
            allowed=f"a vocabulary of at most {LARGEST}, a width of at least 4",
            do='choose begin.kind = "random"',
        )


def check_norm(norm: NormConfig) -> None:
    """Raise ConfigError for a norm before the head that does not leave an embedding's direction as it is.

    >>> from temaki.model.config import RmsNormConfig
    >>> check_norm(RmsNormConfig())
    """
    if isinstance(norm, BatchNormConfig):
        raise ConfigError(
            'begin.kind = "bigrams" reads each id by itself, and batch norm reads all of a batch',
            found="a last norm of kind batch",
            allowed="rms, layer or none",
            do='choose another norm, or begin.kind = "random"',
        )


def check_back(block: BlockConfig, back: Sequence[int]) -> None:
    """Raise ConfigError for a first block whose heads cannot look `back` by these distances, one a head.

    >>> check_back(BlockConfig(mixer=AttentionConfig(heads=2, qk_norm=True)), [1, 2])
    """
    mixer = block.mixer
    rotary = isinstance(mixer, AttentionConfig) and isinstance(mixer.position, RopeConfig)
    if back and not (isinstance(mixer, AttentionConfig) and rotary and mixer.qk_norm and len(back) <= mixer.heads):
        raise ConfigError(
            "begin.back turns heads of the first layer to fixed distances",
            found=f"{len(back)} distances for {mixer}",
            allowed="at most one a head of an attention with rotary positions and qk_norm = true",
            do="leave begin.back out, or change model.pattern",
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
        u, s, v = torch.svd_lowrank(gain.mul_(by_row).mul_(by_column), q=min(width - 2, len(counts)), niter=4)
        turn = torch.linalg.qr(torch.randn(width, width)).Q
    spare = (0, width - 2 - len(s))
    a = F.pad(u * s.sqrt() / by_row, spare)
    b = F.pad(v * s.sqrt() / by_column[:, None], spare)
    squares = a.square().sum(1, keepdim=True)
    length = math.sqrt(float(squares.max()) * 4 / 3) + 1e-6
    c = torch.full_like(squares, length / 2)
    filler = (length**2 - squares - c.square()).clamp(min=0).sqrt()
    embedding = torch.cat([a, c, filler], 1) @ turn
    head = torch.cat([b, after.log()[:, None] / c, torch.zeros_like(c)], 1) @ turn
    size = math.sqrt(width) / length
    return embedding * size, head / size


@torch.no_grad()
def fill(model: Decoder, counts: Tensor, smooth: float, seed: int, back: Sequence[int] = ()) -> None:
    """Give an untied decoder with zero output projections the embedding and head of a bigram model.

    back: how many ids back each head of the first layer looks at first; heads beyond it stay as they are.
    """
    config = model.config
    check(config.vocabulary, config.width, config.tied, config.init)
    check_back(config.blocks[0], back)
    embedding, head = factors(counts, config.width, smooth, seed)
    model.embedding.copy_(embedding)
    model.head.weight.copy_(head)
    if back:
        mixer = model.blocks[0].mixer
        assert isinstance(mixer, Attention)
        look_back(mixer, embedding, counts.sum(1), back)


@torch.no_grad()
def look_back(mixer: Attention, embedding: Tensor, seen: Tensor, back: Sequence[int]) -> None:
    """Turn the first heads to the distances `back`; `seen` [V]: how often each id was read."""
    size, groups = mixer.size, mixer.groups
    position = mixer.config.position
    assert isinstance(position, RopeConfig)
    assert mixer.q_gain is not None
    assert mixer.k_gain is not None
    constant = torch.linalg.lstsq(embedding, torch.ones(len(embedding), 1)).solution.T  # embedding @ constant^T = 1
    speeds = rope_speeds(size, position.theta, position.scaling)[0].float()
    told = (torch.arange(size // 2) < PAIRS).float()
    share = (seen / seen.sum())[:, None]
    spread = torch.linalg.svd((embedding - (share * embedding).sum(0)) * share.sqrt(), full_matrices=False)
    values = torch.zeros(size, embedding.shape[1])
    found = min(size, int((spread.S / spread.S[0] > 1e-4).sum()))
    values[:found] = spread.Vh[:found] / spread.S[:found, None]
    stacked = mixer.qkv.view(mixer.heads + 2 * groups, size, -1)
    for head, distance in enumerate(back):
        group = head * groups // mixer.heads
        turned = torch.stack([told * (distance * speeds).cos(), -told * (distance * speeds).sin()])
        asked = torch.stack([told, torch.zeros_like(told)])
        if position.pairs == "interleaved":
            turned, asked = turned.T, asked.T
        stacked[head] = turned.reshape(size, 1) * constant
        stacked[mixer.heads + group] = asked.reshape(size, 1) * constant
        stacked[mixer.heads + groups + group] = values
    mixer.q_gain.fill_(SHARPNESS)
    mixer.k_gain.fill_(SHARPNESS)
