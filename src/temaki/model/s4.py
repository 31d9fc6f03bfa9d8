"""S4: state spaces with HiPPO-LegS dynamics, A = diag(Lambda) - p p*, normal plus rank one, at a bilinear step.

A channel's N states are N/2 conjugate pairs, of which one each is kept. Its kernel is the inverse transform of the
truncated generating function at the L-th roots of unity, by Woodbury a matter of four Cauchy sums; with z = e^(-i th),
s = sin(th/2), c = cos(th/2) everything is written without the pole at z = -1 (even L):

    q(v) = sum v / (2 i s / step - c Lambda),   G = (c + i s) (q(C~ B) - c q(C~ p) q(p* B) / (1 + c q(p* p)))

The recurrence is diagonal plus rank one, so a step is O(N): x <- E x - g (h . x) + Bbar u. Gu, Goel and Re 2021,
"Efficiently modeling long sequences with structured state spaces", section 3 and appendix C. Letters: N ids, D width,
S = N_state / 2 pairs, L length, M = L // 2 + 1 frequencies.
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from temaki.base.roles import Role
from temaki.model.config import S4Config
from temaki.model.hippo import legs
from temaki.model.recurrent import Carried, Given
from temaki.model.s4_loops import cauchy, read_on
from temaki.model.scan import looped
from temaki.model.siso import Convolved, Truncated

_AT_ONCE = 1 << 21
"""Numbers of D x S x frequencies that the torch twin of the Cauchy sums holds at a time."""


class Dynamics(NamedTuple):
    """x' = (diag(Lambda) - p p*) x + b u of every channel, and its step: complex [D, S] each; step real [D]."""

    poles: Tensor
    p: Tensor
    b: Tensor
    step: Tensor


class Stepped(NamedTuple):
    """x <- E x - g Re(h . x) + bbar u, y = Re(c . x): complex [D, S] each, pairs counted twice in h and c."""

    e: Tensor
    g: Tensor
    h: Tensor
    bbar: Tensor
    c: Tensor


def normal_legs(states: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Lambda, p, b, basis) of LegS where A + p p* is diagonal: complex128 [N/2], of each pair one; basis [N/2, N].

    A + p p^T = -1/2 + S with p_n = sqrt(n + 1/2) and S skew; S has an orthonormal basis of eigenvectors, A itself one
    that is conditioned like 2^(4N/3), so only S is diagonalised. The basis is turned so that p is real and positive.
    A state x in it is `basis @ x`, a row C is `C @ basis.mH`.

    >>> normal_legs(2)[0]
    tensor([-0.5000+0.8660j], dtype=torch.complex128)
    """
    a, b = legs(states)
    p = b / math.sqrt(2)
    values, basis = torch.linalg.eigh(-1j * (a + p[:, None] * p + 0.5 * torch.eye(states, dtype=a.dtype)))
    half, upper = values[states // 2 :], basis[:, states // 2 :].mH  # eigenvalues rise and come in pairs +-
    upper = upper * torch.sgn(upper @ p.to(upper.dtype)).conj()[:, None]
    return torch.complex(torch.full_like(half, -0.5), half), *(upper @ each.to(upper.dtype) for each in (p, b)), upper


def dplr_step(of: Dynamics, c: Tensor) -> Stepped:
    """The bilinear step as diagonal plus rank one, by Woodbury: Abar = -1 + (4/step) (2/step - A)^-1.

    >>> one = torch.ones(1, 1) + 0j
    >>> dplr_step(Dynamics(-one, 0 * one, one, torch.ones(1)), one).e.real
    tensor([[0.3333]])
    """
    two = 2 / of.step[:, None]
    d = 1 / (two - of.poles)
    shrink = 1 / (1 + 2 * (of.p.abs().square() * d).real.sum(-1, keepdim=True))
    h = of.p.conj() * d
    reach = 2 * (h * of.b).real.sum(-1, keepdim=True)
    bbar = 2 * d * (of.b - shrink * reach * of.p)
    return Stepped(2 * two * d - 1, 2 * two * shrink * d * of.p, 2 * h, bbar, 2 * c)


def dplr_advance(x: Tensor, u: Tensor, by: Stepped) -> tuple[Tensor, Tensor]:
    """One id: state x [.., D, S] and input u [.., D] -> (output [.., D], the state after it).

    >>> one = torch.ones(1, 1) + 0j
    >>> dplr_advance(one, torch.ones(1), Stepped(0.5 * one, 0 * one, one, one, one))
    (tensor([1.5000]), tensor([[1.5000+0.j]]))
    """
    w = (by.h * x).sum(-1, keepdim=True).real
    x = by.e * x - by.g * w + by.bbar * u[..., None]
    return (by.c * x).sum(-1).real, x


def s4_kernel(of: Dynamics, c: Tensor, length: int) -> Tensor:
    """K_k, k < L, of the numerator C~ = C (I - Abar^L), complex c [D, S]: real [D, L].

    >>> one = torch.ones(1, 1) + 0j
    >>> s4_kernel(Dynamics(-one, 0 * one, one, torch.ones(1)), one / 2 * (1 - 1 / 3**3), 3).round(decimals=4)
    tensor([[0.6667, 0.2222, 0.0741]])
    """
    half = torch.arange(length // 2 + 1, device=c.device, dtype=torch.float64) * (math.pi / length)
    sin, cos = half.sin(), half.cos()
    if length % 2 == 0:
        cos[-1] = 0.0
    sin, cos = sin.to(of.step.dtype), cos.to(of.step.dtype)
    v = torch.stack((c * of.b, c * of.p, of.p.conj() * of.b, of.p.conj() * of.p), -1)  # [D, S, 4]
    # v r + conj(v r*) of a pair = (i x 2 Re v - c 2 Re(v conj(Lambda))) / ((i x - c Lambda) (i x - c conj(Lambda)))
    above = torch.cat((2 * v.real, -2 * (v * of.poles.conj()[..., None]).real), -1)  # [D, S, 8]
    sums = _sums(of.poles.real, of.poles.abs().square(), above, of.step, sin, cos)  # [D, M, 8]
    x, c_ = 2 * sin / of.step[:, None], cos
    cb, cp, pb, pp = (1j * x[..., None] * sums[..., :4] + c_[:, None] * sums[..., 4:]).unbind(-1)
    return torch.fft.irfft(torch.complex(cos, sin) * (cb - c_ * cp * pb / (1 + c_ * pp)), length)


def _sums(real: Tensor, square: Tensor, above: Tensor, step: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """sum_s above_s / den_s(m), den = c^2 |Lambda|^2 - x^2 - 2 i x c Re Lambda, x = 2 sin / step: complex [D, M, 8]."""
    x, c = 2 * sin / step[:, None], cos.expand(len(step), -1)  # [D, M]
    if looped(above.contiguous()):
        return cauchy(real, square, above, x, c)
    places = max(1, _AT_ONCE // square.numel())
    parts = zip(x.split(places, 1), c.split(places, 1), strict=True)
    return torch.cat([checkpoint(_sums_part, real, square, above, *part, use_reentrant=False) for part in parts], 1)


def _sums_part(real: Tensor, square: Tensor, above: Tensor, x: Tensor, c: Tensor) -> Tensor:
    x, c = x[..., None], c[..., None]  # [D, m, 1]
    den = torch.complex(c.square() * square[:, None] - x.square(), -2 * x * c * real[:, None])  # [D, m, S]
    return den.reciprocal() @ above.to(den.dtype)


class S4System(Truncated):
    """Dynamics and a numerator; a row vector [D, N] of it is [2 Re c, -2 Im c], a state [Re x, Im x]."""

    def __init__(self, of: Dynamics, c: Tensor, length: int):
        super().__init__(torch.cat((2 * c.real, -2 * c.imag), -1), length)
        self.of = of

    def truncated(self, numerator: Tensor) -> Tensor:
        return s4_kernel(self.of, _pairs(numerator), self.length)

    def matrix(self) -> Tensor:
        by = dplr_step(self._precise, self._precise.b)
        (er, ei), (hr, hi) = ((each.real, each.imag) for each in (by.e, by.h))
        across = torch.cat((torch.cat((er.diag_embed(), -ei.diag_embed()), -1),
                            torch.cat((ei.diag_embed(), er.diag_embed()), -1)), -2)  # fmt: skip
        return across - torch.cat((by.g.real, by.g.imag), -1)[..., None] * torch.cat((hr, -hi), -1)[:, None]

    @cached_property
    def _precise(self) -> Dynamics:
        return Dynamics(*(each.to(torch.promote_types(each.dtype, torch.float64)) for each in self.of))

    @cached_property
    def stepped(self) -> Stepped:
        """The step with the output of the recurrence, made in float64."""
        made = dplr_step(self._precise, _pairs(self.output))
        return Stepped(*(each.to(self.of.p.dtype) for each in made))


def _pairs(row: Tensor) -> Tensor:
    """A real row vector [D, N] as complex [D, S]: what `S4System` says, the other way."""
    real, imaginary = row.chunk(2, -1)
    return torch.complex(real, -imaginary) / 2


class S4(Convolved):
    """One state space of LegS dynamics a channel, inside the shell of `Siso`."""

    def __init__(self, config: S4Config, width: int):
        super().__init__(width)
        self.config, pairs = config, config.states // 2
        low, high = math.log(config.step_min), math.log(config.step_max)
        steps = torch.rand(width, device="cpu") * (high - low) + low
        with torch.device("cpu"):
            poles, p, b = (each.expand(width, -1) for each in normal_legs(config.states)[:3])
            c = torch.view_as_complex(torch.randn(width, pairs, 2, dtype=torch.float64) * 0.5**0.5)
            given = S4System(Dynamics(poles, p, b, steps.double().exp()), c, config.length)
            numerator = given.numerator - (given.numerator[:, None] @ given.power)[:, 0]

        def put(name: str, value: Tensor, kind: str = "dynamics") -> torch.nn.Parameter:
            there = value.float().to(torch.get_default_device(), copy=True).contiguous()
            role = Role("vector") if kind == "vector" else Role("dynamics")
            return self.add(name, *value.shape, role=role, filling="given", value=there)

        self.log_step = put("log_step", steps)
        self.log_decay = put("log_decay", (-poles.real).log())
        self.frequency = put("frequency", poles.imag)
        self.p = put("p", torch.view_as_real(p.resolve_conj()))
        self.b = put("b", torch.view_as_real(b.resolve_conj()))
        self.c = put("c", torch.view_as_real(_pairs(numerator)), "vector")

    def made(self) -> S4System:
        wide = self.wide()
        poles = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
        p, b, c = (torch.view_as_complex(each.to(wide)) for each in (self.p, self.b, self.c))
        return S4System(Dynamics(poles, p, b, self.log_step.to(wide).exp()), c, self.config.length)

    def begin(self, slots: int) -> Carried:
        kind = torch.promote_types(self.wide(), torch.complex64)
        return (self.c.new_zeros(slots, *self.c.shape[:2], dtype=kind),)

    def run(self, system: S4System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        if not looped(given[0]) or torch.is_grad_enabled():
            return super().run(system, past, given)
        y, after = read_on(given[0], *system.stepped, past[0])
        return y, (after,)

    def chunk(self, system: S4System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        x, found = past[0], []
        for u in given[0]:
            y, x = dplr_advance(x, u, system.stepped)
            found.append(y)
        return torch.stack(found), (x,)

    def step(self, system: S4System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        y, x = dplr_advance(past[0], given[0], system.stepped)
        return y, (x,)
