"""Laws of the engine over a fake that watches the contract: preemption, prefixes, drafts, constraints, failures."""

import doctest
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_told import Story, ask, finish, serve
from fake_executor import ADAPTERS, Fake, Impossible, Oracle, Rise, V, a_request, answer_of
from temaki.base import keys
from temaki.base.errors import ConfigError, GenerationError
from temaki.generate import branches, engine, prefixes, spoken
from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.request import Request, Row
from temaki.generate.sampling import log_probabilities, top_k
from temaki.generate.speculate import Draft

ROOM = 24


def clean(made: Engine, fake: Fake) -> None:
    """Everything is as in the beginning."""
    assert made.free == fake.slots
    assert fake.empty
    assert made.seats.empty
    assert made.idle
    assert made.prefixes.bytes <= made.prefixes.limit
    assert not (isinstance(made.proposer, Oracle) and made.proposer.rows)


def in_order(made: Engine) -> None:
    """Who sits is older than who was put aside, who is older than who waits: nobody overtakes, so nobody starves."""
    seats = made.seats
    ages = [[each.age for each in those] for those in ([*seats.running, *seats.reading], seats.aside, seats.waiting)]
    assert list(chain(sorted(ages[0]), *ages[1:])) == sorted(chain(*ages))


def as_alone(fake: Fake, asked: Sequence[Request], story: Story) -> None:
    assert len(story.done) == sum(each.branches for each in asked)
    for (number, branch), done in story.done.items():
        expected = answer_of(fake, asked[number], branch)
        found = story.ids[number, branch]
        if done == "cancelled":
            assert found == expected[0][: len(found)]
        else:
            assert (found, done) == expected, (number, branch, asked[number])


# ---- any schedule, any limits, any drafts


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 9),
    slots=st.integers(3, 5),
    chunk=st.integers(1, 30),
    held=st.sampled_from([None, ROOM, ROOM + 5, 2 * ROOM]),
    store=st.sampled_from([0, 300, 100_000]),
    wrong=st.sampled_from([None, 0.0, 0.3, 1.0]),
    draft=st.integers(1, 6),
    guilty=st.sampled_from([None, None, 11]),
)
def test_every_answer_is_its_own_whatever_goes_on_beside_it(
    seed, count, slots, chunk, held, store, wrong, draft, guilty
):
    draw = np.random.default_rng(seed)
    fake = Fake(slots, ROOM, broken=5, limit=held, guilty=guilty)
    proposer = None if wrong is None else Oracle(fake, wrong)
    made, story = Engine(fake, chunk, proposer=proposer, draft=draft, held=held, prefixes=store), Story()
    asked = [a_request(draw, ROOM) for _ in range(count)]
    for number, each in enumerate(asked):
        made.submit(each)
        for _ in range(int(draw.integers(0, 5))):
            story.take(made.step())
            in_order(made)
        if draw.random() < 0.2:
            made.cancel(int(draw.integers(0, number + 1)), None if draw.random() < 0.5 else int(draw.integers(0, 5)))
    finish(made, story)
    as_alone(fake, asked, story)
    clean(made, fake)


def test_drafts_with_probabilities_give_an_answer_its_own_ids_too():
    """Where drafts are drawn, speculative = plain holds in distribution; but alone = together holds to the id."""
    draw = np.random.default_rng(3)
    asked = [replace(a_request(draw, 12), branches=2, first=0) for _ in range(40)]

    def told(slots: int, held: int | None, some: Sequence[Request]) -> Story:
        fake = Fake(slots, ROOM, limit=held)
        made = Engine(fake, 7, proposer=Oracle(fake, spread=True), held=held)
        found = serve(made, some)
        clean(made, fake)
        return found

    together, cramped = told(8, None, asked), told(4, ROOM + 3, asked)
    assert together.ids == cramped.ids
    assert together.done == cramped.done
    for number, each in enumerate(asked):
        alone = told(2, None, [each])
        for branch in range(2):
            assert alone.ids[0, branch] == together.ids[number, branch]
    plain = serve(Engine(Fake(8, ROOM)), asked)
    assert plain.ids != together.ids
    greedy = {key for key in plain.ids if asked[key[0]].sampling.temperature == 0}
    assert greedy
    assert all(plain.ids[key] == together.ids[key] for key in greedy)


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("held", "wrong"), [(None, None), (40, None), (None, 0.3), (40, 0.3)])
def test_thousands_of_requests_in_and_out_leave_everything_as_it_was(held, wrong, count):
    draw = np.random.default_rng(7)
    fake = Fake(5, ROOM, broken=5, limit=held, guilty=11)
    store = 4000
    made = Engine(fake, 16, proposer=None if wrong is None else Oracle(fake, wrong), held=held, prefixes=store)
    story, asked = Story(), []
    for number in range(count):
        asked.append(a_request(draw, ROOM))
        made.submit(asked[-1])
        while len(made.seats.waiting) > 3 or draw.random() < 0.5:
            events = made.step()
            story.take(events)
            in_order(made)
            if not events:
                break
        if draw.random() < 0.25:
            low = max(0, number - 6)
            made.cancel(int(draw.integers(low, number + 1)), None if draw.random() < 0.5 else int(draw.integers(0, 5)))
    finish(made, story)
    kinds = list(story.done.values())
    for kind in ("stop", "length", "cancelled", "error"):
        assert kinds.count(kind) > count // 50, kind
    assert (made.seats.preempted > count // 25) == (held is not None)
    assert made.prefixes.reused > count
    for key in [key for key in story.done if key[0] >= count - 200]:
        expected, found = answer_of(fake, asked[key[0]], key[1]), (story.ids[key], story.done[key])
        assert found == expected or (found[1] == "cancelled" and expected[0][: len(found[0])] == found[0])
    clean(made, fake)
    made.prefixes.clear()
    assert (made.prefixes.bytes, len(made.prefixes)) == (0, 0)


# ---- preemption


def test_who_is_put_aside_goes_on_as_if_nothing_had_been():
    fake = Fake(3, 30, limit=30)
    asked = [ask(range(1, 9), seed=i, max_tokens=14) for i in range(3)]
    made = Engine(fake, held=30)
    story = serve(made, asked)
    as_alone(fake, asked, story)
    assert made.seats.preempted >= 2
    assert fake.read == sum(len(each.ids) + 13 for each in asked), "nothing is read twice"
    clean(made, fake)


def test_the_oldest_is_never_put_aside_and_comes_to_its_end_first():
    fake = Fake(4, 30, limit=24)
    made = Engine(fake, held=24)
    order = []
    for i in range(4):
        made.submit(ask(range(1, 7), seed=i, temperature=1.0, max_tokens=12))
    while events := made.step():
        order += [event.request for event in events if event.done]
    assert order == [0, 1, 2, 3]
    assert made.seats.preempted


def test_branches_of_one_request_wait_for_memory_one_by_one():
    fake = Fake(4, 30, limit=26)
    asked = ask(range(1, 11), seed=2, branches=4, max_tokens=9)
    made = Engine(fake, held=26)
    story = serve(made, [asked])
    as_alone(fake, [asked], story)
    assert made.seats.preempted >= 2
    assert len({tuple(each) for each in story.ids.values()}) == 4
    clean(made, fake)


def test_a_request_that_could_never_be_held_is_refused_with_the_numbers():
    made = Engine(Fake(2, 30), held=12)
    made.submit(ask(range(1, 6), max_tokens=8))
    with pytest.raises(GenerationError, match=r"(?s)5 ids of the prompt and 9 tokens.*12 ids"):
        made.submit(ask(range(1, 6), max_tokens=9))
    made.close()
    assert made.idle


def test_cancelling_one_that_was_put_aside_and_closing_with_some_aside():
    for gone in (False, True):
        fake = Fake(3, 30, limit=20)
        made, story = Engine(fake, held=20), Story()
        for i in range(3):
            made.submit(ask(range(1, 7), seed=i, max_tokens=14))
        while not made.seats.aside:
            story.take(made.step())
        aside = made.seats.aside[0].number
        if gone:
            made.close()
        else:
            made.cancel(aside)
            finish(made, story)
            assert story.done[aside, 0] == "cancelled"
        clean(made, fake)


# ---- prefixes


def test_a_stored_prefix_is_not_read_again():
    fake = Fake(1, 80)
    made = Engine(fake, prefixes=100_000)
    system, rest = list(range(20)), [list(range(i, i + 5)) for i in range(4)]
    asked = [ask([*system, *each], shared=20, max_tokens=3) for each in rest]
    serve(made, asked[:1])
    assert fake.read == 25 + 2
    serve(made, asked[1:3])
    assert fake.read == 27 + 2 * (5 + 2)
    serve(made, [asked[0]])  # the end of a prompt is kept too, but one id of a prompt has to be read
    assert fake.read == 41 + 5 + 2
    serve(made, [ask([*asked[0].ids, 7, 8], max_tokens=1)])
    assert fake.read == 48 + 2
    serve(made, [replace(asked[3], adapter="a")])
    assert fake.read == 50 + 27
    assert made.prefixes.reused == 3 * 20 + 25
    clean(made, fake)


def test_the_store_is_bounded_and_forgets_what_was_not_used_for_longest():
    fake = Fake(1, 80)
    a, b, c = (list(range(i, i + 20)) for i in range(3))
    one = fake_size(fake, a)
    made = Engine(fake, prefixes=2 * one)
    for each in (a, b):
        serve(made, [ask(each, max_tokens=1)])
    assert (len(made.prefixes), made.prefixes.bytes) == (2, 2 * one)
    serve(made, [ask([*a, 1], max_tokens=1)])  # a is used, so b goes next
    assert made.prefixes.holds(None, np.array(a)) + made.prefixes.holds(None, np.array(b)) == 0
    made = Engine(fake, prefixes=3 * one - 1)
    for each in (a, b):
        serve(made, [ask(each, max_tokens=1)])
    made.prefixes.longest(None, np.array([*a, 1]))
    serve(made, [ask(c, max_tokens=1)])
    assert [made.prefixes.holds(None, np.array(each)) for each in (a, b, c)] == [True, False, True]
    none = Engine(fake, prefixes=one - 1)
    serve(none, [ask(a, max_tokens=1)])
    assert len(none.prefixes) == 0


def fake_size(fake: Fake, ids: Sequence[int]) -> int:
    made = Engine(fake, prefixes=1_000_000)
    serve(made, [ask(ids, max_tokens=1)])
    return made.prefixes.bytes


def test_short_prefixes_are_not_kept_and_an_executor_that_reads_whole_keeps_none():
    fake = Fake(1, 80)
    made = Engine(fake, prefixes=1000)
    serve(made, [ask(range(15), max_tokens=1)])
    assert len(made.prefixes) == 0
    fake.whole = True
    made = Engine(fake, prefixes=1000)
    serve(made, [ask(range(20), shared=18, max_tokens=1), ask(range(22), max_tokens=1)])
    assert len(made.prefixes) == 0


# ---- drafts


@pytest.mark.parametrize("draft", [1, 4])
def test_right_drafts_save_passes_and_are_counted(draft):
    fake = Fake(1, 80)

    class Sure(Oracle):
        def _draft(self, row: Row, n: int) -> Draft:
            ids, _ = answer_of(fake, row.request, row.branch)
            said = len(row.ids) - row.prompt
            return Draft(np.array(ids[said : said + n], np.int32))

    made = Engine(fake, proposer=Sure(fake), draft=draft)
    asked = ask([1, 2], seed=4, max_tokens=21)
    story = serve(made, [asked])
    as_alone(fake, [asked], story)
    assert made.spoken.passes == -(-20 // (draft + 1))
    assert made.spoken.ids == 20
    assert made.spoken.rate == 1
    assert fake.calls == 1 + made.spoken.passes
    assert len(made.spoken.drafted) == draft


def test_wrong_drafts_cost_no_id_and_are_counted():
    fake = Fake(2, 80)
    asked = [ask([1, 2], seed=i, max_tokens=21) for i in range(2)]
    made = Engine(fake, proposer=Oracle(fake, wrong=1.0), draft=3)
    as_alone(fake, asked, serve(made, asked))
    assert made.spoken.rate < 0.2
    assert 1 <= made.spoken.ids_per_pass < 1.5
    plain = Engine(fake)
    serve(plain, asked)
    assert (plain.spoken.passes, plain.spoken.ids_per_pass, plain.spoken.rate) == (40, 1.0, 0.0)


def test_typical_acceptance_takes_what_is_likely_enough_and_nothing_else():
    fake = Fake(1, 60)
    asked = ask([1, 2], seed=5, max_tokens=20)

    class Best(Oracle):
        def _draft(self, row: Row, n: int) -> Draft:
            ids = row.ids.tolist()
            for _ in range(n):
                ids.append(int(fake.logits(ids).argmax()))
            return Draft(np.array(ids[len(row.ids) :], np.int32))

    made = Engine(fake, proposer=Best(fake), acceptance="typical")
    story = serve(made, [asked])
    ids = story.ids[0, 0]
    assert ids != answer_of(fake, asked, 0)[0]
    assert made.spoken.rate > 0.5
    greedy = replace(asked, sampling=replace(asked.sampling, temperature=0.0))
    as_alone(fake, [greedy], serve(Engine(fake, proposer=Oracle(fake, 0.5), acceptance="typical"), [greedy]))


def test_log_probabilities_of_drafted_ids_are_those_of_plain_decoding():
    fake = Fake(1, 60)
    asked = ask([1, 2], seed=5, logprobs=2, max_tokens=20)
    plain = serve(Engine(fake), [asked]).logprobs[0, 0]
    drafted = serve(Engine(fake, proposer=Oracle(fake, 0.2)), [asked]).logprobs[0, 0]
    assert len(plain) == 20 > len(drafted)
    for name in ("drawn", "ids", "best"):
        a, b = (np.concatenate([vars(each)[name] for each in those]) for those in (plain, drafted))
        assert np.array_equal(a, b)


def test_ids_that_were_drafted_by_chance_are_distributed_as_plain_ones():
    """Chi-square over the first three ids of an answer; the draft's own distribution is far from the model's."""
    fake = Fake(8, 60)
    chosen = SamplingConfig(temperature=1.5, top_k=3, max_tokens=4)

    def spread(ids: Sequence[int], temperature: float) -> np.ndarray:
        return np.exp(log_probabilities(top_k(fake.logits(ids) / np.float32(temperature), 3)))

    def walks(ids: list[int], steps: int) -> Iterator[tuple[list[int], float]]:
        if steps == 0:
            yield ids[2:], 1.0
            return
        p = spread(ids, 1.5)
        for each in np.flatnonzero(p).tolist():
            yield from ((found, chance * p[each]) for found, chance in walks([*ids, each], steps - 1))

    class Hot(Oracle):
        def _draft(self, row: Row, n: int) -> Draft:
            ids, q = row.ids.tolist(), []
            for _ in range(2):
                q.append(spread(ids, 20.0))
                uniform = keys.uniform(row.request.seed, "draft", row.branch, len(ids))
                ids.append(int(np.searchsorted(q[-1].cumsum(), uniform * q[-1].sum(), side="right")))
            return Draft(np.array(ids[-2:], np.int32), np.array(q))

    made = Engine(fake, proposer=Hot(fake))
    count = 3000
    asked = [Request(ids=np.array([1, 2]), sampling=chosen, seed=seed) for seed in range(count)]
    story = serve(made, asked)
    seen = Counter(tuple(each[:3]) for each in story.ids.values())
    chi, cells = 0.0, 0
    for ids, chance in walks([1, 2], 3):
        chi += (seen.pop(tuple(ids), 0) - count * chance) ** 2 / (count * chance)
        cells += 1
    assert not seen
    assert cells == 27
    assert chi < 54.05  # 26 degrees of freedom, p = 0.001
    assert 0.2 < made.spoken.rate < 0.9


def test_a_proposer_of_another_vocabulary_is_refused_before_anything_is_read():
    fake = Fake(1, 60)

    class Strange(Oracle):
        def _draft(self, row: Row, n: int) -> Draft:
            return Draft(np.array([V], np.int32))

    made = Engine(fake, proposer=Strange(fake))
    made.submit(ask([1], max_tokens=5))
    made.step()
    with pytest.raises(GenerationError, match=rf"(?s)same vocabulary.*{V} to {V}.*0 to {V - 1}"):
        made.step()
    made.close()
    clean(made, fake)


# ---- constraints


def test_an_answer_ends_when_its_constraint_is_fulfilled_and_obeys_it_till_then():
    fake = Fake(2, 60)
    for most in (0, 1, 4):
        asked = ask([1, 2], seed=3, branches=2, max_tokens=20, constraint=Rise(step=5, most=most, end=28))
        story = serve(Engine(fake), [asked])
        as_alone(fake, [asked], story)
        for branch in range(2):
            ids = story.ids[0, branch]
            assert story.done[0, branch] == "stop"
            assert len(ids) == most
            assert all(a <= b < a + 5 or b == 28 for a, b in pairwise(ids[1:]))
    assert fake.empty


def test_a_stop_id_is_never_told_to_a_constraint():
    fake = Fake(1, 60)
    asked = ask([1, 3], max_tokens=20, constraint=Rise(step=1, end=0, lies=0), stop_ids=(0,))
    story = serve(Engine(fake), [asked])
    assert (story.ids[0, 0], story.done[0, 0]) == ([], "stop")


def test_a_constraint_that_fails_ends_its_request_only():
    fake = Fake(4, 60)
    asked = [
        ask([1], seed=1, max_tokens=6),
        ask([2], branches=2, max_tokens=6, constraint=Impossible()),
        ask([3], seed=1, max_tokens=6, constraint=Rise(step=1, end=0, lies=0)),
    ]
    made = Engine(fake)
    story = serve(made, asked)
    as_alone(fake, asked, story)
    assert "nothing satisfies" in (story.errors[1, 1] or "")
    assert "breaks the constraint" in (story.errors[2, 0] or "")
    assert story.done[0, 0] == "length"
    clean(made, fake)


# ---- failures


@pytest.mark.parametrize("wrong", [None, 0.3])
def test_a_call_that_breaks_ends_only_who_broke_it(wrong):
    fake = Fake(4, 60, guilty=11)
    asked = [ask([1, i], seed=i, max_tokens=25, branches=1 + i % 2, top_k=12) for i in range(6)]
    asked += [ask([2, 11], max_tokens=4), ask([3], adapter="strange"), ask([4], adapter=ADAPTERS[1], max_tokens=9)]
    made = Engine(fake, 4, proposer=None if wrong is None else Oracle(fake, wrong))
    story = serve(made, asked)
    as_alone(fake, asked, story)
    assert "MemoryError: no memory for 11" in (story.errors[6, 0] or "")
    assert "adapter" in (story.errors[7, 0] or "")
    assert {"length", "error"} == set(story.done.values())
    assert fake.failures >= 4
    clean(made, fake)


def test_a_mistake_of_ours_is_not_hidden_and_close_frees_everything():
    class Wrong(Fake):
        def run(self, work, hidden=False):
            if self.calls == 3:
                raise AssertionError("our own mistake")
            return super().run(work, hidden)

    fake = Wrong(2, 60)
    made = Engine(fake)
    for i in range(3):
        made.submit(ask([1, i], max_tokens=9))
    with pytest.raises(AssertionError, match="our own"):
        finish(made)
    made.close()
    clean(made, fake)


# ---- refusals


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"chunk": 0}, "chunk"),
        ({"draft": 0}, "draft"),
        ({"held": 0}, r"(?s)held.*1 or more"),
        ({"prefixes": -1}, r"(?s)prefixes.*0 or more"),
        ({"acceptance": "some"}, "exact, typical"),
    ],
)
def test_settings_out_of_range_are_refused(more, says):
    with pytest.raises(GenerationError, match=says):
        Engine(Fake(1, 9), **more)


def test_requests_that_cannot_be_are_refused():
    made = Engine(Fake(1, 9))
    with pytest.raises(GenerationError, match="not both"):
        made.submit(ask([1], constraint=Rise(), healing=Rise()))
    with pytest.raises(GenerationError, match=r"(?s)share more.*0 to 1"):
        made.submit(ask([1], shared=2))
    for wrong in ({"first": -1}, {"first": 0.5}, {"seed": -1}, {"seed": None}, {"branches": 0}, {"branches": 1.0}):
        with pytest.raises(GenerationError, match=f"{next(iter(wrong))} is a whole number"):
            made.submit(ask([1], **wrong))  # type: ignore[arg-type]
    with pytest.raises(GenerationError, match=r"(?s)a branch takes.*1 to 1"):
        made.submit(ask([1], branches=2))
    with pytest.raises(ConfigError, match="logit_bias"):
        made.submit(ask([1], logit_bias=((V, 1.0),)))
    assert made.idle


@pytest.mark.parametrize("module", [branches, engine, prefixes, spoken])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0
