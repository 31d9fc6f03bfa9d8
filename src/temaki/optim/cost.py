"""What Muon's Newton-Schulz iterations cost, without torch."""


def muon_flops(rows: int, cols: int, steps: int = 5) -> int:
    """FLOPs of `steps` Newton-Schulz steps of one matrix [rows, cols]: X X^T, the square of that, and their product.

    A step is 2 s^2 l + 2 s^3 + 2 s^2 l for the shorter side s and the longer side l; passes over entries are left out.

    >>> muon_flops(2, 3, steps=1), muon_flops(3, 2, steps=1)
    (64, 64)
    """
    short, long = min(rows, cols), max(rows, cols)
    return steps * (4 * short**2 * long + 2 * short**3)


def muon_share(rows: int, cols: int, tokens: int, steps: int = 5) -> float:
    """`muon_flops` over those of a training step through the same matrix: 6 a weight and token.

    >>> muon_share(384, 384, 38_400)
    0.05
    """
    return muon_flops(rows, cols, steps) / (6 * rows * cols * tokens)
