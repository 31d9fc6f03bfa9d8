"""The decoding state of attention: keys and values of all slots, the past of each in a ring.

Letters: N ids of a call, R slots, C places a slot, H heads, G heads of keys and values, K head size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from temaki.base.errors import GenerationError
from temaki.model.kernels import attend, attend_all
from temaki.model.layout import Layout
from temaki.model.mapped_attention import attend_mapped
from temaki.model.mapped_scores import MappedScores
from temaki.model.sight import Sight


@dataclass(frozen=True)
class _Read:
    """What a marked slot has read: ids begin..end-1, of which the first `prefix` of the slot see each other."""

    begin: int
    end: int
    prefix: int


class AttentionState:
    """Keys and values of all slots; the id at position p of a slot lies at place p modulo C.

    Without a window C is the room and nothing is ever written over. With one, C = window + spare - 1: what a draft of
    `spare` - 1 ids pushes out is never needed again, even if all of the draft is taken back. Forgetting is by length,
    which the model state holds.
    """

    def __init__(self, store: Tensor, sight: Sight, prefixed: bool = False, mapped: MappedScores | None = None):
        self.store = store
        """[2, R, G, C, K]: keys, values."""
        self.sight = sight
        self.prefixed = prefixed
        self.mapped = mapped
        """What makes the attention weights; None: the fused path."""
        self.places = store.shape[3]
        self._read: dict[int, _Read | None] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Take in each piece's keys and values, and attend to its slot's past and to itself: [N, H, K].

        Raises GenerationError where a prefix is not read whole, by the first call of its slot.
        """
        assert layout.slots is not None
        prefixes = self._prefixes(layout)
        if self._read:
            self._note(layout, prefixes)
        if layout.single:
            return self._attend_one_id_each(q, k, v, layout)
        y = torch.empty_like(q, memory_format=torch.contiguous_format)
        for i, (start, stop) in enumerate(layout.pieces):
            if stop > start:
                new = torch.stack((k[start:stop], v[start:stop])).transpose(1, 2)
                y[start:stop] = self._attend_piece(q[start:stop], new, layout.slots[i], layout.past[i], prefixes[i])
        return y

    def _attend_piece(self, q: Tensor, new: Tensor, slot: int, past: int, prefix: int) -> Tensor:
        """q [n, H, K], new keys and values [2, G, n, K] -> [n, H, K]."""
        n, heads, _ = q.shape
        groups, total = new.shape[1], past + n
        low = 0 if self.sight.window is None else max(0, past - self.sight.window + 1)
        if total <= self.places:
            self.store[:, slot, :, past:total] = new
            seen = self.store[:, slot, :, low:total]
        else:
            seen = torch.cat((self.store[:, slot, :, self._at(low, past)], new), 2)
            kept = max(past, total - self.places)
            self.store[:, slot, :, self._at(kept, total)] = new[:, :, kept - past :]
        ends = torch.tensor([prefix]) if prefix else None
        if self.mapped is not None:
            keys, values = seen.repeat_interleave(heads // groups, 1)[:, None]
            return attend_mapped(q.transpose(0, 1)[None], keys, values, self.mapped, ends)[0].transpose(0, 1)
        keys, values = seen[:, :, None].expand(-1, -1, heads // groups, -1, -1)  # all heads of a group read one copy
        grouped = q.transpose(0, 1).unflatten(0, (groups, -1))
        y, _ = attend(grouped, keys, values, self.sight, ends)
        return y.flatten(0, 1).transpose(0, 1)

    def _attend_one_id_each(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """One id a piece: the heads of a group are as the queries of one head, so that nothing is repeated."""
        slots, past = layout.slots, layout.past
        assert slots is not None
        n, groups = k.shape[:2]
        seen = min(max(past) + 1, self.places)
        if n == 1:
            place = past[0] % self.places
            for stored, new in zip(self.store, (k, v), strict=True):
                stored[slots[0]].select(1, place).copy_(new[0])
        else:
            at = layout.past_index % self.places
            self.store[0, layout.slots_index, :, at] = k
            self.store[1, layout.slots_index, :, at] = v
        first, last = slots[0], slots[-1]
        if slots == tuple(range(first, last + 1)):
            keys, values = self.store[:, first : last + 1, :, :seen]
        else:
            keys, values = self.store[:, layout.slots_index, :, :seen]
        if self.mapped is not None:
            return self._by_map(q, keys, values, layout.past_index, self.mapped)
        y = attend_all(q.unflatten(1, (groups, -1)), keys, values, self.sight, self._bias(layout, seen, groups))
        return y.flatten(1, 2)

    def _by_map(self, q: Tensor, keys: Tensor, values: Tensor, past: Tensor, mapped: MappedScores) -> Tensor:
        """q [n, H, K], keys and values [n, G, C, K] of all places, past int64 [n] -> [n, H, K].

        Keys are read in the order of their positions, because of equal scores some maps keep the earliest.
        """
        (n, heads, _), (_, groups, seen, _) = q.shape, keys.shape
        positions = torch.arange(seen, device=q.device).expand(n, -1)
        if self.sight.window is not None:
            positions = positions + (past[:, None] - seen + 1).clamp(min=0)
            at = torch.arange(n, device=q.device)[:, None], slice(None), positions % self.places
            keys, values = (each[at].transpose(1, 2) for each in (keys, values))
        back = (past[:, None] - positions)[:, None, None]  # [n, 1, 1, C]
        hidden = back < 0
        if self.sight.window is not None:
            hidden = hidden | (back >= self.sight.window)
        keys, values = (each.repeat_interleave(heads // groups, 1) for each in (keys, values))
        found = mapped.weights(q[:, :, None], keys, back, hidden)
        return (found.to(values.dtype) @ values)[:, :, 0]

    def _bias(self, layout: Layout, seen: int, groups: int) -> Tensor | None:
        """What is added to the scores of one id a piece: [n, 1 or G, 1 or H / G, seen]; None for nothing."""
        least, most = min(layout.past) + 1, max(layout.past) + 1
        window = self.places if self.sight.window is None else self.sight.window
        full = (least == most <= window) or (least >= self.places == window)
        if full and self.sight.slopes is None:
            return None
        ages = (layout.past_index[:, None] - torch.arange(seen, device=self.store.device)) % self.places  # [n, seen]
        ages = ages[:, None, None]
        added = self.store.new_zeros(1, 1, 1, 1)
        if self.sight.slopes is not None:
            added = -self.store.new_tensor(self.sight.slopes).view(1, groups, -1, 1) * ages.to(self.store.dtype)
        if full:
            return added
        hidden = (ages > layout.past_index[:, None, None, None]) | (ages >= window)
        return added.masked_fill(hidden, float("-inf"))

    def _at(self, start: int, stop: int) -> Tensor:
        """The places of positions start..stop-1."""
        return torch.arange(start, stop, device=self.store.device) % self.places

    def _prefixes(self, layout: Layout) -> list[int]:
        if not self.prefixed or layout.rows.prefix is None:
            return [0] * len(layout.past)
        prefixes = layout.rows.prefix.tolist()
        for prefix, past, (start, stop) in zip(prefixes, layout.past, layout.pieces, strict=True):
            if prefix and (past or prefix > stop - start):
                raise GenerationError(
                    "a prefix that sees itself both ways must be read whole, by the first call of its slot",
                    found=f"a prefix of {prefix} ids, {past} ids read before, {stop - start} in this call",
                )
        return prefixes

    def _note(self, layout: Layout, prefixes: Sequence[int]) -> None:
        """Remember what marked slots read, to know what they can still take back."""
        assert layout.slots is not None
        for slot, past, prefix, (start, stop) in zip(layout.slots, layout.past, prefixes, layout.pieces, strict=True):
            if slot in self._read:
                found = self._read[slot] or _Read(past, past, 0)
                self._read[slot] = _Read(found.begin, past + stop - start, max(found.prefix, prefix))

    def mark(self, slots: Sequence[int]) -> None:
        self._read.update(dict.fromkeys(slots))

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        for slot, kept in zip(slots, keep, strict=True):
            read = self._read.pop(slot, None)
            if read is not None:
                left = read.begin + kept
                low = 0 if self.sight.window is None else max(0, left - self.sight.window + 1)
                assert low >= read.end - self.places, f"slot {slot} read more ids since its mark than `spare` allows"
                assert left == 0 or left >= read.prefix, f"slot {slot} cannot keep a part of its prefix"

    def fork(self, source: int, target: int) -> None:
        self.store[:, target] = self.store[:, source]
        self._read.pop(target, None)

    def save(self, slot: int, length: int) -> dict[str, Tensor]:
        window = self.places if self.sight.window is None else self.sight.window
        start = max(0, length - min(window, self.places))
        return {"store": self.store[:, slot, :, self._at(start, length)], "start": torch.tensor(start)}

    def load(self, slot: int, saved: Mapping[str, Tensor]) -> None:
        start = int(saved["start"])
        self.store[:, slot, :, self._at(start, start + saved["store"].shape[2])] = saved["store"]

    def clear(self, slots: Sequence[int]) -> None:
        self.store[:, list(slots)] = 0.0
        for slot in slots:
            self._read.pop(slot, None)
