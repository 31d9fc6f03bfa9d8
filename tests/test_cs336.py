"""The model of CS336's assignment: written by its own names, it opens here and computes what its hand-out says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray

from temaki.base.errors import FormatError
from temaki.base.rows import rows
from temaki.checkpoint import arrays
from temaki.formats import cs336
from temaki.formats import open as door
from temaki.model.config import AttentionConfig, BlockConfig, DecoderConfig, RopeConfig

SETTINGS = {
    "vocab_size": 23,
    "context_length": 32,
    "d_model": 24,
    "num_layers": 2,
    "num_heads": 3,
    "d_ff": 64,
    "rope_theta": 100.0,
}


def state(seed: int = 0) -> dict[str, ndarray]:
    """Random weights by the assignment's keys."""
    draw = np.random.default_rng(seed)
    v, d, f = SETTINGS["vocab_size"], SETTINGS["d_model"], SETTINGS["d_ff"]
    shapes: dict[str, tuple[Any, ...]] = {"token_embeddings.weight": (v, d), "ln_final.weight": (d,)}
    shapes["lm_head.weight"] = (v, d)
    for i in range(2):
        shapes |= {f"layers.{i}.attn.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "output")}
        shapes |= {f"layers.{i}.ln{n}.weight": (d,) for n in (1, 2)}
        shapes |= {f"layers.{i}.ffn.w{n}.weight": (f, d) if n != 2 else (d, f) for n in (1, 2, 3)}
    return {name: draw.normal(size=shape) * 0.4 for name, shape in shapes.items()}


def rms(x: ndarray, gain: ndarray) -> ndarray:
    return x * gain / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def turned(x: ndarray, theta: float) -> ndarray:
    """[T, K]: pairs (2t, 2t + 1) turned by position * theta^(-2t/K), as complex numbers."""
    t, k = x.shape
    angles = np.arange(t)[:, None] * theta ** (-np.arange(0, k, 2) / k)
    pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], -1).reshape(t, k)


def logits(w: dict[str, ndarray], ids: ndarray) -> ndarray:
    """The hand-out's forward, a head at a time, in float64."""
    x = w["token_embeddings.weight"][ids]
    for i in range(2):
        at = f"layers.{i}."
        h = rms(x, w[f"{at}ln1.weight"])
        q, k, v = (h @ w[f"{at}attn.{name}_proj.weight"].T for name in "qkv")
        heads = []
        for rows_of in np.split(np.arange(24), 3):
            scores = turned(q[:, rows_of], 100.0) @ turned(k[:, rows_of], 100.0).T / np.sqrt(8)
            scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, rows_of])
        x = x + np.concatenate(heads, -1) @ w[f"{at}attn.output_proj.weight"].T
        h = rms(x, w[f"{at}ln2.weight"])
        gate = h @ w[f"{at}ffn.w1.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[f"{at}ffn.w3.weight"].T)) @ w[f"{at}ffn.w2.weight"].T
    return rms(x, w["ln_final.weight"]) @ w["lm_head.weight"].T


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "it"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(SETTINGS))
    arrays.write(place / "model.safetensors", state())
    return place


def test_it_opens_and_computes_what_the_hand_out_says(folder: Path) -> None:
    opened = door.open(folder)
    assert opened.format == "cs336"
    assert opened.context == 32
    model = opened.model()
    ids = np.random.default_rng(1).integers(23, size=20)
    with torch.no_grad():
        found = model.head.logits(model(rows([torch.from_numpy(ids)]))).numpy()
    wanted = logits(state(), ids)
    assert np.abs(found - wanted).max() < 1e-10 * np.abs(wanted).max()


def test_it_goes_out_and_in_again_by_the_same_names(folder: Path, tmp_path: Path) -> None:
    opened = cs336.open(folder)
    cs336.write(opened, tmp_path / "out")
    found = arrays.read(tmp_path / "out" / "model.safetensors")
    for name, array in state().items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32), err_msg=name)
    assert cs336.open(tmp_path / "out").config == opened.config
    with pytest.raises(FormatError, match="exists"):
        cs336.write(opened, tmp_path / "out")


def test_pairs_of_halves_leave_in_its_order() -> None:
    mixer = AttentionConfig(heads=3, position=RopeConfig(theta=100.0))
    config = DecoderConfig(vocabulary=23, width=24, depth=2, pattern=(BlockConfig(mixer=mixer),), tied=False)
    qkv = next(entry for entry in cs336.entries(config) if entry.ours == "blocks.0.mixer.qkv")
    rows_of = np.arange(24 * 24).reshape(24, 24)
    assert qkv.sources[0].change.ours(rows_of)[:8, 0].tolist() == rows_of[[0, 2, 4, 6, 1, 3, 5, 7], 0].tolist()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"d_model": 25}, "multiple of heads"),
        ({"num_layers": 0}, "num_layers"),
        ({"d_ff": "64"}, "d_ff"),
        ({"mystery": 1}, "mystery"),
        ({"rope_theta": float("inf")}, "rope_theta"),
    ],
)
def test_what_is_not_understood_is_refused(folder: Path, changes: dict[str, Any], says: str) -> None:
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    with pytest.raises(FormatError, match=says):
        cs336.open(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    for changes in ({"num_layers": 4096}, {"num_layers": 3}, {"d_ff": 65}, {"vocab_size": 1 << 31}):
        (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
        with pytest.raises(FormatError, match=r"far larger|not those of its configuration"):
            cs336.open(folder).weights()


def test_other_shapes_are_refused_on_the_way_out(folder: Path, tmp_path: Path) -> None:
    block = BlockConfig(mixer=AttentionConfig(heads=3, kv_heads=1))
    config = DecoderConfig(vocabulary=23, width=24, depth=2, pattern=(block,), tied=True, context=32)
    opened = cs336.open(folder)
    with pytest.raises(FormatError, match="not a model of CS336's shape") as caught:
        cs336.write(type(opened)(**{**vars(opened), "config": config}), tmp_path / "out")
    assert "kv_heads" in caught.value.found
