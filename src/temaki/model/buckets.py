"""Buckets of distance, as T5 has them: near places have one each, far ones share ranges that grow with the distance.

Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text Transformer", section 2.1,
and its published code. Letters: B buckets of one way, e = B / 2 of single distances, M where the last begins.
"""

from bisect import bisect_left
from functools import cache

import torch
from torch import Tensor

from temaki.model.config import BucketsConfig


def distance_buckets(back: Tensor, config: BucketsConfig, both: bool) -> Tensor:
    """The bucket of each distance, int64 in 0..count-1, of the same shape.

    back: int64, the query's place minus the key's. both: keys ahead have the second half of the buckets; otherwise
    they are as at distance 0. A distance n has the bucket n below e, and e + floor((B - e) ln(n / e) / ln(M / e)),
    at most B - 1, from there on.

    >>> distance_buckets(torch.tensor([0, 3, 8, 11, 90, -5]), BucketsConfig(count=8, distance=16), False).tolist()
    [0, 3, 6, 6, 7, 0]
    >>> distance_buckets(torch.tensor([0, 3, -3, -99]), BucketsConfig(count=8, distance=16), True).tolist()
    [0, 2, 6, 7]
    """
    half = config.count // 2
    starts = torch.tensor(bucket_starts(half if both else config.count, config.distance), device=back.device)
    far = back.abs() if both else back.clamp(min=0)
    found = torch.bucketize(far, starts, right=True)
    return found + half * (back < 0) if both else found


@cache
def bucket_starts(count: int, distance: int) -> tuple[int, ...]:
    """The distance at which each bucket but the first begins, without rounding: e (M / e)^(j / (B - e)) in integers.

    >>> bucket_starts(8, 16)
    (1, 2, 3, 4, 6, 8, 12)
    """
    single = count // 2
    rest = count - single
    starts = list(range(1, single + 1))
    for j in range(1, rest):
        reached = distance**j * single ** (rest - j)  # n^rest of the first distance n of bucket e + j
        further = range(starts[-1], distance + 1)
        starts.append(further[bisect_left(further, reached, key=lambda n: n**rest)])
    return tuple(starts)
