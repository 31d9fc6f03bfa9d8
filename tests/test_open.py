"""Opening: every path of ours gives the model back, bit for bit, and every other path an error that says
why."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from temaki.base import config as config_door
from temaki.base.errors import CheckpointError, TemakiError
from temaki.base.rows import rows
from temaki.checkpoint import native
from temaki.checkpoint.store import Facts, Store
from temaki.formats import open as door
from temaki.model import build
from temaki.model import config as m
from temaki.tokens import bpe, bpe_train
from temaki.tokens import files as tokenizer_files

ATTENTION = m.BlockConfig(mixer=m.AttentionConfig(heads=4, kv_heads=2, qk_norm=True))
PLAIN = m.BlockConfig(mixer=m.AttentionConfig(heads=2, position=m.NoPositionConfig()), ffn=m.SwigluConfig(width=24))
SPACE = m.BlockConfig(mixer=m.S4DConfig(states=4))
MODELS = {
    "tied": m.DecoderConfig(vocabulary=300, width=16, depth=2, pattern=(ATTENTION,), init="cs336"),
    "untied": m.DecoderConfig(vocabulary=300, width=16, depth=1, pattern=(PLAIN,), tied=False, init="cs336"),
    "space": m.DecoderConfig(vocabulary=300, width=16, depth=2, pattern=(SPACE,), init="cs336"),
    "hybrid": m.DecoderConfig(vocabulary=300, width=16, depth=4, pattern=(ATTENTION, SPACE), tied=False, init="cs336"),
}
PIECES = [[1, 2, 3, 250, 7], [9], [299, 0, 299]]


def arrays_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What a training run hands to the store: every parameter once."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.head.logits(model(rows(PIECES)))


def settings(config: m.ModelConfig) -> dict[str, Any]:
    return {"name": "small", "seed": 3, "model": config_door.mapping(config)}


def facts(step: int, tokenizer: str = "") -> Facts:
    return Facts(step=step, tokens=1, healthy=True, position=0, tokenizer=tokenizer, shards="s")


@pytest.fixture(scope="module")
def tokenizer() -> bpe.Bpe:
    return bpe_train.train(["the tokenizer travels with the model, the model travels with the tokenizer"], 262)


@pytest.fixture
def run(tmp_path: Path, tokenizer: bpe.Bpe) -> Path:
    """A run folder with checkpoints of steps 10 and 20; the seed of each model is its step."""
    folder = tmp_path / "run"
    tokenizer_files.save(tokenizer, folder / "tokenizer")
    place = Store(folder / "checkpoints")
    config = MODELS["tied"]
    text = config_door.toml(settings(config))
    for step in (10, 20):
        weights = arrays_of(build.build(config, step))
        moments = {f"{name}/m": array for name, array in weights.items()}
        place.save(facts(step, tokenizer.fingerprint), text, weights, moments, folder / "tokenizer")
    return folder


# ---- the model comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_gives_the_same_logits_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path):
    config = MODELS[name]
    model = build.build(config, 7, dtype)
    native.write(tmp_path / "m", settings(config), arrays_of(model), None)
    found = door.open(tmp_path / "m")
    assert found.config == config
    again = found.model()
    assert next(again.parameters()).dtype == dtype
    assert torch.equal(logits(again), logits(model))
    for (first, old), (second, new) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert first == second
        assert torch.equal(old, new)
        assert new.requires_grad


@pytest.mark.parametrize("name", list(MODELS))
def test_every_trained_tensor_is_in_the_file_once(name: str, tmp_path: Path):
    model = build.build(MODELS[name], 7)
    native.write(tmp_path / "m", settings(MODELS[name]), arrays_of(model), None)
    found = door.open(tmp_path / "m").weights()
    assert set(found) == {parameter for parameter, _ in model.named_parameters()}
    assert sum(weight.array().size for weight in found.values()) == sum(p.numel() for p in model.parameters())


def test_a_tied_head_is_tied_again_and_the_file_is_not_changed_by_training(tmp_path: Path):
    native.write(tmp_path / "m", settings(MODELS["tied"]), arrays_of(build.build(MODELS["tied"], 1)), None)
    before = (tmp_path / "m" / native.WEIGHTS).read_bytes()
    model = door.open(tmp_path / "m").model()
    assert model.head.weight is model.embedding
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "m" / native.WEIGHTS).read_bytes() == before
    assert not torch.equal(logits(door.open(tmp_path / "m").model()), logits(model))


def test_another_dtype_on_request(tmp_path: Path):
    model = build.build(MODELS["tied"], 1)
    native.write(tmp_path / "m", settings(MODELS["tied"]), arrays_of(model), None)
    wide = door.open(tmp_path / "m").model(torch.float64)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    assert torch.equal(wide.embedding.float(), model.embedding)


def test_a_run_a_checkpoint_and_a_model_folder(run: Path, tokenizer: bpe.Bpe, tmp_path: Path):
    newest = door.open(run)
    assert (newest.folder, newest.step, newest.warnings) == (run / "checkpoints" / "step-00000020", 20, ())
    assert newest.settings == settings(MODELS["tied"])
    older = door.open(run / "checkpoints" / "step-00000010")
    assert older.step == 10
    for opened in (newest, older):
        assert torch.equal(logits(opened.model()), logits(build.build(MODELS["tied"], opened.step or 0)))
    arrays = {name: weight.array() for name, weight in newest.weights().items()}
    native.write(tmp_path / "bare", newest.settings, arrays, older.folder / "tokenizer", newest.step)
    bare = door.open(str(tmp_path / "bare"))
    assert bare.step == 20
    assert torch.equal(logits(bare.model()), logits(newest.model()))
    text = "the model travels"
    for opened in (newest, older, bare):
        assert opened.tokenizer is not None
        assert opened.tokenizer is opened.tokenizer
        assert opened.tokenizer.fingerprint == tokenizer.fingerprint
        assert opened.tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_a_model_without_tokenizer_and_step(tmp_path: Path):
    native.write(tmp_path / "m", settings(MODELS["tied"]), arrays_of(build.build(MODELS["tied"])), None)
    found = door.open(tmp_path / "m")
    assert found.tokenizer is None
    assert found.step is None


# ---- damage ------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "config.toml", "tokenizer/vocabulary.json"]
)
def test_a_run_falls_back_to_the_previous_whole_checkpoint_and_says_so(name: str, run: Path):
    flip(run / "checkpoints" / "step-00000020" / name)
    found = door.open(run)
    assert found.step == 10
    assert len(found.warnings) == 1
    assert f"step-00000020/{name}" in found.warnings[0].replace("\\", "/")
    flip(run / "checkpoints" / "step-00000010" / name)
    with pytest.raises(CheckpointError, match="without a whole checkpoint") as error:
        door.open(run)
    assert "step-00000010" in str(error.value)


def test_files_are_checked_when_they_are_asked_for(run: Path):
    folder = run / "checkpoints" / "step-00000020"
    flip(folder / "model.safetensors")
    flip(folder / "tokenizer" / "vocabulary.txt")
    found = door.open(folder)
    assert found.step == 20
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        found.weights()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        found.model()
    with pytest.raises(CheckpointError, match=r"vocabulary\.txt is damaged"):
        _ = found.tokenizer
    flip(folder / "config.toml")
    with pytest.raises(CheckpointError, match=r"config\.toml is damaged"):
        door.open(folder)


def test_another_tokenizer_than_the_manifest_says_is_refused(run: Path, tokenizer: bpe.Bpe):
    weights = arrays_of(build.build(MODELS["tied"]))
    text = config_door.toml(settings(MODELS["tied"]))
    Store(run / "checkpoints").save(facts(30, "0" * 64), text, weights, None, run / "tokenizer")
    with pytest.raises(CheckpointError, match="not the tokenizer") as error:
        _ = door.open(run).tokenizer
    assert tokenizer.fingerprint in str(error.value)


def write(folder: Path, weights: dict[str, np.ndarray], config: m.ModelConfig = MODELS["tied"]) -> None:
    native.write(folder, settings(config), weights, None)


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    whole = arrays_of(build.build(MODELS["tied"]))
    less = {name: array for name, array in whole.items() if not name.startswith("blocks.1.")}
    write(tmp_path / "less", less)
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.\S+, blocks\.1\.\S+, blocks\.1\.\S+, \.\."):
        door.open(tmp_path / "less").model()
    write(tmp_path / "more", {**whole, "extra": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"; 1 unexpected: extra$"):
        door.open(tmp_path / "more").model()
    write(tmp_path / "turned", {**whole, "embedding": whole["embedding"].T})
    with pytest.raises(CheckpointError, match=r"1 of another shape: embedding \(16, 300\), wanted \(300, 16\)"):
        door.open(tmp_path / "turned").model()
    renamed = {("head.weight" if name == "embedding" else name): array for name, array in whole.items()}
    write(tmp_path / "renamed", renamed)
    with pytest.raises(CheckpointError, match=r"1 missing: embedding; 1 unexpected: head\.weight"):
        door.open(tmp_path / "renamed").model()


@pytest.mark.parametrize(
    "config",
    [
        m.DecoderConfig(vocabulary=10**12, width=16, depth=2, pattern=(ATTENTION,), init="cs336"),
        m.DecoderConfig(vocabulary=300, width=16 * 10**6, depth=2, pattern=(ATTENTION,), init="cs336"),
        m.DecoderConfig(vocabulary=300, width=16, depth=10**9, pattern=(ATTENTION,)),
        m.DecoderConfig(
            vocabulary=300, width=16, depth=1, pattern=(m.BlockConfig(mixer=m.S4DConfig(states=2 * 10**12)),)
        ),
    ],
)
def test_a_giant_configuration_is_refused_before_memory_is_taken(config: m.ModelConfig, tmp_path: Path):
    write(tmp_path / "m", arrays_of(build.build(MODELS["tied"])), config)
    with pytest.raises(CheckpointError, match="far larger than its"):
        door.open(tmp_path / "m").model()


def test_a_configuration_that_is_none_is_named(tmp_path: Path):
    native.write(tmp_path / "a", {"model": {"vocabulary": 3}}, {}, None)
    with pytest.raises(CheckpointError, match=r"config\.toml \[model\].*\n.*width: missing"):
        door.open(tmp_path / "a")
    native.write_folder(tmp_path / "b", "model = 3\n", {native.WEIGHTS: {}}, None, {})
    with pytest.raises(CheckpointError, match=r"config\.toml has no \[model\] table"):
        door.open(tmp_path / "b")
    native.write_folder(tmp_path / "c", "model = ", {native.WEIGHTS: {}}, None, {})
    with pytest.raises(CheckpointError, match=r"config\.toml is not TOML"):
        door.open(tmp_path / "c")


def spots(table: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a nested mapping, tables and values alike."""
    for key in table if isinstance(table, dict) else range(len(table)):
        yield table, key
        if isinstance(table[key], dict | list):
            yield from spots(table[key])


def test_how_a_model_wants_to_be_asked_is_in_its_configuration_and_odd_ways_are_refused(tmp_path: Path):
    weights = arrays_of(build.build(MODELS["tied"]))
    said = {"front": [1], "stop": [2, 3], "temperature": 0.5, "top_k": 40}
    native.write(tmp_path / "good", {**settings(MODELS["tied"]), "generation": said}, weights, None)
    assert config_door.mapping(door.open(tmp_path / "good").speaking) == said
    for number, odd in enumerate(
        (3, [], "x", {"front": [-1]}, {"stop": ["a"]}, {"stop": 2}, {"top_p": 2.0}, {"top_k": 0}, {"start": [1]})
    ):
        native.write(tmp_path / str(number), {**settings(MODELS["tied"]), "generation": odd}, weights, None)
        with pytest.raises(CheckpointError, match=r"config\.toml.*generation"):
            door.open(tmp_path / str(number))


def test_odd_values_under_a_good_seal_are_errors_of_ours(tmp_path: Path):
    """Configurations changed at random before they are sealed: an error of ours or a model that fits."""
    weights = arrays_of(build.build(MODELS["hybrid"]))
    odd = [0, -1, 1, 2, 3, 10**20, 0.5, True, "", "s4d", "rope", [], {}, {"kind": "none"}]
    refused = 0
    for number in range(200):
        rng = random.Random(f"odd:{number}")
        found = json.loads(json.dumps(settings(MODELS["hybrid"])))
        table, key = rng.choice(list(spots(found["model"])))
        table[key] = rng.choice(odd)
        folder = tmp_path / str(number)
        native.write(folder, found, weights, None)
        try:
            model = door.open(folder).model()
            assert {name for name, _ in model.named_parameters()} == set(weights)
        except TemakiError as error:
            kind, message = type(error), str(error)
        else:
            continue
        assert kind is CheckpointError
        assert str(folder) in message
        refused += 1
    assert 100 < refused < 195


# ---- what is not ours --------------------------------------------------------------------------------------


def test_a_path_that_is_nothing_lists_what_is_accepted(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("hello")
    for name, found in (
        ("none", "no such"),
        ("empty", "an empty folder"),
        ("text", "a file that begins with b'hello'"),
        ("folder", "notes.txt"),
    ):
        with pytest.raises(CheckpointError) as error:
            door.open(tmp_path / name)
        assert found in str(error.value)
        assert f"allowed: {door.ACCEPTED}" in str(error.value)
        assert name in str(error.value)


def test_a_run_without_a_save_and_a_half_written_folder_say_so(tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="nothing was saved yet"):
        door.open(tmp_path / "run")
    write(tmp_path / "m", {})
    (tmp_path / "m" / native.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json, which is written last, is not there"):
        door.open(tmp_path / "m")


def test_opening_loads_no_torch_and_weights_do_not_either(fresh, run: Path):
    code = f"""
import sys
import temaki.formats.open as door
print("torch" in sys.modules, "numba" in sys.modules)
found = door.open({str(run)!r})
print(found.config.width, len(found.weights()), found.tokenizer.size, found.step)
print("torch" in sys.modules)
found.model()
print("torch" in sys.modules)
"""
    assert fresh(code).split() == [
        "False",
        "False",
        "16",
        str(len(door.open(run).weights())),
        "262",
        "20",
        "False",
        "True",
    ]
