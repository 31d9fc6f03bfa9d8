"""`temaki generate` and `temaki score` as a user meets them: ways to decode, JSON lines, wrong words, Ctrl-C."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from temaki.base import rows
from temaki.checkpoint import native
from temaki.cli import main
from temaki.formats import open as opener
from temaki.generate.request import Event, LogProbs
from temaki.generate.writing import Holdback, Writer
from temaki.model import build, config
from temaki.tokens import files
from temaki.tokens.bpe import Bpe, from_merges

END = "<|endoftext|>"
MERGES = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"a", b"b"), (b"ab", b"c")]
TOKENIZER = from_merges(MERGES, (END,))
CONTEXT = 48


def little(folder: Path, tokenizer: Bpe, mask: str = "causal", context: int = CONTEXT) -> Path:
    """A model folder with random weights, large enough to have opinions."""
    mixer = {"kind": "attention", "heads": 2, "mask": mask}
    table: dict[str, Any] = {
        "kind": "decoder", "vocabulary": tokenizer.size, "width": 32, "depth": 2, "pattern": [{"mixer": mixer}],
        "context": context,
    }  # fmt: skip
    torch.manual_seed(0)
    block = config.BlockConfig(mixer=config.AttentionConfig(heads=2, mask=mask))  # type: ignore[arg-type]
    model = build.build(config.DecoderConfig(vocabulary=tokenizer.size, width=32, depth=2, pattern=(block,)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
    weights = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    files.save(tokenizer, folder.parent / f"{folder.name}-tokenizer")
    native.write(folder, {"model": table}, weights, folder.parent / f"{folder.name}-tokenizer")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    little(folder / "m", TOKENIZER)
    little(folder / "other", from_merges(MERGES[:2], (END,)))
    little(folder / "endless", TOKENIZER, context=100_000)
    (folder / "schema.json").write_text('{"type":"array","items":{"enum":[1,22]},"maxItems":3}', encoding="utf-8")
    (folder / "wrong.json").write_text('{"type": "nope"}', encoding="utf-8")
    (folder / "broken.json").write_text('{"type": ', encoding="utf-8")
    (folder / "asked.jsonl").write_text('{"prompt": "ab"}\n\n"abc"\n', encoding="utf-8")
    (folder / "bad.jsonl").write_text('{"prompt": "ab"}\n{"text": "ab"}\n', encoding="utf-8")
    (folder / "worse.jsonl").write_text('{"prompt": "ab"\n', encoding="utf-8")
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("the abc 日 " * 8, encoding="utf-8")
    return folder


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def temaki(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A verb in this process."""

    def run(*words: str, lines: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["temaki", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        with pytest.raises(SystemExit) as left:
            main.main()
        said = capsys.readouterr()
        assert left.value.code == code, said.out + said.err
        assert "Traceback" not in said.err
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return run


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


MODEL = ("generate", "m", "--max-tokens", "6")


def test_several_answers_and_the_best_of_several(temaki: Run) -> None:
    found = lines_of(temaki(*MODEL, "--prompt", "ab", "--prompt", "the", "--n", "3", "--json", "--seed", "4"))
    assert sorted((each["index"], each["branch"]) for each in found) == [(i, b) for i in range(2) for b in range(3)]
    assert {each["prompt"] for each in found} == {"ab", "the"}
    assert len({each["text"] for each in found}) > 3
    likely = ("--best-of", "5", "--n", "2", "--prompt", "ab", "--json", "--seed", "4")
    best = lines_of(temaki(*MODEL, *likely))
    every = lines_of(temaki(*MODEL, "--n", "5", "--prompt", "ab", "--json", "--seed", "4", "--logprobs", "2"))
    means = {
        each["branch"]: np.mean([one["logprob"] for one in each["logprobs"]]) if each["tokens"] else -math.inf
        for each in every
    }
    ranked = sorted(means, key=lambda branch: -means[branch])
    assert [each["branch"] for each in best] == ranked[:2]
    assert best[0]["score"] == pytest.approx(means[ranked[0]])
    assert "logprobs" not in best[0]
    (one, *_) = [each for each in every if each["tokens"]]
    assert one["logprobs"][0]["best"][0][1] >= one["logprobs"][0]["logprob"]
    assert [each["id"] for each in one["logprobs"]] == TOKENIZER.encode_list(one["text"]) or one["done"] == "length"


def test_prompts_from_everywhere(temaki: Run) -> None:
    wanted = temaki(*MODEL, "--prompt", "abc", "--temperature", "0").stdout
    assert temaki(*MODEL, "--file", "-", "--temperature", "0", lines=b"abc").stdout == wanted
    found = lines_of(temaki(*MODEL, "--jsonl", "asked.jsonl", "--temperature", "0", "--json"))
    assert {each["prompt"] for each in found} == {"ab", "abc"}
    assert {each["prompt"] + each["text"] + "\n" for each in found if each["prompt"] == "abc"} == {wanted}


def test_both_executors_say_the_same(temaki: Run) -> None:
    words = (*MODEL, "--prompt", "abc the", "--temperature", "0", "--executor")
    assert temaki(*words, "torch").stdout == temaki(*words, "compiled").stdout
    assert temaki(*MODEL, "--prompt", "ab", "--bits", "8", "--cache", "int8", "--threads", "1").stdout.startswith("ab")


def test_searches_find_what_drawing_greedily_would_not_miss(temaki: Run) -> None:
    greedy = temaki(*MODEL, "--prompt", "ab", "--temperature", "0").stdout
    assert temaki(*MODEL, "--prompt", "ab", "--beam", "1").stdout.splitlines()[1:] == greedy.splitlines()
    found = lines_of(temaki(*MODEL, "--prompt", "ab", "--beam", "4", "--n", "3", "--json"))
    scores = [each["score"] for each in found]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert temaki(*MODEL, "--prompt", "ab", "--contrastive").stdout.startswith("--- 'ab'")


def test_ways_side_by_side_with_their_diversity(temaki: Run) -> None:
    words = ("--prompt", "ab", "--compare", "greedy,top-p,beam,contrastive", "--json", "--n", "2")
    found = lines_of(temaki(*MODEL, *words))
    measured = {each["way"]: each for each in found if "text" not in each}
    assert list(measured) == ["greedy", "top-p", "beam", "contrastive"]
    assert all(0 <= value <= 1 for each in measured.values() for name, value in each.items() if name != "way")
    assert {"distinct-1", "rep-2", "diversity"} <= set(measured["greedy"])
    assert [each["way"] for each in found if "text" in each].count("greedy") == 1
    plain = temaki(*MODEL, "--prompt", "ab", "--compare", "greedy,top-p", "--n", "2")
    assert "=== top-p: distinct-1" in plain.stdout
    assert "greedy: temperature 0.0, max_tokens 6, seed 0, one answer" in plain.stderr
    assert "top-p: temperature 1.0, top_p 0.95, max_tokens 6, seed 0\n" in plain.stderr


def test_constrained_answers_parse(temaki: Run) -> None:
    found = temaki("generate", "m", "--prompt", "ab", "--regex", "[0-9]{3}-[a-c]+z", "--max-tokens", "40")
    assert re.fullmatch("ab[0-9]{3}-[a-c]+z\n", found.stdout)
    (found,) = lines_of(temaki("generate", "m", "--schema", "schema.json", "--json", "--max-tokens", "30"))
    assert set(json.loads(found["text"])) <= {1, 22}
    chosen = temaki("generate", "m", "--prompt", "q", "--choice", "yes", "--choice", "no", "--json", "--beam", "2")
    assert lines_of(chosen)[0]["text"] in ("yes", "no")
    cut = temaki("generate", "m", "--prompt", "q", "--regex", "a{30}", "--max-tokens", "4")
    assert "cut at 4 tokens, so it may not be all" in cut.stderr


def test_healed_and_drafted_answers(temaki: Run) -> None:
    plain = temaki(*MODEL, "--prompt", "ab the ab the ab", "--temperature", "0")
    drafted = temaki(*MODEL, "--prompt", "ab the ab the ab", "--temperature", "0", "--propose", "lookup")
    assert drafted.stdout == plain.stdout
    assert re.search(r"drafts: \d+% of \d+ drafted tokens accepted", drafted.stderr)
    same = temaki(*MODEL, "--prompt", "ab the", "--temperature", "0", "--propose", "m", "--draft", "3")
    assert "100% of" in same.stderr
    assert temaki(*MODEL, "--prompt", "the ab", "--heal", "1").stdout.startswith("the ab")


def test_a_stop_string_inside_an_event_of_several_ids_cuts_ids_and_log_probabilities() -> None:
    """Drafted ids come together; what stands behind the end was never said, even where it ended the engine's answer."""
    ids = np.array(TOKENIZER.encode_list("q!XYz"), np.int32)
    scores = LogProbs(np.arange(5.0), np.arange(5)[:, None], np.arange(5.0)[:, None])
    writer = Writer(0, 0, TOKENIZER.size, TOKENIZER.stream(), Holdback(("XY",)), 9)
    assert writer.take(Event(0, 0, ids, scores, "length")) == "q!"
    found = writer.completion()
    assert (found.text, found.done, found.ids.tolist()) == ("q!", "stop", ids[:4].tolist())
    assert found.logprobs is not None
    assert found.logprobs.drawn.tolist() == found.logprobs.best[:, 0].tolist() == [0, 1, 2, 3]
    assert found.logprobs.ids[:, 0].tolist() == [0, 1, 2, 3]


def test_a_long_prompt_is_refused_or_cut_and_said(temaki: Run) -> None:
    found = temaki(*MODEL, "--file", "text", code=1)
    assert "longer than the model's context" in found.stderr
    assert f"{CONTEXT} ids" in found.stderr
    assert "--cut left" in found.stderr
    cut = temaki(*MODEL, "--file", "text", "--cut", "left", "--json")
    length = len(TOKENIZER.encode("the abc 日 " * 8)) + 1
    assert lines_of(cut)[0]["left_out"] == length - (CONTEXT - 6)
    assert f"{length - (CONTEXT - 6)} tokens at the prompt's beginning were left out" in cut.stderr
    huge = ("generate", "m", "--max-tokens", "100000000")
    assert "leaves no room for a prompt" in temaki(*huge, "--file", "text", "--cut", "left", code=1).stderr
    ends = temaki(*huge, "--prompt", "ab", "--temperature", "0")
    assert f"answers end at the model's context of {CONTEXT} tokens" in ends.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--regex", "(["], 1, ["wrong at character 2", "unclosed character class"]),
        (["--regex", r"[^\s\S]"], 1, ["matches nothing"]),
        (["--schema", "wrong.json"], 1, ["Invalid type: nope"]),
        (["--schema", "broken.json"], 1, ["no JSON", "line 1, column 10"]),
        (["--schema", "gone.json"], 1, ["gone.json"]),
        (["--regex", "a", "--choice", "b"], 2, ["one shape"]),
        (["--regex", "a", "--heal", "1"], 1, ["healed or constrained"]),
        (["--regex", "a", "--stop", "b"], 1, ["says itself where an answer ends"]),
        (["--heal", "0"], 1, ["at least one token"]),
        (["--regex", "a", "min_tokens=2"], 1, ["says itself where an answer ends", "min_tokens 2"]),
        (["--top-k", "5", "top_k=3"], 2, ["top_k is given twice", "--top-k and top_k=3"]),
        (["--beam", "0"], 2, ["beams", "0", "1"]),
        (["--beam", "100000"], 2, ["beams", "256", "100000"]),
        (["--beam", "2", "--n", "3"], 2, ["more answers than beams"]),
        (["--beam", "2", "--temperature", "0.5"], 1, ["draws nothing"]),
        (["--beam", "2", "--contrastive"], 2, ["--beam --contrastive"]),
        (["--beam", "2", "--propose", "lookup"], 2, ["drafts are for answers that are drawn"]),
        (["--contrastive", "--logprobs", "2", "--json"], 2, ["log-probabilities are of answers that are drawn"]),
        (["--logprobs", "2"], 2, ["--json"]),
        (["--compare", "greedy,luck"], 2, ["'luck'", "greedy, sample"]),
        (["--best-of", "2", "--n", "3"], 2, ["keeps more"]),
        (["--n", "0"], 2, ["--n"]),
        (["--propose", "other"], 1, ["another vocabulary"]),
        (["--propose", "heads"], 1, ["no heads of further ids"]),
        (["--propose", "nowhere"], 1, ["nowhere"]),
        (["--draft", "2"], 2, ["--propose"]),
        (["--executor", "gpu"], 2, ["executor", "auto, torch, compiled"]),
        (["--executor", "torch", "--bits", "8"], 1, ["torch", "bits"]),
        (["--bits", "3"], 2, ["bits", "3"]),
        (["--cache", "float8"], 2, ["cache", "int8"]),
        (["--cut", "right"], 2, ["'right'", "left"]),
        (["--stop", ""], 2, ["stop"]),
        (["--jsonl", "bad.jsonl"], 1, ["bad.jsonl, line 2 has no text"]),
        (["--jsonl", "worse.jsonl"], 1, ["worse.jsonl, line 1, column"]),
        (["--jsonl", "empty"], 1, ["empty"]),
        (["--file", "empty"], 1, ["empty"]),
        (["typical_q=1"], 2, ["typical_q", "typical_p"]),
        (["logit_bias=[[9999, 1.0]]"], 2, ["logit_bias", "9999"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_goes_wrong_is_said(temaki: Run, words: list[str], code: int, said: list[str]) -> None:
    found = temaki("generate", "m", "--max-tokens", "3", *words, code=code)
    assert found.stdout in ("", "\n")
    for each in said:
        assert each in found.stderr


def test_scores_are_the_models_own(temaki: Run, place: Path) -> None:
    texts = ["ab the 日", "abc" * 20]
    done = temaki("score", "m", "--text", texts[0], "--text", texts[1], "--context", "24")
    first, second = lines_of(done)
    opened = opener.open(place / "m")
    model, ids = opened.model(), np.array([0, *TOKENIZER.encode(texts[0])])
    with torch.no_grad():
        logits = model.head.logits(model(rows.rows([torch.as_tensor(ids)])))
    wanted = torch.log_softmax(logits.double(), -1)[:-1].gather(1, torch.as_tensor(ids[1:, None].astype(np.int64)))
    assert first["ids"] == ids[1:].tolist()
    assert first["logprobs"] == pytest.approx(wanted[:, 0].tolist(), abs=1e-3)
    assert first["sum"] == pytest.approx(sum(first["logprobs"]))
    assert first["bits_per_byte"] == pytest.approx(-first["sum"] / math.log(2) / len(texts[0].encode()))
    assert first["windows"] == 1
    assert "".join(first["tokens"][:3]) == "ab the "[: len("".join(first["tokens"][:3]))]
    assert second["windows"] > 1 or len(second["ids"]) < 24
    torched = lines_of(temaki("score", "m", "--text", texts[0], "--executor", "torch"))
    assert torched[0]["logprobs"] == pytest.approx(first["logprobs"], abs=1e-3)


def test_scores_of_files_and_lines_and_long_texts(temaki: Run, place: Path) -> None:
    done = temaki("score", "m", "--file", "text")
    assert re.search(r"text 0: \d+ tokens, read in [2-9] windows of 48", done.stderr)
    (whole,) = lines_of(done)
    assert len(whole["logprobs"]) == len(whole["ids"]) == len(TOKENIZER.encode("the abc 日 " * 8))
    assert None not in whole["logprobs"]
    piped = temaki("score", "m", "--jsonl", "-", lines=b'{"text": "ab"}\n"abc"\n')
    assert [each["ids"] for each in lines_of(piped)] == [TOKENIZER.encode_list("ab"), TOKENIZER.encode_list("abc")]
    assert "nothing to score" in temaki("score", "m", code=1).stderr
    assert "empty" in temaki("score", "m", "--text", "", code=1).stderr


def test_an_interrupt_keeps_what_was_said(place: Path) -> None:
    """One process: an answer without end is on standard output as it comes, and Ctrl-C ends it with 130."""
    words = ["generate", "endless", "--max-tokens", "90000", "--prompt", "ab", "logit_bias=[[0, -100.0]]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "temaki", *words],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(40).startswith(b"ab")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_torch_and_the_grammar_library_stay_away(place: Path, fresh: Callable[[str], str]) -> None:
    code = (
        "import sys; from temaki.cli import main\n"
        f"sys.argv = ['temaki', 'generate', {str(place / 'm')!r}, '--prompt', 'ab', '--max-tokens', '2']\n"
        "try: main.main()\n"
        "except SystemExit as left: assert left.code == 0\n"
        "print('loaded', 'torch' in sys.modules, 'llguidance' in sys.modules)"
    )
    assert fresh(code).splitlines()[-1] == "loaded False False"
