"""Asking an engine, and what it said."""

from collections.abc import Sequence

import numpy as np

from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.request import Event, LogProbs, Request

Key = tuple[int, int]


class Story:
    """What an engine said, gathered by (request, branch)."""

    def __init__(self) -> None:
        self.ids: dict[Key, list[int]] = {}
        self.done: dict[Key, str] = {}
        self.errors: dict[Key, str | None] = {}
        self.logprobs: dict[Key, list[LogProbs]] = {}

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            key = (event.request, event.branch)
            assert key not in self.done, "an answer went on after its end"
            self.ids.setdefault(key, []).extend(event.ids.tolist())
            assert event.ids.dtype == np.int32
            assert event.logprobs is None or len(event.logprobs.drawn) == len(event.ids)
            if event.logprobs is not None:
                self.logprobs.setdefault(key, []).append(event.logprobs)
            assert (event.error is not None) == (event.done == "error")
            if event.done is not None:
                self.done[key] = event.done
                self.errors[key] = event.error


def finish(engine: Engine, story: Story | None = None) -> Story:
    story = Story() if story is None else story
    while not engine.idle:
        events = engine.step()
        assert events, "a step without events, though not idle"
        story.take(events)
    assert engine.step() == []
    return story


def serve(engine: Engine, asked: Sequence[Request]) -> Story:
    for each in asked:
        engine.submit(each)
    return finish(engine)


def company(executor: Executor, asked: Sequence[Request], **more) -> tuple[Story, Engine]:
    """All of them together, coming and going, some of them cancelled."""
    made, story, draw = Engine(executor, 9, **more), Story(), np.random.default_rng(1)
    for number, each in enumerate(asked):
        made.submit(each)
        while len(made.seats.waiting) > 4 or draw.random() < 0.3:
            story.take(made.step())
            if made.idle:
                break
        if draw.random() < 0.1:
            made.cancel(int(draw.integers(max(0, number - 5), number + 1)))
    finish(made, story)
    assert made.free == executor.slots
    return story, made


def ask(ids: Sequence[int], seed: int = 0, branches: int = 1, **more) -> Request:
    own = {"constraint", "healing", "adapter", "shared", "logprobs", "first"}
    chosen = SamplingConfig(**{name: value for name, value in more.items() if name not in own})
    rest = {name: value for name, value in more.items() if name in own}
    return Request(ids=np.array(ids, np.int64), sampling=chosen, seed=seed, branches=branches, **rest)
