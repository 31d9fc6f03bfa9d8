"""Checkpoints: whole or absent, bit for bit, whatever kills the writer or bites the file."""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from temaki.base import config as config_door
from temaki.base.errors import CheckpointError, ConfigError, TemakiError
from temaki.checkpoint import arrays, native, resume, store
from temaki.checkpoint.store import Facts, Manifest, Store

CONFIG = 'name = "small"\n\n[model]\nwidth = 8\nlabel = "ü"\n'
MACHINE = {
    "torch": "2.13.0",
    "device": "cpu",
    "threads": 2,
    "ranks": 1,
    "dtype": "float32",
    "compiled": False,
}


def facts(step: int, healthy: bool = True, **more: Any) -> Facts:
    given = {"tokens": 10 * step, "position": 3 * step, "tokenizer": "t", "shards": "s", "machine": MACHINE}
    return Facts(step=step, healthy=healthy, **{**given, **more})


def tensors(step: int, size: int = 50) -> dict[str, np.ndarray]:
    return {
        "w": np.full((size, 3), step, np.float32),
        "v": np.arange(step, step + 7),
        "one": np.array(step / 7),
    }


def moments(step: int, size: int = 50) -> dict[str, np.ndarray]:
    return {"w/m": np.full((size, 3), -step, np.float32), "w/v": np.full(3, step, np.float64)}


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocabulary.json").write_bytes(b'{"format": 1}')
    (folder / "vocabulary.txt").write_bytes("ü\r\n".encode())
    (folder / ".vocabulary.json.abc.part").write_bytes(b"left by a dead process")
    return folder


def save(place: Store, step: int, tokenizer: Path | None = None, score: float | None = None, **more: Any) -> Path:
    return place.save(facts(step, **more), CONFIG, tensors(step), moments(step), tokenizer, score)


def same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in wanted.items()
    )


# ---- arrays ------------------------------------------------------------------------------------------------

KINDS = [np.dtype(kind) for kind in arrays.DTYPES.values()]
MANY = st.dictionaries(
    st.text(min_size=1, max_size=9).filter(lambda name: name != "__metadata__" and max(name) < "\ud800"),
    st.sampled_from(KINDS).flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
    max_size=5,
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(many=MANY)
def test_arrays_come_back_bit_for_bit_and_the_library_reads_the_same(many: dict[str, np.ndarray], tmp_path_factory):
    path = tmp_path_factory.mktemp("a") / "x.safetensors"
    arrays.write(path, many)
    assert same(arrays.read(path), many)
    assert same(safetensors.numpy.load_file(path), many)
    assert path.stat().st_size == 8 + int.from_bytes(path.read_bytes()[:8], "little") + sum(
        array.nbytes for array in many.values()
    )


@settings(max_examples=50, derandomize=True, deadline=None)
@given(many=MANY)
def test_arrays_written_by_the_library_are_read(many: dict[str, np.ndarray], tmp_path_factory):
    path = tmp_path_factory.mktemp("a") / "x.safetensors"
    safetensors.numpy.save_file(many, path, metadata={"note": "theirs"})
    assert same(arrays.read(path), many)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x[:, ::2],
        lambda x: x.transpose(1, 0)[1:],
        lambda x: np.broadcast_to(x[0], (5, 6)),
        lambda x: x.astype(">f4"),
    ],
)
def test_arrays_that_do_not_lie_in_order_are_saved_as_they_read(view, tmp_path: Path):
    x = view(np.arange(24, dtype=np.float32).reshape(4, 6))
    arrays.write(tmp_path / "x.safetensors", {"x": x})
    found = arrays.read(tmp_path / "x.safetensors")["x"]
    assert found.dtype == np.float32
    assert np.array_equal(found, x)


def test_reading_is_mapped_writable_and_never_written_back(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    arrays.write(path, {"x": np.arange(5.0)})
    before = path.read_bytes()
    found = arrays.read(path)["x"]
    base = found
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    found += 1
    assert path.read_bytes() == before
    assert np.array_equal(arrays.read(path)["x"], np.arange(5.0))


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None]), np.array([1j]), np.zeros(2, "datetime64[s]")])
def test_types_without_a_name_are_refused(array: np.ndarray, tmp_path: Path):
    with pytest.raises(CheckpointError, match="x has a type that cannot be saved"):
        arrays.write(tmp_path / "x.safetensors", {"x": array})


def header(found: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(found).encode() if not isinstance(found, bytes) else found
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no whole"),
        (b"\x00" * 7, "no whole"),
        (b"\xff" * 8, "no whole"),
        (header({}, length=1 << 62), "no whole"),
        (header(b"not json"), "no whole"),
        (header(b"[" * 100_000), "no whole"),
        (header({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "no whole"),
        (header({"x": {"dtype": "F32", "shape": [1 << 62, 4, 16], "data_offsets": [0, 0]}}), "no whole"),
        (header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "no whole"),
        (header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"), "no whole"),
        (header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"), "no whole"),
        (header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"), "no whole"),
        (header({"x": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "no whole"),
        (header({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "found: BF16"),
    ],
)
def test_malformed_array_files_are_named(content: bytes, what: str, tmp_path: Path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as error:
        arrays.read(path)
    assert str(path) in str(error.value)


def test_missing_array_files_are_named(tmp_path: Path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            arrays.read(path)


# ---- a save and its opening --------------------------------------------------------------------------------


def test_save_and_open_give_back_everything(tmp_path: Path, vocabulary: Path):
    place = Store(tmp_path / "run" / "checkpoints")
    hooks = {"noise": {"scale": 0.1 + 0.2, "tiny": 5e-324}, "spike": {}}
    folder = place.save(facts(7, hooks=hooks), CONFIG, tensors(7), moments(7), vocabulary, 1.5)
    assert folder == tmp_path / "run" / "checkpoints" / "step-00000007"
    found = place.newest()
    assert found.damaged == ()
    checkpoint = found.checkpoint
    assert checkpoint is not None
    assert same(checkpoint.weights(), tensors(7))
    moved = checkpoint.optimizer()
    assert moved is not None
    assert same(moved, moments(7))
    assert checkpoint.settings() == {"name": "small", "model": {"width": 8, "label": "ü"}}
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.tokens, manifest.position, manifest.healthy) == (7, 70, 21, True)
    assert (manifest.tokenizer, manifest.shards, manifest.score) == ("t", "s", 1.5)
    assert manifest.hooks == {**hooks, "store": {"score": 1.5}}
    assert manifest.machine == MACHINE
    assert manifest.machine["compiled"] is False
    assert (folder / native.CONFIG).read_text(encoding="utf-8") == CONFIG
    copied = folder / native.TOKENIZER
    assert sorted(path.name for path in copied.iterdir()) == ["vocabulary.json", "vocabulary.txt"]
    assert all((copied / name).read_bytes() == (vocabulary / name).read_bytes() for name in os.listdir(copied))
    assert checkpoint.folder.tokenizer() == copied
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-00000007"]
    assert set(manifest.files) == {
        "config.toml", "model.safetensors", "optimizer.safetensors", "tokenizer/vocabulary.json",
        "tokenizer/vocabulary.txt",
    }  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_every_saved_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path, vocabulary: Path):
    before = os.umask(0o022)
    try:
        folder = save(Store(tmp_path / "c"), 1, vocabulary)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}


def test_without_optimizer_and_tokenizer(tmp_path: Path):
    place = Store(tmp_path)
    place.save(facts(1), CONFIG, tensors(1))
    checkpoint = place.open(1)
    assert checkpoint.optimizer() is None
    assert checkpoint.folder.tokenizer() is None
    assert checkpoint.manifest.score is None


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    numbers=st.dictionaries(st.text(max_size=5), st.floats() | st.integers(0, 2**50), max_size=4),
    step=st.integers(0, 10**10),
    tokens=st.integers(0, 10**18),
)
def test_a_hooks_numbers_come_back_bit_for_bit(numbers: dict[str, float], step: int, tokens: int, tmp_path_factory):
    place = Store(tmp_path_factory.mktemp("c"))
    place.save(facts(step, tokens=tokens, hooks={"mine": numbers}), CONFIG, {})
    manifest = place.open(step).manifest
    assert (manifest.step, manifest.tokens) == (step, tokens)
    found = manifest.hooks["mine"]
    assert found.keys() == numbers.keys()
    for name, number in numbers.items():
        assert found[name] == number or (math.isnan(number) and math.isnan(found[name]))
        assert math.copysign(1, found[name]) == math.copysign(1, number) or math.isnan(number)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": -1},
        {"tokens": 1.5},
        {"hooks": {"a": {"b": "text"}}},
        {"machine": {"a": None}},
        {"shards": 3},
    ],
)
def test_facts_that_could_not_be_read_again_are_not_saved(wrong: dict[str, Any], tmp_path: Path):
    place = Store(tmp_path)
    save(place, 1)
    with pytest.raises(CheckpointError, match="step-00000002"):
        save(place, 2, **wrong)
    assert place.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_score_that_is_not_finite_counts_as_none_and_an_old_one_is_not_inherited(tmp_path: Path):
    place = Store(tmp_path, keep_last=4)
    save(place, 1, score=math.nan)
    save(place, 2, score=math.inf)
    save(place, 3, score=0.5)
    save(place, 4, hooks=place.open(3).manifest.hooks)
    assert [place.open(step).manifest.score for step in (1, 2, 3, 4)] == [None, None, 0.5, None]


class Writer:
    """One of two processes, here threads, that write a checkpoint together."""

    size = 2

    def __init__(self, rank: int, barrier: threading.Barrier):
        self.rank, self.barrier = rank, barrier

    def wait(self) -> None:
        self.barrier.wait(20)


def written_by_two(place: Path, step: int, fails: int | None = None) -> list[Exception]:
    """Each writes what the other does not; the one that `fails` finds a disk that is full."""
    barrier, errors = threading.Barrier(2), []
    own = [
        ({"w": tensors(step)["w"]}, {}),
        ({name: tensors(step)[name] for name in ("v", "one")}, moments(step)),
    ]

    def write(rank: int) -> None:
        weights, optimizer = own[rank]
        if rank == fails:
            barrier.wait()
            errors.append(OSError("gone"))
            barrier.abort()
            return
        try:
            Store(place).save(facts(step), CONFIG, weights, optimizer, among=Writer(rank, barrier))
        except threading.BrokenBarrierError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_two_writers_make_one_checkpoint(tmp_path: Path) -> None:
    assert written_by_two(tmp_path, 3) == []
    checkpoint = Store(tmp_path).open(3)
    assert same(checkpoint.weights(), tensors(3))
    assert same(checkpoint.optimizer() or {}, moments(3))
    assert sorted(path.name for path in checkpoint.folder.path.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors",
    ]  # fmt: skip
    for name in ("model-00002-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"):
        path = checkpoint.folder.path / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=name):
            Store(tmp_path).open(3)
        path.write_bytes(content)


def test_a_writer_that_goes_leaves_what_was_there(tmp_path: Path) -> None:
    assert written_by_two(tmp_path, 3) == []
    assert len(written_by_two(tmp_path, 5, fails=1)) == 2
    assert Store(tmp_path).steps() == [3]
    assert same(Store(tmp_path).open(3).weights(), tensors(3))
    assert written_by_two(tmp_path, 5) == []
    assert Store(tmp_path).steps() == [3, 5]


def test_files_of_different_numbers_of_writers_are_none(tmp_path: Path) -> None:
    names = [native.numbered("model.safetensors", rank, size) for rank, size in ((0, 2), (1, 2))]
    assert native._files("model.safetensors", dict.fromkeys(names)) == names
    assert native._files("model.safetensors", dict.fromkeys(names[:1])) == []
    assert native._files("model.safetensors", dict.fromkeys([*names, "model-00001-of-00001.safetensors"])) == []


def test_the_folder_of_a_step_that_is_not_there(tmp_path: Path):
    place = Store(tmp_path / "none")
    assert place.steps() == []
    assert place.newest() == store.Newest(None, ())
    with pytest.raises(CheckpointError, match="holds no step 3"):
        place.open(3)


# ---- replacing and recovering ------------------------------------------------------------------------------


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    place = Store(tmp_path)
    save(place, 5)
    place.save(facts(5, tokens=999), CONFIG, tensors(6))
    assert place.open(5).manifest.tokens == 999
    assert same(place.open(5).weights(), tensors(6))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_replacing_that_fails_at_any_rename_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Store(tmp_path)
    save(place, 5)
    real = os.replace
    for fail_at in (1, 2):
        calls = []

        def failing(source: Any, target: Any, fail_at: int = fail_at, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == fail_at:
                raise OSError(errno.EIO, "no luck")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.raises(CheckpointError, match="no luck"):
                place.save(facts(5, tokens=999), CONFIG, tensors(6))
        assert place.open(5).manifest.tokens == 50
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path):
    place = Store(tmp_path)
    save(place, 5)
    (tmp_path / "step-00000005").rename(tmp_path / ".step-00000005.old")
    assert place.steps() == [5]
    newest = place.newest().checkpoint
    assert newest is not None
    assert same(newest.weights(), tensors(5))
    save(place, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    assert same(place.open(5).weights(), tensors(5))


def test_what_dead_saves_left_is_removed_and_nothing_else(tmp_path: Path):
    place = Store(tmp_path)
    save(place, 1)
    for name in (".step-00000002.part", ".step-00000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.part").mkdir()
    (tmp_path / ".mine.part").write_text("kept")
    assert place.steps() == [1]
    save(place, 3)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step-00000001", "step-00000003", "notes.part", ".mine.part"}


def test_names_that_are_no_steps_are_not_steps(tmp_path: Path):
    place = Store(tmp_path)
    folder = save(place, 1)
    for name in ("step-1", "step-000000002", "step-0000000x", "step-00000003.bak", "step-0000000٣"):
        (tmp_path / name).mkdir()
    assert place.steps() == [1]
    folder.rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="holds step 1"):
        place.open(9)


# ---- retention ---------------------------------------------------------------------------------------------


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    saves=st.lists(
        st.tuples(st.integers(1, 3), st.booleans(), st.none() | st.sampled_from([0.5, 1.0, 1.5, math.nan])),
        max_size=12,
    ),
    last=st.integers(1, 3),
)
def test_retention(saves: list[tuple[int, bool, float | None]], last: int, tmp_path_factory):
    """After each save: the last K, the best so far, the last healthy one, and nothing that none of the
    three names."""
    place = Store(tmp_path_factory.mktemp("c"), last)
    step = 0
    past: list[tuple[int, bool, float | None]] = []
    alive: set[int] = set()
    for gap, healthy, score in saves:
        step += gap
        place.save(facts(step, healthy), CONFIG, {}, score=score)
        past.append((step, healthy, None if score is None or math.isnan(score) else score))
        alive.add(step)
        now = set(place.steps())
        named = [s for s, _, _ in past][-last:]
        well = [s for s, fine, _ in past if fine][-1:]
        scored = [(value, -s) for s, _, value in past if value is not None]
        best = [-min(scored)[1]] if scored else []
        assert now == {*named, *well, *best}
        assert now <= alive
        alive = now


def test_a_folder_that_cannot_be_read_is_neither_counted_nor_removed(tmp_path: Path):
    place = Store(tmp_path, keep_last=2)
    for step in (1, 2):
        save(place, step)
    (tmp_path / "step-00000002" / "manifest.json").write_text("{}")
    for step in (3, 4, 5):
        save(place, step)
    assert place.steps() == [2, 4, 5]


# ---- damage ------------------------------------------------------------------------------------------------

FILES = [
    "config.toml", "model.safetensors", "optimizer.safetensors", "tokenizer/vocabulary.json",
    "tokenizer/vocabulary.txt", "manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "cut", "gone", "folder"])
def test_the_newest_whole_one_is_found_and_the_damaged_file_named(
    name: str, how: str, tmp_path: Path, vocabulary: Path
):
    place = Store(tmp_path / "c", keep_last=3)
    for step in (1, 2, 3):
        save(place, step, vocabulary)
    for step in (2, 3):
        path = tmp_path / "c" / f"step-{step:08d}" / name
        content = path.read_bytes()
        path.unlink()
        if how == "flip":
            path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        elif how == "cut":
            path.write_bytes(content[:-1])
        elif how == "folder":
            path.mkdir()
    found = place.newest()
    if (name, how) == ("manifest.json", "cut"):  # only the last line's end is missing
        assert found.checkpoint is not None
        assert found.checkpoint.manifest.step == 3
        return
    assert found.checkpoint is not None
    assert found.checkpoint.manifest.step == 1
    assert same(found.checkpoint.weights(), tensors(1))
    assert len(found.damaged) == 2
    for step, message in zip((3, 2), found.damaged, strict=True):
        assert f"step-{step:08d}" in message
        assert name in message


def mutant(content: bytes, rng: random.Random) -> bytes | None:
    """A damaged copy; None: the file is gone."""
    place = rng.randrange(len(content) + 1)
    span = rng.choice([1, 2, 8, 100])
    match rng.randrange(20):
        case 0:
            return None
        case 1 | 2 | 3:
            return content[:place]
        case 4 | 5:
            return content[:place] + rng.randbytes(span) + content[place:]
        case 6 | 7:
            return content[:place] + content[place + span :]
        case 8:
            return content[:place] + bytes(span) + content[place + span :]
        case 9:
            return content[:place] + content[place : place + span] * 2 + content[place + span :]
        case 10:
            return content[:place] + bytes(rng.choices(b'0123456789eE+-.,:"[]{}tfn \n', k=span)) + content[place:]
        case _:
            damaged = bytearray(content)
            for _ in range(rng.choice([1, 1, 1, 2, 10])):
                at = rng.randrange(len(damaged))
                damaged[at] ^= 1 << rng.randrange(8)
            return bytes(damaged)


def damage_in_the_folder(name: str, count: int, tmp_path: Path) -> int:
    """Every mutant of a file in a checkpoint is an error of ours that names the file, or the right result."""
    folder = Store(tmp_path).save(facts(3), CONFIG, tensors(3, 4), moments(3, 4), score=0.25)
    path = folder / name
    content = path.read_bytes()
    wanted = store.open(folder)
    refused = 0
    for number in range(count):
        changed = mutant(content, random.Random(f"{name}:{number}"))
        path.unlink(missing_ok=True)
        if changed is not None:
            path.write_bytes(changed)
        try:
            found = store.open(folder)
            assert found.manifest == wanted.manifest, number
            assert found.settings() == {"name": "small", "model": {"width": 8, "label": "ü"}}, number
            assert same(found.weights(), tensors(3, 4)), number
        except CheckpointError as error:
            message = str(error)
        else:
            continue
        assert str(path) in message, (number, message)
        refused += 1
    return refused


def well_formed(path: Path, content: bytes) -> bool:
    """Whether a parser alone, without checksums, takes these bytes; it must not do anything but take or
    refuse them."""
    path.write_bytes(content)
    try:
        if path.suffix == ".toml":
            config_door.toml(config_door.read_toml(path))
        else:
            found = arrays.read(path)
            assert sum(array.nbytes for array in found.values()) <= len(content)
            for array in found.values():
                array.tobytes()
    except (CheckpointError, ConfigError) as error:
        message = str(error)
    else:
        return True
    assert str(path) in message
    return False


def damage_to_the_parser(name: str, count: int, tmp_path: Path) -> int:
    arrays.write(tmp_path / "model.safetensors", tensors(3, 1))
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    content = (tmp_path / name).read_bytes()
    changed = [mutant(content, random.Random(f"parser:{name}:{number}")) for number in range(count)]
    return sum(not well_formed(tmp_path / name, some) for some in changed if some is not None)


def damage_under_the_seal(count: int, tmp_path: Path) -> int:
    """A manifest that says something odd and seals it well: an error of ours that names it, or a
    checkpoint."""
    folder = Store(tmp_path).save(facts(3), CONFIG, tensors(3, 4), score=0.25)
    path = folder / native.MANIFEST
    content = path.read_text(encoding="utf-8")
    odd = [
        None,
        True,
        -1,
        1,
        10**30,
        1.5,
        math.nan,
        math.inf,
        "",
        "../x",
        "x" * 9,
        [],
        [1],
        {},
        {"a": 1},
        "\ud800",
        "\0",
    ]
    refused = 0
    for number in range(count):
        rng = random.Random(f"seal:{number}")
        said = json.loads(content)
        del said["seal"]
        spots = list(_spots(said))
        table, key = spots[rng.randrange(len(spots))]
        match rng.randrange(4):
            case 0:
                del table[key]
            case 1:
                table[rng.choice(["more", "", "../../out", "/etc/hosts", "c:\\x", "manifest.json", "\0"])] = table.pop(
                    key
                )
            case _:
                table[key] = rng.choice(odd)
        said["seal"] = native._seal(said)
        path.write_text(json.dumps(said), encoding="utf-8")
        try:
            found = store.open(folder)
            assert same(found.weights(), tensors(3, 4))
        except CheckpointError as error:
            message = str(error)
        else:
            continue
        assert str(folder) in message, (number, message)
        refused += 1
    return refused


def _spots(table: Any):
    for key in table:
        yield table, key
        if isinstance(table[key], dict):
            yield from _spots(table[key])


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "config.toml"])
def test_a_thousand_damaged_files_in_a_checkpoint(name: str, tmp_path: Path):
    refused = damage_in_the_folder(name, 1000, tmp_path)
    assert refused > 900


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml"])
def test_a_thousand_damaged_files_before_the_parser_alone(name: str, tmp_path: Path):
    refused = damage_to_the_parser(name, 1000, tmp_path)
    assert 100 < refused < 1000


def test_a_thousand_manifests_that_seal_nonsense(tmp_path: Path):
    refused = damage_under_the_seal(1000, tmp_path)
    assert 500 < refused < 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "config.toml"])
def test_a_hundred_thousand_damaged_files(name: str, tmp_path: Path):
    (tmp_path / "c").mkdir()
    (tmp_path / "p").mkdir()
    assert damage_in_the_folder(name, 100_000, tmp_path / "c") > 90_000
    if name == "manifest.json":
        assert damage_under_the_seal(100_000, tmp_path / "p") > 50_000
    else:
        assert damage_to_the_parser(name, 100_000, tmp_path / "p") > 10_000


@pytest.mark.parametrize("name", ["../out", "/etc/hosts", "a/../../b", "c:\\x", "manifest.json"])
def test_a_manifest_cannot_point_outside_its_folder(name: str, tmp_path: Path):
    folder = save(Store(tmp_path), 1)
    path = folder / native.MANIFEST
    said = json.loads(path.read_text(encoding="utf-8"))
    del said["seal"]
    said["files"][name] = said["files"]["config.toml"]
    path.write_text(json.dumps({**said, "seal": native._seal(said)}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="outside its folder"):
        store.open(folder)


def test_another_format_is_told_from_damage(tmp_path: Path):
    folder = save(Store(tmp_path), 1)
    path = folder / native.MANIFEST
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, "format": 2}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="another format"):
        store.open(folder)


# ---- a full disk -------------------------------------------------------------------------------------------


class Limited:
    """A file on a disk with so much room left."""

    def __init__(self, file: Any, room: list[int]):
        self.file, self.room = file, room

    def __enter__(self) -> "Limited":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> None:
        size = memoryview(content).nbytes
        self.file.write(memoryview(content).cast("B")[: min(size, self.room[0])] if size else b"")
        self.room[0] -= size
        if self.room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def limit(patch: pytest.MonkeyPatch, room: int) -> list[int]:
    real, left = Path.open, [room]
    patch.setattr(Path, "open", lambda path, mode="r", *more, **rest: (
        Limited(real(path, mode, *more, **rest), left) if "x" in mode else real(path, mode, *more, **rest)
    ))  # fmt: skip
    return left


def test_a_disk_that_fills_up_at_any_byte_damages_nothing(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
):
    place = Store(tmp_path / "c")
    save(place, 1, vocabulary)
    save(place, 2, vocabulary)
    with monkeypatch.context() as patch:
        left = limit(patch, 10**9)
        save(Store(tmp_path / "measure"), 3, vocabulary)
        total = 10**9 - left[0]
    before = {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()}
    for room in [0, 1, 100, *range(137, total, total // 40), total - 2, total - 1]:
        with monkeypatch.context() as patch:
            limit(patch, room)
            with pytest.raises(CheckpointError, match="No space left") as error:
                save(place, 3, vocabulary)
        needed = sum(array.nbytes for array in [*tensors(3).values(), *moments(3).values()])
        assert f"about {needed} bytes are needed" in str(error.value)
        assert "bytes free" in str(error.value)
        assert {path: path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()} == before
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000001", "step-00000002"]
    with monkeypatch.context() as patch:
        limit(patch, total)
        save(place, 3, vocabulary)
    newest = place.newest()
    assert newest.checkpoint is not None
    assert newest.checkpoint.manifest.step == 3


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from temaki.base.errors import CheckpointError
from temaki.checkpoint.store import Facts, Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
place = Store(Path(sys.argv[1]))
def save(step):
    facts = Facts(step=step, tokens=1, healthy=True, position=1, tokenizer="t", shards="s")
    place.save(facts, "[model]\\n", {"w": np.full(100_000, step, np.float32)})
save(1)
for room in (0, 10, 4_000, 399_999):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        save(2)
        print("saved")
    except CheckpointError as error:
        print("about 400000 bytes are needed" in str(error), place.steps(), len(list(place.folder.iterdir())))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save(2)
print(place.newest().checkpoint.manifest.step, float(place.newest().checkpoint.weights()["w"].sum()))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_real_limit_of_the_system(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["True [1] 1"] * 4 + ["2 200000.0"], done.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path):
    place = Store(tmp_path / "c")
    save(place, 1)
    (tmp_path / "c").chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save(place, 2)
    finally:
        (tmp_path / "c").chmod(0o700)
    assert place.steps() == [1]


# ---- SIGKILL -----------------------------------------------------------------------------------------------

SAVER = """
import random, sys
from pathlib import Path
import numpy as np
from temaki.checkpoint.store import Facts, Store
place = Store(Path(sys.argv[1]) / "checkpoints")
rng = random.Random(sys.argv[2])
step = max(place.steps(), default=0)
while True:
    step += rng.choice([0, 1, 1])
    size = rng.choice([1, 300, 20_000])
    well = rng.random() < 0.5
    facts = Facts(step=step, tokens=10 * step, healthy=well, position=size, tokenizer="t", shards="s")
    weights = {"w": np.full(size, step, np.float32), "v": np.full(3, step)}
    moments = {"w/m": np.full(size, -step, np.float64)}
    score = rng.choice([None, rng.random()])
    place.save(facts, f"step = {step}\\n[model]\\n", weights, moments, Path(sys.argv[1]) / "tokenizer", score)
    print(step, flush=True)
"""


def kill_and_look(count: int, folder: Path) -> None:
    """Kill a loop of saves at random moments; what was reported saved is there, and nothing visible is
    damaged."""
    rng = random.Random(5)
    place = Store(folder / "checkpoints")
    for number in range(count):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder), str(number)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        said = child.stdout.readline()
        time.sleep(rng.uniform(0.005, 0.06))
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read()
        child.stdout.close()
        child.wait()
        reported = [int(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]
        assert reported, "the child died before its first save"
        found = place.newest()
        assert found.damaged == ()
        assert found.checkpoint is not None
        step = found.checkpoint.manifest.step
        assert step >= reported[-1]
        assert found.checkpoint.manifest.tokens == 10 * step
        assert found.checkpoint.settings()["step"] == step
        weights, moved = found.checkpoint.weights(), found.checkpoint.optimizer()
        assert moved is not None
        assert weights["w"].shape == moved["w/m"].shape == (found.checkpoint.manifest.position,)
        assert (weights["w"] == step).all()
        assert (weights["v"] == step).all()
        assert (moved["w/m"] == -step).all()
        assert found.checkpoint.folder.tokenizer() is not None
        for older in place.steps():
            assert place.open(older).manifest.step == older


def test_ten_kills_of_the_store(tmp_path: Path, vocabulary: Path):
    kill_and_look(10, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_kills_of_the_store(tmp_path: Path, vocabulary: Path):
    kill_and_look(1000, tmp_path)


# ---- a bare model folder -----------------------------------------------------------------------------------


def test_a_model_folder_comes_back_and_is_never_overwritten(tmp_path: Path, vocabulary: Path):
    folder = tmp_path / "models" / "small"
    native.write(folder, {"model": {"width": 8}, "note": "ü"}, tensors(4), vocabulary, step=4)
    found = native.read(folder)
    found.verify()
    assert same(found.weights(), tensors(4))
    assert found.settings() == {"model": {"width": 8}, "note": "ü"}
    assert found.optimizer() is None
    assert found.contents.step == 4
    assert found.tokenizer() == folder / "tokenizer"
    with pytest.raises(CheckpointError, match="exists; nothing was written"):
        native.write(folder, {"model": {}}, {}, None)
    assert same(native.read(folder).weights(), tensors(4))
    with pytest.raises(CheckpointError, match=r"\[model\]"):
        native.write(tmp_path / "other", {"width": 8}, {}, None)
    assert not (tmp_path / "other").exists()


def test_a_model_folder_is_no_checkpoint_and_a_checkpoint_is_a_model_folder(tmp_path: Path):
    native.write(tmp_path / "bare", {"model": {}}, tensors(1), None)
    with pytest.raises(CheckpointError, match="missing"):
        store.open(tmp_path / "bare")
    assert native.read(save(Store(tmp_path / "c"), 6)).contents.step == 6


def test_an_empty_tokenizer_folder_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        native.write(tmp_path / "m", {"model": {}}, {}, tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="could not be written"):
        native.write(tmp_path / "m", {"model": {}}, {}, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer"]


def test_a_file_is_checked_before_it_is_used_and_not_earlier(tmp_path: Path):
    folder = save(Store(tmp_path), 1)
    path = folder / native.WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = native.read(folder)
    assert found.settings()["name"] == "small"
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        found.weights()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        found.verify()


# ---- resume ------------------------------------------------------------------------------------------------

OLD = {"name": "small", "model": {"width": 8, "label": "ü"}}


def test_resume_finds_nothing_the_newest_or_says_why_not(tmp_path: Path):
    assert resume.auto(tmp_path, OLD, MACHINE, "t", "s") is None
    place = Store(tmp_path / "checkpoints")
    save(place, 1)
    save(place, 2)
    found = resume.auto(tmp_path, OLD, MACHINE, "t", "s")
    assert found is not None
    assert found.checkpoint.manifest.step == 2
    assert (found.damaged, found.machine, found.recipe, found.warnings) == ((), (), (), ())
    (tmp_path / "checkpoints" / "step-00000002" / "config.toml").unlink()
    found = resume.auto(tmp_path, OLD, MACHINE, "t", "s")
    assert found is not None
    assert found.checkpoint.manifest.step == 1
    assert "config.toml" in found.warnings[0]
    (tmp_path / "checkpoints" / "step-00000001" / "config.toml").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole") as error:
        resume.auto(tmp_path, OLD, MACHINE, "t", "s")
    assert "step-00000001" in str(error.value)
    assert "step-00000002" in str(error.value)


def test_resume_lists_what_changed(tmp_path: Path):
    save(Store(tmp_path / "checkpoints"), 1)
    here = {**MACHINE, "threads": 4, "compiled": True, "processor": "x86_64"}
    recipe = {"name": "small", "model": {"width": 16, "label": "ü"}, "optim": {"lr": 0.1}}
    found = resume.auto(tmp_path, recipe, here, "t", "s")
    assert found is not None
    assert [str(change) for change in found.machine] == [
        "threads: 2 -> 4", "compiled: False -> True", "processor: absent -> 'x86_64'",
    ]  # fmt: skip
    assert [str(change) for change in found.recipe] == ["model.width: 8 -> 16", "optim.lr: absent -> 0.1"]
    assert "threads: 2 -> 4" in found.warnings[0]


@pytest.mark.parametrize(("tokenizer", "shards", "what"), [("x", "s", "tokenizer"), ("t", "x", "shards")])
def test_resume_refuses_another_tokenizer_or_other_shards(tokenizer: str, shards: str, what: str, tmp_path: Path):
    save(Store(tmp_path / "checkpoints"), 1)
    with pytest.raises(CheckpointError, match=f"another {what}") as error:
        resume.auto(tmp_path, OLD, MACHINE, tokenizer, shards)
    assert "fingerprint x" in str(error.value)


LEAF = st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "b"])
TREE = st.dictionaries(
    st.sampled_from("pqr"),
    st.recursive(
        LEAF,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    ),
    max_size=3,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(old=TREE, new=TREE)
def test_changes_are_empty_only_between_equals_and_mirror(old: dict[str, Any], new: dict[str, Any]):
    there = resume.changes(old, new)
    assert (not there) == (json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True))
    back = resume.changes(new, old)
    assert {(change.key, repr(change.old), repr(change.new)) for change in there} == {
        (change.key, repr(change.new), repr(change.old)) for change in back
    }


# ---- what is loaded ----------------------------------------------------------------------------------------


def test_checkpoints_load_no_torch(fresh):
    code = "import sys, temaki.checkpoint.resume; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert fresh(code).split() == ["False", "True"]


def test_every_error_is_ours():
    assert issubclass(CheckpointError, TemakiError)
    assert issubclass(Manifest, Facts)
