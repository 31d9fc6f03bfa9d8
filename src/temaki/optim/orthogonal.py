"""Newton-Schulz iterations of many matrices of one shape: three batched products a step, and nothing else as large.

With Y = k X, k = c^(1/4), S = Y Y^T and h = b / (2 sqrt(c)) the polynomial of `muon.newton_schulz` is one square,
    a I + b A + c A^2 = (S + h I)^2 + (a - h^2) I,
so a step is S = Y Y^T; P = (S + h I)^2; Y <- (P + (a - h^2) I) Y, where adding to a diagonal costs nothing. Tall
matrices are multiplied from the right, so nothing is transposed. Buffers stay from call to call: a fresh one costs the
system's page faults.
"""

from collections.abc import Callable, Iterator
from math import ceil

import torch
from torch import Tensor

MOST = 1 << 22
"""Entries of a batch, so that its buffers fit into a cache of tens of megabytes; at least one matrix."""


class Buffers:
    """Memory that is used again: flat tensors by name and dtype, as large as was ever needed."""

    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An empty tensor on the device of `like`, valid until `name` is taken again."""
        size, key = torch.Size(shape).numel(), (name, dtype, like.device)
        if key not in self.flat or self.flat[key].numel() < size:
            self.flat[key] = torch.empty(size, dtype=dtype, device=like.device)
        return self.flat[key][:size].view(shape)


def orthogonal(
    count: int,
    like: Tensor,
    fill: Callable[[int, Tensor], None],
    steps: int,
    coefficients: tuple[float, float, float],
    dtype: torch.dtype,
    buffers: Buffers,
) -> Iterator[tuple[int, Tensor]]:
    """(i, `stretch` times msign of matrix i in `dtype`) for i < count, each valid until the next is asked for.

    fill(i, out) writes matrix i, of the shape of `like`, into out.
    """
    rows, cols = like.shape
    most = max(1, MOST // (rows * cols))
    size = ceil(count / ceil(count / most)) if count else 1
    for start in range(0, count, size):
        n = min(size, count - start)
        x = buffers.take("x", (n, rows, cols), like, dtype)
        for i in range(n):
            fill(start + i, x[i])
        yield from enumerate(_iterated(x, steps, coefficients, buffers), start)


def stretch(coefficients: tuple[float, float, float]) -> float:
    """k, which is 1 where there is no square.

    >>> stretch((2.0, -1.0, 16.0)), stretch((1.5, -0.5, 0.0))
    (2.0, 1.0)
    """
    return coefficients[2] ** 0.25 if coefficients[2] > 0 else 1.0


def _iterated(x: Tensor, steps: int, coefficients: tuple[float, float, float], buffers: Buffers) -> Tensor:
    """`stretch` times msign of each x [n, rows, cols], which is used up."""
    a, b, c = coefficients
    n, rows, cols = x.shape
    tall, short = rows > cols, min(rows, cols)
    x.mul_(stretch(coefficients) / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7))
    y = buffers.take("y", (n, rows, cols), x, x.dtype)
    gram, poly = (buffers.take(name, (n, short, short), x, x.dtype) for name in ("gram", "poly"))
    for _ in range(steps):
        torch.bmm(x.mT, x, out=gram) if tall else torch.bmm(x, x.mT, out=gram)
        _polynomial(gram, poly, a, b, c)
        torch.bmm(x, poly, out=y) if tall else torch.bmm(poly, x, out=y)
        x, y = y, x
    return x


def _polynomial(gram: Tensor, out: Tensor, a: float, b: float, c: float) -> None:
    """out = a I + b A + c A^2, where gram, which is used up, is sqrt(c) A; A itself if c is not positive."""
    if c > 0:
        h = b / (2 * c**0.5)
        gram.diagonal(dim1=-2, dim2=-1).add_(h)
        torch.bmm(gram, gram, out=out)
        out.diagonal(dim1=-2, dim2=-1).add_(a - h * h)
        return
    torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=out)
    out.diagonal(dim1=-2, dim2=-1).add_(a)
