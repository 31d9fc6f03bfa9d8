"""Laws of the measured loss and of the yardsticks beside it."""

import doctest
import math
import random

import numpy as np
import pyppmd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base import rows
from temaki.base.errors import ConfigError, DataError
from temaki.evaluate import loss, yardsticks
from temaki.model import build
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, S4DConfig

VOCABULARY = 13
ATTENTION = BlockConfig(mixer=AttentionConfig(heads=2, kv_heads=1))
S4D = BlockConfig(mixer=S4DConfig(states=4))
PATTERNS = {"attention": (ATTENTION,), "s4d": (S4D,), "hybrid": (S4D, ATTENTION)}


def make(kind="attention"):
    pattern = PATTERNS[kind]
    config = DecoderConfig(vocabulary=VOCABULARY, width=8, depth=len(pattern), pattern=pattern, init="cs336")
    model = build.build(config, seed=3, dtype=torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


def documents(lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [np.concatenate([[0], draw.integers(1, VOCABULARY, n - 1)]).astype(np.uint16) for n in lengths]


def slow(model, texts, context=None):
    """Nats by a loop over prefixes, the logits written out; independent windows if `context` is given."""
    total, count = 0.0, 0
    for text in texts:
        ids = text.astype(int).tolist()
        targets = [*ids[1:], 0]
        for i, target in enumerate(targets):
            first = 0 if context is None else i // context * context
            with torch.no_grad():
                logits = model.head.logits(model(rows.rows([ids[first : i + 1]])))[-1]
            total += float(logits.exp().sum().log() - logits[target])
            count += 1
    return total, count


@pytest.mark.parametrize("kind", PATTERNS)
def test_loss_is_a_loop_over_prefixes(kind):
    model, texts = make(kind), documents([1, 2, 9, 5, 16])
    total, count = slow(model, texts)
    for stride in (1, 7, 16):
        found = loss.score(model, texts, bytes=70, context=16, stride=stride, batch_tokens=20)
        assert found.tokens == count == 33
        assert found.nats == pytest.approx(total, rel=1e-10)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / 70)
    assert found.loss == pytest.approx(total / 33)
    assert found.perplexity == pytest.approx(math.exp(total / 33))


@pytest.mark.parametrize("kind", PATTERNS)
def test_stride_of_a_context_is_independent_windows(kind):
    model, texts = make(kind), documents([1, 4, 11, 8, 21])
    total, count = slow(model, texts, context=4)
    found = loss.score(model, texts, bytes=1, context=4, stride=4)
    assert (found.tokens, found.nats) == (count, pytest.approx(total, rel=1e-10))
    assert total != pytest.approx(slow(model, texts)[0], rel=1e-6), "windows make no difference: the test has no teeth"


@pytest.mark.parametrize("stride", [1, 3, 4, 6])
def test_each_target_sees_what_its_window_allows(stride):
    """Target i is read from the start of the first window to reach it: ceil((i - context + 1) / stride)."""
    model, context, text = make("hybrid"), 6, documents([20])[0]
    found = loss.score(model, [text], bytes=1, context=context, stride=stride).nats
    ids = text.astype(int).tolist()
    total = 0.0
    for i, target in enumerate([*ids[1:], 0]):
        first = max(0, math.ceil((i - context + 1) / stride)) * stride
        with torch.no_grad():
            total -= float(model.head.logits(model(rows.rows([ids[first : i + 1]])))[-1].log_softmax(-1)[target])
    assert found == pytest.approx(total, rel=1e-10)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(length=st.integers(0, 200), context=st.integers(1, 40), data=st.data())
def test_windows_count_each_target_once_with_enough_context(length, context, data):
    stride = data.draw(st.integers(1, context))
    made = loss.windows(length, context, stride)
    counted = [place for w in made for place in range(w.counted, w.stop)]
    assert counted == list(range(length))
    for i, w in enumerate(made):
        assert 0 < w.stop - w.start <= context
        assert w.start == i * stride
        assert w.counted - w.start == (0 if i == 0 else context - stride)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    context=st.integers(1, 12),
    batch_tokens=st.integers(1, 100),
    data=st.data(),
)
def test_any_batch_gives_the_same(lengths, context, batch_tokens, data):
    stride = data.draw(st.integers(1, context))
    model, texts = make("hybrid"), documents(lengths)
    alone = [loss.score(model, [text], bytes=1, context=context, stride=stride) for text in texts]
    found = loss.score(model, iter(texts), bytes=9, context=context, stride=stride, batch_tokens=batch_tokens)
    assert found.tokens == sum(lengths)
    assert found.nats == pytest.approx(sum(score.nats for score in alone), rel=1e-10)


def test_a_call_holds_no_more_than_was_asked_for_and_no_padding():
    model, texts, sizes = make(), documents([3, 20, 7, 20, 20, 1]), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(args[0]))
    loss.score(model, texts, bytes=1, context=8, stride=8, batch_tokens=24)
    assert max(len(read.ids) for read in sizes) <= 24
    assert sum(len(read.ids) for read in sizes) == 71
    assert any(read.shape == (3, 8) for read in sizes), "whole windows do not go together"


def test_scoring_leaves_the_model_as_it_was_and_trainable():
    model, texts, told = make(), documents([5, 9]), []
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.train()
    loss.score(model, texts, bytes=1, context=64, progress=told.append)
    assert model.training
    assert told == [14]
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    hidden = model(rows.rows([list(range(12))] * 8))
    model.head.nll(hidden, torch.zeros(96, dtype=torch.int64), torch.ones(96)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("texts", "size", "context", "stride", "error", "says"),
    [
        ([], 1, 4, 2, DataError, "no documents"),
        ([np.array([0, 1])], 0, 4, 2, DataError, "no bytes"),
        ([np.array([0, 1]), np.array([], dtype=np.uint16)], 1, 4, 2, DataError, "document 1 is empty"),
        ([np.array([0, VOCABULARY])], 1, 4, 2, DataError, "found: 13"),
        ([np.array([0, -1])], 1, 4, 2, DataError, "found: -1"),
        ([np.array([0, 1])], 1, 4, 5, ConfigError, "stride 5"),
        ([np.array([0, 1])], 1, 4, 0, ConfigError, "stride 0"),
        ([np.array([0, 1])], 1, 0, None, ConfigError, "context 0"),
    ],
)
def test_bad_input_is_named(texts, size, context, stride, error, says):
    with pytest.raises(error, match=says):
        loss.score(make(), texts, bytes=size, context=context, stride=stride)


def test_a_broken_model_scores_nan_and_says_so():
    score = loss.Score(nats=math.nan, tokens=2, bytes=3)
    assert math.isnan(score.perplexity)
    assert math.isnan(score.bits_per_byte)
    assert loss.Score(nats=1e6, tokens=2, bytes=3).perplexity == math.inf


WORDS = random.Random(5).choices(["so", "rice", " of", " nori", "\n", " roll", "é", " the"], k=4000)
TEXT = "".join(WORDS).encode()
NOISE = random.Random(7).randbytes(20_000)


@pytest.mark.parametrize("bits", [yardsticks.zstd_bits, yardsticks.ppmd_bits])
def test_yardsticks_know_their_ends(bits):
    assert bits(NOISE, NOISE) < 0.5, "what was read before costs nearly nothing"
    assert 7.9 < bits(b"", NOISE) < 8.6, "noise costs its bytes"
    entropy = 3 * len(WORDS) / len(TEXT)
    assert entropy < bits(TEXT, "".join(random.Random(6).choices(WORDS, k=4000)).encode()) < 1.7 * entropy
    with pytest.raises(DataError, match="empty held-out"):
        bits(TEXT, b"")


def test_yardsticks_are_by_definition_the_cost_of_the_held_out_text():
    held = TEXT[::-1][:5000]
    for bits, size in (
        (yardsticks.ppmd_bits, yardsticks._ppmd_size),
        (yardsticks.zstd_bits, lambda data: yardsticks._zstd_size(data, long=False)),
    ):
        plain = 8 * (size(TEXT + held) - size(TEXT)) / 5000
        assert bits(TEXT, held) <= plain
        assert bits(TEXT, held) == pytest.approx(plain, rel=0.1)


def test_zstd_looks_back_over_everything(monkeypatch):
    """A repeat as far back as the text is long costs nothing; a window that is too short pays in full."""
    far = NOISE + b"\0" * 300_000
    assert yardsticks.zstd_bits(far, NOISE) < 0.5
    monkeypatch.setattr(yardsticks, "_window_log", lambda size: 18)
    assert yardsticks.zstd_bits(far, NOISE) > 7.9


def test_ppmd_memory_never_runs_out(monkeypatch):
    """More memory changes nothing; with far too little the model starts again and the text costs more."""
    text = TEXT * 3 + NOISE * 40
    enough = yardsticks._ppmd_size(text)
    monkeypatch.setattr(yardsticks, "PPMD_MEMORY_A_BYTE", 256)
    assert yardsticks._ppmd_size(text) == enough
    encoder = pyppmd.Ppmd7Encoder(yardsticks.PPMD_ORDER, 1 << 20)
    assert len(encoder.encode(text)) + len(encoder.flush()) > 1.01 * enough


def test_yardsticks_in_another_process_are_the_same(tmp_path):
    (tmp_path / "train").write_bytes(TEXT)
    (tmp_path / "held").write_bytes(NOISE[:3000])
    measuring = yardsticks.start(tmp_path / "train", tmp_path / "held")
    assert measuring.result(timeout=60) == yardsticks.measure(TEXT, NOISE[:3000])
    assert measuring.done()
    assert measuring.result() == measuring.result()


def test_a_failed_yardstick_says_why(tmp_path):
    (tmp_path / "held").write_bytes(b"x")
    with pytest.raises(DataError, match="No such file"):
        yardsticks.start(tmp_path / "missing", tmp_path / "held").result(timeout=60)
    cancelled = yardsticks.start(tmp_path / "missing", tmp_path / "held")
    cancelled.cancel()
    assert cancelled.done()


def test_yardsticks_load_no_torch(fresh):
    assert fresh("import sys, temaki.evaluate.yardsticks; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("module", [loss, yardsticks])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
