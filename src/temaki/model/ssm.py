"""Diagonal state spaces (S4D): the functions, the part that holds their weights, and its decoding state.

A channel is x' = A x + B u, y = 2 Re(C x) + skip u with diagonal complex A, held at step dt (zero-order hold):
Abar = e^(dt A), Bbar = (Abar - 1) / A with B = 1. Training convolves with K_k = 2 Re sum_n C_n Bbar_n Abar_n^k;
decoding steps x <- Abar x + Bbar u. Gu, Gupta, Goel, Re 2022, "On the Parameterization and Initialization of Diagonal
State Space Models", sections 3 and 4 (S4D-Lin). Letters: N ids, D width, S = N_state / 2 conjugate pairs, L length.
"""

import math
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config import S4DConfig
from temaki.model.layout import Layout
from temaki.model.recurrent import Carried, Given, Recurrent
from temaki.model.scan import diagonal_scan, floored, looped, scan_on, vandermonde

System = tuple[Tensor, Tensor, Tensor]
"""(Abar, Bbar, C), complex [D, S] each."""
_SCANNED = 256
"""Pairs a channel up to which a compiled scan costs less than transforms: at 256 a draw for D = 128, a gain for 64."""


def hold(a: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold of x' = a x + u: (Abar, Bbar) = (e^(step a), (Abar - 1) / a), elementwise.

    >>> hold(torch.tensor(-1.0), torch.tensor(0.5))
    (tensor(0.6065), tensor(0.3935))
    """
    abar = (step * a).exp()
    return abar, (abar - 1) / a


def powers(abar: Tensor, length: int) -> Tensor:
    """Abar^0 .. Abar^(L-1), stacked first: [...] -> [L, ...].

    >>> powers(torch.tensor([0.5 + 0j]), 3).real.flatten()
    tensor([1.0000, 0.5000, 0.2500])
    """
    steps = torch.arange(length, device=abar.device, dtype=abar.real.dtype)
    return (floored(abar).log() * steps.reshape(-1, *[1] * abar.dim())).exp()


def s4d_kernel(abar: Tensor, bbar: Tensor, c: Tensor, length: int) -> Tensor:
    """K_k = 2 Re sum_n C_n Bbar_n Abar_n^k: complex [D, S] each -> real [D, L].

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1, dtype=torch.complex64)
    >>> s4d_kernel(half, one, one, 3)
    tensor([[2.0000, 1.0000, 0.5000]])
    """
    return vandermonde(abar, 2 * c * bbar, length)


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum_{j <= t} K_{t-j} u_j by FFT with zero padding to 2L: u [..., D, L], kernel [D, L] -> [..., D, L].

    >>> causal_convolution(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5]])).round(decimals=4)
    tensor([[1.0000, 2.5000]])
    """
    length = u.shape[-1]
    size = 1 << (2 * length - 1).bit_length()
    return torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(kernel, size), size)[..., :length]


def s4d_step(x: Tensor, u: Tensor, abar: Tensor, bbar: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One id: state x [..., D, S] and input u [..., D] -> (output [..., D], new state).

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1, dtype=torch.complex64)
    >>> s4d_step(one, torch.tensor([3.0]), half, one, one)
    (tensor([7.]), tensor([[3.5000+0.j]]))
    """
    x = abar * x + bbar * u[..., None]
    return 2 * (c * x).sum(-1).real, x


def s4d_chunk(x: Tensor, u: Tensor, abar: Tensor, bbar: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """L ids from state x [D, S], inputs u [L, D] -> (outputs [L, D], new state): the step, L times, in parallel.

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1, dtype=torch.complex64)
    >>> s4d_chunk(one, torch.tensor([[3.0], [0.0]]), half, one, one)[0].round(decimals=3)
    tensor([[7.0000],
            [3.5000]])
    """
    length = len(u)
    if length == 1:
        y, x = s4d_step(x, u[0], abar, bbar, c)
        return y[None], x
    p = powers(abar, length + 1)
    kernel = 2 * torch.einsum("lds,ds->dl", p[:-1], c * bbar).real
    fresh = causal_convolution(u.T, kernel).T
    carried = 2 * torch.einsum("lds,ds->ld", p[1:], c * x).real
    return fresh + carried, advance(x, u, abar, bbar, p)


def advance(x: Tensor, u: Tensor, abar: Tensor, bbar: Tensor, p: Tensor | None = None) -> Tensor:
    """The state after inputs u [L, D] from state x [D, S]: Abar^L x + sum_j Abar^(L-1-j) Bbar u_j.

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1, dtype=torch.complex64)
    >>> advance(one, torch.tensor([[3.0], [0.0]]), half, one).real
    tensor([[1.7500]])
    """
    p = powers(abar, len(u) + 1) if p is None else p
    return p[-1] * x + bbar * torch.einsum("lds,ld->ds", p[:-1].flip(0), u.to(p.dtype))


class S4D(Recurrent):
    """Input and gate projections, one diagonal state space a channel, gate, output projection."""

    def __init__(self, config: S4DConfig, width: int):
        super().__init__()
        self.config, self.channels = config, width
        pairs = config.states // 2
        low, high = math.log(config.step_min), math.log(config.step_max)
        self.inputs = self.add("inputs", 2 * width, width, role=Role("matrix", (width, width)), filling="matrix")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")
        dynamics = Role("dynamics")
        self.log_step = self.add(
            "log_step", width, role=dynamics, filling="given", value=torch.rand(width) * (high - low) + low
        )
        self.log_decay = self.add(
            "log_decay",
            width,
            pairs,
            role=dynamics,
            filling="given",
            value=torch.full((width, pairs), math.log(0.5)),
        )
        self.frequency = self.add(
            "frequency", width, pairs, role=dynamics, filling="given",
            value=math.pi * torch.arange(pairs).float().repeat(width, 1),
        )  # fmt: skip
        self.c = self.add(
            "c",
            width,
            pairs,
            2,
            role=Role("vector"),
            filling="given",
            value=torch.randn(width, pairs, 2) * 0.5**0.5,
        )
        self.skip = self.add("skip", width, role=Role("vector"), filling="ones")

    def system(self) -> System:
        """(Abar, 1, C Bbar), complex [D, S] each, in float32 or better: a state is measured in what one input adds."""
        wide = self._wide()
        a = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
        abar, bbar = hold(a, self.log_step.to(wide).exp()[:, None])
        return abar, torch.ones_like(bbar), bbar * torch.view_as_complex(self.c.to(wide))

    def project(self, x: Tensor, layout: Layout) -> Given:
        """What goes into the state spaces and the gate: [N, D] both."""
        u, gate = F.linear(x, self.inputs).chunk(2, -1)
        return u.to(self._wide()).contiguous(), gate

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.skip.dtype, torch.float32)

    def begin(self, slots: int) -> Carried:
        kind = torch.promote_types(self._wide(), torch.complex64)
        return (self.c.new_zeros(slots, *self.c.shape[:2], dtype=kind),)

    def whole(self, system: System, given: Given, layout: Layout) -> Tensor:
        """Scanned id by id where a loop serves and states are few; else convolved."""
        abar, bbar, c = system
        if looped(given[0]) and abar.shape[1] <= _SCANNED:
            return diagonal_scan(given[0], abar, 2 * c * bbar, layout.rows.cuts)
        return convolve_pieces(given[0], layout.pieces, *system)

    def run(self, system: System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        """The loop takes any number of ids at once."""
        return (self.chunk if looped(given[0]) else super().run)(system, past, given)

    def chunk(self, system: System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        abar, bbar, c = system
        if looped(given[0]):
            y, after = scan_on(given[0], abar, 2 * c * bbar, past[0][None])
            return y, (after[0],)
        y, x = s4d_chunk(past[0], given[0], *system)
        return y, (x,)

    def step(self, system: System, past: Carried, given: Given) -> tuple[Tensor, Carried]:
        y, x = s4d_step(past[0], given[0], *system)
        return y, (x,)

    def finish(self, y: Tensor, given: Given) -> Tensor:
        u, gate = given
        return F.linear((y + self.skip * u).to(gate.dtype) * F.silu(gate), self.out)


def convolve_pieces(u: Tensor, pieces: list[tuple[int, int]], abar: Tensor, bbar: Tensor, c: Tensor) -> Tensor:
    """Each piece convolved alone: pieces are padded to the next power of two and go through the FFT by size.

    u [N, D], complex abar, bbar and c [D, S] -> y [N, D].

    >>> half, one = torch.full((1, 1), 0.5 + 0j), torch.ones(1, 1) + 0j
    >>> convolve_pieces(torch.ones(3, 1), [(0, 2), (2, 3)], half, one, one).T.round(decimals=4)
    tensor([[2., 3., 2.]])
    """
    sizes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, stop in pieces:
        if stop > start:
            sizes[1 << (stop - start - 1).bit_length()].append((start, stop))
    longest = max((stop - start for start, stop in pieces), default=0)
    kernel = s4d_kernel(abar, bbar, c, longest)
    order = [span for spans in sizes.values() for span in spans]
    found: list[Tensor] = []
    for size, spans in sizes.items():
        length = min(size, longest)
        batch = torch.stack([F.pad(u[start:stop], (0, 0, 0, length - (stop - start))) for start, stop in spans])
        y = causal_convolution(batch.mT, kernel[:, :length]).mT
        found += [each[: stop - start] for each, (start, stop) in zip(y, spans, strict=True)]
    where = sorted(range(len(order)), key=lambda i: order[i])
    return torch.cat([found[i] for i in where]) if found else torch.zeros_like(u)
