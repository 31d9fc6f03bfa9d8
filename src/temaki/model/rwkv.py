"""An RWKV-like mixer: a memory whose coordinates decay as the input says, with a bonus for the newest id.

S_t = diag(a_t) S_{t-1} + k_t v_t^T, y_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t with a_t = exp(-exp(w + tanh(x P) Q)).
Peng et al. 2024, "Eagle and Finch" (RWKV-6), section 4. Two things are simpler here: the token shift mixes an id with
the one before it after the projections and by learned shares alone, not by shares that depend on the input; and the
channel mixing is the block's own feed-forward layer. Letters: N ids, L ids, D width, H heads, K head size, R rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from temaki.base.roles import Role
from temaki.model.config_recurrent import RwkvConfig
from temaki.model.layout import Layout
from temaki.model.linear_memory import decayed_by_key, decayed_by_key_step
from temaki.model.memory_mixer import MemoryMixer, by_head, from_heads, head_norm, wide
from temaki.model.recurrent import Given

System = tuple[Tensor, Tensor, Tensor]
"""(w [D], Q [D, R], u [D])."""


DEEPEST = 9.0
"""Above it nothing is left of the past in float64 either; e^x would only overflow, and with it the gradient."""


class Rwkv(MemoryMixer):
    """Receptance, keys, values, gate and decay from one stacked matrix; token shift; memory; a norm a head; gate."""

    def __init__(self, config: RwkvConfig, width: int):
        super().__init__()
        self.config, self.channels = config, width
        self.heads, self.keys = config.heads, width // config.heads
        parts = (width,) * 4 + (config.rank,)
        vector, dynamics = Role("vector"), Role("dynamics")
        self.inputs = self.add("inputs", sum(parts), width, role=Role("matrix", parts), filling="matrix")
        shift = torch.stack((torch.full((sum(parts),), 0.75), torch.full((sum(parts),), 0.25)), 1)
        self.shift = self.add("shift", sum(parts), 2, role=vector, filling="given", value=shift)
        at = torch.linspace(0, 1, width)
        self.decay = self.add("decay", width, role=dynamics, filling="given", value=-6 + 5 * at**1.3)
        self.decay_out = self.add("decay_out", width, config.rank, role=Role("matrix"), filling="out")
        self.bonus = self.add("bonus", width, role=dynamics, filling="given", value=0.5 * (1 - at))
        self.gain = self.add("gain", width, role=vector, filling="ones")
        self.out = self.add("out", width, width, role=Role("matrix"), filling="out")

    def filters(self) -> Tensor:
        return self.shift

    def project(self, x: Tensor, layout: Layout) -> Given:
        """All that the token shift mixes: [N, 4 D + R]."""
        return (wide(F.linear(x, self.inputs)),)

    def system(self) -> System:
        return wide(self.decay), wide(self.decay_out), wide(self.bonus)

    def _split(self, seen: Tensor, system: System) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(r, k, v, log a, gate)."""
        d = self.channels
        r, k, v, gate, low = seen.split((d, d, d, d, self.config.rank), -1)
        log_a = -(system[0] + F.linear(low.tanh(), system[1])).clamp(max=DEEPEST).exp()
        return r, k * self.keys**-0.5, v, log_a, gate

    def remember(self, seen: Tensor, rest: Given, system: System, s: Tensor) -> tuple[Tensor, Tensor]:
        *read, gate = self._split(seen, system)
        r, k, v, log_a = (by_head(each, self.heads) for each in read)
        y, s = decayed_by_key(r, k, v, log_a, system[2].unflatten(0, (self.heads, -1)), s)
        return self._gated(from_heads(y), gate), s

    def remember_one(self, seen: Tensor, rest: Given, system: System, s: Tensor) -> tuple[Tensor, Tensor]:
        *read, gate = self._split(seen, system)
        r, k, v, log_a = (each.unflatten(-1, (self.heads, -1)) for each in read)
        y, s = decayed_by_key_step(r, k, v, log_a, system[2].unflatten(0, (self.heads, -1)), s)
        return self._gated(y.flatten(-2), gate), s

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        return head_norm(y, self.heads, wide(self.gain)) * F.silu(gate)

    def finish(self, y: Tensor, given: Given) -> Tensor:
        return F.linear(y.to(self.out.dtype), self.out)
