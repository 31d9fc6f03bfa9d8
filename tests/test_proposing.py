"""Proposers of models on disk, under the engine and on both executors: nothing that is said changes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

import variants
from engine_told import company, serve
from fake_executor import V, mixed
from temaki.base.errors import GenerationError
from temaki.formats.opened import Opened
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.lookup import Lookup
from temaki.generate.speculate import Proposer
from temaki.model import build
from temaki.model.config import FurtherConfig, MedusaHeadsConfig, ParallelHeadsConfig, SequentialHeadsConfig
from temaki.study.executing import executor_of
from temaki.study.proposing import looks_ahead, proposer_of

ROOM, DRAFT = 24, 3
Kind = Literal["torch", "compiled"]
HEADS = {"medusa": MedusaHeadsConfig(), "parallel": ParallelHeadsConfig(), "sequential": SequentialHeadsConfig()}
WAYS: dict[str, dict[str, int]] = {"together": {}, "cramped and shared": {"held": 45, "prefixes": 100_000}}
BOTH: list[tuple[str, Kind]] = [
    (who, kind)
    for who in ("lookup", "draft model", *HEADS)
    for kind in ("torch", "compiled")
    if (who, kind) != ("parallel", "compiled")  # torch alone drafts with those
]


@cache
def opened(who: str, dtype: torch.dtype, fingerprint: str | None = None, seed: int = 3) -> Opened:
    further = FurtherConfig(ids=1 + DRAFT, heads=HEADS[who]) if who in HEADS else None
    config = replace(variants.config("grouped", vocabulary=V), further=further)
    model = build.build(config, seed, torch.float64)
    with torch.no_grad():
        model.head.weight.mul_(2.5)  # sure of something, so that not every draft is refused
    weights = variants.weights(model, dtype)
    framed = None if fingerprint is None else (SimpleNamespace(fingerprint=fingerprint), None)
    return Opened(Path(who), config, {}, None, (), lambda: weights, lambda: framed)  # type: ignore[arg-type, return-value]


def of(who: str, kind: Kind) -> tuple[Callable[[int], Executor], Callable[[Executor], Proposer]]:
    """(slots -> an executor, a proposer for it); torch in float64."""
    dtype = torch.float64 if kind == "torch" else torch.float32
    model = opened(who, dtype)
    drafts = {"lookup": "lookup", "draft model": opened("small", dtype, seed=5)}.get(who, "heads")
    ahead = looks_ahead(drafts, model)  # type: ignore[arg-type]
    made = lambda slots: executor_of(model, slots, ROOM, spare=1 + DRAFT, kind=kind, threads=1, ahead=ahead)  # noqa: E731
    if who == "lookup":
        return made, lambda _: Lookup(2, 1)  # random models repeat little
    return made, lambda executor: proposer_of(drafts, model, executor, DRAFT, threads=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("who", "kind"), BOTH)
def test_mixed_requests_say_what_they_say_without_drafts(who: str, kind: Kind) -> None:
    """Every greedy answer, and every answer to drafts without probabilities; the others are the same alone."""
    make, proposing = of(who, kind)
    asked, executor = mixed(32, seed=6), make(1)
    plain = {}
    proposer = proposing(executor)
    for each in asked:
        greedy = each.sampling.temperature == 0 or who == "lookup"
        for branch in range(each.first, each.first + each.branches):
            one = Engine(executor) if greedy else Engine(executor, proposer=proposer, draft=DRAFT)
            story = serve(one, [replace(each, first=branch, branches=1)])
            plain[each.seed, branch] = story.ids[0, branch], story.done[0, branch]
    for way, more in WAYS.items():
        executor = make(5)
        story, made = company(executor, asked, proposer=proposing(executor), draft=DRAFT, **more)
        for (number, branch), done in story.done.items():
            ids, end = plain[asked[number].seed, branch]
            found = story.ids[number, branch]
            assert (found, done) == (ids, end) or (done == "cancelled" and found == ids[: len(found)]), (way, number)
        assert sum(made.spoken.drafted) > 30
        assert sum(made.spoken.accepted) > 0
        assert (made.seats.preempted > 0) == ("held" in more)


def test_a_draft_model_of_another_tokenizer_is_refused_with_both_fingerprints() -> None:
    model = opened("model", torch.float32, "a" * 64)
    executor = executor_of(model, 1, ROOM)
    with pytest.raises(
        GenerationError, match=r"(?s)another tokenizer.*fingerprint bbbbbbbbbbbb.*fingerprint aaaaaaaaaaaa"
    ):
        proposer_of(opened("small", torch.float32, "b" * 64), model, executor)
    small = opened("small", torch.float32, "a" * 64)
    assert proposer_of(small, model, executor).propose([], 3) == []
    wider = Opened(
        Path("wider"),
        variants.config("grouped", vocabulary=V + 1),
        {},
        None,
        (),
        small.read_weights,
        small.read_tokenizer,
    )
    with pytest.raises(GenerationError, match=rf"(?s)another vocabulary.*{V + 1} ids.*{V} ids"):
        proposer_of(wider, model, executor)


def test_heads_that_are_not_there_are_refused() -> None:
    model = opened("model", torch.float32)
    with pytest.raises(GenerationError, match="no heads of further ids"):
        proposer_of("heads", model, executor_of(model, 1, ROOM))
    model = opened("sequential", torch.float32)
    for kind in ("torch", "compiled"):
        with pytest.raises(GenerationError, match="made to look ahead"):
            proposer_of("heads", model, executor_of(model, 1, ROOM, kind=kind))
