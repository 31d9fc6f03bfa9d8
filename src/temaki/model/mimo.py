"""One diagonal state space for all channels of a layer: S5 and the linear recurrent unit.

u and a gate are projections of x; h_t = a h_{t-1} + B u_t with complex diagonal a; the layer gives W_out of
(Re(C h) + skip u) SiLU(gate). The two differ in what a and B follow from.

S5: x' = L x + B u held at a step of its own for each state (zero-order hold), a = e^(step L), B scaled by (a - 1) / L;
L begins at the eigenvalues of the normal part of HiPPO-LegS, and stands for conjugate pairs, so twice the real part
is read. Smith, Warrington and Linderman 2022, "Simplified state space layers", sections 3.1 to 3.3.
LRU: a = exp(-e^nu + i e^theta), drawn from a ring, B scaled by e^gain, which begins at sqrt(1 - |a|^2). Orvieto et al.
2023, "Resurrecting recurrent neural networks for long sequences", section 3 and appendix A.
Letters: N ids, n slots, D width, P complex states.
"""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import LruConfig, S5Config
from temaki.model.layout import Layout
from temaki.model.recurrent import Carried, Given, Recurrent
from temaki.model.scan_complex import complex_on, complex_scan, complex_step
from temaki.model.ssm import hold

_DYNAMICS = Role("dynamics")


def legs_frequencies(pairs: int) -> Tensor:
    """Imaginary parts, ascending, of one of each pair of eigenvalues of HiPPO-LegS' normal part: float64 [pairs].

    A + p p^T with p_n = sqrt(n + 1/2) is -1/2 plus a skew-symmetric matrix of 2 pairs rows; these are its eigenvalues.

    >>> legs_frequencies(1)
    tensor([0.8660], dtype=torch.float64)
    """
    root = (torch.arange(2 * pairs, dtype=torch.float64) + 0.5).sqrt()
    below = torch.outer(root, root).tril(-1)
    return torch.linalg.eigvalsh(1j * (below - below.T))[pairs:]


class Mimo(Recurrent):
    """The shell: projections, gate, skip, and the scan over its states."""

    chunk_ids = 1024
    read: float = 1.0
    """How often the real part of C h is counted."""

    def __init__(self, states: int, width: int):
        super().__init__()
        self.states, self.channels = states, 2 * states
        self.inputs = self.add("inputs", 2 * width, width, role=Role("matrix", (width, width)), filling="matrix")
        self.b = self.add(
            "b", 2 * states, width, role=Role("matrix", (states, states)), filling="given",
            value=torch.randn(2 * states, width) * (2 * width) ** -0.5,
        )  # fmt: skip
        self.c = self.add(
            "c", width, 2 * states, role=Role("matrix"), filling="given",
            value=torch.randn(width, 2 * states) * (self.read * states) ** -0.5,
        )  # fmt: skip
        self.skip = self.add("skip", width, role=Role("vector"), filling="ones")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")

    @abstractmethod
    def system(self) -> Tensor:
        """a, complex [P], in float32 or better."""

    @abstractmethod
    def gains(self) -> Tensor:
        """What each row of B is scaled by: complex [P]."""

    def project(self, x: Tensor, layout: Layout) -> Given:
        """B u [N, 2 P], real parts first, and what skip and gate read, [N, D] both."""
        u, gate = F.linear(x, self.inputs).chunk(2, -1)
        wide = self._wide()
        real, imaginary = self.b.to(wide).chunk(2)
        scaled = torch.complex(real, imaginary) * self.gains()[:, None]
        return F.linear(u.to(wide), torch.cat((scaled.real, scaled.imag))), u, gate

    def begin(self, slots: int) -> Carried:
        return (self.b.new_zeros(slots, self.channels, dtype=self._wide()),)

    def whole(self, system: Tensor, given: Given, layout: Layout) -> Tensor:
        return complex_scan(given[0], system, layout.rows.cuts)

    def chunk(self, system: Tensor, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        h, last = complex_on(given[0], system, past[0])
        return h, (last,)

    def step(self, system: Tensor, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        h = complex_step(past[0], given[0], system)
        return h, (h,)

    def finish(self, y: Tensor, given: Given) -> Tensor:
        """y: the states [N, 2 P]; C holds real parts and negated imaginary parts."""
        _, u, gate = given
        read = F.linear(y, self.c.to(y.dtype)) * self.read
        return F.linear((read + self.skip * u).to(gate.dtype) * F.silu(gate), self.out)

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.skip.dtype, torch.float32)


class S5(Mimo):
    """Zero-order hold of a continuous system in conjugate pairs."""

    read = 2.0

    def __init__(self, config: S5Config, width: int):
        pairs = config.states // 2
        super().__init__(pairs, width)
        low, high = math.log(config.step_min), math.log(config.step_max)
        steps = torch.rand(pairs) * (high - low) + low
        self.log_step = self.add("log_step", pairs, role=_DYNAMICS, filling="given", value=steps)
        self.log_decay = self.add(
            "log_decay", pairs, role=_DYNAMICS, filling="given", value=torch.full((pairs,), math.log(0.5))
        )
        self.frequency = self.add(
            "frequency", pairs, role=_DYNAMICS, filling="given", value=legs_frequencies(pairs).float()
        )

    def system(self) -> Tensor:
        return self._held()[0]

    def gains(self) -> Tensor:
        return self._held()[1]

    def _held(self) -> tuple[Tensor, Tensor]:
        wide = self._wide()
        rates = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
        return hold(rates, self.log_step.to(wide).exp())


class Lru(Mimo):
    """A discrete system inside the unit circle."""

    def __init__(self, config: LruConfig, width: int):
        super().__init__(config.states, width)
        inner, outer = config.radius_min**2, config.radius_max**2
        square = torch.rand(config.states) * (outer - inner) + inner
        phase = (torch.rand(config.states) * config.phase_max).clamp(min=1e-6)
        start = {"nu": (-square.log() / 2).log(), "theta": phase.log(), "gain": (-square).log1p() / 2}
        self.nu, self.theta, self.gain = (
            self.add(name, config.states, role=_DYNAMICS, filling="given", value=value) for name, value in start.items()
        )

    def system(self) -> Tensor:
        wide = self._wide()
        return torch.complex(-self.nu.to(wide).exp(), self.theta.to(wide).exp()).exp()

    def gains(self) -> Tensor:
        gain = self.gain.to(self._wide()).exp()
        return torch.complex(gain, torch.zeros_like(gain))
