"""Tasks: examples against brute force, rows as functions of their place, runs of tasks, pictures and damaged files."""

import gzip
import itertools
import json
import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from little_runs import At, lines, same_checkpoints
from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base import log, rows
from temaki.base.config import read
from temaki.base.errors import ConfigError, DataError
from temaki.base.rows import TokenBatch
from temaki.batches import data as batches
from temaki.batches import tasks, tasks_listops
from temaki.batches.config import BatchConfig, DataConfig
from temaki.batches.tasks_config import SyntheticConfig
from temaki.batches.tasks_data import Exercises
from temaki.batches.tasks_loader import Made, TaskLoader
from temaki.cli.main import app
from temaki.corpus import pixels
from temaki.evaluate import answered
from temaki.model import build
from temaki.study import grid, pipeline, sweep
from temaki.train import run as runs
from temaki.train.config import RunConfig

TABLES: dict[str, dict[str, Any]] = {
    "copy": {"kind": "copy", "letters": 5, "length": 4, "gap": 6},
    "between": {"kind": "copy", "letters": 5, "length": 4, "gap": 6, "blanks": "between"},
    "recall": {"kind": "recall", "keys": 9, "values": 7, "pairs": 4, "queries": 2},
    "delay": {"kind": "delay", "letters": 4, "lag": 9},
    "listops": {"kind": "listops", "depth": 3, "arguments": 4, "longest": 24},
}
CONTEXT = 60


def table(name: str) -> DataConfig:
    return read(DataConfig, {"task": TABLES[name]})


def config(name: str) -> SyntheticConfig:
    found = table(name).task
    assert isinstance(found, SyntheticConfig)
    return found


def loader(name: str, seed: int = 3, purpose: str = "task") -> TaskLoader:
    return TaskLoader(Made(tasks.task(config(name)), seed, purpose), CONTEXT)


def examples(name: str, count: int = 40) -> list[tuple[str, str, list[bool]]]:
    """(what is read, what is to be said, where it is asked) of the pieces of some rows that are asked anything."""
    batch = loader(name).take(0, count)
    words = tasks.tokenizer(tasks.task(config(name)).symbols)
    spell = [each.decode() for each in words.tokens]
    found = []
    for start, stop in itertools.pairwise(batch.rows.cuts.tolist()):
        asked = (batch.weights[start:stop] > 0).tolist()
        ids, targets = (
            "".join(spell[i] if i else "^" for i in each[start:stop].tolist())
            for each in (batch.rows.ids, batch.targets)
        )
        if any(asked):
            found.append((ids, targets, asked))
    return found


def said(targets: str, asked: list[bool]) -> str:
    return "".join(letter for letter, wanted in zip(targets, asked, strict=True) if wanted)


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["copy", "between"])
def test_copy_says_the_letters_again(name: str) -> None:
    behind = 0
    for ids, targets, asked in examples(name):
        start, read, again = re.fullmatch(r"(\^)([a-e.]{10}):([a-e]{3})", ids).groups()  # type: ignore[union-attr]
        assert start
        assert said(targets, asked) == read.replace(".", "")
        assert asked == [False] * 11 + [True] * 4
        assert ids[1:] == targets[:-1]
        assert again == said(targets, asked)[:-1]
        behind += read.endswith("." * 6)
    assert behind == 160 if name == "copy" else behind < 80


def test_recall_says_the_value_that_stood_with_the_key() -> None:
    for ids, targets, asked in examples("recall"):
        pairs, queries = (ids[1:] + targets[-1]).split(":")
        known = dict(re.findall("(.)(.)", pairs))
        assert len(known) == 4
        assert pairs == "".join(map("".join, known.items()))
        wanted = [known[key] for key, _ in re.findall("(.)(.)", queries)]
        assert said(targets, asked) == "".join(wanted)
        assert len(wanted) == 2
        assert [ids[i] in known for i, each in enumerate(asked) if each] == [True, True]
        assert set(known) <= set("abcdefghi")
        assert set(known.values()) <= set("ABCDEFG")


def test_delay_says_what_stood_lag_places_before() -> None:
    for ids, targets, asked in examples("delay"):
        assert len(ids) == CONTEXT
        assert asked == [i >= 9 for i in range(CONTEXT)]
        assert said(targets, asked) == ids[:-9]


def evaluated(text: str) -> int:
    """The value of an expression, by turning it into Python."""
    called = re.sub(r"\[([nxms])", r"\1([", text).replace("]", "])")
    called = re.sub(r"(?<=[\d)])(?=[\dnxms])", ",", re.sub(r"(\d)(?=\d)", r"\1,", called))
    known = {"n": min, "x": max, "m": lambda v: int(np.median(v)), "s": lambda v: sum(v) % 10}
    return eval(called, known)


def test_listops_says_the_value() -> None:
    found = examples("listops")
    depths, operators = set(), set()
    for ids, targets, asked in found:
        text, value = ids[1:-1], said(targets, asked)
        assert ids[0] == "^"
        assert ids[-1] == "="
        assert len(text) <= 24
        assert value == str(evaluated(text))
        inside = np.cumsum([(c == "[") - (c == "]") for c in text])
        depths.add(int(inside.max()))
        operators |= set(text) & set(tasks_listops.OPERATORS)
        arguments = re.findall(r"\[[nxms](\d+)\]", text)
        assert all(2 <= len(each) <= 4 for each in arguments)
    assert depths == {1, 2, 3}
    assert operators == set("nxms")
    assert {said(t, a) for _, t, a in found} == set("0123456789")


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_a_function_of_seed_purpose_and_place(name: str) -> None:
    whole, again = loader(name).take(0, 8), loader(name)
    for place in (5, 0, 7):  # by seeking, in any order
        found, row = again.take(place, 1), slice(place * CONTEXT, (place + 1) * CONTEXT)
        assert torch.equal(found.rows.ids, whole.rows.ids[row])
        assert torch.equal(found.targets, whole.targets[row])
        assert torch.equal(found.weights, whole.weights[row])
    for other in (loader(name, seed=4), loader(name, purpose="held")):
        assert not torch.equal(other.take(0, 8).rows.ids, whole.rows.ids)


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_rectangles_of_whole_examples(name: str) -> None:
    task, batch = tasks.task(config(name)), loader(name).take(3, 5)
    cuts, size = batch.rows.cuts, tasks.FIRST + len(task.symbols)
    assert batch.rows.shape == (5, CONTEXT)
    assert set(range(0, 301, CONTEXT)) <= set(cuts.tolist())
    assert batch.rows.positions.tolist() == [i - int(cuts[cuts <= i].max()) for i in range(300)]
    assert int(batch.targets.min()) >= 0
    assert int(max(batch.targets.max(), batch.rows.ids.max())) == size - 1
    assert set(batch.weights.tolist()) == {0.0, 1.0}
    pieces = [batch.rows.ids[a:b] for a, b in itertools.pairwise(cuts.tolist())]
    left = [len(each) for each in pieces if not each.any()]
    assert (all(each < task.longest for each in left) and all(len(each) <= task.longest for each in pieces)) or (
        name == "delay" and not left
    )
    assert tasks.tokenizer(task.symbols).size == size == batches.size(table(name))


def long(batch: TokenBatch) -> set[tuple[int, ...]]:
    """The examples of more than 12 ids."""
    ids, cuts = batch.rows.ids.tolist(), batch.rows.cuts.tolist()
    pieces = [tuple(ids[start:stop]) for start, stop in itertools.pairwise(cuts)]
    return {each for each in pieces if len(each) > 12 and any(each)}


def test_what_is_held_out_is_not_learned_from() -> None:
    for name in ("recall", "listops"):
        learned, held = loader(name).take(0, 300), loader(name, purpose="held").take(0, 100)
        one, two = long(learned), long(held)
        assert len(two) > 80
        assert len(one & two) < 0.01 * len(two)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kind": "recall", "pairs": 10, "keys": 9}, "pairs .10. are more"),
        ({"kind": "recall", "pairs": 3, "queries": 4}, "queries .4. are more"),
        ({"kind": "delay", "letters": 27}, "letters"),
        ({"kind": "copy", "gap": -1}, "gap"),
        ({"kind": "listops", "longest": 4}, "longest"),
        ({"kind": "sort"}, "sort"),
    ],
)
def test_tasks_out_of_range_are_refused(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read(DataConfig, {"task": changed})


# ---- runs -----------------------------------------------------------------------------------------------------------


def recipe(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Twelve steps of a tiny state space."""
    block = {"mixer": {"kind": "s4d", "states": 4}, "ffn": {"kind": "gelu", "width": 8}}
    found = {
        "name": "test", "seed": 5, "data": {"task": task}, "model": {"width": 8, "depth": 1, "pattern": [block]},
        "batch": {"tokens": 4 * CONTEXT, "context": CONTEXT}, "stop": {"steps": 12}, "save": {"every": 5},
        "optim": {"schedule": {"kind": "wsd", "warmup": 2}}, "parallel": {"threads": 1},
        "watch": {"log": 1, "validate": 6, "validate_tokens": 2 * CONTEXT},
    }  # fmt: skip
    return config_door.merge(found, changes)


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "matmul_peak", lambda *_: 1e11)


@pytest.mark.parametrize("name", ["delay", "listops", "digits"])
def test_resumed_run_is_uninterrupted_to_the_bit(name: str, tmp_path: Path, calm: None) -> None:
    task = TABLES[name] if name != "digits" else drawn(tmp_path / "digits", side=4) | {"levels": 8}
    pipeline.run_recipe(recipe(task), out=tmp_path / "whole")
    asked = At(7, lambda _run: os.kill(os.getpid(), signal.SIGTERM))
    pipeline.run_recipe(recipe(task), out=tmp_path / "cut", hooks=[asked])
    pipeline.run_recipe(recipe(task), out=tmp_path / "cut", resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    same_checkpoints(tmp_path / "cut", tmp_path / "whole", 12)
    judged = [each for each in log.read(tmp_path / "whole" / "metrics.jsonl") if each["kind"] == "validate"]
    assert [each["step"] for each in judged] == [6, 12]
    assert all(each["loss"] > 0 and 0 <= each["accuracy"] <= 1 for each in judged)


def test_accumulated_is_one_batch(tmp_path: Path, calm: None) -> None:
    found = []
    for name, micro in (("one", None), ("four", CONTEXT)):
        changes = {"micro": micro} if micro else {}
        pipeline.run_recipe(recipe(TABLES["recall"], batch=changes, stop={"steps": 4}), out=tmp_path / name)
        found.append([each["loss"] for each in lines(tmp_path / name)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_loss_and_accuracy_are_those_of_each_example_alone(tmp_path: Path) -> None:
    made = pipeline.ready(recipe(TABLES["copy"]), tmp_path)
    assert isinstance(made.data, Exercises)
    model = build.build(made.config.model, 2, torch.float64)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    held = made.data.held(CONTEXT)
    found = answered.judge(model.train(), held, CONTEXT, 7, 3)
    assert model.training
    asked, right, nats = 0, 0, 0.0
    for example in (each for place in range(7) for each in held.row(place, CONTEXT)):
        p = model.head.logits(model(rows.rows([torch.from_numpy(example.ids)]))).softmax(-1).detach()
        for at in np.flatnonzero(example.asked):
            asked, nats = asked + 1, nats - float(p[at, example.targets[at]].log())
            right += int(p[at].argmax()) == example.targets[at]
    assert (found.asked, found.right) == (asked, right)
    assert 0 < right < asked == 4 * 4 * 7
    assert found.losses == pytest.approx(nats, rel=1e-10)
    assert (found.accuracy, found.loss) == (right / asked, pytest.approx(nats / asked, rel=1e-10))


def test_validation_is_by_the_loss_that_is_learned(tmp_path: Path, calm: None) -> None:
    """A rate of nearly nothing: the loss of training rows and of held-out ones is that of one model."""
    objective = {"kind": "next", "loss": {"kind": "sparsemax"}}
    pipeline.run_recipe(recipe(TABLES["copy"], objective=objective, optim={"lr": 1e-9}), out=tmp_path / "run")
    found = list(log.read(tmp_path / "run" / "metrics.jsonl"))
    trained, judged = (np.mean([e["loss"] for e in found if e["kind"] == kind]) for kind in ("step", "validate"))
    assert judged == pytest.approx(trained, rel=0.2)  # softmax's is about four times as much
    told = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "batch.context=8"])
    assert "no room for an example" in str(told.exception)
    told = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--context", "16"])
    assert "--context is for text" in str(told.exception)


def test_a_short_delay_is_learned_and_judged_by_the_commands(tmp_path: Path, calm: None) -> None:
    task = {"kind": "delay", "letters": 2, "lag": 1}
    changes: dict[str, Any] = {"optim": {"lr": 2e-2}, "stop": {"steps": 80}, "batch": {"context": 24, "tokens": 384}}
    block = {
        "mixer": {"kind": "s4d", "states": 8, "step_min": 0.5, "step_max": 0.5},
        "ffn": {"kind": "gelu", "width": 8},
    }
    changes["model"] = {"tied": False, "pattern": [block]}
    pipeline.run_recipe(recipe(task, **changes), out=tmp_path / "run")
    asked = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--json"])
    assert asked.exit_code == 0, asked.output
    result = json.loads(asked.stdout)
    assert result["accuracy"] > 0.95
    assert result["loss"] < 0.3
    assert result["chance"] == 0.5
    assert result["answers"] == 200 * 23
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Accuracy" in page
    assert "of the answers are right" in page
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "run")])
    assert shown.exit_code == 0
    assert "characters, 4 ids" in shown.stdout


def test_a_sweep_shares_the_data_of_a_task(tmp_path: Path, calm: None) -> None:
    found = recipe(TABLES["copy"], stop={"steps": 3})
    points = grid.points(found, [{"seed": 1}, {"seed": 2}])
    swept = sweep.sweep(found, points, tmp_path)
    assert [each.state for each in swept.results] == ["finished", "finished"]
    assert all(each.loss is not None and each.bits_per_byte is None for each in swept.results)
    assert len(list(tmp_path.glob("data-*"))) == 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "sample": ({"watch": {"sample": 3}}, "watch.sample belongs to text"),
    "segmentation": ({"batch": {"segmentation": {"kind": "dropout"}}}, "batch.segmentation belongs to text"),
    "bigrams": ({"begin": {"kind": "bigrams"}}, "bigrams.* belongs to text"),
    "objective": ({"objective": {"kind": "several", "ids": 2}}, "what is asked at which place"),
    "tokenizer": ({"data": {"tokenizer": "there"}}, "data.tokenizer belongs to text"),
    "context": ({"batch": {"context": 14, "tokens": 28}}, "no room for an example"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_belongs_to_text_is_refused_before_any_step(why: str, tmp_path: Path) -> None:
    changes, message = REFUSED[why]
    with pytest.raises((ConfigError, DataError), match=message):
        pipeline.run_recipe(recipe(TABLES["copy"], **changes), out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_task_is_no_text(tmp_path: Path) -> None:
    made = batches.make(table("copy"), tmp_path / "data", pipeline.quiet)
    with pytest.raises(DataError, match="a task has no text"):
        batches.text(made)
    with pytest.raises(DataError, match="holds another task"):
        batches.make(
            read(DataConfig, {"task": TABLES["delay"], "shards": str(tmp_path / "data")}), tmp_path, lambda *_: None
        )
    with pytest.raises(DataError, match="other settings"):
        batches.make(table("delay"), tmp_path / "data", pipeline.quiet)
    again = batches.open_data(tmp_path / "data")
    assert (
        again.fingerprint
        == made.fingerprint
        != batches.make(table("delay"), tmp_path / "d", pipeline.quiet).fingerprint
    )
    asked = CliRunner().invoke(app, ["data", "prepare", "data.task.kind=copy", "--out", str(tmp_path / "x")])
    assert isinstance(asked.exception, ConfigError)
    assert "no text to prepare" in str(asked.exception)


def test_a_task_is_validated_without_training(tmp_path: Path, calm: None) -> None:
    path = tmp_path / "copy.toml"
    path.write_text(config_door.toml(recipe(TABLES["copy"])))
    asked = CliRunner().invoke(app, ["validate", str(path)])
    assert asked.exit_code == 0
    assert "task      copy" in asked.output
    assert "nothing was trained" in asked.output


# ---- pictures -------------------------------------------------------------------------------------------------------


def pictures(count: int, side: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(256, size=(count, side, side), dtype=np.uint8), generator.integers(
        10, size=count, dtype=np.uint8
    )


def idx(array: np.ndarray) -> bytes:
    """An IDX file, as its definition says."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def drawn(folder: Path, count: int = 30, side: int = 4) -> dict[str, Any]:
    """A folder of IDX files for a task, and its table."""
    folder.mkdir()
    for name, number, seed in (("train", count, 0), ("t10k", 7, 1)):
        images, labels = pictures(number, side, seed)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return {"kind": "pixels", "folder": str(folder)}


def test_the_forms_of_a_folder_hold_the_same_pictures(tmp_path: Path) -> None:
    images, _ = pictures(20, 28)
    images[:, 0, 0] = 255
    labels = np.repeat(np.arange(10), 2)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images.idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "idx" / "train-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
    write: dict[str, Callable[[np.ndarray], Any]] = {
        "data": lambda each: {"data": (each / 255).ravel().tolist()},
        "flat": lambda each: each.ravel().tolist(),
        "nested": lambda each: each.reshape(2, -1).tolist(),
        "square": lambda each: {"data": each.tolist(), "more": None},
    }
    for name, form in write.items():
        (tmp_path / name).mkdir()
        for i in range(10):
            (tmp_path / name / f"{i}.json").write_text(json.dumps(form(images[2 * i : 2 * i + 2])))
    for name in ("idx", *write):
        found, apart = pixels.read(tmp_path / name)
        assert apart is None
        assert np.array_equal(found.images, images), name
        assert np.array_equal(found.labels, labels), name


def test_train_and_test_are_apart_and_fixed() -> None:
    whole = pixels.Pictures(np.zeros((50, 1, 1), np.uint8), np.arange(50))
    for train, test, sizes in ((8000, 2000, (40, 10)), (20, 10, (20, 10)), (1, 49, (1, 49))):
        one, two = pixels.split(whole, None, train, test)
        assert (len(one.labels), len(two.labels)) == sizes
        assert len({*one.labels.tolist(), *two.labels.tolist()}) == sum(sizes)
        again = pixels.split(whole, None, train, test)
        assert np.array_equal(again[0].labels, one.labels)
        assert np.array_equal(again[1].labels, two.labels)
    one, two = pixels.split(whole, pixels.Pictures(whole.images[:7], whole.labels[:7] + 100), 30, 5)
    assert len(one.labels) == 30
    assert len(two.labels) == 5
    assert two.labels.min() >= 100
    with pytest.raises(DataError, match="too few"):
        pixels.split(pixels.Pictures(whole.images[:1], whole.labels[:1]), None, 1, 1)


def task_of(folder: Path, made: Path, **changes: Any) -> Exercises:
    found = batches.make(
        read(DataConfig, {"task": {"kind": "pixels", "folder": str(folder), **changes}}), made, pipeline.quiet
    )
    assert isinstance(found, Exercises)
    return found


def test_pictures_are_read_in_order_with_the_label_at_the_end(tmp_path: Path) -> None:
    drawn(tmp_path / "in")
    exercises = task_of(tmp_path / "in", tmp_path / "out", answers=2)
    assert (exercises.longest, exercises.answers, exercises.tokenizer.size) == (16, 10, 2 + 256 + 10)
    assert batches.size(read(DataConfig, {"task": {"kind": "pixels", "folder": "x"}})) == 268
    batch = TaskLoader(exercises.examples(40, 1), 40).take(0, 30)  # two pictures and 8 blanks a row, two epochs
    known = {
        tuple(image.ravel() + 2): label
        for image, label in zip(*(each.astype(int) for each in pictures(30)), strict=True)
    }
    seen = []
    for start, stop in itertools.pairwise(batch.rows.cuts.tolist()):
        ids, asked = tuple(batch.rows.ids[start:stop].tolist()), batch.weights[start:stop].tolist()
        if stop - start == 8:
            assert not any(ids)
            assert not any(asked)
            continue
        assert asked == [0.0] * 14 + [1.0] * 2
        assert batch.targets[start:stop].tolist() == [*ids[:14], *[known[ids] + 258] * 2]
        seen.append(ids)
    assert set(seen[:30]) == set(seen[30:]) == set(known)
    assert seen[:30] != seen[30:]
    held = exercises.held(40)
    assert held.rows == 4
    assert [len(held.row(i, 40)) for i in range(4)] == [2, 2, 2, 1]
    assert all(each.asked.sum() == 1 and each.asked[-1] for i in range(4) for each in held.row(i, 40))
    assert {each.targets[-1] - 258 for i in range(4) for each in held.row(i, 40)} == set(pictures(7, 4, 1)[1].tolist())


def test_pictures_are_shrunk_coarsened_and_permuted(tmp_path: Path) -> None:
    drawn(tmp_path / "in", 12)
    images = pictures(12)[0].astype(float)
    small = {tuple(np.rint(each.reshape(2, 2, 2, 2).mean(axis=(1, 3))).ravel().astype(int) + 2) for each in images}
    found = task_of(tmp_path / "in", tmp_path / "small", side=2)
    assert {tuple(each.ids.tolist()) for i in range(12) for each in found.examples(4, 1).row(i, 4)} == small
    coarse = task_of(tmp_path / "in", tmp_path / "coarse", levels=4)
    plain = {tuple((each // 64 + 2).astype(int).ravel()) for each in images}
    assert {tuple(each.ids.tolist()) for i in range(12) for each in coarse.examples(16, 1).row(i, 16)} == plain
    mixed = task_of(tmp_path / "in", tmp_path / "mixed", levels=4, order="permuted")
    turned = [tuple(each.ids.tolist()) for i in range(12) for each in mixed.examples(16, 1).row(i, 16)]
    same = [tuple(each.ids.tolist()) for i in range(12) for each in coarse.examples(16, 1).row(i, 16)]
    orders = {tuple(np.argsort(np.argsort(x, kind="stable"))) for x in np.array(turned).T} ^ {
        tuple(np.argsort(np.argsort(x, kind="stable"))) for x in np.array(same).T
    }
    assert not orders
    assert turned != same
    with pytest.raises(DataError, match="evenly"):
        task_of(tmp_path / "in", tmp_path / "odd", side=3)


GOOD = idx(pictures(3)[0])
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no IDX file"),
    "magic": (b"\x01" + GOOD[1:], "no IDX file"),
    "type": (GOOD[:2] + b"\x0d" + GOOD[3:], "no IDX file"),
    "dimensions": (GOOD[:3] + b"\x02" + GOOD[4:], "no IDX file"),
    "header": (GOOD[:9], "no IDX file"),
    "truncated": (GOOD[:-1], "47 values"),
    "longer": (GOOD + b"\0", "more values"),
    "lies": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "too large"),
    "none": (struct.pack(">HBBIII", 0, 8, 3, 0, 4, 4), "3 labels"),
    "fewer": (idx(pictures(2)[0]), "2 pictures, 3 labels"),
    "cut gzip": (gzip.compress(GOOD)[:-9], "damaged"),
    "flipped gzip": (gzip.compress(GOOD)[:-8] + b"\0" * 8, "damaged"),
    "torn gzip": (gzip.compress(GOOD)[:20] + b"\xff" * 40, "damaged"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_idx_files_are_refused(how: str, tmp_path: Path) -> None:
    content, why = DAMAGED[how]
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(pictures(3)[1]))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=why):
        pixels.read(tmp_path)


LISTS = {
    "text": ("no", "is not JSON"),
    "deep": ("[" * 100_000, "is not JSON"),
    "words": ('["a"]', "no list of numbers"),
    "nothing": ("{}", "no list of numbers"),
    "null": ("[null, 1]", "no list of numbers"),
    "odd": (json.dumps([0] * 783), "no square pictures"),
    "none": ("[]", "no square pictures"),
    "empty rows": ("[[], []]", "no square pictures"),
    "ragged": (json.dumps([[0] * 784, [0]]), "several lengths"),
    "other size": (json.dumps([[0] * 16]), "several sizes"),
    "negative": (json.dumps([-1] + [0] * 783), "out of range"),
    "too bright": (json.dumps([256] + [0] * 783), "out of range"),
    "not a number": ("[" + "NaN," * 783 + "0]", "out of range"),
}


@pytest.mark.parametrize("how", LISTS)
def test_damaged_lists_are_refused(how: str, tmp_path: Path) -> None:
    content, why = LISTS[how]
    for i in range(10):
        (tmp_path / f"{i}.json").write_text(json.dumps([0] * 784))
    (tmp_path / "4.json").write_text(content)
    with pytest.raises(DataError, match=why):
        pixels.read(tmp_path)


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        pixels.read(tmp_path)
    (tmp_path / "0.json").write_text("[0]")
    with pytest.raises(DataError, match=r"not 1\.json"):
        pixels.read(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD)
    with pytest.raises(DataError, match="without labels"):
        pixels.read(tmp_path)


def test_a_run_on_pictures_does_not_need_the_folder_again(tmp_path: Path, calm: None) -> None:
    task = drawn(tmp_path / "in") | {"levels": 8}
    pipeline.run_recipe(recipe(task, stop={"steps": 3}), out=tmp_path / "run")
    (tmp_path / "in").rename(tmp_path / "gone")
    asked = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--json"])
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["answers"] == 7
    config = config_door.read(RunConfig, config_door.read_toml(tmp_path / "run" / "config.toml"))
    assert runs.check(config, pipeline.data_of(config, tmp_path / "run")) is None
    with pytest.raises(ConfigError, match="no room"):
        changed = config_door.merge(config_door.mapping(config), {"batch": {"context": 15, "tokens": 15}})
        runs.check(read(RunConfig, changed), pipeline.data_of(config, tmp_path / "run"))
    assert BatchConfig(context=15, tokens=15).rows == 1
