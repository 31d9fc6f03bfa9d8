"""How the best learning rate follows the batch size, and steps trade against examples: the laws as formulas.

Letters: B batch (ids, or any unit), eta the best rate; kappa^2 the noise of an entry's gradient over its signal,
squared and averaged, so that beta = (1 + pi kappa^2 / (2 B))^(-1/2) is the mean of the sign of an entry of a batch's
gradient; beta_noise what the Hessian's diagonal weighs beside the rest.

Sources: S. McCandlish et al. 2018, "An empirical model of large-batch training", equations 2.6 to 2.11; S. Li et al.
2024, "Surge phenomenon in optimal learning rate and batch size scaling", section 2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias


@dataclass(frozen=True)
class SquareRoot:
    """eta = unit sqrt(B): the variance of an update stays. AdamW's old rule of thumb.

    >>> SquareRoot(0.1).rate(4)
    0.2
    """

    unit: float
    kind: ClassVar[str] = "square root"

    def rate(self, batch: float) -> float:
        """eta."""
        return self.unit * math.sqrt(batch)


@dataclass(frozen=True)
class Linear:
    """eta = unit B: the noise of a path of given length stays. SGD's old rule of thumb.

    >>> Linear(0.5).rate(4)
    2.0
    """

    unit: float
    kind: ClassVar[str] = "linear"

    def rate(self, batch: float) -> float:
        """eta."""
        return self.unit * batch


@dataclass(frozen=True)
class Sgd:
    """eta = top / (1 + noise / B).

    >>> [round(Sgd(1.0, 100.0).rate(b), 4) for b in (10, 100, 1000)]
    [0.0909, 0.5, 0.9091]
    """

    top: float
    """g'g / g'Hg."""
    noise: float
    """B_noise = tr(Sigma H) / g'Hg."""
    kind: ClassVar[str] = "sgd"

    def rate(self, batch: float) -> float:
        """eta."""
        return self.top / (1 + self.noise / batch)

    def gain(self, batch: float) -> float:
        """What a step at the best rate gains, as a share of what it would gain without noise.

        >>> Sgd(1.0, 100.0).gain(100)
        0.5
        """
        return 1 / (1 + self.noise / batch)


@dataclass(frozen=True)
class Guess:
    """eta = top / (1 + noise / B)^power, 0.5 <= power <= 1: OpenAI's guess for Adam.

    >>> round(Guess(1.0, 100.0, 0.5).rate(100), 4)
    0.7071
    """

    top: float
    noise: float
    power: float
    kind: ClassVar[str] = "guess"

    def rate(self, batch: float) -> float:
        """eta."""
        return self.top / (1 + self.noise / batch) ** self.power


@dataclass(frozen=True)
class Diagonal:
    """eta = top beta: Adam as SignSGD with a diagonal Hessian; sqrt(B) while B is far below pi kappa^2 / 2.

    >>> round(Diagonal(1.0, 200 / math.pi).rate(100), 4)
    0.7071
    """

    top: float
    kappa2: float
    kind: ClassVar[str] = "diagonal"

    def rate(self, batch: float) -> float:
        """eta."""
        return self.top * sign_mean(self.kappa2, batch)


@dataclass(frozen=True)
class Sign:
    """eta = top / (1/2 (beta_noise / beta + beta / beta_noise)): Adam as SignSGD, with the surge: beyond a batch the
    best rate falls again.

    >>> law = Sign(1.0, 100.0, 0.5)
    >>> [round(law.rate(b), 6) for b in (10, 50, 100, 1000, 1e5)]
    [0.789559, 0.999849, 0.976058, 0.83433, 0.800377]
    """

    top: float
    kappa2: float
    beta_noise: float
    kind: ClassVar[str] = "sign"

    def rate(self, batch: float) -> float:
        """eta."""
        share = self.beta_noise / sign_mean(self.kappa2, batch)
        return self.top / (0.5 * (share + 1 / share))

    @property
    def surge(self) -> float | None:
        """The batch of the highest rate, pi kappa^2 beta_n^2 / (2 (1 - beta_n^2)); None where the rate never falls.

        >>> round(Sign(1.0, 100.0, 0.5).surge, 4), Sign(1.0, 100.0, 2.0).surge
        (52.3599, None)
        """
        square = self.beta_noise**2
        return math.pi * self.kappa2 * square / (2 * (1 - square)) if square < 1 else None

    @property
    def half(self) -> float:
        """B_noise2 = pi kappa^2 beta_n^2 / (2 (1 + beta_n^2)): the batch whose step gains half of what is there.

        >>> round(Sign(1.0, 100.0, 0.5).half, 4)
        31.4159
        """
        return math.pi * self.kappa2 * self.beta_noise**2 / (2 * (1 + self.beta_noise**2))

    def gain(self, batch: float) -> float:
        """What a step at the best rate gains, as a share of what it would gain without noise.

        >>> law = Sign(1.0, 100.0, 0.5)
        >>> round(law.gain(law.half), 6)
        0.5
        """
        return 1 / (1 + self.half / batch)


Law: TypeAlias = SquareRoot | Linear | Sgd | Guess | Diagonal | Sign
LAWS: tuple[type[Law], ...] = (SquareRoot, Linear, Sgd, Diagonal, Guess, Sign)
"""Fewest parameters first."""


def sign_mean(kappa2: float, batch: float) -> float:
    """beta = (1 + pi kappa^2 / (2 B))^(-1/2), what `sign_erf` comes to over many entries.

    >>> round(sign_mean(100.0, 32), 6)
    0.411389
    """
    return 1 / math.sqrt(1 + math.pi * kappa2 / (2 * batch))


def sign_erf(ratio: float, batch: float) -> float:
    """E sign(g_B) of one entry: erf(g / sigma sqrt(B / 2)), for `ratio` = g / sigma.

    >>> round(sign_erf(0.1, 32), 6)
    0.428392
    """
    return math.erf(ratio * math.sqrt(batch / 2))


@dataclass(frozen=True)
class Tradeoff:
    """Steps and examples to reach one loss: S = S_min + E_min / B, so that (S/S_min - 1)(E/E_min - 1) = 1.

    >>> trade = Tradeoff(steps_min=100.0, examples_min=5000.0)
    >>> trade.noise, trade.steps(50), trade.examples(50)
    (50.0, 200.0, 10000.0)
    """

    steps_min: float
    """With a batch without end."""
    examples_min: float
    """One at a time."""

    @property
    def noise(self) -> float:
        """B_noise = E_min / S_min: the batch that takes twice the least of both."""
        return self.examples_min / self.steps_min

    def steps(self, batch: float) -> float:
        """S = (1 + B_noise / B) S_min."""
        return self.steps_min + self.examples_min / batch

    def examples(self, batch: float) -> float:
        """E = (B + B_noise) S_min."""
        return self.steps_min * batch + self.examples_min
