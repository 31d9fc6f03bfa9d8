"""Contrastive search against a naive recomputation in float64, and over both executors."""

import doctest
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import variants
from recomputing import Recomputing, hashed
from temaki.base import rows
from temaki.base.errors import ConfigError, GenerationError
from temaki.compiled.plan import plan
from temaki.generate import contrastive, sampling
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.config import SamplingConfig
from temaki.generate.contrastive import ContrastiveConfig
from temaki.generate.request import Request
from temaki.generate.torch_executor import TorchExecutor
from temaki.model.build import Model


def ask(ids: Sequence[int] = (1, 2), **chain: Any) -> Request:
    return Request(ids=np.array(ids, np.int64), sampling=SamplingConfig(**chain))


def fake(vocabulary: int = 13, slots: int = 6, room: int = 200) -> Recomputing:
    return Recomputing(hashed(vocabulary), vocabulary, slots, room)


def naive(at, prompt: Sequence[int], count: int, k: int, alpha: float) -> list[int]:
    """Su et al. 2022 word by word: everything recomputed for each candidate."""
    ids = list(prompt)
    for _ in range(count):
        p = np.exp(sampling.log_probabilities(at(ids)[0].astype(np.float64)))
        past = [at(ids[: n + 1])[1].astype(np.float64) for n in range(len(ids))]
        best = []
        for v in sorted(range(len(p)), key=lambda v: (-p[v], v))[:k]:
            h = at([*ids, v])[1].astype(np.float64)
            like = max(float(h @ each / (np.linalg.norm(h) * np.linalg.norm(each))) for each in past)
            best.append((-((1 - alpha) * p[v] - alpha * like), len(best), v))
        ids.append(min(best)[2])
    return ids[len(prompt) :]


def test_doctests():
    assert doctest.testmod(contrastive).failed == 0


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 1.0])
def test_it_is_the_naive_recomputation(k, alpha):
    executor = fake()
    found = contrastive.search(executor, ask([4, 4, 9], max_tokens=12), ContrastiveConfig(k=k, alpha=alpha))
    assert found.ids.tolist() == naive(executor.at, [4, 4, 9], 12, k, alpha)
    assert found.done == "length"
    assert executor.taken == set()
    logs = [sampling.log_probabilities(executor.at([4, 4, 9, *found.ids[:n]])[0])[id] for n, id in enumerate(found.ids)]
    assert found.logprob == pytest.approx(sum(logs))
    assert found.score == pytest.approx(np.mean(logs))


def test_the_penalty_changes_what_is_said():
    executor = fake()
    greedy = contrastive.search(executor, ask(max_tokens=12), ContrastiveConfig(alpha=0.0))
    assert greedy.ids.tolist() == contrastive.search(executor, ask(max_tokens=12), ContrastiveConfig(k=1)).ids.tolist()
    assert greedy.ids.tolist() != contrastive.search(executor, ask(max_tokens=12), ContrastiveConfig()).ids.tolist()


@pytest.mark.parametrize("name", ["grouped", "window", "hybrid"])
def test_over_the_torch_executor_it_is_the_naive_recomputation(name):
    model = variants.model(name, torch.float64)
    executor = TorchExecutor(model, slots=4, room=100)
    prompt = [3, 50, 7, 7]
    found = contrastive.search(executor, ask(prompt, max_tokens=6), ContrastiveConfig())
    assert found.ids.tolist() == naive(whole(model), prompt, 6, 4, 0.6)
    assert executor.state.lengths == [0] * 4


@pytest.mark.parametrize("name", ["grouped", "window"])
def test_over_the_compiled_executor_it_is_the_naive_recomputation(name):
    model = variants.model(name, torch.float64)
    executor = CompiledExecutor(plan(variants.config(name), variants.weights(model)), 4, 100, threads=1)
    prompt = [3, 50, 7, 7]
    found = contrastive.search(executor, ask(prompt, max_tokens=6), ContrastiveConfig())
    assert found.ids.tolist() == naive(whole(model), prompt, 6, 4, 0.6)
    assert executor.lengths == [0] * 4


def whole(model: Model):
    """(logits [V], hidden [D]) behind ids that are read in one forward."""

    @torch.no_grad()
    def at(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        hidden = model(rows.rows([list(ids)]))[-1:]
        return model.head.logits(hidden)[0].numpy(), hidden[0].numpy()

    return at


def test_a_long_prompt_is_read_in_chunks_and_a_step_is_one_call():
    executor, prompt = fake(), [1, 2, 3, 4, 5] * 27
    contrastive.search(executor, ask(prompt, max_tokens=3), ContrastiveConfig(k=3))
    assert [len(call) for call in executor.calls] == [1, 1, 1, 3, 3, 3]


def test_it_tells_ids_one_by_one_as_an_engine_does_and_stops():
    executor = fake()
    whole = contrastive.search(executor, ask(max_tokens=12), ContrastiveConfig())
    stop = int(whole.ids[5])
    events = list(contrastive.steps(executor, ask(max_tokens=12, stop_ids=(stop,)), ContrastiveConfig()))
    first = whole.ids.tolist().index(stop)
    assert [each.ids.tolist() for each in events] == [[id] for id in whole.ids[:first].tolist()] + [[]]
    assert [each.done for each in events] == [None] * first + ["stop"]
    told = contrastive.search(executor, ask(max_tokens=12, stop_ids=(stop,)), ContrastiveConfig())
    assert (told.ids.tolist(), told.done) == (whole.ids[:first].tolist(), "stop")


def test_the_room_ends_an_answer():
    found = contrastive.search(fake(room=8), ask([1, 2, 3]), ContrastiveConfig())
    assert (len(found.ids), found.done) == (5, "length")
    with pytest.raises(GenerationError, match="leaves no room"):
        contrastive.search(fake(room=3), ask([1, 2, 3]), ContrastiveConfig())


def test_bans_hold():
    executor = fake(vocabulary=6)
    found = contrastive.search(executor, ask(max_tokens=15, no_repeat_ngram=2), ContrastiveConfig(alpha=0.2))
    pairs = list(zip([1, 2, *found.ids.tolist()], [2, *found.ids.tolist()], strict=False))
    assert len(set(pairs)) == len(pairs)


def test_slots_are_free_after_leaving_early_and_after_an_error():
    executor = fake()
    told = contrastive.steps(executor, ask(max_tokens=12), ContrastiveConfig())
    next(told)
    assert executor.taken
    told.close()
    assert executor.taken == set()
    usual = hashed(13)
    broken = Recomputing(lambda ids: (usual(ids)[0] * (np.nan if len(ids) == 6 else 1), usual(ids)[1]), 13, 6, 90)
    with pytest.raises(GenerationError, match="NaN"):
        contrastive.search(broken, ask(max_tokens=12), ContrastiveConfig())
    assert broken.taken == set()


@pytest.mark.parametrize(
    ("contrast", "chain", "says"),
    [
        ({"k": 0}, {}, "k"),
        ({"k": 7}, {}, "1 to 6"),
        ({"alpha": 1.1}, {}, "alpha"),
        ({"alpha": -0.1}, {}, "alpha"),
        ({}, {"temperature": 0.5}, "draws nothing"),
        ({}, {"typical_p": 0.5}, "draws nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(contrast, chain, says):
    executor = fake()
    with pytest.raises((ConfigError, GenerationError), match=says):
        contrastive.search(executor, ask(**chain), ContrastiveConfig(**contrast))
    assert executor.calls == []
