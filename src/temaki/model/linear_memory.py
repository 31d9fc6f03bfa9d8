"""Linear attention with a memory that decays: each head keeps a matrix S that keys write to and queries read from.

Three rules, each by chunks of products (training, prompts) and id by id (decoding):

- `decayed`: S_t = a_t S_{t-1} + k_t v_t^T, y_t = S_t^T q_t, one decay a head (RetNet, Mamba-2);
- `decayed_by_key`: S_t = diag(a_t) S_{t-1} + k_t v_t^T, y_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t (RWKV-6);
- `delta`: S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, y_t = S_t^T q_t (gated delta rule).

Decays are given as logarithms, and only differences of their sums that are not positive are exponentiated, so that
nothing overflows. The sums are in float64: beside one id that forgets all, float32 would lose what others forget.
Yang et al. 2023, "Gated linear attention", section 4; Yang et al. 2024, "Gated delta networks", section 3.3 (the
triangular system). Letters: L ids, C ids of a chunk, n chunks, G ids of a block, m blocks of a chunk, K size of a key,
V of a value.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""C, where one decay serves all of a key."""
CHUNK_BY_KEY = 16
"""C of `decayed_by_key`, which holds a factor for each id, coordinate of the key and block of ids."""
BLOCK = 4
"""G of `decayed_by_key`, which holds a factor for each pair of a block's ids and coordinate of the key."""


def decayed(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = a_t S_{t-1} + k_t v_t^T, y_t = S_t^T q_t: q, k [.., L, K], v [.., L, V], log_a [.., L], S [.., K, V].

    log_a: at most 0. Gives (y [.., L, V], S after the last id).

    >>> one = torch.ones(2, 1)
    >>> decayed(one, one, one, torch.tensor([0.5, 0.5]).log(), torch.zeros(1, 1))
    (tensor([[1.0000],
            [1.5000]]), tensor([[1.5000]]))
    """
    length = q.shape[-2]
    q, k, v, log_a = (_chunked(each, CHUNK) for each in (q, k, v, log_a[..., None]))
    total = _sums(log_a[..., 0], -1)  # [.., n, C]: from the chunk's start
    inside = (q @ k.mT) * _between(total, q.dtype).tril()
    return _passed(q, k, inside, total, s, lambda i, _: v[..., i, :, :], v.shape[-1], length)


def delta(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, y_t = S_t^T q_t; as `decayed`, with b [.., L].

    It is `decayed` with the values u_t = b_t (v_t - a_t S_{t-1}^T k_t), which a triangular system of each chunk gives.

    >>> one = torch.ones(2, 1)
    >>> delta(one, one, torch.tensor([[3.0], [5.0]]), torch.zeros(2), torch.tensor([1.0, 0.5]), torch.zeros(1, 1))[0].T
    tensor([[3., 4.]])
    """
    length = q.shape[-2]
    q, k, v, log_a, b = (_chunked(each, CHUNK) for each in (q, k, v, log_a[..., None], b[..., None]))
    total = _sums(log_a[..., 0], -1)
    ratios = _between(total, q.dtype)
    inside = (q @ k.mT) * ratios.tril()
    system = b * (k @ k.mT) * ratios.tril(-1)  # the diagonal's ones are left out
    sides = torch.cat((b * v, b * _left(total, q.dtype)[..., None] * k), -1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    fresh, pulled = solved.split((v.shape[-1], k.shape[-1]), -1)

    def values(i: int, s: Tensor) -> Tensor:
        return fresh[..., i, :, :] - pulled[..., i, :, :] @ s

    return _passed(q, k, inside, total, s, values, v.shape[-1], length)


def decayed_by_key(r: Tensor, k: Tensor, v: Tensor, log_a: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, y_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t.

    r, k, log_a [.., L, K], v [.., L, V], u [.., K], S [.., K, V] -> (y [.., L, V], S after the last id).

    >>> one = torch.ones(2, 1)
    >>> decayed_by_key(one, one, one, (one / 2).log(), torch.tensor([3.0]), torch.zeros(1, 1))
    (tensor([[3.],
            [4.]]), tensor([[1.5000]]))
    """
    length = r.shape[-2]
    r, k, v, log_a = (_chunked(each, CHUNK_BY_KEY) for each in (r, k, v, log_a))
    total = _sums(log_a, -2)  # [.., n, C, K]
    before = F.pad(total, (0, 0, 1, -1))
    y = _across(r, k, v, before, total) + _within(r, k, v, before, total)
    y = y + (r * k * u[..., None, None, :]).sum(-1, keepdim=True) * v
    last = total[..., -1:, :]
    read, left = r * _left(before, r.dtype), k * _left(last - total, r.dtype)
    kept = _left(last, r.dtype).mT
    found = [v.new_zeros(*v.shape[:-3], 0, v.shape[-1])]
    for i in range(r.shape[-3]):
        found.append(y[..., i, :, :] + read[..., i, :, :] @ s)
        s = kept[..., i, :, :] * s + left[..., i, :, :].mT @ v[..., i, :, :]
    return torch.cat(found, -2)[..., :length, :], s


def _across(r: Tensor, k: Tensor, v: Tensor, before: Tensor, total: Tensor) -> Tensor:
    """What a chunk's ids read of its earlier blocks: a decay is split where the reader's block begins."""
    starts = before[..., ::BLOCK, :]  # [.., n, m, K]
    reads = _blocks(r) * _left(_blocks(before) - starts[..., None, :], r.dtype)  # [.., n, m, G, K]
    keys = k[..., None, :, :] * _left(starts[..., :, None, :] - total[..., None, :, :], r.dtype)  # [.., n, m, C, K]
    block = torch.arange(k.shape[-2], device=k.device) // BLOCK
    inside = (reads @ keys.mT).flatten(-3, -2) * (block < block[:, None])
    return inside @ v


def _within(r: Tensor, k: Tensor, v: Tensor, before: Tensor, total: Tensor) -> Tensor:
    """What the ids of a block read of the earlier ones in it."""
    gaps = _left(_blocks(before)[..., :, None, :] - _blocks(total)[..., None, :, :], r.dtype)  # [.., n, m, G, G, K]
    inside = (gaps * _blocks(k)[..., None, :, :] @ _blocks(r)[..., None]).squeeze(-1).tril(-1)
    return (inside @ _blocks(v)).flatten(-3, -2)


def _blocks(x: Tensor) -> Tensor:
    """[.., C, X] -> [.., m, G, X]."""
    return x.unflatten(-2, (-1, BLOCK))


def decayed_step(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`decayed` for one id: q, k [.., K], v [.., V], log_a [..], S [.., K, V] -> (y [.., V], S).

    >>> one = torch.ones(1)
    >>> decayed_step(one, one, one, torch.tensor(0.5).log(), torch.ones(1, 1))
    (tensor([1.5000]), tensor([[1.5000]]))
    """
    s = log_a.exp()[..., None, None] * s + k[..., None] * v[..., None, :]
    return _read(q, s), s


def delta_step(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`delta` for one id: q, k [.., K], v [.., V], log_a and b [..], S [.., K, V] -> (y [.., V], S).

    >>> one = torch.ones(1)
    >>> delta_step(one, one, 5 * one, torch.tensor(0.0), torch.tensor(1.0), torch.ones(1, 1))[0]
    tensor([5.])
    """
    s = log_a.exp()[..., None, None] * s
    s = s + k[..., None] * (b[..., None] * (v - _read(k, s)))[..., None, :]
    return _read(q, s), s


def decayed_by_key_step(r: Tensor, k: Tensor, v: Tensor, log_a: Tensor, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`decayed_by_key` for one id: r, k, log_a, u [.., K], v [.., V], S [.., K, V] -> (y [.., V], S).

    >>> one = torch.ones(1)
    >>> decayed_by_key_step(one, one, one, (one / 2).log(), 3 * one, torch.ones(1, 1))
    (tensor([4.]), tensor([[1.5000]]))
    """
    new = k[..., None] * v[..., None, :]
    return _read(r, s + u[..., None] * new), log_a.exp()[..., None] * s + new


def _passed(
    q: Tensor, k: Tensor, inside: Tensor, total: Tensor, s: Tensor, values: Callable[[int, Tensor], Tensor],
    size: int, length: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The memory passed from chunk to chunk; `values` of chunk i may depend on the memory before it."""
    read = q * _left(total, q.dtype)[..., None]
    left = k * _left(total[..., -1:] - total, q.dtype)[..., None]
    kept = _left(total[..., -1], q.dtype)[..., None, None]
    found = [q.new_zeros(*q.shape[:-3], 0, size)]
    for i in range(q.shape[-3]):
        v = values(i, s)
        found.append(inside[..., i, :, :] @ v + read[..., i, :, :] @ s)
        s = kept[..., i, :, :] * s + left[..., i, :, :].mT @ v
    return torch.cat(found, -2)[..., :length, :], s


def _chunked(x: Tensor, size: int) -> Tensor:
    """[.., L, X] -> [.., n, C, X], zeros behind: they write nothing and let nothing decay."""
    more = -x.shape[-2] % size
    return F.pad(x, (0, 0, 0, more)).unflatten(-2, ((x.shape[-2] + more) // size, size))


def _sums(log_a: Tensor, dim: int) -> Tensor:
    """Sums from a chunk's start, float64; a share of e^-1e4 is 0 as less would be, and the sums keep their digits."""
    return log_a.double().clamp(min=-1e4).cumsum(dim)


def _between(total: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left at id i of what id j wrote: [.., C] -> [.., C, C]; 1 where j is later."""
    return _left(total[..., :, None] - total[..., None, :], dtype)


def _left(log_a: Tensor, dtype: torch.dtype) -> Tensor:
    """The share that is left; 1 where the logarithm is above 0, which only places that nobody reads have."""
    return log_a.to(dtype).clamp(max=0.0).exp()


def _read(q: Tensor, s: Tensor) -> Tensor:
    return (q[..., None, :] @ s).squeeze(-2)
