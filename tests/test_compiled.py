"""The compiled executor: equal to torch; for one row the same bits however it is read, beside whomever, on threads."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray

import variants
from temaki.base.errors import CheckpointError, ConfigError, GenerationError
from temaki.compiled.cache import CacheKind
from temaki.compiled.plan import Bits, Plan, plan, refusal
from temaki.formats.weights import SAME, Weight, plain
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.executor import Work
from temaki.generate.torch_executor import TorchExecutor
from temaki.model import angles, positions
from temaki.model.config import LearnedConfig
from temaki.model.quantise import quantise

SERVED = [name for name in variants.EVERY if refusal(variants.config(name)) is None]
ROOM = 64
IDS = np.random.default_rng(0).integers(0, variants.VOCABULARY, 47).astype(np.int32)
FEW = ["gemma", "gpt2", "grouped", "alibi", "post"]
"""Those that differ in kind: for laws that run over other things too."""
ROUNDED = 0.02
"""How far logits may be from torch's with the same rounded weights, as root mean squares: each layer rounds what it
reads to 1/127 of the largest of 32 numbers, and does so eight times here. Measured 0.008, with norms after the branches
and no gates (post) 0.015."""

NEAR = 0.75
"""How far log-probabilities of SmolLM2's ten best may be from the golden ones: activations of 30 layers are rounded to
8 bits. Measured 0.56; the divergence of the distributions is 0.02 nats at most."""


def weights(name: str) -> dict[str, Weight]:
    model = variants.model(name, torch.float64)
    return {key: plain(value.detach().numpy().astype(np.float32)) for key, value in model.named_parameters()}


@cache
def planned(name: str, bits: Bits | None = None) -> Plan:
    return plan(variants.config(name), weights(name), bits)


def executor(
    name: str, bits: Bits | None = None, kind: CacheKind | None = None, threads: int = 1, slots: int = 3
) -> CompiledExecutor:
    return CompiledExecutor(planned(name, bits), slots, ROOM, cache=kind, threads=threads)


def said(made: Any, slot: int = 0, ids: ndarray = IDS, step: int = 1000) -> ndarray:
    """Logits of all places, read `step` ids at a time."""
    parts = [made.run([Work(slot, ids[at : at + step], "all")]).logits for at in range(0, len(ids), step)]
    return np.concatenate(parts)


def worst(found: ndarray, wanted: ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_what_has_no_kernels_is_refused_with_a_reason() -> None:
    served = {"attention-half", "grouped", "window", "alibi", "gpt2", "post", "gemma", "qwen", "yarn-llama3"}
    unserved = {
        "s4d",
        "hybrid",
        "prefix",
        "experts",
        "capped-prefix",
        "rwkv",
        "lstm-attention",
        "batch-norm",
        "no-norm",
    }
    assert served <= set(SERVED)
    assert unserved <= set(variants.EVERY) - set(SERVED)
    assert "s4d" in (refusal(variants.config("s4d")) or "")


@pytest.mark.parametrize("name", SERVED)
def test_float_weights_say_what_torch_says(name: str) -> None:
    model = variants.model(name, torch.float64)
    wanted = TorchExecutor(model, 1, ROOM).run([Work(0, IDS, "all")], hidden=True)
    found = executor(name).run([Work(0, IDS, "all")], hidden=True)
    assert worst(found.logits, wanted.logits) < 1e-5
    assert found.hidden is not None
    assert wanted.hidden is not None
    assert worst(found.hidden, wanted.hidden) < 1e-5


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("name", SERVED)
def test_whole_is_chunked_stepped_rewound_and_batched_to_the_bit(name: str, bits: Bits | None) -> None:
    made = executor(name, bits)
    whole = said(made)
    for slot, step in ((1, 1), (2, 7)):
        assert np.array_equal(said(made, slot, step=step), whole)
    made.mark([1])
    made.close(0)
    made.run([Work(0, IDS[:20], "none")])
    made.mark([0])
    made.run([Work(0, IDS[::-1][:15].copy(), "none")])
    made.rewind([0], [0])
    assert np.array_equal(said(made, 0, IDS[20:]), whole[20:])
    for slot in (0, 1, 2):
        made.close(slot)
    parts: list[list[ndarray]] = [[], [], []]
    for at in range(0, 40, 5):  # three rows at different places, two of them with other ids
        work = [
            Work(1, IDS[::-1][at : at + 3], "all"),
            Work(0, IDS[at : at + 5], "all"),
            Work(2, IDS[at : at + 1], "all"),
        ]
        answer = made.run(work).logits
        parts[0].append(answer[3:8])
    assert np.array_equal(np.concatenate(parts[0]), whole[:40])


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("name", FEW)
def test_threads_do_not_change_a_bit(name: str, bits: Bits | None) -> None:
    wanted = executor(name, bits)
    whole = said(wanted)
    for threads in (2, 3):
        made = executor(name, bits, threads=threads)
        assert np.array_equal(said(made), whole)
        assert np.array_equal(said(made, 1, step=1), whole)
        assert np.array_equal(said(made, 2, step=4), whole)
        made.crew.close()


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("name", FEW)
def test_small_caches_are_near_and_keep_the_laws(name: str, kind: CacheKind) -> None:
    """float16 rounds keys and values to 11 bits, int8 to 1/127 of a head's largest."""
    made = executor(name, kind=kind)
    whole = said(made)
    assert worst(whole, said(executor(name))) < {"float16": 2e-3, "int8": 4e-2}[kind]
    assert np.array_equal(said(made, 1, step=1), whole)
    assert np.array_equal(said(executor(name, kind=kind, threads=2), 2, step=9), whole)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", ["grouped", "window", "gemma"])
def test_a_fork_a_save_and_a_load_go_on_with_the_same_bits(name: str, kind: CacheKind) -> None:
    made = executor(name, kind=kind)
    whole = said(made)
    made.close(0)
    made.run([Work(0, IDS[:21], "none")])
    made.run([Work(1, IDS[::-1].copy(), "none")])
    made.close(1)
    made.fork(0, 1)
    saved = made.save(0)
    assert saved.length == 21
    made.close(0)
    assert np.array_equal(said(made, 1, IDS[21:]), whole[21:])
    made.load(2, saved)
    assert np.array_equal(said(made, 2, IDS[21:]), whole[21:])
    for slot in range(3):
        made.close(slot)
    assert made.lengths == [0, 0, 0]
    assert not made.cache.data.any(), "a closed slot leaves nothing"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", FEW)
def test_rounded_weights_say_what_torch_says_with_them(name: str, bits: Bits) -> None:
    model, wanted = variants.model(name, torch.float64), {8: "Q8_0", 4: "Q4_1"}[bits]
    matrices = ("qkv", "out", "up", "down", "embedding")
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim == 2 and key.endswith(matrices):
                numbers = value.numpy().astype(np.float32)
                kind = "Q8_0" if key.endswith("embedding") else wanted
                grouped = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % 32)), "edge")
                value.copy_(
                    torch.from_numpy(quantise(kind, grouped).dequantise()[:, : numbers.shape[1]].astype(np.float64))
                )
    there = said(TorchExecutor(model, 1, ROOM))
    off = said(executor(name, bits, "float32")) - there
    assert np.square(off).mean() < ROUNDED**2 * np.square(there).mean()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0"])
def test_blocks_of_a_file_are_read_as_they_are(kind: str) -> None:
    floats = {key: weight.array() for key, weight in weights("grouped").items()}
    narrow = [key for key, value in floats.items() if value.ndim == 2 and value.shape[1] == 32]
    blocks = weights("grouped") | {
        key: Weight(floats[key].shape, ((quantise(kind, floats[key]), SAME),)) for key in narrow
    }
    config = variants.config("grouped")
    made = CompiledExecutor(plan(config, blocks), 1, ROOM, cache="float32", threads=1)
    assert made.plan.quantised
    exact = CompiledExecutor(plan(config, {key: plain(weight.array()) for key, weight in blocks.items()}), 1, ROOM)
    there = said(exact)
    off = said(made) - there
    assert np.square(off).mean() < ROUNDED**2 * np.square(there).mean()


def test_a_long_context_cut_into_spans_has_the_same_bits() -> None:
    made = [CompiledExecutor(planned("grouped"), 1, 700, threads=threads) for threads in (1, 2)]
    ids = np.random.default_rng(1).integers(0, variants.VOCABULARY, 640).astype(np.int32)
    found = []
    for each in made:
        each.run([Work(0, ids[:600], "none")])
        found.append(said(each, ids=ids[600:], step=3))
    assert np.array_equal(*found)
    model = TorchExecutor(variants.model("grouped", torch.float64), 1, 700)
    assert worst(found[0], said(model, ids=ids)[600:]) < 1e-5


def test_what_is_no_number_stays_in_its_row() -> None:
    broken = weights("grouped")
    table = broken["embedding"].array().copy()
    table[5] = np.nan
    made = CompiledExecutor(plan(variants.config("grouped"), {**broken, "embedding": plain(table)}), 2, ROOM, threads=1)
    fine = np.where(IDS == 5, 6, IDS).astype(np.int32)
    alone = said(made, 1, fine)
    made.close(1)
    parts = []
    for at in range(len(fine)):
        answer = made.run([Work(0, np.array([5], np.int32), "last"), Work(1, fine[at : at + 1], "last")])
        assert np.isnan(answer.logits[0]).all()
        parts.append(answer.logits[1])
    assert np.array_equal(np.stack(parts), alone)
    made.close(0)
    assert np.array_equal(said(made, 0, fine), alone)


def test_bad_work_is_refused_before_anything_is_read() -> None:
    made = executor("grouped")
    with pytest.raises(GenerationError, match="no room"):
        made.run([Work(0, IDS, "all"), Work(1, np.zeros(ROOM + 1, np.int32), "none")])
    with pytest.raises(GenerationError, match="does not know"):
        made.run([Work(0, np.array([variants.VOCABULARY], np.int32), "all")])
    with pytest.raises(GenerationError, match="adapters"):
        made.run([Work(0, IDS, "all", adapter="x")])
    with pytest.raises(GenerationError, match="encoder"):
        made.open(0, IDS)
    with pytest.raises(GenerationError, match="a slot"):
        CompiledExecutor(made.plan, 0, ROOM)
    assert made.lengths == [0, 0, 0]
    learned = planned("gpt2")
    assert isinstance(learned.config.input_position, LearnedConfig)
    with pytest.raises(ConfigError, match="learned"):
        CompiledExecutor(learned, 1, learned.config.input_position.room + 1)
    ill = weights("grouped")
    del ill["blocks.1.ffn.up"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.up"):
        plan(variants.config("grouped"), ill)


def test_two_executors_and_callers_on_other_threads_do_not_meet() -> None:
    made = [executor(name, threads=2) for name in ("grouped", "gpt2")]
    wanted = [said(executor(name)) for name in ("grouped", "gpt2")]
    found: list[bool] = []

    def call(which: int, slot: int) -> None:
        found.append(np.array_equal(said(made[which], slot, step=2), wanted[which]))

    for slot in range(3):
        both = [threading.Thread(target=call, args=(which, slot)) for which in (0, 1)]
        for each in both:
            each.start()
        for each in both:
            each.join()
    assert found == [True] * 6


@pytest.mark.parametrize("name", ["attention-half", "linear-ntk", "yarn-llama3"])
def test_angles_are_those_of_torch(name: str) -> None:
    for block in variants.PATTERNS[name]:
        config: Any = block.mixer.position  # type: ignore[union-attr]
        wanted = positions.rope_angles(torch.arange(70), 8, config.theta, config.scaling)
        for found, there in zip(angles.rope_table(config, 8, 70), wanted, strict=True):
            assert np.abs(found - there.numpy()).max() < 1e-7
    assert angles.alibi_slopes(12) == positions.alibi_slopes(12)
    sines = positions.sinusoidal(torch.arange(9), 6).numpy()
    assert np.abs(angles.sinusoidal_table(6, 10_000.0, 9) - sines).max() < 1e-7


CHILD = """
import signal, sys
import numpy as np
from temaki.compiled.plan import _shapes, plan
from temaki.formats.weights import plain
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.executor import Work
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig
from temaki.study import executing
config = DecoderConfig(vocabulary=97, width=32, depth=2, pattern=(BlockConfig(mixer=AttentionConfig(heads=4)),))
rng = np.random.default_rng(0)
weights = {name: plain(rng.standard_normal(shape).astype(np.float32)) for name, shape in _shapes(config).items()}
made = CompiledExecutor(plan(config, weights), 1, 2000, threads=2)
ids = rng.integers(0, 97, 2000).astype(np.int32)
wanted = [made.run([Work(0, ids[at : at + 1], "last")]).logits for at in range(200)]
made.close(0)
assert "torch" not in sys.modules, "torch was loaded"
try:
    print("ready", flush=True)
    while True:
        made.run([Work(0, ids[:1500], "none")])
        made.close(0)
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
made.close(0)
for at in range(200):
    assert np.array_equal(made.run([Work(0, ids[at : at + 1], "last")]).logits, wanted[at])
print("same", flush=True)
"""


def test_ctrl_c_between_calls_loses_nothing_and_torch_stays_out() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (out, child.returncode) == ("same\n", 0), errors


@pytest.mark.slow
def test_the_real_model_says_the_golden_words(data: Callable[[str], Path]) -> None:
    import json

    from temaki.base.errors import RunError
    from temaki.cli import named
    from temaki.formats import open as opener
    from temaki.study import executing

    try:
        opened = opener.open(named.path("smollm2"))
    except RunError as error:
        pytest.skip(error.what)
    made = executing.executor_of(opened, 1, 400, kind="compiled")
    for case in json.loads(data("smollm2_reference/reference.json").read_text(encoding="utf-8"))["cases"]:
        logits = made.run([Work(0, np.array(case["ids"], np.int32), "last")]).logits[0]
        said_of = logits[case["last_top10_ids"]] - np.logaddexp.reduce(logits.astype(np.float64))
        assert np.abs(said_of - (np.array(case["last_top10_logits"]) - case["logsumexp"])).max() < NEAR
        for wanted in case["greedy_ids"]:
            if int(logits.argmax()) != wanted:
                assert logits.max() - logits[wanted] < NEAR
                break
            logits = made.run([Work(0, np.array([wanted], np.int32), "last")]).logits[0]
        made.close(0)


def test_no_threads_are_refused() -> None:
    with pytest.raises(GenerationError, match="needs a thread"):
        executor("grouped", threads=0)


def test_a_dropped_executor_leaves_neither_threads_nor_arenas() -> None:
    before = {each for each in threading.enumerate() if each.name.startswith("temaki")}
    made = executor("grouped", threads=3)
    said(made)
    gone = [weakref.ref(each) for each in (made, made.cache.data)]
    del made
    gc.collect()
    limit = time.monotonic() + 20
    left = {each for each in threading.enumerate() if each.name.startswith("temaki")} - before
    while any(each.is_alive() for each in left) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(each.is_alive() for each in left)
    assert [each() for each in gone] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("features", ["+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2", ""], ids=["avx2", "plain"])
def test_the_executor_holds_on_other_processors(features: str) -> None:
    """The tests above, compiled for a processor with these features alone. A name alone changes nothing in LLVM."""
    name = "haswell" if features else "generic"
    environment = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
