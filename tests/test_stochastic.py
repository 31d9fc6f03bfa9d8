"""Segmentations drawn in training: the text stays, cuts and targets are right, any row is a function of its place."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from little_runs import WORDS, At, lines, prepared_in, recipe, same_checkpoints
from temaki.base import device as devices
from temaki.base.config import read
from temaki.base.errors import ConfigError
from temaki.batches import shards, stochastic
from temaki.batches.config import BatchConfig, DropoutConfig, SampledConfig, SegmentationConfig
from temaki.batches.loader import Loader
from temaki.batches.prepare import Prepared
from temaki.batches.shards import Shards
from temaki.batches.stochastic import Resegmented
from temaki.tokens import bpe_train, bytepiece_train, characters
from temaki.tokens.tokenizer import END_OF_TEXT, Tokenizer
from temaki.train import run as runs
from temaki.train.config import RunConfig

CONTEXT = 24
MARK = "<|mark|>"
KINDS: dict[str, SegmentationConfig] = {"bpe": DropoutConfig(drop=0.3), "bytepiece": SampledConfig(alpha=0.1)}


def documents() -> list[str]:
    """Some of one letter, some long, none empty; letters of one to three bytes."""
    generator = np.random.default_rng(2)
    return [" ".join(generator.choice(WORDS, n)) for n in [1, 40, 3, 120, 1, 2, 60]] + ["飯"]


def tokenizer(kind: str) -> Tokenizer:
    special = (END_OF_TEXT, MARK)
    if kind == "bpe":
        return bpe_train.train(documents(), 330, special)
    return bytepiece_train.train(documents(), 330, special=special)


def made(kind: str, folder: Path) -> tuple[Shards, Tokenizer]:
    """The documents as shards; the second holds a special token inside."""
    found = tokenizer(kind)
    ids = [found.encode(text) for text in documents()]
    ids[1] = np.insert(ids[1], 20, found.special[MARK]).astype(np.uint32)
    each = [(x, len(text.encode())) for x, text in zip(ids, documents(), strict=True)]
    return shards.write(folder / kind, each, found.size, found.special[END_OF_TEXT], found.fingerprint), found


def loader(kind: str, folder: Path, seed: int = 5) -> Resegmented:
    found, words = made(kind, folder)
    loader = stochastic.loader(found, words, BatchConfig(context=CONTEXT, tokens=48, segmentation=KINDS[kind]), seed)
    assert isinstance(loader, Resegmented)
    return loader


def text(words: Tokenizer, ids: list[int]) -> bytes:
    """What ids say, specials by their names."""
    named = {id: name.encode() for name, id in words.special.items()}
    return b"".join(named[id] if id in named else words.decode_bytes([id]) for id in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_hold_the_text_from_their_place_on(kind: str, tmp_path: Path) -> None:
    found = loader(kind, tmp_path)
    stream = found.shards.read(0, len(found.shards)).tolist()
    plain = Loader(found.shards, CONTEXT, 5)
    same = fewer = 0
    for number in range(3 * found.rows):
        batch, place = found.take(number, 1), int(found.places(number, 1)[0])
        assert place == int(plain.places(number, 1)[0])
        ids = [*batch.rows.ids.tolist(), int(batch.targets[-1])]
        assert batch.targets[:-1].tolist() == ids[1:-1]
        whole = text(found.tokenizer, stream[place:] + stream)
        fragment = next(i for i in range(4) if i == len(whole) or whole[i] & 0xC0 != 0x80)
        said = text(found.tokenizer, ids)
        assert whole[fragment:].startswith(said)
        begins = np.flatnonzero(np.array(ids[:-1]) == found.shards.manifest.boundary)
        assert batch.rows.cuts.tolist() == [0, *(i for i in begins.tolist() if i), CONTEXT]
        assert batch.rows.positions.tolist() == [
            i - max(c for c in batch.rows.cuts.tolist() if c <= i) for i in range(CONTEXT)
        ]
        same += ids == stream[place : place + CONTEXT + 1]
        fewer += len(said) < len(text(found.tokenizer, stream[place : place + CONTEXT + 1]))
    assert same < 0.1 * found.rows
    assert fewer > 2 * found.rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_a_function_of_its_place(kind: str, tmp_path: Path) -> None:
    first = loader(kind, tmp_path / "a")
    whole = first.take(0, 2 * first.rows)
    again = loader(kind, tmp_path / "b")
    for number in (first.rows + 1, 3, 0):  # by seeking, in any order
        row = slice(number * CONTEXT, (number + 1) * CONTEXT)
        found = again.take(number, 1)
        assert torch.equal(found.rows.ids, whole.rows.ids[row])
        assert torch.equal(found.targets, whole.targets[row])
    assert whole.rows.shape == (2 * first.rows, CONTEXT)
    assert whole.rows.cuts[-1] == len(whole.rows.ids)
    other = loader(kind, tmp_path / "c", seed=6).take(0, 2 * first.rows)
    assert not torch.equal(other.rows.ids, whole.rows.ids)


def test_the_same_place_is_cut_otherwise_in_another_epoch(tmp_path: Path) -> None:
    found = loader("bpe", tmp_path)
    rows = {tuple(found._row(30, number)[0].tolist()) for number in range(8)}
    assert len(rows) > 6


def test_without_noise_to_speak_of_rows_are_what_the_tokenizer_says(tmp_path: Path) -> None:
    """A drop of next to nothing gives the plain ids of the text; the stream goes on at its beginning."""
    found, words = made("bpe", tmp_path)
    loader = Resegmented(found, words, 200, 1, DropoutConfig(drop=1e-15))
    stream = found.read(0, len(found))
    start = int(found.offsets[-3])
    ids, starts = loader._row(start, 0)
    assert ids.tolist() == np.concatenate([stream[start:], stream])[:201].tolist()
    wanted = [int(x) - start for x in found.offsets[:-1] if x > start]
    wanted += [len(found) - start + int(x) for x in found.offsets[:-1]]
    assert starts.tolist() == [x for x in wanted if x < 200]
    first = int(found.offsets[1])  # the next document begins at the row's last target
    ids, starts = Resegmented(found, words, first, 1, DropoutConfig(drop=1e-15))._row(0, 0)
    assert (ids[-1], starts.tolist()) == (found.manifest.boundary, [])


def test_a_tokenizer_that_cannot_is_refused() -> None:
    found = {"bpe": tokenizer("bpe"), "bytepiece": tokenizer("bytepiece"), "characters": characters.train(documents())}
    for name, words in found.items():
        stochastic.check(None, words)
        for config in KINDS.values():
            if config == KINDS.get(name):
                stochastic.check(config, words)
            else:
                with pytest.raises(ConfigError, match=f"kind '{name}'.*{config.kind}"):
                    stochastic.check(config, words)


def test_resumed_run_is_uninterrupted_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e11)
    prepared: Prepared = prepared_in(tmp_path_factory.mktemp("prepared"))
    batch = {"tokens": 128, "context": 32, "segmentation": {"kind": "dropout", "drop": 0.1}}
    config = read(RunConfig, recipe("grouped", batch=batch))
    runs.start(config, tmp_path / "whole", prepared)
    asked = At(7, lambda _run: os.kill(os.getpid(), signal.SIGTERM))
    runs.start(config, tmp_path / "cut", prepared, [asked])
    runs.start(config, tmp_path / "cut", prepared, resuming="auto")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)
    plain = read(RunConfig, recipe("grouped"))
    runs.start(plain, tmp_path / "plain", prepared)
    assert lines(tmp_path / "plain")[0]["loss"] != lines(tmp_path / "whole")[0]["loss"]
    sampled = {**batch, "segmentation": {"kind": "sampled"}}
    with pytest.raises(ConfigError, match="segmentation"):
        runs.start(read(RunConfig, recipe("grouped", batch=sampled)), tmp_path / "refused", prepared)
    assert not (tmp_path / "refused").exists()
