"""Runs of several processes: N = one, faults seen by all alike, checkpoints for any number, a process killed."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import variants
from temaki.base import log
from temaki.base.config import mapping, read, toml
from temaki.base.dist import World
from temaki.base.errors import ConfigError
from temaki.checkpoint.store import Store
from temaki.study import pipeline
from temaki.train import parallel
from temaki.train.config import RunConfig
from temaki.train.parallel import Cut

HERE = Path(__file__).parent


ATTEMPTS = itertools.count()


@cache
def meeting() -> dist.TCPStore:
    """Where processes meet. It is held here, as torchrun holds it, at a port that is ours from the first moment."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def start(*arguments: str, processes: int = 2) -> list[subprocess.Popen[str]]:
    """The processes that torchrun would start, without its own minute of messages."""
    around = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting().port), "OMP_NUM_THREADS": "1"}
    around |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "PYTHONPATH": str(HERE)}
    around |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(next(ATTEMPTS))}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**around, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str, str]]:
    """(code, stdout, stderr) of each; none may hang."""
    try:
        said = [each.communicate(timeout=seconds) for each in processes]
    finally:
        for each in processes:
            each.kill()
    return [(each.returncode, out, err) for each, (out, err) in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes did what `two_processes.py` says."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "recipe.toml").write_text(toml(recipe(folder)), encoding="utf-8")
    for code, out, err in ended(start(str(HERE / "two_processes.py"), str(folder))):
        assert code == 0, out + err
    return folder


@pytest.fixture(scope="module")
def both(done: Path) -> list[dict[str, Any]]:
    """What each of the two found."""
    return [json.loads((done / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_as_one(both: list[dict[str, Any]]) -> None:
    assert both[0]["equal"] == both[1]["equal"]
    assert len(both[0]["equal"]) == 10
    for way in both[0]["equal"]:
        assert way["told"] < 1e-10, way
        assert way["weights"] < 1e-9, way
        assert way["said"] < 1e-9, way


def test_noise_is_measured_at_the_size_that_was_summed(both: list[dict[str, Any]]) -> None:
    by_way = {way["way"]: way["noise"] for way in both[0]["equal"]}
    whole, small = by_way["shard"][0], by_way["replicate"][0]
    assert by_way["tensor"] == pytest.approx(by_way["shard"], rel=1e-9)
    assert small == pytest.approx(whole / 2, rel=0.2)  # each replica has half of the first micro-batch
    assert by_way["replicate"][1] > by_way["shard"][1]  # and a smaller batch is noisier


def test_all_processes_see_a_fault_of_one(both: list[dict[str, Any]]) -> None:
    in_one = ["parameter blocks.1.ffn.down, 0 updates"] * 2
    assert both[0]["faults"] == both[1]["faults"] == [*in_one, "the gradient of norm.gain, 0 updates"]
    assert [each["elsewhere"] for each in both] == ["ValueError", "ElsewhereError"]


def test_a_cut_is_undone() -> None:
    whole = torch.randn(12, 6)
    for cut in (Cut(0, (6, 2, 4)), Cut(1, (6,)), Cut(0, (12,))):
        pieces = [cut.take(whole, at, 2) for at in range(2)]
        assert all(piece.numel() * 2 == whole.numel() for piece in pieces)
        assert torch.equal(cut.join(pieces), whole)
    assert torch.equal(Cut(0, (6, 2, 4)).take(whole, 1, 2), whole[[3, 4, 5, 7, 10, 11]])


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small run over text of our own tests."""
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        for path in sorted(HERE.glob("test_m*.py")):
            (text / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    found = {
        "name": "two", "seed": 4, "data": {"text": str(text), "vocabulary": 300},
        "model": {**mapping(variants.config("grouped")), "vocabulary": 300},
        "batch": {"tokens": 256, "micro": 128, "context": 32}, "stop": {"steps": 8}, "save": {"every": 4},
        "optim": {"schedule": {"kind": "wsd", "warmup": 2}, "matrix": {"kind": "muon", "products": "float32"}},
        "watch": {"log": 1, "norms": 2, "validate": 4, "validate_tokens": 2000}, "parallel": {"threads": 1},
    }  # fmt: skip
    return {**found, **changes}


def curve(folder: Path) -> dict[tuple[str, int], float]:
    """The loss of each step and validation."""
    lines = log.read(folder / "metrics.jsonl")
    return {(line["kind"], line["step"]): line["loss"] for line in lines if line["kind"] in ("step", "validate")}


def same_curve(found: Path, wanted: Path) -> None:
    a, b = curve(found), curve(wanted)
    assert list(a) == list(b)
    assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5)


def command(folder: Path, out: str, *more: str) -> list[str]:
    return ["-m", "temaki", "train", str(folder / "recipe.toml"), *more, "--out", str(folder / out)]


def test_the_command_on_two_processes_is_the_command_on_one(done: Path) -> None:
    pipeline.run_recipe(done / "recipe.toml", out=done / "one")
    same_curve(done / "two", done / "one")
    saves = Store(done / "two" / "checkpoints")
    assert {path.name for path in (saves.folder / "step-00000008").glob("*.safetensors")} == {
        f"{what}-0000{i}-of-00002.safetensors" for what in ("model", "optimizer") for i in (1, 2)
    }
    one = Store(done / "one" / "checkpoints").open(8)
    for left, right in (
        (saves.open(8).weights(), one.weights()),
        (saves.open(8).optimizer() or {}, one.optimizer() or {}),
    ):
        assert {name: x.shape for name, x in left.items()} == {name: x.shape for name, x in right.items()}
    lines = [line for line in log.read(done / "two" / "metrics.jsonl") if line["kind"] == "start"]
    assert [line["machine"]["ranks"] for line in lines] == [2]


@pytest.mark.parametrize(
    ("size", "changes", "says"),
    [
        (3, {}, "replicas: 1, 2, 4"),
        (2, {"parallel": {"tensor": 3}}, "does not go with 2 processes"),
        (1, {"parallel": {"tensor": 2}}, "does not go with 1 process"),
        (4, {"parallel": {"tensor": 4}}, "does not divide kv_heads"),
        (3, {"parallel": {"tensor": 3}}, "does not divide heads"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path: Path, size: int, changes: dict[str, Any], says: str) -> None:
    config = read(RunConfig, recipe(tmp_path, **changes))
    with pytest.raises(ConfigError, match=says):
        parallel.check(config, World(size=size))


def test_gpus_train_as_one_process(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs here: NCCL was not tried")
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path)), encoding="utf-8")
    pipeline.run_recipe(tmp_path / "recipe.toml", 'parallel.device="cuda"', out=tmp_path / "one")
    for more in ('parallel.data="shard"', "parallel.tensor=2"):
        out = more.partition(".")[2].partition("=")[0]
        for code, _, err in ended(start(*command(tmp_path, out, 'parallel.device="cuda"', more))):
            assert code == 0, err
        a, b = curve(tmp_path / out), curve(tmp_path / "one")
        assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-3)


# ---- slow: four processes, the real torchrun, faults, the other switches ---------------------------------------------


@pytest.mark.slow
def test_four_processes_share_rows_and_heads(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path)), encoding="utf-8")
    for code, out, err in ended(start(str(HERE / "two_processes.py"), str(tmp_path), processes=4)):
        assert code == 0, out + err
    found = [json.loads((tmp_path / f"{rank}.json").read_text())["equal"] for rank in range(4)]
    assert all(each == found[0] for each in found)
    assert len(found[0]) == 4
    for way in found[0]:
        assert max(way["told"], way["weights"], way["said"]) < 1e-9, way
    pipeline.run_recipe(tmp_path / "recipe.toml", out=tmp_path / "one")
    same_curve(tmp_path / "two", tmp_path / "one")


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    first = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    first += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    around = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *first, *arguments], env=around, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_one(parent: int, run: Path, which: int) -> None:
    """SIGKILL for one of a torchrun's processes, once the run has saved something."""
    for _ in range(400):
        if list((run / "checkpoints").glob("step-*")):
            break
        time.sleep(0.3)
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    os.kill(int(children[which]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(("which", "data"), [(0, "replicate"), (1, "shard")])
def test_a_killed_process_ends_the_run_with_one_message(tmp_path: Path, which: int, data: str) -> None:
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path, stop={"steps": 10**6})), encoding="utf-8")
    running = torchrun(*command(tmp_path, "run", f'parallel.data="{data}"'))
    kill_one(running.pid, tmp_path / "run", which)
    began = time.monotonic()
    [(code, _, err)] = ended([running])
    assert code != 0
    assert time.monotonic() - began < 60
    assert err.count("error: ") == 1
    assert f"error: process {1 - which} of 2 lost another one" in err
    newest = Store(tmp_path / "run" / "checkpoints").newest()
    assert newest.checkpoint is not None
    assert not newest.damaged


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_an_elastic_run_goes_on_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path, stop={"steps": 200})), encoding="utf-8")
    elastic = ("--max-restarts", "3", "--nnodes", "1:2")
    running = torchrun(*elastic, *command(tmp_path, "run", "--resume", "auto"))
    kill_one(running.pid, tmp_path / "run", 1)
    [(code, out, err)] = ended([running])
    assert code == 0, err
    assert "finished, 200 steps" in out
    kinds = [line["kind"] for line in log.read(tmp_path / "run" / "metrics.jsonl")]
    assert kinds.count("resume") == 1
    steps = [line["step"] for line in log.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "step"]
    assert steps == list(range(1, 201))


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path, save={"every": 2, "keep": 8})), encoding="utf-8")
    pipeline.run_recipe(tmp_path / "recipe.toml", out=tmp_path / "one")
    ways = ['parallel.data="shard"', "alone", "parallel.tensor=2", 'parallel.data="replicate"']
    for i, way in enumerate(ways):
        again = ["--resume", "auto"] if i else []
        changes = ["parallel.tensor=1", *([] if way == "alone" else [way])]
        processes = start(*command(tmp_path, "run", *changes, *again), processes=1 if way == "alone" else 2)
        for code, _, err in ended(processes):
            assert code == 0, err
        same_curve(tmp_path / "run", tmp_path / "one")
        saves = Store(tmp_path / "run" / "checkpoints")
        for step in [step for step in saves.steps() if step > 2 * (i + 1)]:
            saves.drop_after(2 * (i + 1))
            assert step not in saves.steps()


@pytest.mark.slow
@pytest.mark.parametrize("data", ["replicate", "shard"])
def test_as_many_processes_go_on_to_the_bit(tmp_path: Path, data: str) -> None:
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path, parallel={"data": data})), encoding="utf-8")
    for code, _, err in ended(start(*command(tmp_path, "whole"))):
        assert code == 0, err
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    Store(tmp_path / "cut" / "checkpoints").drop_after(4)
    for code, _, err in ended(start(*command(tmp_path, "cut", "--resume", "auto"))):
        assert code == 0, err
    one, two = (Store(tmp_path / name / "checkpoints").open(8) for name in ("whole", "cut"))
    for left, right in ((one.weights(), two.weights()), (one.optimizer() or {}, two.optimizer() or {})):
        assert left
        assert all(np.array_equal(left[name], right[name]) for name in left)
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["parallel.compile=true", "parallel.checkpoint_activations=true"],
        ["parallel.compile=true", 'parallel.data="shard"'],
        ["parallel.compile=true", "parallel.tensor=2"],
        ["optim.average.decay=0.9", 'parallel.data="shard"', "watch.sample=4"],
    ],
    ids=["replicate", "shard", "tensor", "average"],
)
def test_switches_go_together(tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "recipe.toml").write_text(toml(recipe(tmp_path)), encoding="utf-8")
    same = [each for each in more if not each.startswith("parallel")]
    pipeline.run_recipe(tmp_path / "recipe.toml", *same, out=tmp_path / "one")
    for code, _, err in ended(start(*command(tmp_path, "two", *more)), 500):
        assert code == 0, err
    same_curve(tmp_path / "two", tmp_path / "one")
