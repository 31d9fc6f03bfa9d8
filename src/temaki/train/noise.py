"""The gradient's noise scale, from the gradients of two batch sizes that every accumulated step has anyway.

g_B is the mean gradient of a batch of B ids, G the true one, S = tr(Sigma) the summed variance of an id's gradient:
E |g_B|^2 = |G|^2 + S / B. Two sizes give both; B_simple = S / |G|^2 is the batch at which noise and signal are equal.
Ids count as independent draws; those of a row are not quite, so the scale is of this way to read.
McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DECAY = 0.95
"""Of the moving averages, a measurement (not a step) at a time."""


@dataclass(frozen=True)
class Norms:
    """Squared L2 norms of the mean gradient of a small batch and of the whole step's, before clipping."""

    small: float
    """Size of the small batch, units of weight (ids)."""
    large: float
    """Size of the step."""
    small_square: float
    large_square: float

    @property
    def signal(self) -> float:
        """An unbiased estimate of |G|^2: (B_b |g_b|^2 - B_s |g_s|^2) / (B_b - B_s); noise can make it negative.

        >>> Norms(small=1, large=4, small_square=9, large_square=3).signal
        1.0
        """
        return (self.large * self.large_square - self.small * self.small_square) / (self.large - self.small)

    @property
    def noise(self) -> float:
        """An unbiased estimate of S: (|g_s|^2 - |g_b|^2) / (1 / B_s - 1 / B_b).

        >>> Norms(small=1, large=4, small_square=9, large_square=3).noise
        8.0
        """
        return (self.small_square - self.large_square) / (1 / self.small - 1 / self.large)


class Scale:
    """Moving averages of S and of |G|^2, each apart, and their ratio; a single estimate of either says little.

    Nothing is clipped before it is averaged: that would bias the averages.

    >>> scale = Scale()
    >>> scale.simple is None
    True
    >>> scale.add(Norms(1, 4, 9, 3))
    >>> scale.signal, scale.noise, scale.simple
    (1.0, 8.0, 8.0)
    """

    def __init__(self, decay: float = DECAY):
        self.decay = decay
        self._noise = self._signal = self._mass = 0.0

    def add(self, norms: Norms) -> None:
        """Take a step's measurement; one of two equal sizes says nothing and is left out."""
        if not 0 < norms.small < norms.large:
            return
        keep, new = self.decay, 1 - self.decay
        self._noise = keep * self._noise + new * norms.noise
        self._signal = keep * self._signal + new * norms.signal
        self._mass = keep * self._mass + new

    @property
    def noise(self) -> float | None:
        """S, bias-corrected; None before the first measurement."""
        return self._noise / self._mass if self._mass else None

    @property
    def signal(self) -> float | None:
        """|G|^2, bias-corrected; None before the first measurement."""
        return self._signal / self._mass if self._mass else None

    @property
    def simple(self) -> float | None:
        """B_simple in ids; None where nothing was measured, or noise still hides the signal or its own size."""
        return self._noise / self._signal if self._signal > 0 and self._noise > 0 else None

    def numbers(self) -> dict[str, float]:
        """What a manifest keeps."""
        return {"noise": self._noise, "signal": self._signal, "mass": self._mass}

    def restore(self, found: Mapping[str, float]) -> None:
        """The inverse of `numbers`; an empty mapping begins anew."""
        self._noise, self._signal, self._mass = (found.get(name, 0.0) for name in ("noise", "signal", "mass"))
