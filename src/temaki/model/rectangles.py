"""Pieces as rectangles, for kernels that want one: padded at their ends, pieces of about one length together.

Letters: N ids, P pieces, L ids of the longest.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Pieces = Sequence[tuple[int, int]]
"""(start, stop) of each piece in 0..N, in order and without gaps."""


def in_rectangles(given: Sequence[Tensor], pieces: Pieces, read: Callable[..., Tensor]) -> Tensor:
    """What `read` makes of the pieces, read as rectangles: given [N, ..] each -> [N, ..].

    read: [P, L, ..] each -> [P, L, ..], where a place may depend on no later place of its row, for rows are padded with
    zeros at their ends. Pieces whose lengths round up to one power of two share a rectangle.

    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> in_rectangles([x], [(0, 2), (2, 3)], lambda rows: rows.cumsum(1))
    tensor([1., 3., 3.])
    """
    whole = _whole(pieces)
    if whole is not None:
        y = read(*(each.unflatten(0, whole) for each in given))
        return y.flatten(0, 1)
    sizes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, stop in pieces:
        if stop > start:
            sizes[(stop - start - 1).bit_length()].append((start, stop))
    found: dict[int, Tensor] = {}
    for spans in sizes.values():
        lengths = [stop - start for start, stop in spans]
        rows = [torch.nn.utils.rnn.pad_sequence([each[a:b] for a, b in spans], batch_first=True) for each in given]
        for (start, _), length, y in zip(spans, lengths, read(*rows), strict=True):
            found[start] = y[:length]
    assert found, "there is no id to read"
    return torch.cat([found[start] for start in sorted(found)])


def _whole(pieces: Pieces) -> tuple[int, int] | None:
    """(P, L) of pieces of one length, of at least one id."""
    lengths = {stop - start for start, stop in pieces}
    if len(lengths) != 1 or 0 in lengths:
        return None
    return len(pieces), lengths.pop()
