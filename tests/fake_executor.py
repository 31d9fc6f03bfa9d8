"""An executor without a model, which watches the contract, and what answers over it must be."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from temaki.base import keys
from temaki.base.errors import GenerationError
from temaki.generate import sampling
from temaki.generate.checking import longest
from temaki.generate.config import SamplingConfig
from temaki.generate.executor import Answer, Saved, Work
from temaki.generate.request import Constraint, Request, Row
from temaki.generate.speculate import NONE, Draft

V = 29
KINDS = 211
"""Different rows of logits that the fake knows."""
ADAPTERS = (None, "a")
SHARED = 17
SYSTEMS = keys.generator(0, "systems").integers(12, V, (2, SHARED))
"""What many prompts begin with."""
TABLE = keys.generator(0, "fake").normal(0, 2, (KINDS, V)).astype(np.float32)
TABLE[::67, ::3] = -np.inf


def told_of(ids: Sequence[int], adapter: str | None) -> int:
    """One number that all the ids and their adapter make."""
    return zlib.crc32(np.array([ADAPTERS.index(adapter), *ids], np.int32).tobytes())


class Fake:
    """Logits are a function of all ids that a slot has read and of its adapter; misuse fails. `broken` ids give NaN.

    limit: ids that all slots may ever hold together. guilty: an id that no call survives, and what its slots hold is
    lost. A strange adapter is refused in the middle of the work.
    """

    def __init__(
        self, slots: int, room: int, broken: int | None = None, limit: int | None = None, guilty: int | None = None
    ):
        self.slots, self.room, self.vocabulary, self.whole = slots, room, V, False
        self.broken, self.limit, self.guilty = broken, limit, guilty
        self.held: list[list[int] | None] = [None] * slots
        self.adapters: list[str | None] = [None] * slots
        self.marks: dict[int, int] = {}
        self.read = self.calls = self.failures = 0

    def logits(self, ids: Sequence[int], adapter: str | None = None) -> np.ndarray:
        if self.broken is not None and self.broken in ids:
            return np.full(V, np.nan, np.float32)
        return TABLE[told_of(ids, adapter) % KINDS]

    def hidden(self, ids: Sequence[int], adapter: str | None = None) -> np.ndarray:
        return np.array([told_of(ids, adapter), len(ids)], np.float64)

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        assert work
        assert len({each.slot for each in work}) == len(work)
        self.calls += 1
        logits, vectors = [], []
        for each in work:
            held = self.held[each.slot]
            assert held is not None, "work for a slot that was not opened"
            assert len(each.ids) >= 1
            assert each.ids.dtype == np.int32
            if each.adapter not in ADAPTERS:
                held.append(7)
                raise GenerationError("this executor holds no such adapter", found=each.adapter)
            if self.guilty in each.ids:
                self.failures += 1
                for lost in work:
                    self.held[lost.slot] = [8, 8, 8]
                raise MemoryError(f"no memory for {self.guilty}")
            assert not held or self.adapters[each.slot] == each.adapter
            self.adapters[each.slot] = each.adapter
            for i, one in enumerate(each.ids.tolist()):
                held.append(one)
                self.read += 1
                if each.want == "all" or (each.want == "last" and i == len(each.ids) - 1):
                    logits.append(self.logits(held, each.adapter))
                    vectors.append(self.hidden(held, each.adapter))
            assert len(held) <= self.room
        self._watch()
        return Answer(np.array(logits, np.float32).reshape(-1, V), np.array(vectors) if hidden else None)

    def open(self, slot: int, source=None) -> None:
        assert self.held[slot] is None, "opened twice"
        self.held[slot] = []

    def mark(self, slots: Sequence[int]) -> None:
        for slot in slots:
            held = self.held[slot]
            assert held is not None
            assert slot not in self.marks, "marked, and never taken back"
            self.marks[slot] = len(held)

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        assert len(set(slots)) == len(slots)
        for slot, kept in zip(slots, keep, strict=True):
            held, start = self.held[slot], self.marks.pop(slot)
            assert held is not None
            assert 0 <= kept <= len(held) - start
            del held[start + kept :]

    def fork(self, source: int, target: int) -> None:
        held = self.held[source]
        assert held is not None
        assert self.held[target] is None
        self.held[target], self.adapters[target] = list(held), self.adapters[source]
        self._watch()

    def save(self, slot: int) -> Saved:
        held = self.held[slot]
        assert held is not None
        assert slot not in self.marks, "saved in the middle of a draft"
        adapter = np.array(ADAPTERS.index(self.adapters[slot]))
        return Saved(len(held), {"ids": np.array(held, np.int32), "adapter": adapter})

    def load(self, slot: int, saved: Saved) -> None:
        assert self.held[slot] is None, "loaded into a slot that is not closed"
        self.held[slot] = saved.content["ids"].tolist()
        self.adapters[slot] = ADAPTERS[int(saved.content["adapter"])]
        self._watch()

    def close(self, slot: int) -> None:
        self.held[slot] = None
        self.adapters[slot] = None
        self.marks.pop(slot, None)

    def _watch(self) -> None:
        held = sum(len(each) for each in self.held if each is not None)
        assert self.limit is None or held <= self.limit, f"{held} ids are held"

    @property
    def empty(self) -> bool:
        return self.held == [None] * self.slots and not self.marks


# ---- constraints


@dataclass
class Rising:
    """Each id lies at most `step` above the one before, or is `end`; over after `most` ids. `lies`: refuses what it
    allowed."""

    step: int
    most: int
    end: int
    lies: int | None = None
    last: int = 0
    count: int = 0
    told: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.count >= self.most

    def mask(self) -> np.ndarray | None:
        if self.count == 1:
            return None
        allowed = np.zeros(V, bool)
        allowed[self.last : self.last + self.step] = True
        allowed[self.end] = True
        return allowed

    def advance(self, id: int) -> None:
        if id == self.lies:
            raise GenerationError("this id breaks the constraint", found=str(id))
        self.last, self.count = id, self.count + 1

    def copy(self) -> "Rising":
        return Rising(self.step, self.most, self.end, self.lies, self.last, self.count)


@dataclass(frozen=True)
class Rise:
    """The constraint of `Rising`."""

    step: int = 9
    most: int = 5
    end: int = 3
    lies: int | None = None

    def matcher(self) -> Rising:
        return Rising(self.step, self.most, self.end, self.lies)


class Impossible:
    """A constraint that nothing can be made of."""

    def matcher(self) -> Rising:
        raise GenerationError("nothing satisfies this")


# ---- what must come


def answer_of(fake: Fake, asked: Request, branch: int) -> tuple[list[int], str]:
    """(ids, done) of one answer, by a loop of its own over the readable filters."""
    ids, chosen = asked.ids.tolist(), asked.sampling
    start, limit = len(ids), longest(asked, fake.room)
    if fake.guilty in ids or asked.adapter not in ADAPTERS or isinstance(asked.constraint, Impossible):
        return [], "error"
    constraint: Constraint | None = asked.healing if asked.constraint is None else asked.constraint
    matcher = None if constraint is None else constraint.matcher()
    if matcher is not None and matcher.done:
        return [], "stop"
    while True:
        try:
            found = _next(fake, asked, branch, ids, start, None if matcher is None else matcher.mask())
            if found in chosen.stop_ids:
                return ids[start:], "stop"
            if matcher is not None:
                matcher.advance(found)
        except GenerationError:
            return ids[start:], "error"
        ids.append(found)
        if matcher is not None and matcher.done:
            return ids[start:], "stop"
        if len(ids) == limit:
            return ids[start:], "length"
        if found == fake.guilty:
            return ids[start:], "error"


def _next(fake: Fake, asked: Request, branch: int, ids: list[int], start: int, allowed: np.ndarray | None) -> int:
    logits = fake.logits(ids, asked.adapter)
    sampling.check(logits)
    if allowed is not None:
        logits = np.where(allowed, logits, np.float32(-np.inf))
    row = Row(0, np.array(ids, np.int32), start, asked, branch)
    for each in sampling.filters(asked.sampling):
        logits = each(logits, row)
    return sampling.draw(logits, keys.uniform(asked.seed, "sample", branch, len(ids)))


class Oracle:
    """Drafts what will come, each id replaced by a random one with probability `wrong`; sometimes nothing, sometimes
    more than asked for. `spread`: with probabilities, from which the ids are drawn. Watches what it is told.
    """

    hidden = True

    def __init__(self, fake: Fake, wrong: float = 0.3, spread: bool = False):
        self.fake, self.wrong, self.spread = fake, wrong, spread
        self.drafts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """slot -> (the row, its last draft)."""
        self.rows: dict[int, np.ndarray] = {}
        """slot -> the row that sits there, until it is closed."""

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        assert rows
        for row in rows:
            known = self.rows.get(row.slot, row.ids[:0])
            assert np.array_equal(row.ids[: len(known)], known), "a slot changed its row without being closed"
            self.rows[row.slot] = row.ids.copy()
        found = [self._draft(row, n) for row in rows]
        self.drafts = {row.slot: (row.ids.copy(), draft.ids) for row, draft in zip(rows, found, strict=True)}
        return found

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        for slot, count in zip(slots, kept, strict=True):
            _, drafted = self.drafts[slot]
            assert 0 <= count <= len(drafted)

    def close(self, slot: int) -> None:
        self.drafts.pop(slot, None)
        self.rows.pop(slot, None)

    def _draft(self, row: Row, n: int) -> Draft:
        assert row.hidden is not None
        assert np.array_equal(row.hidden, self.fake.hidden(row.ids[:-1].tolist(), row.request.adapter))
        draw = keys.generator(row.request.seed, "draft", row.branch, len(row.ids))
        size = int(draw.choice([0, 1, n, n + 3]))
        if self.spread:
            q = draw.dirichlet(np.full(V, 0.3), size)
            return Draft(np.array([draw.choice(V, p=each) for each in q], np.int32), q)
        ids, chosen = row.ids.tolist(), row.request.sampling
        free = Request(ids=row.request.ids, sampling=chosen, seed=row.request.seed, adapter=row.request.adapter)
        for _ in range(size):
            try:
                new = _next(self.fake, free, row.branch, ids, row.prompt, None)
            except GenerationError:
                return NONE
            ids.append(new if draw.random() >= self.wrong else int(draw.integers(V)))
        return Draft(np.array(ids[len(row.ids) :], np.int32))


def a_request(draw: np.random.Generator, room: int) -> Request:
    """Any request that `Fake` can be asked."""
    ids = draw.integers(0, V, int(draw.integers(1, room + 1)))
    system = int(draw.integers(0, 2)) if draw.random() < 0.4 else None
    if system is not None:
        ids[:SHARED] = SYSTEMS[system, : len(ids)]
    kind = draw.random()
    return Request(
        ids=ids,
        seed=int(draw.integers(0, 9)),
        branches=int(draw.choice([1, 1, 1, 2, 3])),
        first=int(draw.choice([0, 0, 4])),
        adapter=str(draw.choice(["a", "strange"])) if draw.random() < 0.1 else None,
        constraint=Rise(most=int(draw.integers(0, 7)), lies=int(draw.integers(0, V))) if kind < 0.2 else None,
        healing=Rise(step=V) if 0.2 < kind < 0.3 else None,
        logprobs=int(draw.integers(0, 3)) if draw.random() < 0.1 else None,
        shared=None if system is None else min(SHARED, len(ids)),
        sampling=SamplingConfig(
            temperature=float(draw.choice([0.0, 0.7, 1.0])),
            top_k=int(draw.integers(1, 9)) if draw.random() < 0.3 else None,
            top_p=float(draw.choice([0.8, 1.0])),
            repetition_penalty=float(draw.choice([1.0, 1.4])),
            frequency_penalty=float(draw.choice([0.0, 0.5])),
            no_repeat_ngram=2 if draw.random() < 0.2 else None,
            max_tokens=int(draw.integers(1, 10)),
            stop_ids=tuple(draw.integers(0, V, int(draw.integers(0, 3))).tolist()),
        ),
    )


def mixed(count: int, seed: int) -> list[Request]:
    """Requests that a real model can be asked, each with a seed of its own."""
    draw = np.random.default_rng(seed)
    found = [a_request(draw, 22) for _ in range(count)]
    for i in range(0, count, 8):
        found[i] = replace(found[i], ids=np.array([*SYSTEMS[0], i % V, 3]), shared=len(SYSTEMS[0]))
    return [replace(each, seed=100 + i, adapter=None) for i, each in enumerate(found)]
