"""Carrying a model between formats: what comes out is the model that went in, or nothing comes out."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temaki.base import config as config_door
from temaki.base import files
from temaki.base.errors import FormatError, RunError, TemakiError
from temaki.checkpoint import native
from temaki.checkpoint.speaking import Speaking
from temaki.cli import export, importing, inspect
from temaki.formats import carry, own, parity, told
from temaki.formats import open as door
from temaki.formats.opened import Opened
from temaki.formats.parity import Answers
from temaki.formats.weights import Weight, plain
from temaki.model import build, part
from temaki.model import config as m
from temaki.model.quantise import Blocks
from temaki.study.voice import TorchVoice
from temaki.tokens import bpe_train
from temaki.tokens import files as tokenizer_files
from temaki.tokens.chat import ChatTemplate
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import END_OF_TEXT
from variants import NAMES
from variants import config as variant

WIDTH, CONTEXT = 64, 48
TEXT = "the model travels with the tokenizer, and the tokenizer travels with the model. " * 3
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def attention(**more: Any) -> m.AttentionConfig:
    return m.AttentionConfig(heads=4, **more)


BLOCKS = {
    "home": m.BlockConfig(mixer=attention(kv_heads=2, qk_norm=True)),
    "llama": m.BlockConfig(mixer=attention(kv_heads=2, position=m.RopeConfig(pairs="interleaved"))),
    "gpt2": m.BlockConfig(
        mixer=attention(position=m.NoPositionConfig(), bias="all"),
        ffn=m.GeluConfig(bias=True),
        norm=m.LayerNormConfig(),
    ),
    "course": m.BlockConfig(mixer=attention(position=m.RopeConfig(pairs="interleaved"))),
    "encoder": m.BlockConfig(mixer=attention(mask="bidirectional", qk_norm=True)),
}
PLACES = {
    "home": {"hf", "gguf", "native"},
    "llama": {"hf", "gguf", "llama2c", "native"},
    "gpt2": {"hf", "gguf", "openai", "native"},
    "course": {"hf", "gguf", "llama2c", "cs336", "native"},
    "encoder": {"native"},
}
"""Which formats can say which model."""


def shape(name: str) -> m.DecoderConfig:
    learned = m.LearnedConfig(room=CONTEXT) if name == "gpt2" else m.NoPositionConfig()
    return m.DecoderConfig(
        vocabulary=300, width=WIDTH, depth=2, pattern=(BLOCKS[name],), tied=name in ("llama", "gpt2"),
        input_position=learned, context=CONTEXT, init="cs336",
    )  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 300 ids with a template."""
    folder = tmp_path_factory.mktemp("words")
    special = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
    found = bpe_train.train([TEXT, *(chr(0x4E00 + i) * 9 for i in range(40))], 300, special)
    assert found.size == 300
    tokenizer_files.save(found, folder)
    ChatTemplate(TEMPLATE).save(folder)
    return folder


def made(name: str, folder: Path, words: Path | None, generation: bool = False) -> Opened:
    """A model folder of ours with weights that say something, opened."""
    model = build.build(shape(name), 3)
    arrays = {key: tensor.detach().numpy() for key, tensor in part.tensors(model).items()}
    said: dict[str, Any] = {"model": config_door.mapping(shape(name))}
    if generation:
        said["generation"] = {"front": [0], "stop": [0, 2], "temperature": 0.5}
    native.write(folder, said, arrays, words)
    return own.open(folder)


def carried(source: Opened, out: Path, to: str, type: str | None = None) -> carry.Carried:
    return carry.carry(source, out, to, TorchVoice, type, lambda _: None)


SPOKEN = ("hf", "gguf", "native")
"""Formats that hold our BPE with any special tokens."""
CASES = [
    (name, to, type)
    for name, places in PLACES.items()
    for to in sorted(places)
    for type in (carry.TARGETS[to].types or (None,))
    if name == "home" or (to, type) in (("gguf", "q8_0"), ("hf", "f32")) or to in ("llama2c", "cs336", "openai")
]


@pytest.mark.parametrize(("name", "to", "type"), CASES)
def test_what_comes_out_is_what_went_in(name: str, to: str, type: str | None, tmp_path: Path, words: Path) -> None:
    source = made(name, tmp_path / "in", words if to in SPOKEN else None)
    found = carried(source, tmp_path / "out" / "it", to, type)
    assert found.proof.same
    assert found.proof.longest == CONTEXT
    doors = [import_module(f"temaki.formats.{each}") for each in door.DOORS]
    assert [each.__name__ for each in doors if each.fits(found.paths[-1])] == [
        f"temaki.formats.{carry.TARGETS[to].door}"
    ]
    assert found.proof.tokens == 2 * 24
    exact = type in (None, "f32")
    assert (found.loss is None) == exact
    if exact:
        assert found.proof.logits <= 1e-5
        again = carried(found.after, tmp_path / "back", "native").after
        if again.config == source.config:  # else rows of rotary pairs lie in another order
            for key, weight in source.weights().items():
                assert np.array_equal(weight.array(), again.weights()[key].array()), key
    if to in SPOKEN:
        assert found.texts is not None
        assert found.texts > 2000


def test_a_rounded_model_holds_exactly_the_rounded_weights_and_says_what_it_cost(tmp_path: Path, words: Path) -> None:
    source = made("home", tmp_path / "in", words)
    costs = []
    for type in ("f16", "q8_0", "q4_0"):
        found = carried(source, tmp_path / type, "gguf", type)
        assert found.loss is not None
        costs.append(found.loss.logits)
        kinds = {
            stored.kind if isinstance(stored, Blocks) else str(stored.dtype)
            for weight in found.after.weights().values()
            for stored, _ in weight.parts
        }
        kind = {"f16": "float16"}.get(type, type.upper())
        assert {"float32", kind} <= kinds <= {"float32", kind, "Q8_0"}  # some matrices are kept better
    assert 0 < costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("to", ["hf", "gguf", "native"])
def test_template_and_ends_travel_where_a_format_has_room_for_them(to: str, tmp_path: Path, words: Path) -> None:
    source = made("home", tmp_path / "in", words, generation=True)
    after = carried(source, tmp_path / "out", to).after
    assert after.chat is not None
    assert after.chat.source == TEMPLATE
    assert after.speaking.front == (0,)
    assert set(after.speaking.stop) == {0, 2}
    if to != "gguf":
        assert after.speaking.temperature == 0.5


def test_ids_that_end_an_answer_in_a_format_alone_are_named(tmp_path: Path, words: Path) -> None:
    source = made("home", tmp_path / "in", words, generation=True)
    source = replace(source, speaking=Speaking(stop=(2,)))
    found = carried(source, tmp_path / "out", "gguf")
    more = set(found.after.speaking.stop) - {2}
    assert all(str(id) in found.lost[0] for id in more)
    assert len(found.lost) == bool(more)


def test_what_a_format_has_no_room_for_is_said(tmp_path: Path) -> None:
    found = carried(made("home", tmp_path / "in", None), tmp_path / "out", "hf")
    assert found.texts is None
    assert found.lost == ("the model has no tokenizer, so none was written",)


# ---- a writer that is wrong ----------------------------------------------------------------------------------------


def off_by(amount: float) -> Callable[[Opened], Opened]:
    def change(opened: Opened) -> Opened:
        def weights() -> dict[str, Weight]:
            return {
                name: plain((weight.array() * (1 + amount * name.endswith("mixer.out"))).astype(np.float32))
                for name, weight in opened.weights().items()
            }

        return replace(opened, read_weights=weights)

    return change


def other(config: Callable[[m.DecoderConfig], m.DecoderConfig]) -> Callable[[Opened], Opened]:
    return lambda opened: replace(opened, config=config(opened.config))


def theta(config: m.DecoderConfig) -> m.DecoderConfig:
    mixer = replace(BLOCKS["home"].mixer, position=m.RopeConfig(theta=20_000.0))
    return replace(config, pattern=(replace(BLOCKS["home"], mixer=mixer),))


def reworded(opened: Opened) -> Opened:
    special = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
    text = [TEXT[::-1], *(chr(0x4E00 + i) * 9 for i in range(40))]
    return replace(opened, read_tokenizer=lambda: (bpe_train.train(text, 300, special), Frame()))


LIES = {
    "weights": (off_by(0.05), "another model"),
    "theta": (other(theta), r"theta 20000.0[\s\S]*theta 10000.0"),
    "no tokenizer": (lambda opened: replace(opened, read_tokenizer=lambda: None), "has no tokenizer"),
    "another tokenizer": (reworded, "gets other ids"),
    "no template": (lambda opened: replace(opened, read_chat=lambda: None), "the chat template came back otherwise"),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_difference_is_an_error_and_nothing_is_left(
    lie: str, tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = LIES[lie]
    source = made("home", tmp_path / "in", words)
    honest = own.write
    monkeypatch.setattr(own, "write", lambda opened, out: honest(change(opened), out))
    (tmp_path / "place").mkdir()
    with pytest.raises(TemakiError, match=said):
        carried(source, tmp_path / "place" / "out", "native")
    assert list((tmp_path / "place").iterdir()) == []


def test_weights_that_are_not_finite_prove_nothing(tmp_path: Path) -> None:
    source = made("home", tmp_path / "in", None)
    broken = {**source.weights(), "norm.gain": plain(np.full(WIDTH, np.nan, np.float32))}
    with pytest.raises(FormatError, match="not finite"):
        carried(replace(source, read_weights=lambda: broken), tmp_path / "out", "native")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(PLACES))
def test_shapes_a_format_cannot_say_are_refused_and_inspect_knows(name: str, tmp_path: Path) -> None:
    source = made(name, tmp_path / "in", None)
    assert set(told.told(source)["exports"]) == PLACES[name]
    for to in carry.TARGETS.keys() - PLACES[name]:
        assert carry.refusal(source, to)
        with pytest.raises(FormatError):
            carried(source, tmp_path / "no" / to, to)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_format_that_wants_a_context_is_not_promised_without_one(tmp_path: Path) -> None:
    source = made("home", tmp_path / "in", None)
    unknown = replace(source, config=replace(source.config, context=None), settings={})
    assert carry.refusal(unknown, "gguf")
    assert carry.refusal(unknown, "native") is None


def test_a_refusal_tells_a_few_differences_each_of_all_blocks_once(tmp_path: Path) -> None:
    source = made("home", tmp_path / "in", None)
    deep = replace(source, config=replace(source.config, depth=40))
    with pytest.raises(FormatError) as caught:
        carried(deep, tmp_path / "out", "openai")
    assert caught.value.found.startswith("pattern.*.mixer.kv_heads 2, pattern.*.mixer.position.kind rope")
    assert caught.value.allowed.startswith("pattern.*.mixer.kv_heads 4, pattern.*.mixer.position.kind none")
    assert len(str(caught.value)) < 500


def test_differences_of_some_blocks_alone_keep_their_numbers_and_a_kind_stands_for_its_table() -> None:
    home, course = BLOCKS["home"], BLOCKS["course"]
    one = replace(shape("home"), pattern=(home, home))
    two = replace(one, pattern=(home, replace(home, mixer=course.mixer, norm=m.LayerNormConfig())))
    keys = [each.key for each in parity.unlike(one, two)]
    assert keys == ["pattern.1.mixer.kv_heads", "pattern.1.mixer.qk_norm", "pattern.1.norm.kind"]


def test_wrong_words_are_answered(tmp_path: Path) -> None:
    source = made("home", tmp_path / "in", None)
    with pytest.raises(FormatError, match="did you mean gguf"):
        carried(source, tmp_path / "out", "ggfu")
    with pytest.raises(FormatError, match="f32, f16, q8_0"):
        carried(source, tmp_path / "out", "gguf", "q2_k")
    with pytest.raises(FormatError, match="float32 alone"):
        carried(source, tmp_path / "out", "native", "f16")
    with pytest.raises(FormatError, match="exists already; nothing was changed"):
        carried(source, tmp_path / "in", "hf")


# ---- parity itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_is_like_itself_and_unlike_each_other_variant(name: str) -> None:
    one = variant(name)
    assert parity.unlike(one, replace(one, init="zero-out", pattern=one.blocks)) == []
    likes = [each for each in NAMES if parity.unlike(one, variant(each)) == []]
    assert set(likes) <= {name, "attention-half", "attention-interleaved"}


def said(logits: list[list[float]], ids: list[int], ahead: list[float]) -> Answers:
    return Answers((np.array(logits, np.float32),), ((ids, ahead),))


def test_differences_are_measured_in_parts_of_the_largest_and_ties_are_no_difference() -> None:
    one = said([[4.0, 1.0]], [0, 0, 1], [3.0, 1e-4, 3.0])
    assert parity.difference(one, one).same
    near = parity.difference(one, said([[4.0002, 1.0]], [0, 1, 1], [3.0, 1e-4, 3.0]))
    assert near.logits == pytest.approx(5e-5, rel=0.01)
    assert (near.agreed, near.ties, near.broken, near.same) == (1, 1, 0, True)
    far = parity.difference(one, said([[4.0, 1.0]], [0, 0, 0], [3.0, 1e-4, 3.0]))
    assert (far.agreed, far.ties, far.broken, far.same) == (2, 0, 1, False)
    assert not parity.difference(one, said([[4.0, 1.001]], [0, 0, 1], [3.0, 1e-4, 3.0])).same


# ---- the verbs ------------------------------------------------------------------------------------------------------


def temaki(*words: str, where: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "temaki", *words]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_export_inspect_and_import_as_a_user_does_them(
    tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made("home", tmp_path / "home", words)
    out = temaki("export", "home", "home.gguf", "--to", "gguf", "--type", "q8_0", "--json", where=tmp_path)
    found = json.loads(out.stdout)
    assert found["written"] == ["home.gguf"]
    assert found["proof"]["broken"] == 0
    assert found["loss"]["logits"] > 0
    monkeypatch.chdir(tmp_path)
    importing.importing("home.gguf", Path("back"), json=False)
    assert "the same ids on" in capsys.readouterr().out
    inspect.inspect("back", json=True)
    seen = json.loads(capsys.readouterr().out)
    assert seen["parameters"]["total"] == sum(p.numel() for p in build.build(shape("home")).parameters())
    assert seen["shape"]["context"] == CONTEXT
    inspect.inspect("home.gguf", json=False)
    text = capsys.readouterr().out
    assert "Q8_0" in text
    assert "has a template" in text
    with pytest.raises(FormatError, match="nothing was changed"):
        export.export("back", Path("back"), "hf", None, json=False)
    with pytest.raises(TemakiError, match="no such file"):
        export.export("runs/none", Path("out"), "hf", None, json=False)


def test_inspect_of_a_damaged_model_says_which_part_and_shows_the_rest(tmp_path: Path, words: Path) -> None:
    made("home", tmp_path / "home", words)
    path = tmp_path / "home" / native.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = told.told(door.open(tmp_path / "home"))
    assert "is damaged" in found["weights"]["error"]
    assert found["tokenizer"]["size"] == 300
    assert "is damaged" in told.lines(found)


def test_what_a_file_says_of_itself_commands_no_terminal(tmp_path: Path) -> None:
    source = made("home", tmp_path / "home", None)
    text = told.lines(told.told(replace(source, facts={"name": "a\x1b[2J\u202eb"})))
    assert "name a\ufffd[2J\ufffdb" in text


def test_inspect_and_carry_load_no_torch_for_what_needs_none(fresh, tmp_path: Path, words: Path) -> None:
    made("home", tmp_path / "home", words)
    code = f"""
import sys
from temaki.formats import open as door, told
print(told.lines(told.told(door.open({str(tmp_path / "home")!r}))).count("bpe"), "torch" in sys.modules)
"""
    assert fresh(code).split() == ["1", "False"]


def test_what_a_killed_attempt_left_is_taken_away(tmp_path: Path) -> None:
    left = tmp_path / ".out.part"
    left.mkdir()
    (left / "half").write_bytes(b"half of a model")
    (left / "inner").mkdir()
    carried(made("home", tmp_path / "in", None), tmp_path / "out", "native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    source, aside = made("home", tmp_path / "in", None), tmp_path / ".out.part"
    with files.only(aside), pytest.raises(RunError, match="another process is writing"):
        (aside / "half").write_bytes(b"half of a model")
        carried(source, tmp_path / "out", "native")
    assert [path.name for path in aside.iterdir()] == ["half"]
    carried(source, tmp_path / "out", "native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
