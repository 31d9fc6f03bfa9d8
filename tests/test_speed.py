"""Quantised files, what they cost in perplexity, and what is measured of an executor."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_models
from temaki.base.errors import ConfigError, DataError, FormatError
from temaki.cli import quantize, speed
from temaki.evaluate import acceptance, loss, perplexity, rounding
from temaki.evaluate import speed as measuring
from temaki.formats import gguf
from temaki.formats import open as opener
from temaki.formats.opened import Opened
from temaki.generate.lookup import Lookup
from temaki.generate.torch_executor import TorchExecutor
from temaki.study import executing

KINDS = ("Q8_0", "Q4_1", "Q4_0")
"""From the finest to the coarsest."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks with its tokenizer, in float32."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    gguf.write(gguf_models.model(gguf_models.CONFIGS["llama"], gguf_models.tokenizer()), path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(gguf_models.TEXT[0] + gguf_models.TEXT[2], encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that is measured is a cache here: half a gigabyte takes its time."""
    monkeypatch.setattr(measuring, "BUFFER", 1 << 16)


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def facts(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `temaki quantize --json --measure` says of each kind."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    for kind in KINDS:
        with pytest.MonkeyPatch.context() as patch:
            lines: list[str] = []
            patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))  # noqa: B023
            quantize.quantize(str(tiny), folder / f"{kind}.gguf", kind, text, 32, True)
        found[kind] = json.loads(lines[-1])
    return found


def test_fewer_bits_are_smaller_and_further_off(facts: dict[str, dict[str, Any]]) -> None:
    errors, sizes = [], []
    for kind in KINDS:
        matrices = {each["name"]: each for each in facts[kind]["matrices"]}
        inner = matrices["blocks.0.ffn.up"]
        assert inner["kind"] == kind
        assert matrices["embedding"]["kind"] == "Q8_0"  # embedding and head keep 8 bits under every kind
        assert matrices["norm.gain"] | {"name": "", "shape": []} == {
            "name": "", "shape": [], "kind": "F32", "before": 256, "after": 256, "error": 0.0,
        }  # fmt: skip
        assert inner["before"] == 4 * math.prod(inner["shape"])
        opened = opener.open(Path(facts[kind]["written"][-1]))
        assert inner["error"] == pytest.approx(_error(opened, "blocks.0.ffn.up"), rel=1e-6)
        errors.append(inner["error"])
        sizes.append(facts[kind]["bytes"]["after"])
        assert sizes[-1] == sum(each["after"] for each in matrices.values()) < facts[kind]["bytes"]["before"] / 3
    assert errors == sorted(errors)
    assert errors[0] < 0.01 < errors[1] < errors[2] < 0.15
    assert sizes[0] > sizes[1] > sizes[2]


def _error(opened: Opened, name: str) -> float:
    """Of a matrix of the tiny model, by its own formula."""
    was = gguf_models.model(gguf_models.CONFIGS["llama"]).weights()[name].array().astype(np.float64)
    now = opened.weights()[name].array().astype(np.float64)
    return float(np.linalg.norm(was - now) / np.linalg.norm(was))


def test_perplexity_before_and_after_is_that_of_the_models(
    facts: dict[str, dict[str, Any]], tiny: Path, text: Path
) -> None:
    for kind in KINDS:
        found = facts[kind]["perplexity"]
        assert found["before"] == pytest.approx(_by_torch(tiny, text), rel=1e-4)
        written = Path(facts[kind]["written"][-1])
        assert found["after"] == pytest.approx(_by_torch(written, text), rel=0.05)  # activations of 8 bits
        assert found["after"] != found["before"]


def _by_torch(path: Path, text: Path) -> float:
    from temaki.study import pipeline

    opened = opener.open(path)
    return pipeline.score_text(opened, opened.model(), text, 32).perplexity


@pytest.mark.parametrize("stride", [8, 16, 5])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_an_executor_scores_as_the_model_does(name: str, stride: int) -> None:
    """Every target once, in windows, read in chunks: the same sum as by whole forwards."""
    model = gguf_models.model(gguf_models.CONFIGS[name]).model()
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, gguf_models.IDS, n) for n in (1, 7, 16, 45)]
    wanted = loss.score(model, documents, 100, 16, stride)
    done: list[int] = []
    found = perplexity.score(TorchExecutor(model, 1, 16), documents, 100, 16, stride, done.append)
    assert found.tokens == wanted.tokens == done[-1] == sum(map(len, documents))
    assert found.nats == pytest.approx(wanted.nats, rel=1e-5)


def test_long_windows_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever chunks and the first counted place fall, nothing but the order of sums changes."""
    model = gguf_models.model(gguf_models.CONFIGS["llama"]).model()
    ids = np.random.default_rng(1).integers(0, gguf_models.IDS, 40).astype(np.int32)
    executor = TorchExecutor(model, 1, 40)
    whole = perplexity.nll(executor, ids[:-1], ids[1:])
    monkeypatch.setattr(perplexity, "CHUNK", 7)
    for skip in (0, 1, 6, 7, 20, 38):
        found = perplexity.nll(executor, ids[:-1], ids[1:], skip)
        assert len(found) == 39 - skip
        assert np.allclose(found, whole[skip:], rtol=1e-4)


def test_what_cannot_be_scored_is_an_error() -> None:
    executor = TorchExecutor(gguf_models.model(gguf_models.CONFIGS["llama"]).model(), 1, 16)
    for documents in ([], [np.zeros(0, np.int64)], [np.array([0, gguf_models.IDS])], [np.array([-1])]):
        with pytest.raises(DataError):
            perplexity.score(executor, documents, 1, 16)


def test_a_model_that_sees_its_answer_is_not_scored() -> None:
    config = gguf_models.one(gguf_models.rope(mask="prefix"))
    executor = TorchExecutor(gguf_models.model(config).model(), 1, 16)
    with pytest.raises(ConfigError, match="both ways"):
        perplexity.score(executor, [np.arange(9)], 9, 16)


def test_what_cannot_be_quantised_is_refused(tiny: Path, tmp_path: Path) -> None:
    def ask(model: Path, out: Path, kind: str) -> None:
        quantize.quantize(str(model), out, kind, None, 512, False)

    with pytest.raises(FormatError, match="Q8_0, Q4_0, Q4_1"):
        ask(tiny, tmp_path / "new.gguf", "Q2_K")
    with pytest.raises(FormatError, match="exists already"):
        ask(tiny, tiny, "Q8_0")
    strange = tmp_path / "strange"
    _save(strange)
    with pytest.raises(FormatError, match="--bits 4") as error:
        ask(strange, tmp_path / "new.gguf", "Q8_0")
    assert "GGUF cannot hold this model" in str(error.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_what_was_small_already_is_told(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.gguf"
    quantize.quantize(str(tiny), small, "Q4_1", None, 512, False)
    assert "in blocks already" not in capsys.readouterr().err
    quantize.quantize(str(small), tmp_path / "new" / "grown.gguf", "Q8_0", None, 512, False)
    told = capsys.readouterr().err
    assert "(Q4_1 of 5 bits a number, Q8_0 of 8.5 bits a number); as Q8_0 (8.5 bits) the file grows" in told
    assert f"making the folder {tmp_path / 'new'}" in told


def _save(folder: Path) -> None:
    """A model that GGUF has no words for: ALiBi."""
    from temaki.formats import own
    from temaki.model.config import AlibiConfig, AttentionConfig

    config = gguf_models.one(AttentionConfig(heads=4, position=AlibiConfig()))
    own.write(gguf_models.model(config, gguf_models.tokenizer()), folder)


def test_error_of_rounding() -> None:
    assert rounding.error(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert rounding.error(np.zeros(3), np.zeros(3)) == 0
    assert rounding.error(np.array([1.0, 0.0]), np.array([0.0, 0.0])) == 1


@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_speed_says_every_figure(kind: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed.speed(str(tiny), kind, None, None, 1, 2.0, True)
    found = said(capsys)
    assert found["threads"] == 1
    assert found["executor"].lower().startswith(kind)
    assert set(found["decode"]) == set(found["bytes_per_token"]) == set(found["roofline_share"])
    (held,) = found["decode"]  # the model was made for 128 ids
    assert int(held) == 128 - measuring.STEPS
    share = found["bytes_per_token"][held] * found["decode"][held] / found["bandwidth"]
    assert found["roofline_share"][held] == pytest.approx(share)
    for value in (*found["prefill"].values(), *found["decode"].values(), found["streams"], found["load_seconds"]):
        assert 0 < value < math.inf
    drafts = found["lookup"]
    assert drafts["same"]
    assert 0 <= drafts["accepted"] <= drafts["drafted"]
    assert drafts["ids"] == drafts["accepted"] + drafts["passes"] + 1  # the first comes from the prompt


def test_speed_as_lines(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed.speed(str(tiny), "auto", None, "int8", 1, 1.0, False)
    lines = capsys.readouterr().out
    for word in ("load", "prefill", "decode behind", "8 streams", "of the roofline", "peak", "ids a pass"):
        assert word in lines


def test_what_fits_in_the_cache_has_no_share() -> None:
    assert speed._cached(1e6, 1.05, 1 << 25)
    assert not speed._cached(1e6, 0.3, 1 << 25)
    assert not speed._cached(1e9, 1.05, 1 << 25)  # as near as memory is measured
    assert not speed._cached(1e9, 1.05, None)
    assert speed._cached(1e9, 1.3, None)


def test_a_model_of_few_ids_is_timed_too() -> None:
    executor = TorchExecutor(gguf_models.model(gguf_models.CONFIGS["llama"]).model(), 8, 12, measuring.STEPS + 1)
    found = measuring.measure(executor, 1.0)
    assert list(found.decode) == [1]
    assert found.streams is not None


def test_strange_words_are_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="auto, compiled, torch"):
        speed.speed(str(tiny), "cuda", None, None, 1, 1.0, False)


def test_the_compiled_path_loads_no_torch(tiny: Path, fresh: Callable[[str], str]) -> None:
    code = f"""
        import sys
        from temaki.cli import speed
        from temaki.evaluate import speed as measuring
        measuring.BUFFER = 1 << 16
        speed.speed({str(tiny)!r}, "compiled", None, None, 1, 1.0, True)
        print("torch" in sys.modules)
    """
    import textwrap

    assert fresh(textwrap.dedent(code)).splitlines()[-1] == "False"


def test_long_contexts_are_left_out_when_time_is_short(tiny: Path) -> None:
    executor = TorchExecutor(gguf_models.model(gguf_models.CONFIGS["llama"]).model(), 1, 600, measuring.STEPS + 1)
    found = measuring.measure(executor, 0.0)
    assert list(found.decode) == [128]
    assert found.left_out == (256, 512)
    assert found.streams is None
    longer = measuring.measure(executor, 60.0)
    assert list(longer.decode) == [128, 256, 512]
    assert longer.left_out == ()
    assert executor.state.lengths == [0]


def test_drafts_that_are_right_and_wrong_are_counted() -> None:
    """A model taught a text by heart: what is drafted from the text is accepted, from nonsense it is not."""
    opened = gguf_models.taught(gguf_models.model(gguf_models.CONFIGS["qwen2"], gguf_models.tokenizer()), 60)
    weights = {name: each for name, each in opened.weights().items() if name != "head.weight"}  # it is the embedding
    opened = replace(opened, read_weights=lambda: weights)
    assert opened.tokenizer is not None
    ids = opened.tokenizer.encode(gguf_models.TEXT[0]).astype(np.int32)[:30]
    executor = executing.executor_of(opened, 1, 100, spare=8, kind="torch")
    found = acceptance.measure(executor, Lookup(), ids, 20)
    assert found.same
    assert found.accepted > 5
    assert found.ids == 20 == found.accepted + found.passes + 1
    assert found.rate == found.accepted / found.drafted
    assert found.per_pass == 19 / found.passes > 1.2  # the first comes from the prompt


def test_bandwidth_is_measured() -> None:
    assert measuring.bandwidth(1) > 1e6
    assert measuring.bandwidth(2) > 1e6
