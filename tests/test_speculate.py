"""Speculation loses nothing: acceptance by its formulas and by counting, proposers and heads against slow oracles."""

import doctest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from numpy.testing import assert_allclose

import variants
from temaki.base import rows
from temaki.base.errors import GenerationError
from temaki.compiled.medusa import MedusaHeads
from temaki.compiled.plan import plan
from temaki.generate import ahead, lookup, speculate
from temaki.generate.ahead import Heads, MedusaLooking
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.compiled_heads import CompiledChain, Following
from temaki.generate.config import SamplingConfig
from temaki.generate.drafts import DraftModel
from temaki.generate.engine import Engine
from temaki.generate.executor import Answer, Saved, Work
from temaki.generate.heads import HeadsState
from temaki.generate.lookup import Lookup
from temaki.generate.request import Request, Row
from temaki.generate.speculate import (
    Draft,
    Proposer,
    accept,
    acceptance,
    expected_tokens,
    judged,
    residual,
    speed_up,
    typical,
)
from temaki.generate.torch_executor import TorchExecutor
from temaki.model import build
from temaki.model.build import Model
from temaki.model.config import (
    FurtherConfig,
    HeadsConfig,
    MedusaHeadsConfig,
    ParallelHeadsConfig,
    SequentialHeadsConfig,
)

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
HEADS: dict[str, HeadsConfig] = {
    "parallel": ParallelHeadsConfig(),
    "sequential": SequentialHeadsConfig(),
    "medusa": MedusaHeadsConfig(),
}
BODIES = ("grouped", "hybrid", "s4d", "window", "alibi")


@pytest.mark.parametrize("module", [speculate, lookup, ahead])
def test_doctests(module) -> None:
    assert doctest.testmod(module).failed == 0


# ---- acceptance: formulas --------------------------------------------------------------------------------------------


def test_values_of_the_papers() -> None:
    assert acceptance(P, Q) == pytest.approx(0.7, abs=1e-12)
    assert residual(P, Q).tolist() == [1.0, 0.0, 0.0]
    found = [expected_tokens(0.8, 4), expected_tokens(0.75, 7), expected_tokens(0.65, 5)]
    assert_allclose(found, [3.3616, 3.599548, 2.641660], atol=5e-7)
    assert speed_up(0.75, 7, 0.02) == pytest.approx(3.157, abs=1e-3)
    assert [expected_tokens(alpha, 7) for alpha in (0.0, 1.0)] == [1, 8]


def test_an_id_is_refused_only_where_p_is_below_q() -> None:
    grid = np.linspace(0, 1, 1000, endpoint=False)
    for drafted in range(3):
        stays = sum(judged(P, drafted, Q, accept=u, draw=0.5) == drafted for u in grid) / len(grid)
        assert stays == pytest.approx(min(1, P[drafted] / Q[drafted]), abs=2e-3)


def test_equal_distributions_refuse_nothing_and_divide_by_nothing() -> None:
    some = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(all="raise"):
        assert residual(some, some).tolist() == [0, 0, 0, 0]
        for drafted in (0, 2, 3):
            assert judged(some, drafted, some, accept=1 - 2**-53, draw=0.3) == drafted


def test_one_hot_distributions_are_the_greedy_check() -> None:
    """Kept while the drafted id is the argmax; then the argmax of the place, whatever is drawn."""
    best = [2, 0, 1, 3]
    p = np.eye(4)[best]
    for ids, kept in (([2, 0, 1], 3), ([2, 0, 3], 2), ([1, 0, 1], 0), ([], 0)):
        for q in (None, np.eye(4)[ids]):
            draft = Draft(np.array(ids, np.int64), q)
            for u in (0.0, 0.5, 0.999):
                assert accept(p[: len(ids) + 1], draft, [u] * 3, [u] * 4) == (kept, best[kept])


def test_a_draft_without_probabilities_is_the_plain_draw() -> None:
    for u in np.linspace(0, 1, 50, endpoint=False):
        plain = speculate.drawn(P, u)
        assert all(judged(P, drafted, None, accept=1 - u, draw=u) == plain for drafted in range(3))


@pytest.mark.parametrize("p", [P, np.array([1.0, 0, 0]), np.full(40, 1 / 40), np.array([0.9, 0.06, 0.04])])
def test_typical_acceptance_is_its_formula(p: ndarray) -> None:
    entropy = -sum(float(each) * np.log(each) for each in p if each > 0)
    bound = min(0.09, 0.3 * np.exp(-entropy))
    assert [typical(p, i) for i in range(len(p))] == [bool(each > bound) for each in p]


# ---- acceptance: counting --------------------------------------------------------------------------------------------


class Table:
    """An executor whose next id depends on the last one alone: logits [V, V], read off, with no torch and no state."""

    whole = False

    def __init__(self, logits: ndarray, slots: int = 64, room: int = 64):
        self.table, self.slots, self.room, self.vocabulary = logits, slots, room, len(logits)
        self.marks: dict[int, int] = {}
        self.lengths = [0] * slots

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        found = [self.table[:0]]
        for each in work:
            self.lengths[each.slot] += len(each.ids)
            found.append(self.table[each.ids][{"none": len(each.ids), "last": -1, "all": 0}[each.want] :])
        return Answer(np.concatenate(found).astype(np.float32))

    def open(self, slot: int, source: ndarray | None = None) -> None:
        assert self.lengths[slot] == 0

    def mark(self, slots: Sequence[int]) -> None:
        self.marks.update({slot: self.lengths[slot] for slot in slots})

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        for slot, kept in zip(slots, keep, strict=True):
            start = self.marks.pop(slot)
            assert 0 <= kept <= self.lengths[slot] - start
            self.lengths[slot] = start + kept

    def fork(self, source: int, target: int) -> None:
        self.lengths[target] = self.lengths[source]

    def save(self, slot: int) -> Saved:
        return Saved(self.lengths[slot], {})

    def load(self, slot: int, saved: Saved) -> None:
        self.lengths[slot] = saved.length

    def close(self, slot: int) -> None:
        self.lengths[slot] = 0
        self.marks.pop(slot, None)


def chain(size: int, seed: int) -> ndarray:
    return np.random.default_rng(seed).normal(0, 1.3, (size, size)).astype(np.float32)


def warped(logits: ndarray, t: float, top: float) -> ndarray:
    """softmax of one row at a temperature, cut to the smallest set of mass `top`; slowly, by sorting."""
    p = np.exp((logits - logits.max()).astype(np.float64) / t)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    out = order[: int(np.searchsorted(p[order].cumsum(), top - 1e-9)) + 1]
    kept = np.zeros_like(p)
    kept[out] = p[out]
    return kept / kept.sum()


def paths(table: ndarray, start: int, t: float, top: float, length: int) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of `length` ids, by multiplying out."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        found = {
            (*path, i): mass * p
            for path, mass in found.items()
            for i, p in enumerate(warped(table[path[-1] if path else start], t, top))
            if p > 0
        }
    return found


def chi_square(counts: dict[tuple[int, ...], int], wanted: dict[tuple[int, ...], float]) -> float:
    """Standard deviations (Wilson and Hilferty) that counts lie above what is expected of them; rare paths together."""
    total = sum(counts.values())
    assert set(counts) <= set(wanted), "something was said that has no probability"
    often = [path for path, mass in wanted.items() if mass * total >= 10]
    pairs = [(counts.get(path, 0), wanted[path] * total) for path in often]
    rest = total - sum(count for count, _ in pairs), total - sum(mass for _, mass in pairs)
    pairs += [rest] if rest[1] >= 1 else []
    value = sum((count - mass) ** 2 / mass for count, mass in pairs)
    free = len(pairs) - 1
    return ((value / free) ** (1 / 3) - (1 - 2 / (9 * free))) / (2 / (9 * free)) ** 0.5


class Pairs:
    """Two tables of 5 ids, warped: drafts of two ids by the second, judged by the first."""

    def __init__(self, t: float, top: float, point: bool):
        self.table, small = chain(5, 0), chain(5, 1)
        self.p = np.stack([warped(row, t, top) for row in self.table])
        self.q = np.stack([warped(row, t, top) for row in small])
        self.q = np.eye(5)[self.q.argmax(-1)] if point else self.q
        self.point = point
        self.wanted = paths(self.table, 0, t, top, 2)

    def rounds(self, seeds: int) -> Iterator[tuple[ndarray, Draft, ndarray, ndarray]]:
        """(p, draft, numbers to accept, numbers to draw), as often as asked."""
        drafting, accepts, draws = np.random.default_rng(9).random((3, seeds, 3))
        for u, accepting, drawing in zip(drafting, accepts, draws, strict=True):
            first = speculate.drawn(self.q[0], u[0])
            ids = np.array([first, speculate.drawn(self.q[first], u[1])])
            q = None if self.point else self.q[[0, first]]
            yield self.p[[0, *ids]], Draft(ids, q), accepting, drawing

    def counts(self, seeds: int, rule: Callable[..., tuple[int, int]]) -> tuple[dict[tuple[int, ...], int], float]:
        """How often each pair of first ids is said, and the share of first drafted ids that are kept."""
        found: dict[tuple[int, ...], int] = {}
        first = 0
        for p, draft, accepting, drawing in self.rounds(seeds):
            kept, bonus = rule(p, draft, accepting, drawing)
            path = (*draft.ids[:kept].tolist(), bonus)[:2]
            if len(path) == 1:  # the next pass, without a draft
                path = (bonus, speculate.drawn(self.p[bonus], drawing[2]))
            found[path] = found.get(path, 0) + 1
            first += kept > 0
        return found, first / seeds


@pytest.mark.parametrize(
    ("t", "top", "point", "seeds"), [(1.0, 1.0, False, 100_000), (0.7, 0.9, False, 20_000), (0.7, 0.9, True, 20_000)]
)
def test_what_is_said_is_distributed_as_without_drafts(t: float, top: float, point: bool, seeds: int) -> None:
    """Chi-square: the first two ids, each by acceptance, by a residual or as the bonus."""
    pairs = Pairs(t, top, point)
    counts, kept = pairs.counts(seeds, accept)
    assert kept == pytest.approx(acceptance(pairs.p[0], pairs.q[0]), abs=4 * (0.25 / seeds) ** 0.5)
    assert chi_square(counts, pairs.wanted) < 3.5


def test_the_count_finds_a_wrong_rule() -> None:
    """Drawing from p instead of the residual after a refusal."""

    def wrong(p: ndarray, draft: Draft, accepts: ndarray, draws: ndarray) -> tuple[int, int]:
        kept, _ = accept(p, draft, accepts, draws)  # type: ignore[arg-type]
        return kept, speculate.drawn(p[kept], draws[kept])

    pairs = Pairs(1.0, 1.0, False)
    assert chi_square(pairs.counts(10_000, wrong)[0], pairs.wanted) > 10


def said(executor, proposer: Proposer | None, requests: Sequence[Request], draft: int = 3) -> list[list[int]]:
    """What the engine says to every request."""
    engine = Engine(executor, proposer=proposer, draft=draft)
    numbers = [engine.submit(each) for each in requests]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while events := engine.step():
        for event in events:
            assert event.done != "error", event.error
            found[event.request] += event.ids.tolist()
    assert engine.idle
    assert engine.free == executor.slots
    return [found[number] for number in numbers]


@pytest.mark.parametrize("count", [1_500, pytest.param(35_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}])
def test_the_engine_with_a_draft_model_says_the_same_distribution(sampling: dict[str, float], count: int) -> None:
    """Requests of 3 ids: q travels with the draft, and the draft's own filters are the request's."""
    target, small = chain(4, 2), chain(4, 3)
    chosen = SamplingConfig(max_tokens=3, **sampling)  # type: ignore[arg-type]
    requests = [Request(ids=np.array([1]), sampling=chosen, seed=seed) for seed in range(count)]
    executor = Table(target)
    found = said(executor, DraftModel(Table(small), 4), requests)
    counts: dict[tuple[int, ...], int] = {}
    for each in found:
        counts[tuple(each)] = counts.get(tuple(each), 0) + 1
    wanted = paths(target, 1, chosen.temperature, chosen.top_p, 3)
    assert chi_square(counts, wanted) < 3.5
    assert executor.lengths == [0] * executor.slots


# ---- lookup ----------------------------------------------------------------------------------------------------------


def searched(ids: Sequence[int], longest: int, shortest: int, count: int) -> list[int]:
    """The draft by looking through the row from its end."""
    for size in range(min(longest, len(ids)), shortest - 1, -1):
        for stop in range(len(ids) - 1, size - 1, -1):
            if list(ids[stop - size : stop]) == list(ids[len(ids) - size :]):
                out = list(ids)
                for place in range(count):
                    out.append(out[stop + place])
                return out[len(ids) :]
    return []


def row_of(ids: Sequence[int], slot: int = 0, **sampling) -> Row:
    request = Request(ids=np.array([1]), sampling=SamplingConfig(**sampling))
    return Row(slot, np.array(ids, np.int32), 1, request)


@pytest.mark.parametrize(("longest", "shortest"), [(4, 1), (3, 2), (1, 1)])
def test_lookup_is_the_search_through_the_row(longest: int, shortest: int) -> None:
    draw = np.random.default_rng(3)
    proposer, ids = Lookup(longest, shortest), draw.integers(0, 3, 5).tolist()
    for _ in range(150):
        found = proposer.propose([row_of(ids)], 4)[0]
        whole = searched(ids, longest, shortest, 4)
        assert found.ids.tolist() == whole[: len(found.ids)]
        assert found.probabilities is None
        assert bool(len(found.ids)) == bool(whole)
        proposer.settle([0], [int(draw.integers(0, len(found.ids) + 1))])
        ids += draw.integers(0, 3, int(draw.integers(1, 4))).tolist()
    proposer.close(0)
    assert len(proposer.propose([row_of([0, 1, 2])], 4)[0].ids) == 0, "what was closed is forgotten"


def test_lookup_begins_anew_in_a_slot_that_holds_another_row() -> None:
    proposer = Lookup()
    proposer.propose([row_of([5, 6, 7, 5, 6])], 4)
    assert proposer.propose([row_of([1, 2, 3, 9, 5, 6])], 4)[0].ids.tolist() == []
    assert proposer.propose([row_of([1, 2, 3, 1, 2])], 2)[0].ids.tolist() == [3, 1]


def test_lookup_drafts_longer_where_it_does_well() -> None:
    proposer, row, lengths = Lookup(), row_of([1, 2] * 10), []
    for kept in (3, 7, 15, 4, 5):
        lengths.append(len(proposer.propose([row], 100)[0].ids))
        proposer.settle([0], [kept])
    assert lengths == [3, 7, 15, 31, 5]


@pytest.mark.parametrize(("longest", "shortest"), [(0, 0), (2, 3), (4, 0)])
def test_lookup_refuses_empty_endings(longest: int, shortest: int) -> None:
    with pytest.raises(GenerationError, match="endings"):
        Lookup(longest, shortest)


# ---- proposers under the engine --------------------------------------------------------------------------------------


@cache
def net(heads: str | None, body: str = "grouped", seed: int = 3) -> Model:
    """A tiny model in float64, with heads that say something."""
    further = None if heads is None else FurtherConfig(ids=4, heads=HEADS[heads])
    made = build.build(replace(variants.config(body, False), further=further, init="cs336"), seed, torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.head.weight.mul_(6)  # sure of something, so that not every draft is refused
        for name, parameter in made.named_parameters():
            if name.startswith("heads."):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return made


def heads_of(executor: TorchExecutor) -> Heads:
    model = executor.model
    if executor.several is not None:
        return Heads(executor.several, model.config.vocabulary)
    return Heads(MedusaLooking(MedusaHeads(model.config, variants.weights(model))), model.config.vocabulary)


def asked(count: int, **sampling) -> list[Request]:
    """Requests of unlike lengths, some of them with repetitions."""
    draw = np.random.default_rng(5)
    found = []
    for seed in range(count):
        ids = np.tile(draw.integers(0, variants.VOCABULARY, int(draw.integers(1, 7))), int(draw.integers(1, 4)))
        chosen = SamplingConfig(max_tokens=int(draw.integers(1, 14)), **sampling)
        found.append(Request(ids=ids, sampling=chosen, seed=seed))
    return found


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("heads", HEADS)
def test_greedy_with_heads_is_plain_token_for_token(heads: str, body: str) -> None:
    model, requests = net(heads, body), asked(7, temperature=0)
    executor = TorchExecutor(model, 3, 40, spare=4, ahead=True)
    proposer = heads_of(executor)
    assert said(executor, proposer, requests) == said(TorchExecutor(model, 3, 40), None, requests)


@pytest.mark.parametrize("body", ["grouped", "hybrid", "window"])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "top_k": 5, "repetition_penalty": 1.2}])
def test_lookup_is_plain_token_for_token_under_sampling_too(body: str, sampling: dict) -> None:
    model, requests = net(None, body), asked(9, **sampling)
    proposer = Lookup()
    engine = TorchExecutor(model, 2, 40, spare=5)
    assert said(engine, proposer, requests, 4) == said(TorchExecutor(model, 2, 40), None, requests)


@pytest.mark.parametrize("body", ["grouped", "hybrid", "window"])
def test_greedy_with_a_draft_model_is_plain_whoever_drafts(body: str) -> None:
    """The model itself drafts (all is accepted), another one, one with less room."""
    model, requests = net(None, body), asked(9, temperature=0)
    plain = said(TorchExecutor(model, 3, 40), None, requests)
    for drafting, room in ((model, 44), (net(None, "grouped", 8), 44), (model, 12)):
        proposer = DraftModel(TorchExecutor(drafting, 3, room, spare=5), variants.VOCABULARY)
        engine = Engine(TorchExecutor(model, 3, 40, spare=5), proposer=proposer, draft=4)
        numbers = [engine.submit(each) for each in requests]
        found: dict[int, list[int]] = {number: [] for number in numbers}
        while events := engine.step():
            for event in events:
                found[event.request] += event.ids.tolist()
        assert list(found.values()) == plain
        if drafting is model and room == 44:
            assert engine.spoken.rate == 1.0
            assert sum(engine.spoken.drafted) > 20
        assert proposer.executor.state.lengths == [0, 0, 0], "slots of the draft model are closed"  # type: ignore[attr-defined]


def test_an_unsure_draft_model_drafts_less_and_a_broken_one_nothing() -> None:
    sure, flat = np.eye(4, dtype=np.float32) * 9, np.zeros((4, 4), np.float32)
    row = row_of([1, 2], temperature=0)
    for table, least, length in ((sure, 0.5, 3), (flat, 0.5, 0), (flat, 0.2, 3), (flat * np.nan, 0.0, 0)):
        assert len(DraftModel(Table(table), 4, least).propose([row], 3)[0].ids) == length


def test_a_draft_model_forgets_what_was_refused_and_rows_that_changed() -> None:
    drafting = TorchExecutor(net(None), 1, 40, spare=5)
    proposer = DraftModel(drafting, variants.VOCABULARY)
    for ids, kept in (([1, 2, 3], 0), ([1, 2, 3, 9], 2), ([4, 5], 0), ([4, 5, 6, 7], None), ([4, 5, 6, 7, 8], 1)):
        found = proposer.propose([row_of(ids, temperature=0)], 4)[0].ids.tolist()
        row = list(ids)
        with torch.no_grad():
            for _ in range(4):
                row.append(int(net(None).head.logits(net(None)(rows.rows([row])))[-1].argmax()))
        assert found == row[len(ids) :]
        if kept is not None:
            proposer.settle([0], [kept])
            assert drafting.state.lengths == [len(ids) + kept]


@pytest.mark.parametrize("error", [GenerationError("broken"), MemoryError(), RuntimeError("broken")])
def test_a_draft_model_that_breaks_drafts_nothing_and_no_answer_notices(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, requests = net(None, "grouped"), asked(9, temperature=0)
    plain = said(TorchExecutor(model, 3, 40), None, requests)
    drafting = TorchExecutor(model, 3, 44, spare=5)
    run, calls = drafting.run, iter(range(1_000))

    def breaking(*work: Any) -> Any:
        if next(calls) % 3 == 1:
            raise error
        return run(*work)

    monkeypatch.setattr(drafting, "run", breaking)
    assert said(TorchExecutor(model, 3, 40, spare=5), DraftModel(drafting, variants.VOCABULARY), requests, 4) == plain
    assert next(calls) > 9
    assert drafting.state.lengths == [0, 0, 0]


def test_a_draft_model_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(GenerationError, match="another vocabulary"):
        DraftModel(Table(chain(5, 0)), 4)


# ---- heads in decoding -----------------------------------------------------------------------------------------------


def slow_drafts(model: Model, ids: Sequence[int], count: int) -> list[int]:
    """What the heads say behind `ids`, all read anew in one forward as in training."""
    assert model.heads is not None
    row = list(ids)
    for k in range(1, count + 1):
        with torch.no_grad():
            hidden = model(rows.rows([row]), ahead=True)
            row.append(int(model.heads.head(k, model.head).logits(hidden[k, len(ids) - 2]).argmax()))
    return row[len(ids) :]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("heads", HEADS)
def test_drafts_of_heads_are_those_of_training(heads: str, body: str) -> None:
    """Over prompts in chunks, drafts of every length, refused and accepted, forked and saved slots."""
    model, draw = net(heads, body), np.random.default_rng(2)
    executor = TorchExecutor(model, 2, 40, spare=4, ahead=True)
    proposer, slot = heads_of(executor), 0
    executor.open(0)
    row: list[int] = []
    for size in (1, 5, 2):
        new = draw.integers(0, 53, size)
        hidden = executor.run([Work(0, new.astype(np.int32), "last")], hidden=True).hidden
        row += new.tolist()
    for turn in range(7):
        row.append(int(draw.integers(0, 53)))
        assert hidden is not None
        count = (3, 1, 2)[turn % 3]
        asked_row = replace(row_of(row, slot, temperature=0), hidden=hidden[-1])
        drafted = proposer.propose([asked_row], count)[0].ids.tolist()
        assert drafted == slow_drafts(model, row, count)
        kept = turn % (count + 1)
        executor.mark([slot])
        work = Work(slot, np.array([row[-1], *drafted], np.int32), "all")
        hidden = executor.run([work], hidden=True).hidden
        assert hidden is not None
        executor.rewind([slot], [1 + kept])
        row, hidden = row + drafted[:kept], hidden[: 1 + kept]
        if turn == 2:
            executor.fork(slot, 1 - slot)
        if turn == 4:
            saved = executor.save(slot)
            executor.close(slot)
            executor.load(1 - slot, saved)
        slot = 1 - slot if turn in (2, 4) else slot


def test_heads_that_lost_their_place_draft_nothing_until_they_are_closed() -> None:
    executor = TorchExecutor(net("sequential"), 1, 40, spare=20, ahead=True)
    proposer = heads_of(executor)
    executor.open(0)
    executor.mark([0])
    executor.run([Work(0, np.arange(8, dtype=np.int32), "last")])
    assert len(proposer.propose([row_of([*range(8), 9])], 3)[0].ids) == 3
    executor.rewind([0], [4])
    executor.run([Work(0, np.array([7], np.int32), "last")])
    assert len(proposer.propose([row_of([0, 1, 2, 3, 7, 9])], 3)[0].ids) == 0
    executor.close(0)
    executor.open(0)
    executor.run([Work(0, np.arange(8, dtype=np.int32), "last")])
    assert len(proposer.propose([row_of([*range(8), 9])], 3)[0].ids) == 3


def test_a_chain_that_read_an_id_which_was_taken_back_drafts_nothing() -> None:
    """The first head has read the newest id beside the last place; the model goes back to before it."""
    executor = TorchExecutor(net("sequential"), 2, 40, spare=20, ahead=True)
    proposer, row = heads_of(executor), [*range(8), 9]
    executor.open(0)
    executor.run([Work(0, np.array(row[:-1], np.int32), "last")])
    executor.mark([0])
    assert len(proposer.propose([row_of(row)], 3)[0].ids) == 3
    executor.run([Work(0, np.array([9, 1, 2], np.int32), "last")])
    executor.rewind([0], [0])
    executor.fork(0, 1)
    other = [*range(8), 7, 30]
    for slot in range(2):
        executor.run([Work(slot, np.array([7], np.int32), "last")])
        assert len(proposer.propose([row_of(other, slot)], 3)[0].ids) == 0


@pytest.mark.parametrize("heads", HEADS)
def test_without_its_heads_a_model_says_the_same(heads: str) -> None:
    """Bit for bit, whether its executor looks ahead or not."""
    model, bare = net(heads), build.build(replace(net(heads).config, further=None), 0, torch.float64)
    kept = {name: each for name, each in model.state_dict().items() if not name.startswith("heads.")}
    bare.load_state_dict(kept)
    ids = np.arange(9, dtype=np.int32)
    found = []
    for of, looks in ((bare, False), (model, False), (model, True)):
        executor = TorchExecutor(of, 1, 20, ahead=looks)
        executor.open(0)
        found.append(executor.run([Work(0, ids, "all")]).logits)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize(("bits", "tolerance"), [(None, 1e-5), (8, 0.05)])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_compiled_medusa_heads_are_those_of_torch(bits, tolerance: float, cap: float | None) -> None:
    model = net("medusa")
    held = variants.weights(model)
    compiled = MedusaHeads(replace(model.config, cap=cap), held, bits)
    hidden = np.random.default_rng(0).standard_normal((19, model.config.width)).astype(np.float32)
    for k in range(3):
        assert model.heads is not None
        vectors = model.heads[k](torch.from_numpy(hidden).double())
        wanted = model.heads.head(k + 1, model.head).logits(vectors).detach().numpy()
        wanted = wanted if cap is None else cap * np.tanh(wanted / cap)
        found = compiled.logits(k, hidden)
        assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
        alone = np.concatenate([compiled.logits(k, each[None]) for each in hidden])
        assert np.array_equal(found, alone), "a row does not depend on the others"


@pytest.mark.parametrize("body", ["grouped", "window"])
def test_a_compiled_chain_drafts_as_torch_does_and_loses_nothing(body: str) -> None:
    """Its drafts are those of the slow forward in float32; what is said is the plain answer, bit for bit."""
    model = net("sequential", body)
    held = variants.weights(model)
    trunk = {name: each for name, each in held.items() if not name.startswith("heads.")}
    laid = plan(replace(model.config, further=None), trunk)
    chain = CompiledChain(model.config, held, 2, 40, None)
    executor = Following(CompiledExecutor(laid, 2, 40, threads=1), HeadsState(chain, 2))
    proposer, row = Heads(executor.several, model.config.vocabulary), [3, 1, 4, 1, 5]
    executor.open(0)
    executor.run([Work(0, np.array(row, np.int32), "last")])
    row.append(9)
    for kept in (0, 3, 1):
        drafted = proposer.propose([row_of(row, temperature=0)], 3)[0].ids.tolist()
        assert drafted == slow_drafts(model, row, 3)
        executor.mark([0])
        executor.run([Work(0, np.array([row[-1], *drafted], np.int32), "all")])
        executor.rewind([0], [1 + kept])
        row += [*drafted[:kept], 7]
    saved = executor.save(0)
    executor.close(0)
    executor.load(1, saved)
    assert proposer.propose([row_of(row, 1, temperature=0)], 3)[0].ids.tolist() == slow_drafts(model, row, 3)
    executor.close(1)
    requests = asked(6, temperature=0)
    assert said(executor, proposer, requests) == said(CompiledExecutor(laid, 2, 40, threads=1), None, requests)
