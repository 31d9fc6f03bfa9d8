"""How data and models begin: the end of a text held out, single characters, bigrams, heads that look back."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from temaki.base.errors import ConfigError, DataError
from temaki.base.rows import grid
from temaki.batches import prepare
from temaki.batches.config import DataConfig
from temaki.corpus.sources import Document
from temaki.model import bigrams, build
from temaki.model.attention import Attention
from temaki.model.build import Model
from temaki.model.config import (
    AttentionConfig,
    BatchNormConfig,
    BlockConfig,
    DecoderConfig,
    NoPositionConfig,
    RopeConfig,
    S4DConfig,
)
from temaki.model.layout import Layout

TEXT = "".join(f"Line {i}: déjà vu, 我们, {i * i}.\n" for i in range(60))


def quiet(_what: str, _done: int, _of: int) -> None:
    """No progress."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# ---- the end held out ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_the_tail_is_the_end_and_nothing_is_lost(texts: list[str], share: float) -> None:
    documents = [Document(each, str(i)) for i, each in enumerate(texts)]
    whole = "".join(texts)
    cut = int(len(whole) * (1 - share))
    if not 0 < cut < len(whole):
        with pytest.raises(DataError, match="too short"):
            prepare.tail(documents, share)
        return
    train, held = prepare.tail(documents, share)
    assert "".join(each.text for each in train) == whole[:cut]
    assert "".join(each.text for each in held) == whole[cut:]
    assert all(each.text for each in (*train, *held))
    names = [each.id for each in (*train, *held)]
    assert len(set(names)) == len(names)


def test_characters_lose_nothing_of_either_side(text: Path, tmp_path: Path) -> None:
    config = DataConfig(text=str(text), kind="characters", held="tail", held_out=0.25)
    data = prepare.prepare(config, tmp_path / "data", quiet)
    cut = int(len(TEXT) * 0.75)
    for split, wanted in ((data.train, TEXT[:cut]), (data.held, TEXT[cut:])):
        assert b"".join(prepare.texts(split, data.tokenizer)).decode() == wanted
        assert len(split) == len(wanted) + 1  # the boundary
    assert data.tokenizer.size == len(set(TEXT)) + 2
    unknown = data.tokenizer.special[prepare.UNKNOWN]
    assert data.tokenizer.encode("Ω").tolist() == [unknown]
    assert unknown not in data.held.read(0, len(data.held)).tolist()


def test_more_characters_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 300))), encoding="utf-8")
    config = DataConfig(text=str(path), kind="characters", held="tail", vocabulary=300)
    with pytest.raises(DataError, match=r"302 ids.*at most 300|302"):
        prepare.prepare(config, tmp_path / "data", quiet)
    assert not (tmp_path / "data").exists()


def test_data_prepared_before_a_setting_was_known_is_used(text: Path, tmp_path: Path) -> None:
    config = DataConfig(text=str(text), vocabulary=300)
    prepare.prepare(config, tmp_path / "data", quiet)
    said = tmp_path / "data" / prepare.SETTINGS
    lines = [line for line in said.read_text().splitlines() if line.split(" ")[0] not in ("kind", "held")]
    assert len(lines) == len(said.read_text().splitlines()) - 2
    said.write_text("\n".join(lines) + "\n")
    prepare.prepare(config, tmp_path / "data", quiet)
    for other in (DataConfig(text=str(text), vocabulary=300, held="tail"), DataConfig(text=str(text), vocabulary=301)):
        with pytest.raises(DataError, match="other settings"):
            prepare.prepare(other, tmp_path / "data", quiet)


# ---- bigrams ---------------------------------------------------------------------------------------------------------


def decoder(mixer: AttentionConfig | S4DConfig, vocabulary: int = 23, width: int = 64) -> DecoderConfig:
    return DecoderConfig(
        vocabulary=vocabulary, width=width, depth=2, tied=False, pattern=(BlockConfig(mixer=mixer),)
    )  # fmt: skip


def counted(vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 40, (vocabulary, vocabulary), generator=generator).float()


def begun(mixer: AttentionConfig, back: tuple[int, ...]) -> Model:
    config = decoder(mixer)
    model = build.build(config, seed=3)
    bigrams.fill(model, counted(config.vocabulary), 5.0, 1, back)
    return model


def test_a_vocabulary_below_the_width_is_the_smoothed_bigrams_exactly() -> None:
    counts, v, smooth = counted(23), 23, 5.0
    embedding, head = bigrams.factors(counts, 64, smooth, seed=1)
    after = (counts.sum(0) + 1) / (counts.sum() + v)
    wanted = ((counts + smooth * after) / (counts.sum(1, keepdim=True) + smooth)).log()
    assert torch.allclose(embedding @ head.mT, wanted, atol=1e-4)
    assert torch.allclose(embedding.square().sum(1), torch.full((v,), 64.0), rtol=1e-4)


MIXERS = [
    AttentionConfig(heads=4, kv_heads=kv, qk_norm=True, size=size, position=RopeConfig(pairs=pairs))
    for kv, size, pairs in itertools.product((None, 2, 1), (16, 32), ("half", "interleaved"))
]


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: f"{m.groups}-{m.size}-{m.position.pairs}")
def test_heads_look_back_from_the_start_and_say_nothing_yet(mixer: AttentionConfig) -> None:
    """Each head's weight is on its distance, whatever is read; values tell ids apart; the logits are the bigrams'."""
    back = (1, 2, 4)
    model, plain = begun(mixer, back), begun(mixer, ())
    ids = torch.arange(48).mul(7).remainder(23).reshape(1, 48)
    rows = grid(ids)
    with torch.no_grad():
        assert torch.equal(model.head.logits(model(rows)), plain.head.logits(plain(rows)))
        first = model.blocks[0].mixer
        assert isinstance(first, Attention)
        x = model.embedding[rows.ids]
        angles = {name: rotary(rows.positions, x.dtype) for name, rotary in model.rotaries.items()}
        q, k, v = first.project(x, Layout(rows, angles))  # the norm takes nothing from a bigram model's embedding
        k = k.repeat_interleave(4 // k.shape[1], 1)
        scores = torch.einsum("nhk,mhk->hnm", q, k) / math.sqrt(first.size)
        weights = scores.masked_fill(torch.ones(48, 48).triu(1).bool(), -math.inf).softmax(-1)
        for head, distance in enumerate(back):
            assert weights[head].diagonal(-distance).min() > 0.85
        assert weights[3].diagonal(-1).min() < 0.85  # the head beyond `back` begins at random
        apart = torch.cdist(v[:23, 0], v[:23, 0]) + torch.eye(23) * 9
        assert apart.min() > 0.1


@pytest.mark.parametrize(
    "mixer",
    [
        AttentionConfig(heads=4),
        AttentionConfig(heads=2, qk_norm=True),
        AttentionConfig(heads=4, qk_norm=True, position=NoPositionConfig()),
        S4DConfig(),
    ],
    ids=["no-norm", "few-heads", "no-rotation", "no-attention"],
)
def test_a_first_layer_that_cannot_look_back_is_refused(mixer: AttentionConfig | S4DConfig) -> None:
    with pytest.raises(ConfigError, match=r"begin\.back"):
        bigrams.check_back(decoder(mixer).blocks[0], (1, 2, 3))
    with pytest.raises(ConfigError, match="batch norm reads all of a batch"):
        bigrams.check_norm(BatchNormConfig())
    bigrams.check_back(decoder(mixer).blocks[0], ())
