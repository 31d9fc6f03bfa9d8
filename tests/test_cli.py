"""The command line as a user meets it: real processes, wrong words, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from temaki.base.log import read as metric_lines
from temaki.cli import main

WORDS = [
    "rice",
    "roll",
    "salmon",
    "cucumber",
    "seaweed",
    "hand",
    "knife",
    "board",
    "vinegar",
    "plate",
    "ginger",
    "tea",
    "bowl",
]
SMALL = [
    "data.vocabulary=300", "batch.tokens=128", "batch.context=32", "stop.steps=12", "save.every=4", "model.width=16",
    "model.depth=1", 'model.pattern=[{ mixer = { kind = "attention", heads = 2 } }]', "watch.validate=6",
    "optim.schedule.warmup=2", "parallel.threads=1", "watch.log=1",
]  # fmt: skip
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"


def temaki(*words: str, where: Path, code: int = 0, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "temaki", *words],
        cwd=where,
        capture_output=True,
        timeout=300,
        check=False,
        input=data,
    )
    text = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert text.returncode == code, text.stdout + text.stderr
    assert "Traceback" not in text.stderr
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text in several languages and one finished run."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "notes").mkdir()
    for i in range(24):
        lines = [" ".join(WORDS[(i * 7 + j * k) % len(WORDS)] for k in range(1, 9)) for j in range(1, 25)]
        (folder / "notes" / f"{i:02d}.md").write_text("\n".join(lines) + "\nПривет 你好 \U0001f363\n", encoding="utf-8")
    (folder / "notes" / "picture.png").write_bytes(b"\x89PNG\x00\xff\xfe")
    temaki("train", str(RECIPE), "--text", "notes", "--out", "runs/one", *SMALL, where=folder)
    return folder


def test_the_whole_path_by_single_verbs(place: Path) -> None:
    out = temaki("tokenizer", "train", "--text", "notes", "--vocabulary", "290", "--out", "tok", "--json", where=place)
    assert json.loads(out.stdout)["size"] == 290
    out = temaki("data", "prepare", "--text", "notes", "--tokenizer", "tok", "--out", "shards", "--json", where=place)
    found = json.loads(out.stdout)
    assert found["vocabulary"] == 290
    assert found["train"]["documents"] + found["held"]["documents"] == 24
    assert "skipped 1" in out.stderr
    out = temaki("train", str(RECIPE), *SMALL, "data.shards=shards", "--out", "runs/two", "--json", where=place)
    assert json.loads(out.stdout)["reason"] == "finished"
    assert "model.vocabulary" not in out.stderr
    assert "vocabulary = 290" in out.stderr
    out = temaki("evaluate", "runs/two", "--json", where=place)
    scores = json.loads(out.stdout)
    assert 0 < scores["zstd"] < 8
    assert 0 < scores["ppmd"] < 8
    assert 0 < scores["bits_per_byte"] < 12
    assert scores["bytes"] == found["held"]["bytes"]
    out = temaki("generate", "runs/two", "--prompt", "rice ", "--max-tokens", "5", "--json", where=place)
    assert json.loads(out.stdout)["done"] in ("length", "stop")
    out = temaki("report", "runs/two", where=place)
    page = (place / out.stdout.strip()).read_text(encoding="utf-8")
    assert "<html" in page
    out = temaki("report", "runs/one", "runs/two", where=place)
    assert (place / "comparison.html").exists()
    out = temaki("runs", "--json", where=place)
    assert next((run["name"], run["state"]) for run in json.loads(out.stdout)["runs"]) == ("one", "finished")
    assert "temaki generate" in temaki("runs", where=place).stdout


def test_the_demo_does_it_all_and_goes_on_where_it_was_stopped(place: Path) -> None:
    small = [word for word in SMALL if not word.startswith("stop.")]
    words = ["demo", "--text", "notes", "--minutes", "0.03", "--out", "runs/demo"]
    out = temaki(*words, *small, where=place)
    for said in ("GFLOP/s", "fixes: depth"):
        assert said in out.stderr
    for said in ("bits per byte  this model", "zstd", "PPMd", "(from nothing)", "temaki generate runs/demo"):
        assert said in out.stdout
    found = json.loads((place / "runs" / "demo" / "results.json").read_text(encoding="utf-8"))
    assert len(found["samples"]) == 3
    assert "<html" in (place / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    again = temaki(*words, "--resume", "auto", where=place)
    assert "--text is ignored" in again.stderr
    assert f"{found['bits_per_byte']:.4f} bits per byte  this model" in again.stdout


def test_text_that_the_terminal_cannot_show_is_no_error(place: Path) -> None:
    words = [sys.executable, "-m", "temaki", "generate", "runs/one", "--prompt", "飯", "--max-tokens", "2"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(words, cwd=place, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").startswith("飯")


def test_generation_is_seeded_streams_and_reads_standard_input(place: Path) -> None:
    def text(*words: str, data: bytes | None = None) -> str:
        return temaki("generate", "runs/one", "--max-tokens", "12", *words, where=place, data=data).stdout

    assert text("--seed", "3") == text("--seed", "3")
    assert text("--temperature", "0", "--prompt", "tea").startswith("tea")
    assert text("--file", "-", "--seed", "1", data="茶".encode()).startswith("茶")
    two = text("--prompt", "tea", "--prompt", "rice roll", "--json", "--temperature", "0").splitlines()
    one = text("--prompt", "tea", "--json", "--temperature", "0").splitlines()
    assert json.loads(two[0]) == json.loads(one[0])


def test_validate_trains_nothing(place: Path) -> None:
    before = sorted(place.rglob("*"))
    out = temaki("validate", str(RECIPE), "--text", "notes", *SMALL, where=place).stdout
    assert re.search(r"steps\s+12 \(1,536 ids\)", out)
    assert "nothing was trained" in out
    found = json.loads(temaki("validate", str(RECIPE), "--text", "notes", *SMALL, "--json", where=place).stdout)
    assert found["steps"] == 12
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("dial", [["--minutes", "2"], ["--depth", "3"]])
def test_one_dial_fixes_the_rest_and_says_so(dial: list[str], place: Path) -> None:
    out = temaki("validate", str(RECIPE), "--text", "notes", *dial, where=place)
    assert "GFLOP/s" in out.stderr
    assert re.search(r"fixes: depth \d+, width \d+, .*lr .*steps", out.stderr)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", "missing.toml"], 2, ["no such file", "missing.toml", "recipes/"]),
        (["train", "RECIPE", "model.dept=3"], 2, ["model.dept", "did you mean 'depth'"]),
        (["train", "RECIPE", "optim.lr=fast"], 2, ["optim.lr", "fast"]),
        (["train", "RECIPE", "optim.lr=-1"], 2, ["optim.lr", "greater than 0"]),
        (["train", "RECIPE", "model.pattern.0.mixer.heads=5"], 2, ["width (192)", "heads (5)"]),
        (["train", "RECIPE", "model.pattern.0.mixer.kind=mamba9"], 2, ["kind", "mamba9", "attention"]),
        (["train", "RECIPE", "batch.tokens=100"], 2, ["batch.tokens (100)", "batch.context"]),
        (["train", "RECIPE", "stop.steps=5"], 2, ["warmup"]),
        (["train", "RECIPE", "depth"], 2, ["KEY=VALUE"]),
        (["train", "RECIPE", "--minutes", "1", "--depth", "2"], 2, ["two dials"]),
        (["train", "RECIPE", "--text", "nowhere"], 1, ["nowhere"]),
        (["train", "RECIPE", "--out", "runs/one"], 1, ["holds a run already", "--resume auto"]),
        (["train", "RECIPE", "--resume", "maybe"], 2, ["--resume", "never, auto"]),
        (["train", "RECIPE", "--text", "empty.txt"], 1, ["empty"]),
        (["train", "RECIPE", "--text", "latin.txt"], 1, ["latin.txt", "byte 3", "replace"]),
        (["train", "RECIPE", "--text", "short.txt"], 1, ["short"]),
        (["demo", "--out", "runs/one"], 1, ["holds a run already"]),
        (["generate", "nowhere"], 1, ["nowhere"]),
        (["generate", "notes"], 1, ["allowed"]),
        (["generate", "runs/one", "--top-p", "2"], 2, ["top_p", "2"]),
        (["generate", "runs/one", "--temperature", "-1"], 2, ["temperature"]),
        (["generate", "runs/one", "--stop", ""], 2, ["stop"]),
        (["generate", "runs/one", "temprature=1"], 2, ["temprature", "temperature"]),
        (["evaluate", "nowhere"], 1, ["nowhere"]),
        (["report", "nowhere"], 1, ["not a run"]),
        (["runs", "nowhere"], 1, ["nowhere"]),
        (
            ["tokenizer", "train", "--text", "notes", "--vocabulary", "100", "--out", "t"],
            2,
            ["vocabulary", "257"],
        ),
        (["tokenizer", "train", "--text", "notes", "--out", "notes"], 1, ["exists already"]),
        (["data", "prepare", "--text", "notes", "--tokenizer", "runs", "--out", "d"], 1, ["runs"]),
        (["sing"], 2, ["sing"]),
    ],
)
def test_wrong_words_get_a_clear_error_and_a_code(
    words: list[str],
    code: int,
    says: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, by the `main` that the command calls; a few such words go through real processes below."""
    from temaki.cli.main import main

    (place / "empty.txt").write_text("")
    (place / "short.txt").write_text("rice\n")
    (place / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 50)
    before = kept(place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["temaki", *[str(RECIPE) if word == "RECIPE" else word for word in words]])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert left.value.code == code, told
    for each in says:
        assert each in told
    assert "bug in temaki" not in told
    assert kept(place) == before


def kept(place: Path) -> set[Path]:
    """All files of runs but those of the recipe's own name, whose data may have been made before the error."""
    return {path for path in (place / "runs").rglob("*") if "small" not in path.parts}


def test_a_wrong_word_ends_a_real_process_with_its_code(place: Path) -> None:
    out = temaki("train", str(RECIPE), "model.dept=3", where=place, code=2)
    assert "did you mean 'depth'" in out.stderr
    assert out.stdout == ""
    assert "sing" in temaki("sing", where=place, code=2).stderr
    assert "Usage:" in temaki(where=place).stdout


@pytest.mark.parametrize("said", main.OUT_OF_MEMORY)
def test_memory_that_is_not_there_is_no_bug(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main._explain(RuntimeError(f"DefaultCPUAllocator: {said}: you tried 99 bytes")) == 1
    assert "--context" in capsys.readouterr().err


def test_debug_shows_where(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "temaki", "generate", "nowhere", "--debug"],
        cwd=place,
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert b"Traceback" in done.stderr


def test_bytes_that_are_not_text_go_on_with_replace(place: Path) -> None:
    (place / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 500)
    temaki(
        "tokenizer",
        "train",
        "--text",
        "latin.txt",
        "--errors",
        "replace",
        "--vocabulary",
        "280",
        "--out",
        "l",
        where=place,
    )


def started(where: Path, out: str, steps: int) -> "subprocess.Popen[bytes]":
    changes = [word for word in SMALL if not word.startswith(("stop.steps", "save.every"))]
    words = [
        "train",
        str(RECIPE),
        "--text",
        "notes",
        "--out",
        out,
        *changes,
        f"stop.steps={steps}",
        "save.every=7",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "temaki", *words], cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for_steps(folder: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if sum(line.get("kind") == "step" for line in metric_lines(folder / "metrics.jsonl")) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} steps in {folder}: {process.poll()}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_leaves_and_goes_on(number: signal.Signals, code: int, place: Path) -> None:
    process = started(place, f"runs/{number.name}", 4000)
    wait_for_steps(place / "runs" / number.name, 5, process)
    process.send_signal(number)
    assert process.wait(60) == code
    last = list(metric_lines(place / "runs" / number.name / "metrics.jsonl"))[-1]
    assert (last["kind"], last["reason"]) == ("end", number.name)
    step = int(last["step"])
    assert (place / "runs" / number.name / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists()
    more = [f"stop.steps={step + 3}", "--allow-change", "stop.steps"]
    out = temaki("train", f"runs/{number.name}", "--resume", "auto", *more, "--json", where=place)
    assert json.loads(out.stdout.splitlines()[-1])["step"] == step + 3


def test_interrupted_preparation_says_so_and_leaves_nothing(place: Path) -> None:
    kind = ["tokenizer", "train", "--kind", "bytepiece"]
    temaki(*kind, "--text", "notes", "--vocabulary", "300", "--out", "warm", where=place)  # its kernels are compiled
    words = [sys.executable, "-m", "temaki", *kind, "--out", "never"]
    process = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"counting" in line or b"documents" in line:  # the tokenizer is under way
            break
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert b"interrupted" in told
    assert not (place / "never").exists()


def killed(place: Path, name: str, kills: int) -> None:
    """Kill a run at random moments, again and again: each time the newest checkpoint opens and training goes on."""
    folder = place / "runs" / name
    process = started(place, f"runs/{name}", 100_000)
    wait_for_steps(folder, 9, process)
    step = 0
    for i in range(kills):
        time.sleep((i * 37 % 50) / 100)
        process.kill()
        process.wait()
        out = temaki("generate", str(folder), "--max-tokens", "2", where=place)
        assert out.returncode == 0
        newest = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
        assert newest >= step
        step = newest
        process = subprocess.Popen(
            [sys.executable, "-m", "temaki", "train", str(folder), "--resume", "auto"],
            cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 120
        while time.monotonic() < until and not any(
            line.get("kind") == "step" and int(line["step"]) > step + 8
            for line in metric_lines(folder / "metrics.jsonl")
        ):
            assert process.poll() is None
            time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_run_goes_on(place: Path) -> None:
    killed(place, "killed", 2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_killed_a_hundred_times_goes_on(place: Path) -> None:
    killed(place, "slain", 100)
