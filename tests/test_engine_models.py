"""Laws of the engine over real models, on torch and compiled: together = alone, drafted = plain, a chat with drafts."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

import variants
from engine_told import ask, company, serve
from fake_executor import V, mixed
from temaki.compiled.cache import CacheKind
from temaki.compiled.plan import plan
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.engine import Engine
from temaki.generate.remembering import Remembering
from temaki.generate.request import Request, Row
from temaki.generate.speculate import Draft
from temaki.generate.torch_executor import TorchExecutor
from temaki.model import build
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    DeltaNetConfig,
    LstmConfig,
    MambaConfig,
    RopeConfig,
    RtfConfig,
    RwkvConfig,
    S4DConfig,
    SwigluConfig,
)

ROOM = 24


def block(mixer) -> BlockConfig:
    return BlockConfig(mixer=mixer, ffn=SwigluConfig(width=32))


MIXERS = {
    "attention": block(AttentionConfig(heads=4, kv_heads=2, position=RopeConfig())),
    "window": block(AttentionConfig(heads=2, window=5, position=RopeConfig())),
    "s4d": block(S4DConfig(states=8)),
    "mamba": block(MambaConfig(states=4)),
    "deltanet": block(DeltaNetConfig(heads=2)),
    "lstm": block(LstmConfig(size=24)),
    "rwkv": block(RwkvConfig(heads=2, rank=4)),
    "rtf": block(RtfConfig(states=6, length=64)),
}
COMPILED: dict[str, tuple[Literal[8, 4] | None, CacheKind]] = {
    "compiled": (None, "float32"),
    "compiled-4-bit": (4, "int8"),
}
EVERY = [*MIXERS, *COMPILED]
SPARE = 7
WIDTH = 32


@functools.cache
def model(name: str, dtype: torch.dtype) -> build.Model:
    made = DecoderConfig(vocabulary=V, width=WIDTH, depth=1, pattern=(MIXERS[name],), init="cs336")
    return build.build(made, 7, dtype)


def executor_of(name: str, slots: int) -> TorchExecutor | CompiledExecutor:
    """A real executor: float64 on torch, or one of the compiled kinds, whose laws hold to the bit."""
    if name in MIXERS:
        return TorchExecutor(model(name, torch.float64), slots, ROOM, spare=SPARE)
    bits, cache = COMPILED[name]
    of = model("attention", torch.float32)
    assert isinstance(of.config, DecoderConfig)
    return CompiledExecutor(plan(of.config, variants.weights(of), bits), slots, ROOM, cache=cache, threads=1)


def lengths(executor: TorchExecutor | CompiledExecutor) -> list[int]:
    return executor.state.lengths if isinstance(executor, TorchExecutor) else executor.lengths


class Hinted:
    """Drafts the answers that it was given, some ids of them replaced."""

    hidden = True

    def __init__(self, answers: dict[tuple[int, int], list[int]]):
        self.answers = answers
        """By the request's seed and branch."""

    def propose(self, rows: Sequence[Row], n: int) -> list[Draft]:
        found = []
        for row in rows:
            assert row.hidden is not None
            assert row.hidden.shape == (WIDTH,)
            said, draw = len(row.ids) - row.prompt, np.random.default_rng([row.request.seed, len(row.ids)])
            ids = np.array(self.answers[row.request.seed, row.branch][said : said + int(draw.integers(0, n + 2))])
            wrong = draw.random(len(ids)) < 0.25
            found.append(Draft(np.where(wrong, draw.integers(0, V, len(ids)), ids).astype(np.int32)))
        return found

    def settle(self, slots: Sequence[int], kept: Sequence[int]) -> None:
        pass

    def close(self, slot: int) -> None:
        pass


def alone(name: str, asked: Sequence[Request]) -> dict[tuple[int, int], tuple[list[int], str]]:
    """Every branch of every request by itself, plainly: by (seed, branch)."""
    executor, found = executor_of(name, 1), {}
    for each in asked:
        for branch in range(each.first, each.first + each.branches):
            story = serve(Engine(executor), [replace(each, first=branch, branches=1)])
            found[each.seed, branch] = story.ids[0, branch], story.done[0, branch]
    assert lengths(executor) == [0]
    return found


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EVERY)
def test_mixed_requests_get_the_same_tokens_alone_together_cramped_drafted_and_shared(name, count):
    asked = mixed(count, seed=5)
    expected = alone(name, asked)
    hints = {key: ids for key, (ids, _) in expected.items()}
    ways = {
        "together": {},
        "cramped and shared": {"held": 40, "prefixes": 100_000},
        "drafted": {"proposer": Hinted(hints), "draft": SPARE - 1},
        "all": {"proposer": Hinted(hints), "draft": 3, "held": 45, "prefixes": 100_000},
    }
    for way, more in ways.items():
        executor = executor_of(name, 5)
        story, made = company(executor, asked, **more)
        cancelled = 0
        for (number, branch), done in story.done.items():
            ids, end = expected[asked[number].seed, branch]
            found = story.ids[number, branch]
            cancelled += done == "cancelled"
            assert (found, done) == (ids, end) or (done == "cancelled" and found == ids[: len(found)]), (way, number)
        assert 0 < cancelled < len(story.done) / 3
        assert lengths(executor) == [0] * 5
        assert (made.seats.preempted > 0) == ("held" in more)
        assert (made.prefixes.reused > 0) == ("prefixes" in more)
        if "proposer" in more:
            assert made.spoken.ids_per_pass > 1.3


@pytest.mark.parametrize("name", ["attention", "compiled", "compiled-4-bit"])
def test_logits_are_those_of_a_request_alone(name):
    asked = [replace(each, logprobs=V) for each in mixed(12, seed=8)]
    for more in ({}, {"held": 40, "prefixes": 100_000}):
        story, _ = company(executor_of(name, 4), asked, **more)
        for number, each in enumerate(asked):
            for branch in range(each.first, each.first + each.branches):
                single = serve(Engine(executor_of(name, 1)), [replace(each, first=branch, branches=1)])
                pairs = zip(
                    story.logprobs.get((number, branch), []), single.logprobs.get((0, branch), []), strict=False
                )
                for a, b in pairs:
                    assert np.array_equal(a.ids, b.ids)
                    if name in COMPILED:
                        assert np.array_equal(a.best, b.best)
                    else:
                        assert np.abs(a.best - b.best).max() <= 1e-9 * np.abs(b.best).max()


# ---- a chat with drafts


@pytest.mark.parametrize("name", MIXERS)
def test_a_remembering_executor_takes_drafts_and_still_reads_only_what_is_new(name):
    inner = TorchExecutor(model(name, torch.float64), 1, 200, spare=200)
    chat, row = Remembering(inner), [1, 2, 3, 4, 5]
    for turn in range(4):
        asked = ask(row, seed=50 + turn, temperature=0.8, max_tokens=12)
        plain = serve(Engine(torch_copy(inner)), [asked]).ids[0, 0]
        before = chat.read
        proposer = Hinted({(50 + turn, 0): plain})
        made = Engine(chat, proposer=proposer)
        assert serve(made, [asked]).ids[0, 0] == plain
        assert made.spoken.ids_per_pass > 1
        new = len(row) if turn == 0 else 4
        assert chat.read - before >= new
        assert chat.read - before <= new + sum(made.spoken.drafted) + made.spoken.passes
        row = [*row, *plain, 7, 8, 9]
    cut = row[: len(row) - 3 - 6]  # the middle of the last answer, behind a mark that has moved
    before = chat.read
    asked = ask([*cut, 20], temperature=0.0, max_tokens=5)
    assert serve(Engine(chat), [asked]).ids == serve(Engine(torch_copy(inner)), [asked]).ids
    assert chat.read - before <= 12 + 5
    short = ask([*row[:8], 20], temperature=0.0, max_tokens=5)
    assert serve(Engine(chat), [short]).ids == serve(Engine(torch_copy(inner)), [short]).ids


def torch_copy(executor: TorchExecutor) -> TorchExecutor:
    return TorchExecutor(executor.model, 1, executor.room)
