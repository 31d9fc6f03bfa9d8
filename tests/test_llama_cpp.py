"""The real llama.cpp opens what we write: the same ids on the nasty texts, the same greedy tokens.

It lives in an environment of its own (`make llama`), so that no dependency of ours is touched.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

import gguf_models
from temaki.checkpoint.speaking import Speaking
from temaki.formats import gguf, gguf_tokenizer, proof
from temaki.formats.opened import Opened
from temaki.study.voice import TorchVoice
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PYTHON = Path(__file__).parents[1] / ".venv-llama" / "bin" / "python"
JUDGE = """
import json, sys
import numpy as np
import llama_cpp
from llama_cpp import Llama

usual = llama_cpp.llama_cpp.llama_model_default_params
def plain():  # weights as they are: repacked ones use AMX, which a virtual machine may announce and then refuse
    params = usual()
    params.use_extra_bufts = False
    return params
llama_cpp.llama_cpp.llama_model_default_params = plain

answers = []
for case in json.load(sys.stdin):
    # type 0: keys and values are kept in float32
    quiet = {"verbose": False}
    judge = Llama(case["model"], n_ctx=128, n_batch=128, n_threads=1, logits_all=True, type_k=0, type_v=0, **quiet)
    said = {"begin": judge.token_bos(), "end": judge.token_eos(), "logits": [], "greedy": []}
    for name, special in (("plain", False), ("special", True)):
        said[name] = [judge.tokenize(bytes.fromhex(text), add_bos=False, special=special) for text in case["texts"]]
    said["front"] = judge.tokenize(b"", add_bos=True, special=False)
    for prompt in case["prompts"]:
        judge.reset()
        judge.eval(prompt)
        said["logits"].append(judge.scores[: len(prompt)].tolist())
        drawn = []
        for _ in range(case["count"]):
            drawn.append(int(np.argmax(judge.scores[judge.n_tokens - 1])))
            judge.eval(drawn[-1:])
        said["greedy"].append(drawn)
    judge.close()
    answers.append(said)
json.dump(answers, sys.stdout)
"""
CASE: dict[str, Any] = {"texts": [], "prompts": [], "count": 0}
Judge = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]
GREEDY = 24
SAID = ("The capital of France is", "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n")
SURE = 1.0
"""Nats by which the best token is ahead where rounding cannot change it."""


@pytest.fixture(scope="session")
def judge() -> Judge:
    """Ask llama.cpp about several files in one process."""
    if not (PYTHON.parents[1] / ".ready").exists():
        pytest.skip("llama.cpp is not there: make llama")

    def ask(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        asked = json.dumps([CASE | case for case in cases])
        done = subprocess.run(
            [PYTHON, "-c", JUDGE], input=asked, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return ask


def prompts(first: int, last: int) -> list[ndarray]:
    """A long and a short one, of these ids."""
    draw = np.random.default_rng(3)
    return [draw.integers(first, last, size) for size in (60, 7)]


def distance(opened: Opened, said: dict[str, Any], asked: Sequence[ndarray]) -> tuple[float, float]:
    """How far llama.cpp's logits are from ours at all places: at most, in parts of the largest; and in the mean."""
    voice = TorchVoice(opened)
    ours = np.concatenate([voice.logits([prompt])[0] for prompt in asked])
    theirs = np.concatenate([np.array(logits) for logits in said["logits"]])
    apart = ours - theirs
    return float(np.abs(apart).max() / np.abs(ours).max()), float(
        np.sqrt(np.square(apart).mean() / np.square(ours).mean())
    )


EXACT = ("f32", "f16")
"""Kinds that llama.cpp multiplies as they are; for blocks it rounds the other factor to 8 bits."""


@pytest.mark.parametrize("kind", [*EXACT, "q8_0", "q4_0", "q4_1"])
def test_every_architecture_has_the_same_logits(judge: Judge, tmp_path: Path, kind: str) -> None:
    asked = prompts(2, gguf_models.IDS - 20)
    for name, config in gguf_models.CONFIGS.items():
        gguf.write(gguf_models.model(config, gguf_models.tokenizer()), tmp_path / f"{name}.gguf", kind)
    cases = [
        {"model": str(tmp_path / f"{name}.gguf"), "prompts": [each.tolist() for each in asked]}
        for name in gguf_models.CONFIGS
    ]
    for name, said in zip(gguf_models.CONFIGS, judge(cases), strict=True):
        most, mean = distance(gguf.open(tmp_path / f"{name}.gguf"), said, asked)
        print(f"{name} {kind}: at most {most:.1e}, in the mean {mean:.1e}")
        if kind in EXACT:
            tables = name in ("gpt2", "gemma2")  # it looks GELU up in a table of float16
            assert most < (5e-3 if kind == "f16" else 2e-3 if tables else 1e-4)
        assert mean < (0.1 if "moe" in name or name == "mixtral" else 0.05)  # another expert may be chosen


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "qwen3"])
def test_a_taught_model_goes_on_alike(judge: Judge, tmp_path: Path, name: str) -> None:
    """Greedy tokens, whatever the weights are kept as: what was learned is far from a tie, until the text ends."""
    words = gguf_models.tokenizer()
    taught = gguf_models.taught(gguf_models.model(gguf_models.CONFIGS[name], words))
    asked = [words.encode("The quick brown fox jumps"), words.encode("it's I'm we'll")]
    kinds = ("f32", "f16", "q8_0", "q4_1")
    for kind in kinds:
        gguf.write(taught, tmp_path / f"{kind}.gguf", kind)
    cases = [
        {"model": str(tmp_path / f"{kind}.gguf"), "prompts": [each.tolist() for each in asked], "count": GREEDY}
        for kind in kinds
    ]
    for kind, said in zip(kinds, judge(cases), strict=True):
        voice = TorchVoice(gguf.open(tmp_path / f"{kind}.gguf"))
        for prompt, theirs in zip(asked, said["greedy"], strict=True):
            ours, ahead = voice.greedy(prompt, GREEDY)
            sure = next((place for place, lead in enumerate(ahead) if lead < SURE), GREEDY)
            assert sure >= GREEDY // 2, ahead  # it knows the text
            assert ours[:sure] == theirs[:sure], kind


LATE = """
558 58B-58C 88F C5C CDC 1C89-1C8A 208F 209D-209F A7CB-A7CF A7D2 A7D4 A7DA-A7DD A7E2 A7F1 AB6C-AB6D
105C0-105F3 107BB-107BF 10940-10959 10D40-10D65 10D6F-10D85 10EC2-10EC7 10ED9-10EEE 11380-11389 1138B 1138E
11390-113B5 113B7 113D1 113D3 116D0-116E3 11B0A 11BC0-11BE0 11BF0-11BF9 11DB0-11DDB 11DE0-11DE9 11DF1 1246F
12475-1247F 12550-12686 13460-143FA 16100-1611D 16130-16139 16D40-16D6C 16D70-16D79 16EA0-16EB8 16EBB-16ED3
16FF2-16FF6 187F8-187FF 18CD6-18CDA 18CFF 18D09-18D20 18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168
1CCF0-1CCF9 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF 1E5D0-1E5ED 1E5F0-1E5FA 1E6C0-1E6DE
1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-33479
3D000-3FC3F
"""
"""Code points that became letters or numbers in a version of Unicode newer than llama.cpp's tables: pre-tokens end
elsewhere there. All others, of all planes, were found to be alike."""


def late(text: str) -> bool:
    """Whether a text has one of them."""
    runs = [[int(code, 16) for code in run.split("-")] for run in LATE.split()]
    return any(run[0] <= ord(character) <= run[-1] for character in text for run in runs)


@pytest.mark.parametrize("pre", gguf_tokenizer.PRES)
def test_ids_on_the_nasty_texts(judge: Judge, tmp_path: Path, pre: str) -> None:
    """With special tokens and without, in a vocabulary where each cut at another place gives other ids."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "</s>")
    rule = gguf_tokenizer.PRES[pre]
    words = gguf_models.telling(rule.pattern, special, rule.whole)
    frame = Frame(before=("<|im_start|>",), ordinary=("<tool>",))
    config = replace(gguf_models.CONFIGS["llama"], vocabulary=words.size + 3)
    gguf.write(gguf_models.model(config, words, frame, Speaking(front=(1,), stop=(2, 0))), tmp_path / "words.gguf")
    texts = [*proof.texts(4000), *gguf_models.TEXT, "a<|im_start|>user\n<tool> b<tool><|im_end|>", "<|im_end|"]
    [said] = judge([{"model": str(tmp_path / "words.gguf"), "texts": [text.encode().hex() for text in texts]}])
    opened = gguf.open(tmp_path / "words.gguf")
    assert opened.framed == (words_of(opened), frame)
    assert (said["begin"], said["end"], said["front"]) == (1, 2, [1])
    wrong = [
        text
        for asked, key in ((("<tool>",), "plain"), (tuple(special), "special"))
        for text, theirs in zip(texts, said[key], strict=True)
        if words_of(opened).encode_list(text, asked) != theirs
    ]
    unlike = [text for text in wrong if not late(text)]
    print(f"{pre}: {len(texts)} texts, {len(set(wrong))} with late code points differ")
    assert not unlike, f"{len(unlike)}: " + ", ".join(ascii(text)[:60] for text in unlike[:20])


def words_of(opened: Opened) -> Tokenizer:
    """The tokenizer that travels with a model."""
    assert opened.tokenizer is not None
    return opened.tokenizer


def test_a_model_that_names_no_end_ends_at_no_word(judge: Judge, tmp_path: Path) -> None:
    words = gguf_models.tokenizer("gpt2", 380, ())
    gguf.write(gguf_models.model(gguf_models.CONFIGS["llama"], words), tmp_path / "endless.gguf")
    [said] = judge([{"model": str(tmp_path / "endless.gguf")}])
    assert said["end"] >= words.size
    assert said["front"] == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids(judge: Judge, tmp_path: Path, prefix: bool) -> None:
    """Scores say what is joined, bytes stand in for what is no piece."""
    words, frame = gguf_models.pieces(add_dummy_prefix=prefix), Frame(before=("<s>",))
    config = replace(gguf_models.CONFIGS["llama"], vocabulary=words.size)
    speaking = Speaking(front=(1,), stop=(2,))
    gguf.write(gguf_models.model(config, words, frame, speaking), tmp_path / "pieces.gguf")
    texts = [*proof.texts(2000), *gguf_models.TEXT, "the tin  heron    in theirs."]
    [said] = judge([{"model": str(tmp_path / "pieces.gguf"), "texts": [text.encode().hex() for text in texts]}])
    again = words_of(gguf.open(tmp_path / "pieces.gguf"))
    assert said["front"] == [1]
    wrong = [text for text, theirs in zip(texts, said["plain"], strict=True) if again.encode_list(text) != theirs]
    assert not wrong, f"{len(wrong)}: " + ", ".join(ascii(text)[:60] for text in wrong[:20])


def test_smollm2_again(judge: Judge, tmp_path: Path, smollm2: Path) -> None:
    """SmolLM2 as it came and as we write it: the same ids and greedy tokens from llama.cpp, and from us."""
    opened = gguf.open(smollm2)
    words = words_of(opened)
    gguf.write(opened, tmp_path / "q8_0.gguf", "q8_0")
    gguf.write(opened, tmp_path / "f32.gguf")
    texts = [*proof.texts(1000), *gguf_models.TEXT, "!\x04!", "=\x16=\x06="]  # it lacks these bytes
    asked = [words.encode(text, words.special) for text in SAID]
    question = {
        "texts": [text.encode().hex() for text in texts],
        "prompts": [each.tolist() for each in asked],
        "count": 8,
    }
    paths = [smollm2, tmp_path / "q8_0.gguf", tmp_path / "f32.gguf"]
    voice = TorchVoice(opened)
    ours = [voice.greedy(prompt, 8) for prompt in asked]
    for path, said in zip(paths, judge([question | {"model": str(path)} for path in paths]), strict=True):
        wrong = [text for text, theirs in zip(texts, said["plain"], strict=True) if words.encode_list(text) != theirs]
        assert all(late(text) for text in wrong), [ascii(text)[:60] for text in wrong[:20]]
        for (ids, ahead), theirs in zip(ours, said["greedy"], strict=True):
            sure = next((place for place, lead in enumerate(ahead) if lead < SURE), 8)
            assert ids[:sure] == theirs[:sure], path.name
