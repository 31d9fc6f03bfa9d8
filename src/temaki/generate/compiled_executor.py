"""A plan as an executor: slots in one cache, each call one kernel or, for long prompts, a few.

For one row the order of every sum is fixed, so whole = chunked = stepped = rewound = batched to the bit, on any number
of threads. Letters: N rows, M wanted places, V vocabulary, D width.
"""

import weakref
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from temaki.base.errors import ConfigError, GenerationError
from temaki.compiled import job as fields
from temaki.compiled import steps
from temaki.compiled.attend import TILE, partial_floats, scratch_floats
from temaki.compiled.cache import Cache, CacheKind
from temaki.compiled.crew import LINE, Crew
from temaki.compiled.matrix import act_bytes
from temaki.compiled.plan import COLUMNS, OUT, OUTS, QKV, UP, Plan, padded
from temaki.compiled.table import SPAN
from temaki.generate.executor import Answer, Saved, Work
from temaki.model.angles import rope_table, sinusoidal_table
from temaki.model.config import AttentionConfig, LearnedConfig, RopeConfig, SinusoidalConfig

SPANNED = 16
"""Ids at most of a run whose attention is cut into spans."""
PARTS = 512
"""Spans at most of one call."""


class CompiledExecutor:
    """A plan and room for `room` ids in each of `slots` slots.

    cache: what keys and values are kept in; None: float16 beside quantised weights, else float32.

    Raises GenerationError for no slots, no room or no threads, ConfigError for more room than positions were learned.
    """

    whole = False

    def __init__(
        self, plan: Plan, slots: int, room: int, *, cache: CacheKind | None = None, threads: int | None = None
    ):
        if slots < 1 or room < 1:
            raise GenerationError("an executor needs a slot and room in it", found=f"{slots} slots of {room} ids")
        if threads is not None and threads < 1:
            raise GenerationError("an executor needs a thread", found=str(threads), allowed="1 or more, None for all")
        self.plan, self.slots, self.room = plan, slots, room
        self.vocabulary: int = plan.config.vocabulary
        self.cache = Cache(cache or ("float16" if plan.quantised else "float32"), slots, room, plan.heads)
        self.crew = Crew(steps.serve, threads)
        weakref.finalize(self, self.crew.close)
        self.lengths = [0] * slots
        self._touched = [0] * slots
        self._marks: dict[int, int] = {}
        self._job = np.zeros(fields.LISTS + 2 * plan.config.depth, np.int64)
        tables = self._tables()
        floats, acts = self._buffers()
        tickets = np.zeros(LINE * (fields.PHASES * plan.config.depth + 1), np.int64)
        self._arguments = (
            tickets, self._job, plan.layers, plan.linears, plan.segments, plan.weights, plan.numbers, tables,
            self.cache.data, self.cache.table, self.cache.numbers, floats, acts,
        )  # fmt: skip

    def _tables(self) -> ndarray:
        """What depends on the place: positions to add, angles; notes in the job where they begin."""
        config, job = self.plan.config, self._job
        beginning = np.zeros(fields.HEAD, np.float32)
        beginning[fields.SCALE], beginning[fields.CAP] = config.embedding_scale, config.cap or 0.0
        found, end = [beginning], len(beginning)
        added = self._positions()
        if added is not None:
            job[fields.PLACED] = end
            found.append(added.reshape(-1))
            end += added.size
        known: dict[tuple[RopeConfig, int], tuple[int, int]] = {}
        for i, block in enumerate(config.blocks):
            mixer = block.mixer
            assert isinstance(mixer, AttentionConfig)
            if not isinstance(mixer.position, RopeConfig):
                continue
            key = mixer.position, mixer.head_size(config.width)
            if key not in known:
                cos, sin = rope_table(*key, self.room)
                known[key] = (end, end + cos.size)
                found += [cos.reshape(-1), sin.reshape(-1)]
                end += 2 * cos.size
            job[fields.LISTS + 2 * i : fields.LISTS + 2 * i + 2] = known[key]
        return np.concatenate(found)

    def _positions(self) -> ndarray | None:
        """What is added to the embeddings, float32 [room, D]; None: nothing."""
        kind = self.plan.config.input_position
        if isinstance(kind, SinusoidalConfig):
            return sinusoidal_table(self.plan.config.width, kind.base, self.room)
        if not isinstance(kind, LearnedConfig):
            return None
        assert self.plan.learned is not None, "learned positions belong to the plan"
        if self.room > len(self.plan.learned):
            raise ConfigError(
                f"a row of {self.room} ids is longer than the {len(self.plan.learned)} positions that this model has "
                "learned",
                found=f"{self.room} positions",
                allowed=f"at most {len(self.plan.learned)}",
                do="use a shorter context, or a model with rotary positions",
            )
        return self.plan.learned[: self.room]

    def _buffers(self) -> tuple[ndarray, ndarray]:
        """Room for a call's rows, floats and activations; the job says where each buffer begins."""
        config, job, linears = self.plan.config, self._job, self.plan.linears
        layers = np.arange(config.depth) * 4
        widest = [padded(int(linears[layers + which, OUTS].max())) for which in (QKV, UP)]
        seen = padded(int(linears[layers + OUT, COLUMNS].max()))
        width, crew = padded(config.width), self.crew.size
        own = padded(max(scratch_floats(self.cache, TILE), widest[1], width, seen) + 16)
        few = max(fields.CHUNK, crew * fields.FEW)
        partial = padded(partial_floats(self.cache, SPANNED))
        end = 0
        for at, step, rows in (
            (fields.X, width, few), (fields.STACKED, widest[0], fields.CHUNK), (fields.SEEN, seen, fields.CHUNK),
            (fields.MADE, widest[1], fields.CHUNK), (fields.RAISED, width, fields.CHUNK), (fields.OWN, own, crew),
            (fields.PARTIALS, partial, PARTS),
        ):  # fmt: skip
            job[at], job[STRIDES[at]] = end, step
            end += step * rows + 16
        act = act_bytes(int(linears[:, COLUMNS].max()))
        first, kind = self.plan.embedding
        job[fields.WIDTH], job[fields.VOCABULARY], job[fields.DEPTH] = config.width, config.vocabulary, config.depth
        job[fields.EMBEDDED], job[fields.EMBEDDING], job[fields.ACT] = first, kind, act
        job[fields.HELPERS] = self.crew.helpers
        return np.zeros(end, np.float32), np.zeros(act * few, np.uint8)

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        """Read all of `work`, CHUNK rows at a time; the head sees the wanted places only.

        Raises GenerationError for work that a slot has no room for, for ids that are none, and for an adapter.
        """
        slots = [each.slot for each in work]
        assert len(set(slots)) == len(slots), f"a slot is used twice in one call: {slots}"
        for each in work:
            self._check(each)
        wanted = sum({"none": 0, "last": 1, "all": len(each.ids)}[each.want] for each in work)
        logits = np.empty((wanted, self.vocabulary), np.float32)
        hiddens = np.empty((wanted, self.plan.config.width), np.float32) if hidden else None
        found = 0
        for part in _parts(work):
            found += self._call(part, logits[found:], None if hiddens is None else hiddens[found:])
        return Answer(logits, hiddens)

    def _call(self, part: "list[_Stretch]", logits: ndarray, hiddens: ndarray | None) -> int:
        """One kernel call over at most CHUNK rows; how many places were wanted."""
        job, row, wanted, runs, spans = self._job, 0, 0, 0, 0
        for work, first, last in part:
            slot, count, place = work.slot, last - first, self.lengths[work.slot]
            self._touched[slot] = max(self._touched[slot], place + count)
            job[fields.IDS + row : fields.IDS + row + count] = work.ids[first:last]
            job[fields.AT_PLACES + row : fields.AT_PLACES + row + count] = range(place, place + count)
            job[fields.SLOTS + row : fields.SLOTS + row + count] = slot
            begin = {"none": last, "last": len(work.ids) - 1, "all": first}[work.want]
            for at in range(max(first, begin), last):
                job[fields.WANTS + wanted] = row + at - first
                wanted += 1
            for at in range(0, count, TILE):
                ids = min(TILE, count - at)
                for into, value in zip(_RUN, (slot, row + at, place + at, ids), strict=True):
                    job[into + runs] = value
                runs += 1
            spans = max(spans, (place + count - 1) // SPAN + 1)
            row += count
        job[fields.COUNT], job[fields.WANTED], job[fields.RUNS] = row, wanted, runs
        job[fields.SPANS] = spans if self._cut(runs, row, spans) else 0
        job[fields.LOGITS] = logits.ctypes.data
        job[fields.HIDDENS] = 0 if hiddens is None else hiddens.ctypes.data
        if self.crew.helpers:
            self.crew.wake(self._arguments)
        steps.serve(self.crew.board, -1, *self._arguments)
        for work, first, last in part:
            self.lengths[work.slot] += last - first
        return wanted

    def _cut(self, runs: int, rows: int, spans: int) -> bool:
        """Whether attention is worth cutting into spans: too few runs for the threads, and long contexts."""
        most = max(layer.groups for layer in self.cache.layers)
        few = self.crew.size > 1 and spans > 1 and rows <= SPANNED and runs * most < 8 * self.crew.size
        return few and runs * most * spans <= PARTS

    def _check(self, work: Work) -> None:
        start = self.lengths[work.slot]
        if start + len(work.ids) > self.room:
            raise GenerationError(
                f"slot {work.slot} has no room for {len(work.ids)} more ids",
                found=f"{start} ids",
                allowed=f"{self.room} ids",
            )
        if work.adapter is not None:
            raise GenerationError("this executor holds no adapters", found=work.adapter)
        if len(work.ids) and not 0 <= int(work.ids.min()) <= int(work.ids.max()) < self.vocabulary:
            strange = work.ids[(work.ids < 0) | (work.ids >= self.vocabulary)][0]
            raise GenerationError(
                "an id that the model does not know", found=str(strange), allowed=f"0 to {self.vocabulary - 1}"
            )

    def open(self, slot: int, source: ndarray | None = None) -> None:
        """Make an empty slot ready. Raises GenerationError for source ids: this model has no encoder."""
        if source is not None:
            raise GenerationError("this model has no encoder: it cannot read a source", found=f"{len(source)} ids")
        assert self.lengths[slot] == 0, f"slot {slot} was not closed"

    def mark(self, slots: Sequence[int]) -> None:
        self._marks.update({slot: self.lengths[slot] for slot in slots})

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        for slot, kept in zip(slots, keep, strict=True):
            assert slot in self._marks, f"slot {slot} is not marked"
            read = self.lengths[slot] - self._marks[slot]
            assert 0 <= kept <= read, f"slot {slot} cannot keep {kept} of {read} ids"
        for slot, kept in zip(slots, keep, strict=True):
            self.lengths[slot] = self._marks.pop(slot) + kept

    def fork(self, source: int, target: int) -> None:
        length = self.lengths[source]
        self._touched[target] = max(self._touched[target], length)
        self.cache.fork(source, target, length)
        self.lengths[target] = length
        self._marks.pop(target, None)

    def save(self, slot: int) -> Saved:
        return Saved(self.lengths[slot], self.cache.save(slot, self.lengths[slot]))

    def load(self, slot: int, saved: Saved) -> None:
        assert saved.length <= self.room, f"{saved.length} ids do not fit a slot of {self.room}"
        self.close(slot)
        self._touched[slot] = saved.length
        self.cache.load(slot, saved.content)
        self.lengths[slot] = saved.length

    def close(self, slot: int) -> None:
        self.cache.clear(slot, self._touched[slot])
        self.lengths[slot] = self._touched[slot] = 0
        self._marks.pop(slot, None)


_Stretch = tuple[Work, int, int]
"""Ids first..last-1 of a work."""
_RUN = (fields.RUN_SLOTS, fields.RUN_ROWS, fields.RUN_PLACES, fields.RUN_IDS)
STRIDES = {
    fields.X: fields.PADDED, fields.STACKED: fields.STACK, fields.SEEN: fields.SEE, fields.MADE: fields.MAKE,
    fields.RAISED: fields.RAISE, fields.OWN: fields.OWNED, fields.PARTIALS: fields.PARTIAL,
}  # fmt: skip
"""Buffers, and where the job says how far it is from row to row of each."""


def _parts(work: Sequence[Work]) -> list[list[_Stretch]]:
    """All ids of all work in their order, at most CHUNK a part."""
    parts: list[list[_Stretch]] = []
    room = 0
    for each in work:
        edges = [0]
        while edges[-1] < len(each.ids):
            if room == 0:
                parts.append([])
                room = fields.CHUNK
            edges.append(min(len(each.ids), edges[-1] + room))
            room -= edges[-1] - edges[-2]
            parts[-1].append((each, edges[-2], edges[-1]))
    return parts
