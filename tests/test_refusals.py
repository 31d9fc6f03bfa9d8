"""What a variant cannot do is refused by name before any work, and never bent into something else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import variants
from little_runs import recipe
from temaki.base import config as config_door
from temaki.base.config import read
from temaki.base.dist import World
from temaki.base.errors import ConfigError
from temaki.compiled.plan import refusal
from temaki.formats import carry, told
from temaki.formats.opened import Opened
from temaki.model import config as m
from temaki.train import parallel
from temaki.train import run as runs
from temaki.train.config import RunConfig

LLAMA = m.AttentionConfig(heads=2)
FFN = m.SwigluConfig(width=32)
MAPS: tuple[Any, ...] = (
    m.SparsemaxConfig(), m.EntmaxConfig(), m.TopKConfig(), m.TaylorConfig(), m.GumbelConfig(), m.PerturbConfig(),
    m.SigmoidConfig(), m.SinkConfig(), m.ScalableConfig(),
)  # fmt: skip
STRANGE: dict[str, m.BlockConfig] = {
    **{kind: m.BlockConfig(mixer=mixer, ffn=FFN) for kind, mixer in variants.RECURRENT.items()},
    **{each.kind: m.BlockConfig(mixer=replace(LLAMA, map=each), ffn=FFN) for each in MAPS},
    "buckets": m.BlockConfig(mixer=replace(LLAMA, position=m.BucketsConfig()), ffn=FFN),
    "batch": m.BlockConfig(mixer=LLAMA, ffn=FFN, norm=m.BatchNormConfig()),
    "none": m.BlockConfig(mixer=LLAMA, ffn=FFN, norm=m.NoNormConfig()),
}
"""Blocks that are not Llama's in one thing, by the kind that they are refused for."""
every_strange = pytest.mark.parametrize("kind", STRANGE)


def opened(block: m.BlockConfig) -> Opened:
    """A model of one such block after one of Llama's, as a door would have opened it."""
    config = m.DecoderConfig(
        vocabulary=300, width=32, depth=2, pattern=(m.BlockConfig(mixer=LLAMA, ffn=FFN), block), context=64, tied=False
    )
    return Opened(Path("model"), config, {}, None, (), dict, lambda: None)


@every_strange
@pytest.mark.parametrize("to", ["hf", "gguf", "openai", "llama2c", "cs336"])
def test_a_format_of_others_refuses_what_it_cannot_say(kind: str, to: str) -> None:
    strange = opened(STRANGE[kind])
    alone = replace(strange, config=replace(strange.config, pattern=strange.config.pattern[1:]))
    assert carry.refusal(strange, to)
    assert carry.refusal(alone, to)


@every_strange
def test_the_compiled_executor_says_why_not(kind: str) -> None:
    assert refusal(opened(m.BlockConfig(mixer=LLAMA, ffn=FFN)).config) is None
    assert f"of kind {kind} ha" in (refusal(opened(STRANGE[kind]).config) or "")


@every_strange
def test_every_kind_is_told_in_words(kind: str) -> None:
    plain, strange = told.shape(opened(STRANGE[kind]).config, 64)["blocks"]
    assert plain != strange
    assert "Config" not in strange


def run_of(block: m.BlockConfig, **changes: Any) -> RunConfig:
    found = recipe("grouped", **changes)
    found["model"]["pattern"] = [config_door.mapping(block)]
    return read(RunConfig, found)


@pytest.mark.parametrize("kind", variants.RECURRENT)
@pytest.mark.parametrize("objective", ["masked", "prefix"])
def test_a_recurrence_sees_no_future(kind: str, objective: str) -> None:
    block = m.BlockConfig(mixer=variants.RECURRENT[kind])
    with pytest.raises(ConfigError, match="reads the past alone"):
        runs.check_recipe(run_of(block, objective={"kind": objective}))
    both = run_of(block, objective={"kind": objective}, data={"special": ["<|mask|>"]})
    mask = "bidirectional" if objective == "masked" else "prefix"
    seeing = m.BlockConfig(mixer=m.AttentionConfig(heads=2, mask=mask))
    model = replace(both.model, pattern=(seeing, block), depth=2)
    with pytest.raises(ConfigError, match="reads the past alone"):
        runs.check_recipe(replace(both, model=model))
    with pytest.raises(ConfigError, match="does not go with"):
        seeing = m.BlockConfig(mixer=m.AttentionConfig(heads=2, mask="bidirectional"))
        runs.check_recipe(replace(run_of(block), model=replace(model, pattern=(block, seeing))))


@pytest.mark.parametrize(
    "mixer", [m.S4Config(states=8, length=31), m.RtfConfig(states=8, length=31)], ids=lambda x: x.kind
)
def test_a_row_longer_than_the_kernel_is_refused(mixer: Any) -> None:
    with pytest.raises(ConfigError, match="beyond the kernel") as raised:
        runs.check_recipe(run_of(m.BlockConfig(mixer=mixer)))
    assert "31" in raised.value.do
    runs.check_recipe(run_of(m.BlockConfig(mixer=replace(mixer, length=32))))


@pytest.mark.parametrize("kind", ["sparsemax", "sink", "buckets"])
def test_heads_with_numbers_of_their_own_are_not_shared(kind: str) -> None:
    with pytest.raises(ConfigError, match="shares the heads of softmax"):
        parallel.check(run_of(STRANGE[kind], parallel={"tensor": 2}), World(size=2))
    parallel.check(run_of(STRANGE[kind]), World(size=2))


def test_batch_norm_learns_in_one_process() -> None:
    with pytest.raises(ConfigError, match="moments over the rows of one process"):
        parallel.check(run_of(STRANGE["batch"]), World(size=2))
    parallel.check(run_of(STRANGE["batch"]), World(size=1))


def test_llamas_own_shape_is_refused_by_none_of_llamas_formats() -> None:
    plain = opened(m.BlockConfig(mixer=LLAMA, ffn=FFN))
    assert [to for to in ("hf", "gguf", "llama2c") if carry.refusal(plain, to)] == []
