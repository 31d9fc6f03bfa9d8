"""The tokenizer verbs as a user meets them: real processes and pipes, odd languages, wrong words."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import temaki
from temaki.base.errors import TokenizerError
from temaki.cli import tokenizer_inspect
from temaki.evaluate import contest
from temaki.tokens.bpe import Bpe

STORY = (
    "Once upon a time a small boat carried {n} bags of rice to the city, said the heron; the frog {m} said nothing. "
)
ODD = 'Привет, мир! 你好世界 — naïve 🍣👨‍👩‍👧 \x00 "q"\r\n\t  नमस्ते e\u0301 \u3000<|endoftext|>\n'
Verb = Callable[..., "Done"]


class Done:
    """What a verb printed, and its code."""

    def __init__(self, code: int, out: bytes, error: str):
        self.code, self.raw, self.error = code, out, error
        self.out = out.decode("utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, and a BPE tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "notes").mkdir()
    for i in range(12):
        text = "".join(STORY.format(n=i * j, m=j % 5) for j in range(1, 30)) + "吃饭吧 吃面吧 " * (i + 1)
        (folder / "notes" / f"{i:02d}.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "notes" / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    (folder / "odd.txt").write_bytes(ODD.encode("utf-8"))
    (folder / "empty.txt").write_bytes(b"")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait\n" * 50)
    process("tokenizer", "train", "--text", "notes", "--vocab-size", "400", "--out", "tok", where=folder)
    return folder


def process(*words: str, where: Path, data: bytes | None = None, code: int = 0) -> Done:
    command = [sys.executable, "-m", "temaki", *words]
    done = subprocess.run(command, cwd=where, input=data, capture_output=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture
def verb(place: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Verb:
    """`temaki tokenizer ..` in this process, by the `main` that the command calls."""
    from temaki.cli.main import main

    def run(*words: str, code: int = 0) -> Done:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["temaki", "tokenizer", *words])
        with pytest.raises(SystemExit) as left:
            main()
        sys.stdout.flush()
        out, error = capfdbinary.readouterr()
        told = Done(int(left.value.code or 0), out, error.decode())
        assert told.code == code, told.error
        assert "bug in temaki" not in told.error
        return told

    return run


# ---- train -------------------------------------------------------------------------------------------------


def test_training_says_what_it_resolved_and_skipped(verb: Verb, place: Path) -> None:
    done = verb("train", "--text", "notes", "--vocab-size", "300", "--split", r"\S+|\s+", "--out", "own", "--json")
    assert json.loads(done.out)["size"] == 300
    for said in ("vocabulary = 300", r"\\S+", "12 files", "skipped 1 (binary)"):
        assert said in done.error
    assert (place / "own" / "vocabulary.json").exists()


def test_several_sizes_are_one_run_whose_merges_are_prefixes(verb: Verb, place: Path) -> None:
    from temaki.tokens import files

    words = ["--vocab-size", "280,360", "--special", "<s>", "--special", "</s>", "--out", "m", "--json"]
    done = verb("train", "--text", "notes", *words)
    found = json.loads(done.out)["all"]
    assert [each["size"] for each in found] == [280, 360]
    small, large = (files.load(place / name) for name in ("m-280", "m-360"))
    assert list(small.special) == ["<s>", "</s>"]
    assert large.tokens[:280] == small.tokens


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bpe", ["--ties", "ids", "--memory", "100M", "--prune", "2"]),
        ("bytepiece", ["--min-count", "2", "--isolate-digits", "--normalize", "none"]),
        ("wordpiece", []),
        ("characters", []),
    ],
)
def test_each_kind_is_trained_saved_used_and_comes_back(kind: str, words: list[str], verb: Verb, place: Path) -> None:
    done = verb("train", "--kind", kind, "--text", "notes", "--vocab-size", "350", "--out", kind, *words, "--json")
    assert json.loads(done.out)["kind"] == kind
    text = "the boat said nothing" if kind == "wordpiece" else ODD
    (place / "plain.txt").write_text(text, encoding="utf-8", newline="")
    ids = verb("encode", kind, "plain.txt").out
    (place / "ids.txt").write_text(ids)
    assert verb("decode", kind, "ids.txt").raw == text.encode("utf-8")
    assert json.loads(verb("inspect", kind, "--json").out)["kind"] == kind


# ---- encode and decode -------------------------------------------------------------------------------------


def test_pipes_give_the_bytes_back(place: Path) -> None:
    text = (ODD * 3000).encode("utf-8")  # beyond one chunk, cut inside characters
    (place / "long.txt").write_bytes(text)
    words = [sys.executable, "-m", "temaki", "tokenizer"]
    with (place / "long.txt").open("rb") as file:
        first = subprocess.Popen([*words, "encode", "tok"], cwd=place, stdin=file, stdout=subprocess.PIPE)
    assert first.stdout is not None
    with first.stdout as pipe:
        second = subprocess.Popen([*words, "decode", "tok"], cwd=place, stdin=pipe, stdout=subprocess.PIPE)
    assert second.communicate(timeout=120)[0] == text
    assert (first.wait(60), second.returncode) == (0, 0)


def test_a_pipe_that_closes_early_is_no_traceback(place: Path) -> None:
    words = [sys.executable, "-m", "temaki", "tokenizer", "encode", "tok", "--lines"]
    with subprocess.Popen(
        words, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.close()
        try:
            writer.stdin.write(b"the boat\n" * 100_000)
            writer.stdin.close()
        except BrokenPipeError:
            pass
        assert writer.wait(60) in (1, 141)
        assert b"Traceback" not in writer.stderr.read()


def test_ids_are_those_of_the_library(verb: Verb, place: Path) -> None:
    from temaki.tokens import files

    tokenizer = files.load(place / "tok")
    done = verb("encode", "tok", "odd.txt", "notes/00.txt")
    first, second = done.out.splitlines()
    assert list(map(int, first.split())) == tokenizer.encode_list(ODD)
    assert list(map(int, second.split())) == tokenizer.encode_list((place / "notes/00.txt").read_text(encoding="utf-8"))
    found = json.loads(verb("encode", "tok", "odd.txt", "--special", "all", "--json", "--pieces").out)
    assert found["ids"] == tokenizer.encode_list(ODD, ["<|endoftext|>"])
    assert "<|endoftext|>" in found["pieces"]
    assert found["document"] == "odd.txt"


def test_lines_are_documents(verb: Verb, place: Path) -> None:
    (place / "lines.txt").write_bytes("the boat\n\n吃饭吧\nno newline".encode())
    done = verb("encode", "tok", "lines.txt", "--lines")
    assert len(done.out.splitlines()) == 4
    (place / "ids.txt").write_bytes(done.raw)
    assert verb("decode", "tok", "ids.txt", "--lines").raw == "the boat\n\n吃饭吧\nno newline\n".encode()


@pytest.mark.parametrize("suffix", ["npy", "bin"])
def test_ids_in_binary_files(suffix: str, verb: Verb, place: Path) -> None:
    from temaki.tokens import files

    out = f"ids.{suffix}"
    done = verb("encode", "tok", "odd.txt", "notes/00.txt", "--out", out)
    assert "2 documents" in done.error
    whole = (place / "odd.txt").read_bytes() + (place / "notes/00.txt").read_bytes()
    assert verb("decode", "tok", out).raw == whole
    found = np.load(place / out) if suffix == "npy" else np.fromfile(place / out, "<u2")
    ends = np.load(place / "ids.offsets.npy")
    assert (ends[0], ends[-1]) == (0, len(found))
    assert files.load(place / "tok").decode_bytes(found[: ends[1]]) == ODD.encode()
    verb("encode", "tok", "odd.txt", "--out", out)
    assert not (place / "ids.offsets.npy").exists()  # it told of other ids


def test_nothing_and_pieces(verb: Verb) -> None:
    assert verb("encode", "tok", "empty.txt").out == "\n"
    said = verb("encode", "tok", "odd.txt", "--pieces").out
    assert "\x1b" not in said  # no colour where no terminal is
    assert "|" in said
    assert "␀" in said


# ---- inspect -----------------------------------------------------------------------------------------------


def test_inspect_in_figures(verb: Verb) -> None:
    said = verb("inspect", "tok").out
    for word in ("bpe, 400 ids", "<|endoftext|>", "longest pieces", "█"):
        assert word in said
    found = json.loads(verb("inspect", "tok", "--json").out)
    assert sum(found["lengths"].values()) == 399


def test_inspect_a_text(verb: Verb) -> None:
    said = verb("inspect", "tok", "Once upon 你 🍣").out
    assert "comes back exactly" in said
    assert "‹" in said  # a byte that is no whole character
    found = json.loads(verb("inspect", "tok", "Once upon", "--json").out)
    assert (found["exact"], len(found["ids"])) == (True, len(found["pieces"]))


def test_merges_step_by_step_end_in_the_pieces(verb: Verb) -> None:
    text = "Once upon a time, 吃饭吧 <|endoftext|>"
    words = json.loads(verb("inspect", "tok", text, "--merges", "--special", "all", "--json").out)["words"]
    last = [(word["merges"][-1]["pieces"] if word["merges"] else word["bytes"]) for word in words]
    found = json.loads(verb("inspect", "tok", text, "--special", "all", "--json").out)
    assert [piece for pieces in last for piece in pieces] == found["pieces"]
    assert all(
        a["rank"] < b["rank"] for word in words for a, b in zip(word["merges"], word["merges"][1:], strict=False)
    )
    first = next(word for word in words if word["merges"])
    assert f"#{first['merges'][0]['rank']}  " in verb("inspect", "tok", text, "--merges").out


@pytest.mark.parametrize(
    ("tokens", "merges", "special", "text"),
    [
        ([b"xy", b"ab"], None, {"ab": 257}, "ab xy"),  # the bytes of a special token are no token
        ([b"hello", b"he"], None, {}, "hello hell"),  # no merges make it: taken as it is
        ([b"ab"], [], {}, "ab"),  # no merges at all are not the rule of ranks
    ],
)
def test_steps_end_where_encoding_does(
    tokens: list[bytes], merges: list[tuple[bytes, bytes]] | None, special: dict[str, int], text: str
) -> None:
    tokenizer = Bpe([*(bytes([value]) for value in range(256)), *tokens], merges, special)
    words = tokenizer_inspect.merge_steps(tokenizer, text, [])
    last = [(word["merges"][-1]["pieces"] if word["merges"] else word["bytes"]) for word in words]
    assert [piece for pieces in last for piece in pieces] == tokenizer_inspect.cut(tokenizer, text, [])["pieces"]


def test_the_lattice_has_its_sampled_paths(verb: Verb) -> None:
    verb("train", "--kind", "bytepiece", "--text", "notes", "--vocab-size", "400", "--out", "bp")
    found = json.loads(verb("inspect", "bp", "the rice", "--lattice", "--alpha", "0.3", "--json").out)
    best = json.loads(verb("inspect", "bp", "the rice", "--json").out)["pieces"]
    assert found["paths"][0]["pieces"] == best
    assert found["paths"][0]["probability"] >= found["paths"][-1]["probability"] > 0
    for each in found["sampled"]:
        assert "".join(each["pieces"]) == "the·rice"
        assert abs(each["drawn"] - each["exact"]) < 0.08
    said = verb("inspect", "bp", "the rice", "--lattice").out
    assert "best paths" in said
    assert "sampled with alpha 0.5" in said


# ---- compare -----------------------------------------------------------------------------------------------


def test_compare_writes_a_page_and_a_table(verb: Verb, place: Path) -> None:
    words = ["compare", "--text", "notes", "--size", "300,350", "--only", "bpe,characters", "--out", "c.html"]
    done = verb(*words, "--json")
    found = json.loads(done.out)
    assert [(each["name"], each["asked"]) for each in found["scores"]] == [
        ("bpe", 300), ("characters", 300), ("bpe", 350), ("characters", 350),
    ]  # fmt: skip
    for score in found["scores"]:
        assert score["exact"] == 1
        assert score["bytes_per_token"] > 0.9
        assert set(score["fertility"]) == {"Latin", "numbers"} or "Han" in score["fertility"]
        assert "".join(score["pieces"])
    page = (place / "c.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "src=" not in page
    assert "://" not in page


def test_one_that_fails_is_told_and_the_others_are_measured(verb: Verb) -> None:
    words = ["compare", "--text", "notes", "--size", "258", "--only", "bytepiece,bpe", "--out", "f.html", "--json"]
    found = json.loads(verb(*words).out)
    assert [score["name"] for score in found["scores"]] == ["bpe"]
    assert "259" in found["failed"]["bytepiece, 258 ids"]
    told = verb("compare", "--text", "notes", "--size", "100", "--only", "bpe", "--out", "g.html", code=1)
    assert "not one" in told.error


def test_a_contestant_that_talks_much_is_heard_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talker = tmp_path / "talker"
    told = '{"what": "training", "progress": [1, 2]}'
    talker.write_text(
        f"#!{sys.executable}\nimport sys\nprint('hello')\nprint({told!r})\n"
        "sys.stderr.write('x' * 500_000 + chr(10) + 'no room left')\nsys.exit(3)\n"
    )
    talker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(talker))
    heard: list[object] = []
    with pytest.raises(TokenizerError, match=r"(?s)could not be trained.*no room left"):
        contest.run("bpe", 300, tmp_path, tmp_path, lambda *words: heard.append(words))
    assert heard == [("bpe: training", 1, 2)]


def test_an_interrupted_comparison_keeps_what_it_has(place: Path) -> None:
    words = ["tokenizer", "compare", "--text", "notes", "--size", "300", "--only", "characters,bpe", "--out", "i.html"]
    run = subprocess.Popen(
        [sys.executable, "-m", "temaki", *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith(b"characters"):
            break
    run.send_signal(signal.SIGINT)
    out, error = run.communicate(timeout=60)
    assert run.returncode in (0, 130), error
    assert b"characters" in out
    assert (place / "i.html").exists()


# ---- discover and convert ------------------------------------------------------------------------------------


def test_discover_finds_the_words(verb: Verb) -> None:
    text = ["--text", argparse.__file__, "--size", "1000"]  # natural text: what is too regular has no words
    found = json.loads(verb("discover", *text, "--json").out)
    assert any("parser" in each["text"] for each in found["shown"])
    counts = [each["count"] for each in found["shown"]]
    assert counts == sorted(counts, reverse=True)
    assert all(each["boundary"] == min(each["before"], each["after"]) for each in found["shown"])
    assert not any("(" in each["text"] for each in found["shown"])
    said = verb("discover", *text, "--order", "cohesion", "--top", "2", "--every").out
    assert "cohesion" in said.splitlines()[0]
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("to", ["native", "gpt2", "tiktoken", "hf"])
def test_bpe_is_converted_and_gives_the_same_ids(to: str, verb: Verb, place: Path) -> None:
    done = verb("convert", "tok", f"as-{to}", "--to", to, "--json")
    assert json.loads(done.out)["texts"] > 2000
    split = ["--split", "gpt2"] if to == "tiktoken" else []
    assert verb("encode", f"as-{to}", "odd.txt", *split).out == verb("encode", "tok", "odd.txt").out
    assert not [path for path in place.iterdir() if path.name.startswith(".as-")]


def test_what_is_written_for_hugging_face_is_read_there(verb: Verb, place: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the package is the oracle")
    verb("convert", "tok", "for-hf", "--to", "hf")
    theirs = tokenizers.Tokenizer.from_file(str(place / "for-hf" / "tokenizer.json"))
    text = ODD.replace("<|endoftext|>", "")
    (place / "unmarked.txt").write_bytes(text.encode("utf-8"))
    assert theirs.encode(text).ids == [*map(int, verb("encode", "tok", "unmarked.txt").out.split())]


def test_bytepiece_is_converted_to_its_own_file_and_back(verb: Verb, place: Path) -> None:
    verb("train", "--kind", "bytepiece", "--text", "notes", "--vocab-size", "400", "--out", "bp2")
    verb("convert", "bp2", "bp.model", "--to", "bytepiece")
    verb("convert", "bp.model", "bp3")
    one, two = (json.loads((place / name / "vocabulary.json").read_text(encoding="utf-8")) for name in ("bp2", "bp3"))
    assert one["fingerprint"] == two["fingerprint"]


def test_bytepiece_becomes_a_model_that_sentencepiece_reads(verb: Verb, place: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the package is the oracle")
    lines = Path(argparse.__file__).read_text(encoding="utf-8").splitlines()
    verb("train", "--kind", "bytepiece", "--text", argparse.__file__, "--vocab-size", "900", "--out", "bp4")
    assert "known characters" in verb("convert", "bp4", "bp4.model", "--to", "sentencepiece").out
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(place / "bp4.model"))
    ours = temaki.load_tokenizer(place / "bp4")
    same = sum(theirs.encode(line) == ours.encode_list(line) for line in lines)
    assert len(lines) > 2000
    assert same > 0.99 * len(lines)  # where two segmentations are equally probable, either is right


def test_real_files_are_told_by_their_content(verb: Verb, data: Callable[[str], Path], place: Path) -> None:
    assert json.loads(verb("inspect", str(data("gpt2_bpe")), "Not all heroes wear capes.", "--json").out)["ids"] == [
        3673, 477, 10281, 5806, 1451, 274, 13,
    ]  # fmt: skip
    assert json.loads(verb("inspect", str(data("t5_spm/spiece.model")), "--json").out)["kind"] == "unigram"
    (place / "model").write_bytes((data("t5_spm/spiece.model")).read_bytes())
    assert json.loads(verb("inspect", "model", "--json").out)["size"] == 32_000


# ---- wrong words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["train", "--text", "notes", "--vocab-size", "100", "--out", "x"], 2, ["vocabulary", "257"]),
        (["train", "--text", "notes", "--vocab-size", "many", "--out", "x"], 2, ["many", "8000,16000"]),
        (["train", "--text", "notes", "--kind", "morse", "--out", "x"], 2, ["morse", "bytepiece"]),
        (["train", "--text", "notes", "--kind", "characters", "--ties", "ids", "--out", "x"], 2, ["--ties", "bpe"]),
        (["train", "--text", "notes", "--memory", "lots", "--out", "x"], 2, ["--memory", "2G"]),
        (["train", "--text", "notes", "--memory", "1k", "--out", "x"], 1, ["memory"]),
        (["train", "--text", "notes", "--ties", "coin", "--out", "x"], 1, ["coin", "bytes"]),
        (["train", "--text", "notes", "--split", "gpt-2", "--out", "x"], 1, ["gpt-2", "gpt2"]),
        (["train", "--text", "notes", "--split", "(", "--out", "x"], 1, ["("]),
        (["train", "--text", "notes", "--special", "<s>", "--special", "<s>", "--out", "x"], 1, ["<s>"]),
        (["train", "--text", "notes", "--special", "", "--out", "x"], 1, ["special"]),
        (["train", "--text", "empty.txt", "--out", "x"], 1, ["empty"]),
        (["train", "--text", "latin.txt", "--out", "x"], 1, ["latin.txt", "byte 3", "replace"]),
        (["train", "--text", "notes", "--out", "tok"], 1, ["exists already"]),
        (["encode", "nowhere", "odd.txt"], 1, ["nowhere"]),
        (["encode", "notes", "odd.txt"], 1, ["notes", "allowed"]),
        (["encode", "tok", "nowhere.txt"], 1, ["nowhere.txt"]),
        (["encode", "tok", "latin.txt"], 1, ["latin.txt", "offset 3"]),
        (["encode", "tok", "odd.txt", "--special", "<x>"], 1, ["<x>", "<|endoftext|>"]),
        (["encode", "tok", "odd.txt", "--out", "ids.txt"], 2, ["ids.txt", "npy"]),
        (["decode", "tok", "odd.txt"], 1, ["odd.txt", "not an id"]),
        (["decode", "tok", "big.txt"], 1, ["big.txt", "not an id"]),
        (["decode", "tok", "unknown.txt"], 1, ["unknown id", "400"]),
        (["decode", "tok", "cut.bin"], 1, ["cut.bin", "cut off"]),
        (["decode", "tok", "text.npy"], 1, ["text.npy"]),
        (["decode", "tok", "nothing.npy"], 1, ["nothing.npy"]),
        (["decode", "tok", "several.npy"], 1, ["several.npy"]),
        (["decode", "tok", "endless.npy"], 1, ["endless.npy"]),
        (["inspect", "tok", "a\udcff"], 1, ["lone surrogate", "character 1"]),
        (["inspect", "tok", "a\udcff", "--merges"], 1, ["lone surrogate", "character 1"]),
        (["inspect", "nowhere"], 1, ["nowhere"]),
        (["inspect", "tok", "--merges"], 2, ["text"]),
        (["inspect", "tok", "the", "--lattice"], 1, ["bpe", "lattice"]),
        (["inspect", "tok", "the", "--special", "<x>"], 1, ["<x>"]),
        (["compare", "--text", "notes", "--only", "magic"], 1, ["magic", "bytepiece"]),
        (["compare", "--text", "notes", "--size", "0x10"], 2, ["0x10"]),
        (["compare", "--text", "notes", "--held-out", "2"], 2, ["held_out"]),
        (["discover", "--text", "notes", "--order", "luck"], 2, ["luck", "cohesion"]),
        (["discover", "--text", "notes", "--tokenizer", "tok"], 2, ["tok", "bpe"]),
        (["discover", "--text", "notes", "--size", "10"], 1, ["10", "259"]),
        (["convert", "tok", "tok"], 1, ["exists already"]),
        (["convert", "tok", "x", "--to", "morse"], 1, ["morse", "tiktoken"]),
        (["convert", "tok", "x", "--to", "bytepiece"], 1, ["bpe"]),
        (["convert", "tok", "x", "--to", "sentencepiece"], 1, ["bpe"]),
        (["convert", "odd.txt", "x"], 1, ["odd.txt", "no tokenizer"]),
        (["convert", "ranks", "x"], 1, ["ranks", "--split"]),
        (["convert", "broken.json", "x"], 1, ["broken.json"]),
        (["inspect", "list.json"], 1, ["list.json"]),
        (["dance"], 2, ["dance"]),
    ],
)
def test_wrong_words_get_a_clear_error(words: list[str], code: int, says: list[str], verb: Verb, place: Path) -> None:
    (place / "unknown.txt").write_text("1 2 400")
    (place / "big.txt").write_text("1 99999999999999999999999")
    (place / "cut.bin").write_bytes(b"\x01\x00\x02")
    (place / "ranks").write_bytes(b"IQ== 0\nIg== 1\n")
    (place / "broken.json").write_text('{"model": ')
    (place / "list.json").write_text('{"a": 1}')
    np.save(place / "text.npy", np.array(["a"]))
    (place / "nothing.npy").write_bytes(b"")
    with (place / "several.npy").open("wb") as file:
        np.savez(file, a=np.arange(3))
    (place / "endless.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + b"{'descr': (((".ljust(118))
    before = sorted(place.rglob("*"))
    told = verb(*words, code=code).error
    for each in says:
        assert each in told
    assert sorted(place.rglob("*")) == before


# ---- what is loaded ----------------------------------------------------------------------------------------


def test_no_tokenizer_verb_loads_torch(place: Path) -> None:
    code = "import sys; from temaki.cli.main import main\ntry: main()\nfinally: print(sorted(sys.modules.keys() & {'torch'}), file=sys.stderr)"  # noqa: E501
    for words in (["train", "--text", "notes", "--vocab-size", "300", "--out", f"t{time.time()}"], ["encode", "tok", "odd.txt"]):  # fmt: skip  # noqa: E501
        done = subprocess.run(
            [sys.executable, "-c", code, "tokenizer", *words],
            cwd=place,
            capture_output=True,
            check=False,
            env=os.environ,
        )
        assert done.stderr.decode().rstrip().endswith("[]"), done.stderr.decode()


# ---- slow --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_of_the_guide_run(tmp_path: Path) -> None:
    import re
    import shlex

    (tmp_path / "notes").mkdir()
    for i in range(30):
        text = "\n".join(STORY.format(n=i * 40 + j, m=j % 7) for j in range(40))
        (tmp_path / "notes" / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "work").mkdir()
    page = (Path(__file__).parents[1] / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    commands = re.findall(
        r"^temaki .*$", "\n".join(re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)), re.M
    )
    assert len(commands) >= 10
    for command in commands:
        process(*shlex.split(command)[1:], where=tmp_path)


@pytest.mark.slow
def test_a_large_file_passes_through_in_constant_memory(place: Path) -> None:
    """Ten times the text takes no more memory; what is written does not count."""
    code = (
        "import sys; from temaki.cli.main import main; from temaki.base import memory\n"
        "try: main()\nfinally: print(memory.peak(), file=sys.stderr)"
    )
    peaks = []
    for times in (20, 200):
        (place / "large.txt").write_bytes((place / "notes" / "00.txt").read_bytes() * times * 100)
        held = 0
        for words in (["encode", "tok", "large.txt", "--out", "large.bin"], ["decode", "tok", "large.bin"]):
            with (place / "back.txt").open("wb") as back:
                done = subprocess.run(
                    [sys.executable, "-c", code, "tokenizer", *words],
                    cwd=place,
                    stdout=back,
                    stderr=subprocess.PIPE,
                    check=True,
                )
            held = max(held, int(done.stderr.split()[-1]))
        assert (place / "back.txt").stat().st_size == (place / "large.txt").stat().st_size
        peaks.append(held)
    assert peaks[1] - peaks[0] < 32_000_000
