"""Laws of the engine, of its torch executor and of text, over every mixer; a NumPy fake says what the engine
owes alone."""

import doctest
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_told import Story, finish
from temaki.base import keys, rows
from temaki.base.errors import ConfigError, GenerationError
from temaki.generate import engine as engine_module
from temaki.generate import executor as executor_module
from temaki.generate import request as request_module
from temaki.generate import sampling, text, torch_executor
from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Answer, Saved, Work
from temaki.generate.request import Request
from temaki.generate.torch_executor import TorchExecutor
from temaki.model import build, linear
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    NoPositionConfig,
    RopeConfig,
    S4DConfig,
    SwigluConfig,
)
from temaki.model.linear import lengthwise
from temaki.tokens.bpe import from_merges
from temaki.tokens.tokenizer import END_OF_TEXT, TextStream

V = 29
QUIET = settings(derandomize=True, deadline=None, max_examples=60)


def block(mixer) -> BlockConfig:
    return BlockConfig(mixer=mixer, ffn=SwigluConfig(width=32))


def rope(pairs) -> AttentionConfig:
    return AttentionConfig(heads=4, kv_heads=2, position=RopeConfig(pairs=pairs))


# name -> (blocks, depth, tied)
VARIANTS = {
    "rope-half": ((block(rope("half")),), 2, False),
    "rope-interleaved": ((block(rope("interleaved")),), 2, True),
    "no-positions": ((block(AttentionConfig(heads=2, position=NoPositionConfig())),), 2, False),
    "s4d": ((block(S4DConfig(states=8)),), 2, False),
    "hybrid": ((block(rope("half")), block(S4DConfig(states=8))), 2, True),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
CASES = [(variant, dtype) for variant in VARIANTS for dtype in DTYPES]
MODELS: dict[tuple[str, str], build.Model] = {}
over_variants = pytest.mark.parametrize(("variant", "dtype"), CASES, ids=["-".join(case) for case in CASES])


def model(variant: str, dtype: str) -> build.Model:
    if (variant, dtype) not in MODELS:
        pattern, depth, tied = VARIANTS[variant]
        made = DecoderConfig(vocabulary=V, width=16, depth=depth, pattern=pattern, tied=tied, init="cs336")
        MODELS[variant, dtype] = build.build(made, 7, DTYPES[dtype])
    return MODELS[variant, dtype]


def whole(of: build.Model, ids: Sequence[int]) -> np.ndarray:
    """All logits [n, V] by one forward without any state: the oracle."""
    with torch.no_grad():
        return of.head.logits(of(rows.rows([list(ids)]))).numpy()


def from_scratch(of: build.Model, ids: Sequence[int], count: int) -> list[int]:
    """Greedy ids, everything recomputed for each."""
    row = list(ids)
    for _ in range(count):
        row.append(int(whole(of, row)[-1].argmax()))
    return row[len(ids) :]


def prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, V, int(draw.integers(1, longest + 1))).tolist() for _ in range(count)]


def ask(ids: Sequence[int], seed: int = 0, branches: int = 1, first: int = 0, logprobs=None, **sampling) -> Request:
    chosen = SamplingConfig(**sampling)
    return Request(
        ids=np.array(ids, np.int64),
        sampling=chosen,
        seed=seed,
        branches=branches,
        first=first,
        logprobs=logprobs,
    )


def serve(executor, asked: Sequence[Request], chunk: int = 512) -> Story:
    engine = Engine(executor, chunk)
    for each in asked:
        engine.submit(each)
    story = finish(engine)
    assert engine.free == executor.slots
    return story


def same_tokens(of: build.Model, dtype: str, prompt: Sequence[int], expected: list[int], found: list[int]) -> int:
    """Equal, or, in float32, equal up to a place where the two best are too near to tell: 1 if that was
    needed."""
    if expected == found:
        return 0
    assert dtype == "float32", (expected, found)
    at = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
    logits = np.sort(whole(of, [*prompt, *expected[:at]])[-1])
    assert logits[-1] - logits[-2] < 1e-4 * abs(logits).max(), (expected, found)
    return 1


def close_logits(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == DTYPES_NUMPY[dtype]
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= TOLERANCE[dtype] * abs(expected).max()


DTYPES_NUMPY = {"float64": np.float64, "float32": np.float32}


# ---- the torch executor against one whole forward


@over_variants
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_chunks_read_beside_others_are_the_whole(variant, dtype, chunk):
    of = model(variant, dtype)
    executor = TorchExecutor(of, slots=4, room=24)
    asked = [*prompts(3, seed=1), prompts(1, seed=2, longest=1)[0]]
    for slot in range(4):
        executor.open(slot)
    found: list[list[np.ndarray]] = [[] for _ in asked]
    for start in range(0, 24, chunk):
        part = [(slot, each[start : start + chunk]) for slot, each in enumerate(asked) if len(each) > start]
        if part:
            answer = executor.run([Work(slot, np.array(ids, np.int32), "all") for slot, ids in part], hidden=True)
            assert answer.hidden is not None
            assert answer.hidden.shape == (len(answer.logits), 16)
            at = 0
            for slot, ids in part:
                found[slot].append(answer.logits[at : at + len(ids)])
                at += len(ids)
    for each, parts in zip(asked, found, strict=True):
        close_logits(np.concatenate(parts), whole(of, each), dtype)


@over_variants
def test_only_wanted_places_are_answered_in_the_order_of_the_work(variant, dtype):
    of = model(variant, dtype)
    executor = TorchExecutor(of, slots=4, room=24)
    a, b, c = prompts(3, seed=4, longest=9)
    wants = [Work(2, np.array(a), "last"), Work(0, np.array(b), "none"), Work(3, np.array(c), "all")]
    expected = np.concatenate([whole(of, a)[-1:], whole(of, c)])
    close_logits(executor.run(wants).logits, expected, dtype)
    assert executor.run([Work(1, np.array(a), "none")]).logits.shape == (0, V)


@over_variants
def test_rewound_is_never_read_each_slot_with_its_own_keep(variant, dtype):
    of = model(variant, dtype)
    executor = TorchExecutor(of, slots=4, room=40, spare=5)
    starts, ends = prompts(4, seed=5, longest=9), prompts(4, seed=6, longest=6)
    drafts = np.random.default_rng(7).integers(0, V, (4, 5)).astype(np.int32)
    executor.run([Work(slot, np.array(each), "none") for slot, each in enumerate(starts)])
    keep = [0, 2, 5, 3]
    executor.mark(range(4))
    verified = executor.run([Work(slot, drafts[slot], "all") for slot in range(4)]).logits.reshape(4, 5, V)
    executor.rewind(range(4), keep)
    answer = executor.run([Work(slot, np.array(each), "last") for slot, each in enumerate(ends)]).logits
    for slot, (start, end) in enumerate(zip(starts, ends, strict=True)):
        close_logits(verified[slot], whole(of, [*start, *drafts[slot].tolist()])[len(start) :], dtype)
        row = [*start, *drafts[slot, : keep[slot]].tolist(), *end]
        close_logits(answer[slot], whole(of, row)[-1], dtype)
        assert executor.save(slot).length == len(row)


@over_variants
def test_save_close_load_restores_bits_in_any_slot(variant, dtype):
    of = model(variant, dtype)
    executor = TorchExecutor(of, slots=3, room=24)
    a, b = prompts(2, seed=8)
    executor.run([Work(0, np.array(a), "none")])
    saved = executor.save(0)
    assert saved.length == len(a)
    expected = executor.run([Work(0, np.array([3, 1]), "all")]).logits
    executor.close(0)
    executor.run([Work(0, np.array(b), "none")])  # somebody else sat there; what was saved is a copy
    for slot in (2, 1):
        executor.load(slot, saved)
        assert np.array_equal(executor.run([Work(slot, np.array([3, 1]), "all")]).logits, expected)


@over_variants
def test_fork_is_a_copy_that_goes_its_own_way(variant, dtype):
    of = model(variant, dtype)
    executor = TorchExecutor(of, slots=3, room=24)
    (a,) = prompts(1, seed=9)
    executor.run([Work(1, np.array(a), "none")])
    executor.fork(1, 0)
    answer = executor.run([Work(0, np.array([5]), "last"), Work(1, np.array([6]), "last")]).logits
    close_logits(answer[0], whole(of, [*a, 5])[-1], dtype)
    close_logits(answer[1], whole(of, [*a, 6])[-1], dtype)


@over_variants
def test_a_closed_slot_is_empty_even_after_nan(variant, dtype):
    of = model(variant, dtype)
    executor = TorchExecutor(of, slots=2, room=24)
    (a,) = prompts(1, seed=10)
    clean = executor.run([Work(0, np.array(a), "last")]).logits
    executor.close(0)
    executor.open(0)
    for layer in executor.state.layers:
        memory = vars(layer)
        for name in ("store", "x"):
            if name in memory:
                memory[name].fill_(math.nan)
    executor.close(0)
    assert np.array_equal(executor.run([Work(0, np.array(a), "last")]).logits, clean)


def test_the_executor_refuses_what_it_cannot_do():
    of = model("rope-half", "float32")
    executor = TorchExecutor(of, slots=1, room=4)
    with pytest.raises(GenerationError, match=r"(?s)0 ids.*4 ids"):
        executor.run([Work(0, np.arange(5), "none")])
    with pytest.raises(GenerationError, match="adapter"):
        executor.run([Work(0, np.arange(2), "none", adapter="a")])
    with pytest.raises(GenerationError, match="encoder"):
        executor.open(0, np.arange(3))
    with pytest.raises(GenerationError, match="room"):
        TorchExecutor(of, slots=1, room=0)
    assert executor.save(0).length == 0


def test_training_goes_on_after_a_sample_beyond_the_position_tables():
    of = build.build(model("rope-half", "float32").config, 3)
    of.train()
    executor = TorchExecutor(of, slots=1, room=4000)
    executor.run([Work(0, np.arange(3000) % V, "last")])
    assert of.training
    batch = rows.rows([[1, 2, 3]])
    of.head.nll(of(batch), torch.tensor([2, 3, 4]), torch.ones(3)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in of.parameters())


# ---- the engine over real models


@over_variants
def test_greedy_batched_is_single_is_recomputed(variant, dtype):
    of = model(variant, dtype)
    asked = prompts(7, seed=11)
    near = 0
    for slots, chunk in ((1, 512), (4, 5), (7, 512)):
        executor = TorchExecutor(of, slots=slots, room=40)
        story = serve(executor, [ask(each, temperature=0.0, max_tokens=6) for each in asked], chunk)
        for i, each in enumerate(asked):
            assert story.done[i, 0] == "length"
            near += same_tokens(of, dtype, each, from_scratch(of, each, 6), story.ids[i, 0])
        assert executor.state.lengths == [0] * slots
    print(f"{variant} {dtype}: {near} answers differ where the two best are too near to tell")


@over_variants
def test_sampled_alone_is_sampled_in_company_that_comes_and_goes(variant, dtype):
    of = model(variant, dtype)
    settings = {"temperature": 1.3, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "max_tokens": 7}
    asked = [ask(each, seed=100 + i, logprobs=V, **settings) for i, each in enumerate(prompts(6, seed=12))]
    alone = [serve(TorchExecutor(of, slots=1, room=40), [each]) for each in asked]
    executor = TorchExecutor(of, slots=3, room=40)
    engine, together = Engine(executor, chunk=4), Story()
    noise = [ask(each, seed=5, max_tokens=3) for each in prompts(4, seed=13)]
    numbers = []
    for i, each in enumerate(asked):
        numbers.append(engine.submit(each))
        if i < len(noise):
            engine.submit(noise[i])
        for _ in range(i):
            together.take(engine.step())
    finish(engine, together)
    for number, single in zip(numbers, alone, strict=True):
        assert together.ids[number, 0] == single.ids[0, 0]
        for a, b in zip(together.logprobs[number, 0], single.logprobs[0, 0], strict=True):
            a, b = a.best[0][np.argsort(a.ids[0])], b.best[0][np.argsort(b.ids[0])]
            assert abs(a - b).max() <= TOLERANCE[dtype] * abs(b).max()
    assert len({tuple(each) for each in together.ids.values()}) > 6


@over_variants
def test_branches_are_single_requests_of_the_same_seed_and_branch(variant, dtype):
    of = model(variant, dtype)
    (prompt,) = prompts(1, seed=14)
    branched = ask(prompt, seed=9, branches=4, max_tokens=6)
    story = serve(TorchExecutor(of, slots=5, room=40), [ask([1, 2], max_tokens=9), branched], chunk=3)
    for branch in range(4):
        single = serve(TorchExecutor(of, slots=1, room=40), [ask(prompt, seed=9, first=branch, max_tokens=6)])
        assert story.ids[1, branch] == single.ids[0, branch]
    assert len({tuple(story.ids[1, branch]) for branch in range(4)}) == 4


def test_logprobs_are_those_of_the_whole_forward_before_any_filter():
    of = model("hybrid", "float64")
    (prompt,) = prompts(1, seed=15)
    story = serve(
        TorchExecutor(of, slots=1, room=40), [ask(prompt, logprobs=3, temperature=0.5, top_k=4, max_tokens=5)]
    )
    row = list(prompt)
    for found, each in zip(story.logprobs[0, 0], story.ids[0, 0], strict=True):
        expected = torch.from_numpy(whole(of, row)[-1]).log_softmax(-1)
        best = expected.topk(3)
        assert found.drawn.tolist() == pytest.approx([expected[each].item()], abs=1e-9)
        assert found.ids.tolist() == [best.indices.tolist()]
        assert found.best[0].tolist() == pytest.approx(best.values.tolist(), abs=1e-9)
        row.append(each)


# ---- the engine alone, over a fake that watches the contract


class Fake:
    """Logits are a function of all ids that a slot has read, and nothing else; misuse fails. `broken` ids
    give NaN."""

    def __init__(self, slots: int, room: int, broken: int | None = None, vocabulary: int = V):
        self.slots, self.room, self.vocabulary, self.broken = slots, room, vocabulary, broken
        self.whole = False
        self.held: list[list[int] | None] = [None] * slots
        self.calls: list[list[Work]] = []

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        if self.broken is not None and self.broken in ids:
            return np.full(self.vocabulary, np.nan, np.float32)
        return keys.generator(0, "fake", *ids).normal(0, 2, self.vocabulary).astype(np.float32)

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        assert work
        assert len({each.slot for each in work}) == len(work)
        self.calls.append(list(work))
        found = []
        for each in work:
            held = self.held[each.slot]
            assert held is not None, "work for a slot that was not opened"
            assert len(each.ids) >= 1
            assert each.ids.dtype == np.int32
            for i, one in enumerate(each.ids.tolist()):
                held.append(one)
                if each.want == "all" or (each.want == "last" and i == len(each.ids) - 1):
                    found.append(self.logits(held))
            assert len(held) <= self.room
        return Answer(np.array(found, np.float32).reshape(-1, self.vocabulary))

    def open(self, slot: int, source=None) -> None:
        assert self.held[slot] is None, "opened twice"
        self.held[slot] = []

    def fork(self, source: int, target: int) -> None:
        held = self.held[source]
        assert held is not None
        assert self.held[target] is None
        self.held[target] = list(held)

    def close(self, slot: int) -> None:
        self.held[slot] = None

    def mark(self, slots: Sequence[int]) -> None:
        raise NotImplementedError

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        raise NotImplementedError

    def save(self, slot: int) -> Saved:
        raise NotImplementedError

    def load(self, slot: int, saved: Saved) -> None:
        raise NotImplementedError


def told(fake: Fake, asked: Request, branch: int) -> tuple[list[int], str]:
    """What an answer must be, by a loop of its own."""
    ids, chosen = asked.ids.tolist(), asked.sampling
    start = len(ids)
    while True:
        logits = fake.logits(ids)
        row = request_module.Row(0, np.array(ids, np.int32), start, asked)
        if np.isnan(logits).any():
            return ids[start:], "error"
        for each in sampling.filters(chosen):
            logits = each(logits, row)
        found = sampling.draw(logits, keys.uniform(asked.seed, "sample", branch, len(ids)))
        if found in chosen.stop_ids:
            return ids[start:], "stop"
        ids.append(found)
        if len(ids) - start == chosen.max_tokens or len(ids) > fake.room:
            return ids[start:], "length"


@st.composite
def requests(draw) -> Request:
    ids = draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=12))
    return ask(
        ids,
        seed=draw(st.integers(0, 3)),
        branches=draw(st.sampled_from([1, 1, 1, 2, 3])),
        first=draw(st.sampled_from([0, 0, 5])),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_k=draw(st.sampled_from([None, 5])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.4])),
        max_tokens=draw(st.integers(1, 8)),
        stop_ids=tuple(draw(st.lists(st.integers(0, V - 1), max_size=4))),
    )


@QUIET
@given(
    asked=st.lists(requests(), min_size=1, max_size=7),
    slots=st.integers(3, 5),
    chunk=st.integers(1, 20),
    steps=st.lists(st.integers(0, 4), min_size=7, max_size=7),
)
def test_any_schedule_gives_everyone_their_own_answer(asked, slots, chunk, steps):
    fake = Fake(slots, room=13, broken=0)
    engine, story = Engine(fake, chunk), Story()
    for each, count in zip(asked, steps, strict=False):
        engine.submit(each)
        for _ in range(count):
            story.take(engine.step())
    finish(engine, story)
    for number, each in enumerate(asked):
        for branch in range(each.first, each.first + each.branches):
            assert (story.ids[number, branch], story.done[number, branch]) == told(fake, each, branch)
    assert len(story.done) == sum(each.branches for each in asked)
    assert fake.held == [None] * slots
    assert engine.free == slots


def test_three_hundred_mixed_requests_through_four_slots_leave_them_free():
    draw = np.random.default_rng(20)
    fake = Fake(4, room=16, broken=0)
    engine, story, asked = Engine(fake, chunk=6), Story(), []
    for number in range(300):
        each = ask(
            draw.integers(0, V, int(draw.integers(1, 17))).tolist(),
            seed=int(draw.integers(0, 9)),
            branches=int(draw.choice([1, 1, 1, 2, 4])),
            temperature=float(draw.choice([0.0, 1.0])),
            max_tokens=int(draw.integers(1, 9)),
            stop_ids=tuple(draw.integers(0, V, int(draw.integers(0, 4))).tolist()),
        )
        asked.append(each)
        assert engine.submit(each) == number
        for _ in range(int(draw.integers(0, 5))):
            story.take(engine.step())
        if draw.random() < 0.3:
            one = int(draw.integers(0, number + 1))
            engine.cancel(one, None if draw.random() < 0.5 else int(draw.integers(0, 4)))
    finish(engine, story)
    assert len(story.done) == sum(each.branches for each in asked)
    kinds = list(story.done.values())
    for kind in ("stop", "length", "cancelled", "error"):
        assert kinds.count(kind) > 10, kind
    for (number, branch), done in story.done.items():
        ids, expected = told(fake, asked[number], branch)
        found = story.ids[number, branch]
        assert found == ids[: len(found)]
        assert (found, done) == (ids, expected) or done == "cancelled"
    assert fake.held == [None] * 4
    assert engine.free == 4
    assert engine.idle


def test_a_prompt_is_read_once_whatever_its_branches_and_in_chunks_beside_others():
    fake = Fake(4, room=40)
    engine = Engine(fake, chunk=5)
    engine.submit(ask([1], max_tokens=20))
    first = engine.step()
    assert [len(each.ids) for each in first] == [1]
    engine.submit(ask(range(2, 14), branches=3, max_tokens=1))
    assert [[len(each.ids) for each in engine.step()] for _ in range(3)] == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
    ]
    read = [work.ids.tolist() for call in fake.calls for work in call if work.slot != 0]
    assert read == [[2, 3, 4, 5, 6], [7, 8, 9, 10, 11], [12, 13]]
    wanted = [work.want for call in fake.calls for work in call if work.slot != 0]
    assert wanted == ["none", "none", "last"]
    finish(engine)


def test_nan_ends_its_own_request_only():
    fake = Fake(3, room=20, broken=7)
    a, b = ask([1, 2], max_tokens=4, stop_ids=(7,)), ask([3], max_tokens=4, stop_ids=(7,))
    asked = [a, ask([7], branches=2, max_tokens=4), b]
    story = serve(fake, asked)
    assert [story.done[1, branch] for branch in (0, 1)] == ["error", "error"]
    assert "NaN" in (story.errors[1, 0] or "")
    assert story.ids[1, 0] == []
    for number in (0, 2):
        assert (story.ids[number, 0], story.done[number, 0]) == told(fake, asked[number], 0)
        assert story.errors[number, 0] is None


def test_the_room_ends_an_answer_and_a_prompt_that_fills_it_gets_one_id():
    fake = Fake(1, room=6)
    for length, count in ((6, 1), (4, 3), (1, 6)):
        story = serve(fake, [ask(range(1, length + 1), max_tokens=50)])
        assert len(story.ids[0, 0]) == count
        assert story.done[0, 0] == "length"


def test_a_stop_id_ends_an_answer_and_is_not_in_it():
    fake = Fake(1, room=30)
    plain = serve(fake, [ask([1, 2], temperature=0.0, max_tokens=12)]).ids[0, 0]
    stop = plain[5]
    story = serve(fake, [ask([1, 2], temperature=0.0, max_tokens=12, stop_ids=(stop,))])
    assert story.ids[0, 0] == plain[: plain.index(stop)]
    assert story.done[0, 0] == "stop"
    last = serve(fake, [ask([1, 2, stop], temperature=0.0, max_tokens=3)])  # one in the prompt stops nothing
    assert last.done[0, 0] == "length"


def test_cancelling_frees_slots_at_once_in_every_phase():
    fake = Fake(2, room=30)
    engine, story = Engine(fake, chunk=2), Story()
    running = engine.submit(ask([1], max_tokens=20))
    story.take(engine.step())
    reading = engine.submit(ask(range(1, 9), max_tokens=20))
    story.take(engine.step())
    waiting = engine.submit(ask([2, 3], branches=2, max_tokens=2))
    assert engine.free == 0
    for number in (running, reading, waiting):
        engine.cancel(number)
        engine.cancel(number)
    assert engine.free == 2
    assert fake.held == [None, None]
    assert not engine.idle
    story.take(engine.step())
    assert list(story.done.values()) == ["cancelled"] * 4
    assert engine.idle
    assert engine.step() == []
    with pytest.raises(GenerationError, match="no request 3"):
        engine.cancel(3)


def test_one_branch_can_go_while_the_prompt_is_read():
    for gone in (0, 1, 2):
        fake = Fake(3, room=30)
        asked = ask(range(1, 9), branches=3, max_tokens=4)
        engine, story = Engine(fake, chunk=3), Story()
        number = engine.submit(asked)
        story.take(engine.step())
        engine.cancel(number, gone)
        assert engine.free == 1
        finish(engine, story)
        for branch in range(3):
            expected = ([], "cancelled") if branch == gone else told(fake, asked, branch)
            assert (story.ids[number, branch], story.done[number, branch]) == expected
        assert fake.held == [None] * 3


def test_nobody_overtakes_a_wide_request():
    fake = Fake(3, room=30)
    engine = Engine(fake)
    engine.submit(ask([1], max_tokens=3))
    wide = engine.submit(ask([2], branches=3, max_tokens=1))
    late = engine.submit(ask([3], max_tokens=1))
    order = []
    while events := engine.step():
        order += [each.request for each in events if each.done]
    assert order == [0, wide, wide, wide, late]


def test_a_request_is_taken_as_it_was_when_submitted():
    fake = Fake(1, room=30)
    ids = np.array([1, 2, 3])
    engine = Engine(fake)
    engine.submit(Request(ids=ids, sampling=SamplingConfig(max_tokens=2)))
    ids[:] = 9
    finish(engine)
    assert fake.calls[0][0].ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("ids", "more", "says"),
    [
        ([], {}, "no ids"),
        (range(11), {}, r"(?s)11 ids.*10 ids"),
        ([1, V], {}, rf"(?s){V}.*0 to {V - 1}"),
        ([-1], {}, "-1"),
        ([1], {"branches": 4}, "4 branches"),
        ([1], {"branches": 0}, "branches is a whole number"),
        ([1], {"logprobs": V + 1}, "log-probabilities"),
        ([1], {"stop": ("a",)}, "stop strings"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_once(ids, more, says):
    engine = Engine(Fake(3, room=10))
    with pytest.raises(GenerationError, match=says):
        engine.submit(ask(ids, **more))
    assert engine.idle


def test_other_bad_input_is_refused():
    engine = Engine(Fake(3, room=10))
    with pytest.raises(ConfigError, match="temperature"):
        engine.submit(ask([1], temperature=-1.0))
    with pytest.raises(GenerationError, match="integers"):
        engine.submit(Request(ids=np.array([0.5])))
    with pytest.raises(GenerationError, match="integers"):
        engine.submit(Request(ids=np.array([[1]])))
    with pytest.raises(GenerationError, match="chunk"):
        Engine(Fake(3, room=10), chunk=0)


# ---- text


class Bytes:
    """A tokenizer of one special token and the 256 bytes."""

    size = 257
    special = {END_OF_TEXT: 0}  # noqa: RUF012
    fingerprint = "bytes"

    def encode(self, text, special=(), noise=None) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32) + 1

    def decode_bytes(self, ids) -> bytes:
        return bytes(int(each) - 1 for each in ids if each)

    def decode(self, ids, errors="replace") -> str:
        return self.decode_bytes(ids).decode("utf-8", errors)

    def stream(self) -> TextStream:
        return TextStream(lambda id: self.decode_bytes([id]))

    def encode_batch(self, texts, special=()):
        raise NotImplementedError

    def encode_iterable(self, chunks, special=()):
        raise NotImplementedError

    def encode_list(self, text, special=()):
        raise NotImplementedError


class Nameless(Bytes):
    """The same without a special token."""

    special = {}  # noqa: RUF012


class Parrot(Fake):
    """Says `script` after any prompt, byte by byte, then ends; the prompt is the script's key, else random
    bytes."""

    def __init__(self, slots: int, room: int, scripts: dict[str, str]):
        super().__init__(slots, room, vocabulary=257)
        self.scripts = [(f"{key}".encode(), value.encode()) for key, value in scripts.items()]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        assert ids[0] == 0
        said = bytes(each - 1 for each in ids[1:])
        for key, value in self.scripts:
            if said.startswith(key) and (key + value).startswith(said):
                rest = (key + value)[len(said) :]
                logits = np.full(257, -9.0, np.float32)
                logits[rest[0] + 1 if rest else 0] = 9.0
                return logits
        return super().logits(ids)


GREEDY = SamplingConfig(temperature=0.0, max_tokens=60)


def test_text_comes_back_without_prompt_start_or_end():
    scripts = {"a:": "héllo → wörld 🙂!", "b, which is longer:": "", "": "unprompted"}
    parrot = Parrot(2, 80, scripts)
    found = text.complete(parrot, Bytes(), list(scripts), GREEDY)
    assert [each.text for each in found] == list(scripts.values())
    assert [each.done for each in found] == ["stop"] * 3
    assert [each.index for each in found] == [0, 1, 2]
    for each in found:
        assert Bytes().decode(each.ids) == each.text
        assert 0 not in each.ids
    assert parrot.held == [None, None]


def test_streamed_pieces_join_to_the_completion_and_never_hold_half_a_character():
    scripts = {"a:": "héllo → wörld 🙂!", "bcd:": "naïve 日本語"}
    pieces: list[tuple[int, str]] = list(text.stream(Parrot(2, 80, scripts), Bytes(), list(scripts), GREEDY))
    for i, whole_text in enumerate(scripts.values()):
        assert "".join(piece for index, piece in pieces if index == i) == whole_text
    assert all(piece and "\ufffd" not in piece for _, piece in pieces)
    assert [index for index, _ in pieces[:4]] != [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("script", "stop", "shown"),
    [
        ("one ST two STOP three", ("STOP",), "one ST two "),
        ("one ST two STOP three", ("two STOP", "ST two"), "one "),
        ("one ST two STOP three!", ("three!",), "one ST two STOP "),
        ("one ST two → three", ("→",), "one ST two "),
        ("one ST two STOP three", ("o",), ""),
        ("one ST two STOP three", ("STOPPED", "threes"), "one ST two STOP three"),
    ],
)
def test_a_stop_string_is_never_shown_though_it_spans_tokens(script, stop, shown):
    parrot = Parrot(1, 80, {"a:": script})
    chosen = SamplingConfig(temperature=0.0, max_tokens=60, stop=stop)
    (found,) = text.complete(parrot, Bytes(), ["a:"], chosen)
    pieces = [piece for _, piece in text.stream(parrot, Bytes(), ["a:"], chosen)]
    assert found.text == shown == "".join(pieces)
    assert found.done == "stop"
    assert parrot.held == [None]


def test_a_stop_string_ends_one_branch_not_its_siblings():
    fake = Fake(3, 60, vocabulary=257)
    plain = text.complete(fake, Bytes(), ["x"], SamplingConfig(max_tokens=20), branches=3, seed=4)
    cut = plain[1].text[4]
    chosen = SamplingConfig(max_tokens=20, stop=(cut,))
    found = text.complete(fake, Bytes(), ["x"], chosen, branches=3, seed=4)
    for before, after in zip(plain, found, strict=True):
        assert after.text == before.text.split(cut)[0]
        assert after.done == ("stop" if cut in before.text else before.done)
    assert {each.done for each in found} == {"stop", "length"}
    assert fake.held == [None] * 3


def oracle(stops: Sequence[str], said: str) -> tuple[str, bool]:
    """Letter by letter: at the first place where a stop string ends, the one that began first."""
    for end in range(1, len(said) + 1):
        ended = [stop for stop in stops if said[:end].endswith(stop)]
        if ended:
            return said[: end - max(map(len, ended))], True
    return said, False


@settings(derandomize=True, deadline=None, max_examples=400)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=10),
)
def test_holdback_is_the_oracle_for_any_cut_and_holds_no_more_than_it_must(stops, pieces):
    hold = text.Holdback(stops)
    said = shown = ""
    expected, stopped = oracle(stops, "".join(pieces))
    for piece in pieces:
        said, shown = said + piece, shown + hold.push(piece)
        assert expected.startswith(shown)
        if not hold.stopped:
            tail = said[len(shown) :]
            assert not tail or any(stop.startswith(tail) for stop in stops)
    assert hold.stopped == stopped
    assert shown + hold.close() == expected


def test_an_answer_does_not_depend_on_the_other_prompts():
    chosen = SamplingConfig(max_tokens=9)
    asked = ["", "a", "one longer prompt", "a", "zz"]
    together = text.complete(Fake(2, 60, vocabulary=257), Bytes(), asked, chosen, seed=3)
    for each, prompt in zip(together, asked, strict=True):
        (alone,) = text.complete(Fake(1, 60, vocabulary=257), Bytes(), [prompt], chosen, seed=3)
        assert alone.text == each.text
        assert np.array_equal(alone.ids, each.ids)
    assert together[1].text == together[3].text
    other = text.complete(Fake(2, 60, vocabulary=257), Bytes(), asked, chosen, seed=4)
    assert all(a.text != b.text for a, b in zip(together, other, strict=True))


def test_logprobs_stand_beside_the_ids():
    fake = Fake(1, 60, vocabulary=257)
    (found,) = text.complete(fake, Bytes(), ["x"], SamplingConfig(max_tokens=5), logprobs=2)
    assert found.logprobs is not None
    assert found.logprobs.drawn.shape == found.ids.shape
    assert found.logprobs.best.shape == (len(found.ids), 2)
    assert text.complete(fake, Bytes(), ["x"], SamplingConfig(max_tokens=5))[0].logprobs is None


def test_a_prompt_may_fill_the_room_and_not_more():
    fake = Fake(1, 8, vocabulary=257)
    (found,) = text.complete(fake, Bytes(), ["1234567"], SamplingConfig(max_tokens=5))
    assert len(found.ids) == 1
    assert found.done == "length"
    with pytest.raises(GenerationError, match=r"(?s)prompt 1: .*9 ids.*8 ids"):
        text.complete(fake, Bytes(), ["1", "12345678"], SamplingConfig(max_tokens=5))
    assert text.room(Bytes(), ["1", "1234567"], SamplingConfig(max_tokens=5)) == 13
    enough = Fake(1, 13, vocabulary=257)
    assert len(text.complete(enough, Bytes(), ["1234567"], SamplingConfig(max_tokens=5, top_k=1))[0].ids) == 5


def test_a_special_token_does_not_arise_from_a_prompt_and_other_ends_can_be_named():
    assert text.prompt_ids(Bytes(), "a").tolist() == [0, 98]
    assert text.prompt_ids(Bytes(), "a", text.Ends()).tolist() == [98]
    assert text.prompt_ids(Bytes(), "a", text.Ends((5, 6), (7,))).tolist() == [5, 6, 98]
    assert text.prompt_ids(Bytes(), "").tolist() == [0]
    assert text.prompt_ids(Bytes(), "", text.Ends(empty=(9,))).tolist() == [9]
    assert text.prompt_ids(Bytes(), "a", text.Ends(empty=(9,))).tolist() == [98]
    assert text.prompt_ids(Bytes(), "", text.Ends(front=(5,), empty=(9,))).tolist() == [5]
    assert text.room(Bytes(), ["a"], SamplingConfig(max_tokens=5), text.Ends((5, 6))) == 8
    with pytest.raises(GenerationError, match=r"(?s)<\|endoftext\|>.*none"):
        text.complete(Fake(1, 8, vocabulary=257), Nameless(), ["a"])
    with pytest.raises(GenerationError, match="empty prompt"):
        text.complete(Fake(1, 8, vocabulary=257), Bytes(), [""], ends=text.Ends())
    with pytest.raises(GenerationError, match="do: write"):
        text.complete(Fake(1, 8, vocabulary=257), Bytes(), "a")
    with pytest.raises(ConfigError, match="stop"):
        text.complete(Fake(1, 8, vocabulary=257), Bytes(), ["a"], SamplingConfig(stop=("",)))
    with pytest.raises(GenerationError, match="longer"):  # at the call, not at the first piece
        text.stream(Fake(1, 2, vocabulary=257), Bytes(), ["aaa"])
    assert text.complete(Fake(1, 8, vocabulary=257), Bytes(), []) == []


def test_an_answer_that_breaks_leaves_the_others_whole():
    chosen = SamplingConfig(max_tokens=6)
    fake = Fake(2, 60, vocabulary=257, broken=ord("!") + 1)
    good, bad, also = text.complete(fake, Bytes(), ["a", "a!", "b"], chosen)
    assert (bad.done, bad.text) == ("error", "")
    assert "NaN" in (bad.error or "")
    assert {good.done, also.done} <= {"length", "stop"}
    seen = ["", "", ""]
    answers = text.stream(fake, Bytes(), ["a", "a!", "b"], chosen)
    for index, piece in answers:
        seen[index] += piece
        if [*map(len, seen)] == [len(good.text), 0, len(also.text)]:
            break
    with pytest.raises(GenerationError, match=r"prompt 1: .*NaN"):
        next(answers)
    assert seen == [good.text, "", also.text]
    assert fake.held == [None, None]


def test_an_answer_ends_where_its_model_says():
    chosen = SamplingConfig(max_tokens=40, top_k=1)
    (plain,) = text.complete(Fake(1, 60, vocabulary=257), Nameless(), ["x"], chosen, ends=text.Ends((3,), ()))
    end = int(plain.ids[4])
    first = plain.ids.tolist().index(end)
    (found,) = text.complete(Fake(1, 60, vocabulary=257), Nameless(), ["x"], chosen, ends=text.Ends((3,), (9, end)))
    assert found.done == "stop"
    assert found.ids.tolist() == plain.ids[:first].tolist()


def test_a_reply_to_ids_is_the_completion_and_can_be_left():
    ids, chosen = text.prompt_ids(Bytes(), "x"), SamplingConfig(max_tokens=20)
    (wanted,) = text.complete(Fake(1, 60, vocabulary=257), Bytes(), ["x"], chosen, seed=5)
    fake = Fake(1, 60, vocabulary=257)
    reply = text.Reply(fake, Bytes(), ids, chosen, seed=5)
    assert "".join(reply) == reply.completion.text == wanted.text
    assert reply.completion.ids.tolist() == wanted.ids.tolist()
    left = text.Reply(fake, Bytes(), ids, chosen, seed=5)
    for said in left:
        assert wanted.text.startswith(said)
        break
    assert left.completion.done == "cancelled"
    assert wanted.text.startswith(left.completion.text)
    assert fake.held == [None]
    with pytest.raises(GenerationError, match="longer"):
        text.Reply(Fake(1, 1, vocabulary=257), Bytes(), ids)


def test_leaving_a_stream_early_frees_the_executor():
    fake = Fake(2, 60, vocabulary=257)
    for _ in text.stream(fake, Bytes(), ["a", "b", "c"], SamplingConfig(max_tokens=50)):
        break
    assert fake.held == [None, None]


def test_a_real_model_completes_text():
    made = DecoderConfig(vocabulary=257, width=16, depth=1, pattern=(block(rope("half")),), init="cs336")
    executor = TorchExecutor(build.build(made, 1), slots=2, room=30)
    found = text.complete(executor, Bytes(), ["ab", "", "a longer one"], SamplingConfig(max_tokens=6), seed=2)
    assert all(1 <= len(each.ids) <= 6 for each in found)
    assert executor.state.lengths == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_laid_by_columns_gives_the_same_logits(dtype):
    of = model("rope-half", dtype)
    ids = prompts(1, longest=20)[0]
    wanted, before = whole(of, ids), {name: each.clone() for name, each in of.state_dict().items()}
    laid = lengthwise(build.build(of.config, 7, DTYPES[dtype]))
    assert np.abs(whole(laid, ids) - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()
    assert all(torch.equal(each, before[name]) for name, each in laid.state_dict().items())
    tall = {name for name, each in laid.named_parameters() if each.dim() == 2 and each.shape[0] > each.shape[1]}
    assert {name for name, each in laid.named_parameters() if not each.is_contiguous()} == tall > {"embedding"}
    story = serve(TorchExecutor(laid, 1, 40), [ask(ids, temperature=0, max_tokens=9)])
    same_tokens(of, dtype, ids, from_scratch(of, ids, 9), story.ids[0, 0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_in_training_can_be_sampled_from(variant):
    pattern, depth, tied = VARIANTS[variant]
    made = DecoderConfig(vocabulary=V, width=16, depth=depth, pattern=pattern, tied=tied, init="cs336")
    alone, sampled = build.build(made, 7), build.build(made, 7)
    long = [[each % V for each in range(60)]]
    for _ in range(2):
        serve(TorchExecutor(sampled, 2, 40), [ask(prompts(1)[0], max_tokens=5, branches=2)])
        for each in (alone, sampled):
            each(rows.rows(long)).square().sum().backward()
    wanted = {name: each.grad for name, each in alone.named_parameters()}
    for name, each in sampled.named_parameters():
        assert (each.grad is None) == (wanted[name] is None)
        assert each.grad is None or torch.equal(each.grad, wanted[name])


# ---- models whose prompt is a prefix

PREFIXED = {
    "prefix": (block(AttentionConfig(heads=4, kv_heads=2, mask="prefix")),),
    "prefix-hybrid": (
        block(AttentionConfig(heads=2, mask="prefix", position=AlibiConfig())),
        block(S4DConfig(states=8)),
    ),
}


def prefixed(name: str, dtype: str) -> build.Model:
    made = DecoderConfig(vocabulary=V, width=16, depth=2, pattern=PREFIXED[name], tied=False, init="cs336")
    return build.build(made, 7, DTYPES[dtype])


def read_both_ways(of: build.Model, ids: Sequence[int], prompt: int) -> np.ndarray:
    """All logits [n, V] by one forward without any state, the first `prompt` ids a prefix: the oracle."""
    with torch.no_grad():
        return of.head.logits(of(rows.rows([list(ids)], prefix=[prompt]))).numpy()


@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_is_a_prefix_as_in_one_forward_with_it(name, dtype):
    of = prefixed(name, dtype)
    executor = TorchExecutor(of, slots=4, room=40, spare=3)
    assert executor.whole
    asked, rest = prompts(3, seed=1, longest=12), prompts(1, seed=2)[0]
    answer = executor.run([Work(slot, np.array(each), "all") for slot, each in enumerate(asked)]).logits
    at = 0
    for each in asked:
        close_logits(answer[at : at + len(each)], read_both_ways(of, each, len(each)), dtype)
        at += len(each)
    assert np.abs(answer[0] - whole(of, asked[0])[0]).max() > 1e-3 * np.abs(answer[0]).max()
    executor.fork(0, 3)
    executor.mark([3])
    executor.run([Work(3, np.array(rest[:3]), "none")])
    executor.rewind([3], [0])
    for i, one in enumerate(rest[:5]):
        found = executor.run([Work(slot, np.array([one]), "last") for slot in (3, 1)]).logits
        for logits, prompt in zip(found, (asked[0], asked[1]), strict=True):
            close_logits(logits, read_both_ways(of, [*prompt, *rest[: i + 1]], len(prompt))[-1], dtype)


@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_prefix_models_answer_alike_alone_in_a_batch_and_uncached(name, chunk):
    of = prefixed(name, "float64")
    asked = [ask(each, seed=i, max_tokens=6, temperature=0) for i, each in enumerate(prompts(6, seed=3, longest=12))]
    together = serve(TorchExecutor(of, slots=3, room=40), asked, chunk)
    for number, each in enumerate(asked):
        alone = serve(TorchExecutor(of, slots=1, room=40), [each], chunk)
        assert together.ids[number, 0] == alone.ids[0, 0]
        row = each.ids.tolist()
        for _ in range(6):
            row.append(int(read_both_ways(of, row, len(each.ids))[-1].argmax()))
        assert alone.ids[0, 0] == row[len(each.ids) :]
    assert not TorchExecutor(model("rope-half", "float64"), slots=1, room=4).whole


@QUIET
@given(
    asked=st.lists(requests(), min_size=1, max_size=7),
    chunk=st.integers(1, 20),
    steps=st.lists(st.integers(0, 4), min_size=7, max_size=7),
)
def test_an_executor_that_reads_prompts_whole_is_never_given_a_part(asked, chunk, steps):
    fake = Fake(4, room=13, broken=0)
    fake.whole = True
    engine, story = Engine(fake, chunk), Story()
    for each, count in zip(asked, steps, strict=False):
        engine.submit(each)
        for _ in range(count):
            story.take(engine.step())
    finish(engine, story)
    for number, each in enumerate(asked):
        for branch in range(each.first, each.first + each.branches):
            assert (story.ids[number, branch], story.done[number, branch]) == told(fake, each, branch)
    read = [[len(each.ids) for each in call if len(each.ids) > 1] for call in fake.calls]
    assert all(each.want == "last" for call in fake.calls for each in call)
    assert all(sum(call) <= chunk or len(call) == 1 for call in read)
    lengths = [len(each.ids) for each in asked if len(each.ids) > 1]
    assert sorted(length for call in read for length in call) == sorted(lengths)


# ---- promises about loading and examples


@pytest.mark.parametrize("name", ["engine", "sampling", "text", "config", "executor", "request"])
def test_no_torch_is_loaded(fresh, name):
    assert fresh(f"import sys, temaki.generate.{name}; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("module", [text, torch_executor, engine_module, executor_module, request_module, linear])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_ids_that_a_model_has_beyond_its_tokenizer_say_nothing() -> None:
    """A vocabulary may be padded for the machine's sake; such an id is no error when it is drawn."""
    tokenizer = from_merges([])
    fake = Fake(slots=1, room=64, vocabulary=tokenizer.size + 400)
    (found,) = text.complete(fake, tokenizer, ["a"], SamplingConfig(max_tokens=30), seed=3)
    known = found.ids[found.ids < tokenizer.size]
    assert found.done == "length"
    assert 0 < len(known) < len(found.ids) == 30
    assert found.text == tokenizer.decode(known)
