"""Beam search against all answers there are, against transformers, and over both executors."""

import doctest
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import families
import variants
from recomputing import Recomputing, hashed
from temaki.base.errors import ConfigError, GenerationError
from temaki.compiled.plan import plan
from temaki.generate import beam as beam_module
from temaki.generate import diversity, ranking, sampling, search
from temaki.generate.beam import BeamConfig
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.request import Request
from temaki.generate.torch_executor import TorchExecutor


def ask(ids: Sequence[int] = (1, 2), **chain: Any) -> Request:
    return Request(ids=np.array(ids, np.int64), sampling=SamplingConfig(**chain))


def fake(vocabulary: int = 5, slots: int = 8, room: int = 30) -> Recomputing:
    return Recomputing(hashed(vocabulary), vocabulary, slots, room)


def every(executor: Recomputing, asked: Request, most: int, penalty: float) -> list[tuple[float, tuple[int, ...], str]]:
    """(score, ids, how it ended) of all answers there are, best first."""
    found = []

    def go_on(ids: tuple[int, ...], logprob: float) -> None:
        if len(ids) == most:
            found.append((logprob / len(ids) ** penalty, ids, "length"))
            return
        logs = sampling.log_probabilities(executor.at([*asked.ids.tolist(), *ids])[0])
        for id in range(executor.vocabulary):
            if id in asked.sampling.stop_ids:
                found.append(((logprob + logs[id]) / (len(ids) + 1) ** penalty, ids, "stop"))
            else:
                go_on((*ids, id), logprob + logs[id])

    go_on((), 0.0)
    return sorted(found, key=lambda each: (-each[0], len(each[1]), each[1]))


@pytest.mark.parametrize("module", [beam_module, search, diversity, ranking], ids=lambda m: m.__name__)
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -0.7])
@pytest.mark.parametrize("stop_ids", [(), (4,), (0, 3)])
def test_a_beam_as_wide_as_all_answers_finds_the_best_of_them(penalty, stop_ids):
    asked, most = ask(max_tokens=3, stop_ids=stop_ids), 3
    executor = fake(slots=125)
    expected = every(executor, asked, most, penalty)
    beams = min(125, len(expected))
    found = beam_module.search(executor, asked, BeamConfig(beams=beams, best=beams, length_penalty=penalty))
    assert len(found) == beams
    for ours, (score, ids, done) in zip(found[:20], expected, strict=False):
        assert ours.score == pytest.approx(score, abs=1e-12)
        assert (ours.ids.tolist(), ours.done) == (list(ids), done)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)


def by_lists(
    at: Any, beams: int, most: int, stops: Sequence[int], penalty: float
) -> list[tuple[float, tuple[int, ...]]]:
    """(score, ids) of the kept answers by a loop over lists that goes on to the last length, best first."""
    kept: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    answers = []
    for n in range(1, most + 1):
        longer = []
        for rank, (cost, _, ids) in enumerate(kept):
            logs = sampling.log_probabilities(at([1, 2, *ids])[0])
            longer += [(cost - logs[id], rank, (*ids, id)) for id in range(len(logs))]
        ranked = sorted(longer)
        answers += [(-cost / n**penalty, ids) for cost, _, ids in ranked[:beams] if ids[-1] in stops or n == most]
        kept = [each for each in ranked if each[2][-1] not in stops][:beams]
    return sorted(answers, key=lambda each: -each[0])[:beams]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0, -0.7])
def test_until_certain_is_to_the_end(penalty):
    ended_early = 0
    for seed in range(20):
        beams, executor = 1 + seed % 4, Recomputing(hashed(7, seed=seed), 7, 4, 30)
        asked = ask(max_tokens=7, stop_ids=(0, 1))
        found = beam_module.search(executor, asked, BeamConfig(beams=beams, best=beams, length_penalty=penalty))
        expected = by_lists(executor.at, beams, 7, (0, 1), penalty)
        said = [tuple(ids[:-1] if ids[-1] in (0, 1) else ids) for _, ids in expected]
        assert [tuple(each.ids.tolist()) for each in found] == said
        assert np.allclose([each.score for each in found], [score for score, _ in expected])
        ended_early += len(executor.calls) < 7
    assert ended_early or penalty == 3.0  # else it was never put to the test


def test_one_beam_until_enough_is_greedy():
    for stop_ids in [(), (3,), (2, 6)]:
        executor = fake(vocabulary=11)
        asked = ask(temperature=0.0, max_tokens=20, stop_ids=stop_ids)
        (found,) = beam_module.search(executor, asked, BeamConfig(beams=1, until="enough"))
        engine = Engine(executor)
        engine.submit(asked)
        said = [each for _ in range(40) for each in engine.step()]
        assert found.ids.tolist() == np.concatenate([each.ids for each in said]).tolist()
        assert found.done == said[-1].done


@pytest.mark.parametrize("until", ["certain", "enough"])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.0])
def test_answers_and_scores_are_those_of_transformers(until, penalty):
    theirs = families.made("llama", torch.float32)
    size = theirs.config.vocab_size

    @torch.no_grad()
    def at(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return theirs(torch.tensor([list(ids)])).logits[0, -1].numpy(), np.zeros(1)

    stops = (5, 6, 9, 11)
    for prompt in ([3, 7, 2], [8], [1, 4, 1, 4, 1]):
        executor = Recomputing(at, size, 4, 40)
        found = beam_module.search(
            executor,
            ask(prompt, max_tokens=8, stop_ids=stops),
            BeamConfig(beams=4, best=3, length_penalty=penalty, until=until),
        )
        told = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=8,
            do_sample=False,
            length_penalty=penalty,
            early_stopping=True if until == "enough" else "never",
            eos_token_id=list(stops),
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert len(found) == 3
        for ours, ids, score in zip(found, told.sequences, told.sequences_scores, strict=True):
            said = ids[len(prompt) :].tolist()
            ends = [place for place, id in enumerate(said) if id in stops]
            assert ours.ids.tolist() == (said[: ends[0]] if ends else said)
            assert ours.done == ("stop" if ends else "length")
            assert ours.score == pytest.approx(float(score), abs=2e-5)


@pytest.mark.parametrize("name", ["grouped", "window", "hybrid", "gpt2"])
def test_over_the_torch_executor_it_is_the_search_that_recomputes(name):
    model = variants.model(name, torch.float64)
    executor = TorchExecutor(model, slots=5, room=24)
    is_recomputed(executor, lambda: TorchExecutor(model, slots=1, room=24), 1e-9)
    assert executor.state.lengths == [0] * 5


@pytest.mark.parametrize("name", ["grouped", "window", "gpt2"])
@pytest.mark.parametrize("bits", [None, 4])
def test_over_the_compiled_executor_it_is_the_search_that_recomputes_bit_for_bit(name, bits):
    laid = plan(variants.config(name), variants.weights(variants.model(name, torch.float64)), bits)
    executor = CompiledExecutor(laid, 5, 24, threads=1)
    is_recomputed(executor, lambda: CompiledExecutor(laid, 1, 24, threads=1), 0.0)
    assert executor.lengths == [0] * 5


def is_recomputed(executor: Executor, one: Callable[[], Executor], tolerance: float) -> None:
    """Answers and scores are those of a search that reads every beginning anew, in an executor of its own."""

    def at(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        alone = one()
        alone.open(0)
        return alone.run([search.Work(0, np.array(ids, np.int32), "last")]).logits[0], np.zeros(1)

    for prompt in ([5], [3, 50, 7, 7]):
        asked, wide = ask(prompt, max_tokens=7, stop_ids=(9, 30)), BeamConfig(beams=4, best=4)
        found = beam_module.search(executor, asked, wide)
        expected = beam_module.search(Recomputing(at, variants.VOCABULARY, 4, 24), asked, wide)
        assert [each.ids.tolist() for each in found] == [each.ids.tolist() for each in expected]
        assert_allclose([each.score for each in found], [each.score for each in expected], rtol=tolerance)


def test_each_step_is_one_call_of_all_beams_and_the_prompt_is_read_once():
    executor = fake(vocabulary=11, room=2000)
    told: list[tuple[int, int]] = []
    beam_module.search(
        executor, ask([1] * 1100, max_tokens=5), BeamConfig(beams=3), lambda n, most: told.append((n, most))
    )
    assert [len(call) for call in executor.calls] == [1, 1, 1, 3, 3, 3, 3]
    assert told == [(n, 5) for n in range(1, 6)]
    assert executor.taken == set()


def test_equal_continuations_rank_by_beam_and_then_by_id():
    flat = Recomputing(lambda ids: (np.zeros(4), np.zeros(1)), 4, 8, 30)
    found = beam_module.search(flat, ask(max_tokens=2), BeamConfig(beams=6, best=6))
    assert [each.ids.tolist() for each in found] == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]


def test_the_room_ends_answers():
    executor = fake(vocabulary=11, room=6)
    found = beam_module.search(executor, ask([1, 2, 3, 4]), BeamConfig(beams=2, best=2))
    assert [(len(each.ids), each.done) for each in found] == [(3, "length")] * 2  # the last one need not be read


def test_bans_and_penalties_hold():
    executor = fake(vocabulary=6)
    found = beam_module.search(executor, ask([1, 2], max_tokens=12, no_repeat_ngram=2), BeamConfig(beams=4, best=4))
    for each in found:
        pairs = list(itertools.pairwise([1, 2, *each.ids.tolist()]))
        assert len(set(pairs)) == len(pairs)
    (banned,) = beam_module.search(executor, ask(max_tokens=9, logit_bias=((3, -100.0), (0, -100.0))), BeamConfig())
    assert not set(banned.ids.tolist()) & {0, 3}
    (long,) = beam_module.search(executor, ask(max_tokens=9, min_tokens=7, stop_ids=(1, 2, 3)), BeamConfig())
    assert len(long.ids) >= 7


class Only:
    """A constraint: one of these answers, then an end by an id that stops, or at once where `closed`."""

    def __init__(self, answers: Sequence[Sequence[int]], vocabulary: int, stop: int, closed: bool, at: tuple = ()):
        self.answers, self.vocabulary, self.stop, self.closed, self.at = answers, vocabulary, stop, closed, at

    def matcher(self):
        return self.copy()

    def copy(self):
        return Only(self.answers, self.vocabulary, self.stop, self.closed, self.at)

    @property
    def done(self) -> bool:
        return self.closed and self.at in [tuple(each) for each in self.answers]

    def mask(self) -> np.ndarray:
        found = np.zeros(self.vocabulary, bool)
        n = len(self.at)
        for each in self.answers:
            if tuple(each[:n]) == self.at:
                found[each[n] if n < len(each) else self.stop] = True
        return found

    def advance(self, id: int) -> None:
        self.at = (*self.at, id)


@pytest.mark.parametrize("closed", [True, False])
def test_a_constraint_holds_in_every_beam(closed):
    executor, answers = fake(vocabulary=7), [(1, 2, 3), (1, 5), (4, 4, 4, 1), (0,), (3, 1)]
    wanted = Request(
        ids=np.array([2]),
        sampling=SamplingConfig(max_tokens=9, stop_ids=(6,)),
        constraint=Only(answers, 7, 6, closed),
    )
    found = beam_module.search(executor, wanted, BeamConfig(beams=8, best=8))
    assert sorted(tuple(each.ids.tolist()) for each in found) == sorted(answers)
    assert {each.done for each in found} == {"stop"}
    for each in found:
        said, logprob = each.ids.tolist() + [6] * (not closed), 0.0
        for n, id in enumerate(said):
            logprob += sampling.log_probabilities(executor.at([2, *said[:n]])[0])[id]
        assert each.logprob == pytest.approx(logprob)
        assert each.score == pytest.approx(logprob / len(said))
    nothing = Request(ids=np.array([2]), constraint=Only([()], 7, 6, closed=True))
    (empty,) = beam_module.search(executor, nothing, BeamConfig())
    assert (len(empty.ids), empty.done) == (0, "stop")
    impossible = Request(ids=np.array([2]), constraint=Only([], 7, 6, closed=True))
    with pytest.raises(GenerationError, match="no answer is possible"):
        beam_module.search(executor, impossible, BeamConfig())
    assert executor.taken == set()


class Ending:
    """A constraint that allows all, and is fulfilled by any of some ids."""

    mask = staticmethod(lambda: None)

    def __init__(self, ends: Sequence[int], done: bool = False):
        self.ends, self.done = ends, done

    def matcher(self):
        return self.copy()

    def copy(self):
        return Ending(self.ends, self.done)

    def advance(self, id: int) -> None:
        self.done = id in self.ends


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_beams_go_on_however_many_continuations_fulfil_the_constraint(beams):
    ends = range(2, 29)
    for seed in range(8):
        executor = Recomputing(hashed(29, seed=seed), 29, 4, 30)
        asked = Request(ids=np.array([1, 2]), sampling=SamplingConfig(max_tokens=5), constraint=Ending(ends))
        found = beam_module.search(executor, asked, BeamConfig(beams=beams, best=beams, length_penalty=4.0))
        expected = by_lists(executor.at, beams, 5, ends, 4.0)
        assert [tuple(each.ids.tolist()) for each in found] == [ids for _, ids in expected]
        assert_allclose([each.score for each in found], [score for score, _ in expected])


def test_all_slots_are_free_after_an_error_or_an_interrupt():
    usual = hashed(7)

    def broken(ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        logits, hidden = usual(ids)
        return (logits * np.nan if len(ids) == 6 else logits), hidden

    executor = Recomputing(broken, 7, 4, 30)
    with pytest.raises(GenerationError, match="NaN"):
        beam_module.search(executor, ask(max_tokens=9), BeamConfig())
    assert executor.taken == set()

    def interrupt(n: int, most: int) -> None:
        if n == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beam_module.search(executor, ask(max_tokens=9), BeamConfig(), interrupt)
    assert executor.taken == set()


@pytest.mark.parametrize(
    ("wide", "chain", "says"),
    [
        ({"beams": 0}, {}, "beams"),
        ({"best": 0}, {}, "best"),
        ({"beams": 2, "best": 3}, {}, "1 to 2"),
        ({"beams": 9}, {}, "1 to 8"),
        ({"length_penalty": float("nan")}, {}, "length_penalty"),
        ({"length_penalty": 1000.0}, {}, "length_penalty"),
        ({"until": "never"}, {}, "until"),
        ({}, {"temperature": 0.7}, "draws nothing"),
        ({}, {"top_k": 3}, "draws nothing"),
        ({}, {"top_p": 0.9}, "draws nothing"),
        ({}, {"stop": ("a",)}, "stop strings"),
        ({}, {"logit_bias": ((5, 1.0),)}, "0 to 4"),
    ],
)
def test_what_makes_no_sense_is_refused(wide, chain, says):
    executor = fake()
    with pytest.raises((ConfigError, GenerationError), match=says):
        beam_module.search(executor, ask(**chain), BeamConfig(**wide))
    assert executor.calls == []


def test_bad_prompts_and_branches_are_refused():
    for request, says in [
        (ask([]), "no ids"),
        (ask([9]), "does not know"),
        (ask([1] * 31), "room"),
        (Request(ids=np.array([1]), branches=2), "no branches"),
    ]:
        with pytest.raises(GenerationError, match=says):
            beam_module.search(fake(), request, BeamConfig())
