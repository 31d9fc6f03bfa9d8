"""Training a model further: it keeps its shape, weights, tokenizer and ways, learns, resumes, and leaves again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from temaki.base import config as config_door
from temaki.base.errors import ConfigError, DataError, GenerationError
from temaki.batches import prepare
from temaki.checkpoint import native
from temaki.checkpoint.speaking import Speaking
from temaki.cli import resolved
from temaki.evaluate import loss
from temaki.formats import carry, own
from temaki.formats import open as door
from temaki.formats.opened import Opened
from temaki.model import build, part
from temaki.model import config as m
from temaki.report import runs as listed
from temaki.study import asking, further, pipeline, recipes
from temaki.study.voice import TorchVoice
from temaki.tokens import bpe_train, hf_json
from temaki.tokens import files as tokenizer_files
from temaki.tokens.chat import ChatTemplate
from temaki.tokens.frame import Frame

ROOT = Path(__file__).parents[1]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
STORY = "Once upon a time a small boat number {i} carried rice to the city, and {j} frogs sang to it. "
STEPS = 12
BLOCK = m.BlockConfig(mixer=m.AttentionConfig(heads=2))


def recipe(source: Path, text: Path, **more: Any) -> dict[str, Any]:
    found = {
        "name": "mine", "data": {"text": str(text), "held_out": 0.3}, "begin": {"kind": "model", "path": str(source)},
        "optim": {"lr": 3e-3, "schedule": {"kind": "wsd", "warmup": 2}}, "batch": {"tokens": 128, "context": 32},
        "stop": {"steps": STEPS}, "watch": {"validate": STEPS}, "save": {"every": 4, "keep": 9},
        "parallel": {"threads": 1},
    }  # fmt: skip
    return config_door.merge(found, more)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i in range(24):
        (folder / f"{i}.txt").write_text("".join(STORY.format(i=i, j=j) for j in range(12)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as `transformers` saves it, with a tokenizer and template such as SmolLM2's."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = bpe_train.train([STORY * 9, *(chr(0x4E00 + i) * 9 for i in range(40))], 300, SPECIAL)
    hf_json.save(tokenizer, folder, Frame(), ChatTemplate(TEMPLATE, {"eos_token": "<|im_end|>"}))
    return folder


def small(folder: Path, special: tuple[str, ...], frame: Frame | None = None, generation: Any = None) -> Path:
    """A model folder of ours whose tokenizer has these special tokens."""
    words = folder.with_name(folder.name + "-words")
    tokenizer_files.save(bpe_train.train([STORY * 9], 280, special), words, frame)
    size = tokenizer_files.load(words).size
    config = m.DecoderConfig(vocabulary=size, width=16, depth=1, pattern=(BLOCK,), init="cs336")
    said = {"model": config_door.mapping(config)} | ({"generation": generation} if generation else {})
    arrays = {name: tensor.detach().numpy() for name, tensor in part.tensors(build.build(config)).items()}
    native.write(folder, said, arrays, words)
    return folder


def learned(tmp_path: Path) -> Path:
    """A model that has learned 24 positions."""
    source = own.open(small(tmp_path / "source", SPECIAL))
    config = m.DecoderConfig(
        vocabulary=source.config.vocabulary, width=16, depth=1, input_position=m.LearnedConfig(room=24),
        pattern=(m.BlockConfig(mixer=m.AttentionConfig(heads=2, position=m.NoPositionConfig())),), init="cs336",
    )  # fmt: skip
    weights = {name: tensor.detach().numpy() for name, tensor in part.tensors(build.build(config)).items()}
    native.write(tmp_path / "learned", {"model": config_door.mapping(config)}, weights, tmp_path / "source-words")
    return tmp_path / "learned"


def arrays(opened: Opened) -> dict[str, np.ndarray]:
    return {name: weight.array() for name, weight in opened.weights().items()}


def test_imported_trained_further_exported_and_opened_by_transformers(
    foreign: Path, text: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    carry.carry(door.open(foreign), tmp_path / "ours", "native", TorchVoice, say=lambda _: None)
    before = door.open(tmp_path / "ours")
    made = pipeline.ready(recipe(tmp_path / "ours", text), tmp_path / "run")
    first = pipeline.score(before.model(), made.data, 32)
    outcome = pipeline.train(made)
    assert outcome.reason == "finished"
    after = door.open(tmp_path / "run")
    assert pipeline.score(after.model(), made.data, 32).loss < first.loss - 0.5
    assert after.config == before.config
    assert after.tokenizer is not None
    assert before.tokenizer is not None
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.chat is not None
    assert after.chat.source == TEMPLATE
    assert set(after.speaking.stop) == {0, 2}
    assert after.speaking.front == (before.speaking.front or (0,))
    carry.carry(after, tmp_path / "theirs", "hf", TorchVoice, say=lambda _: None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ids = words("Once upon a time", add_special_tokens=False)["input_ids"]
    assert ids == after.tokenizer.encode_list("Once upon a time")
    with torch.no_grad():
        wanted = TorchVoice(after).logits([np.array(ids)])[0]
        found = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|im_start|>user")


def test_a_run_begins_with_the_very_weights_and_goes_on_without_the_model_it_came_from(
    text: Path, tmp_path: Path
) -> None:
    source = small(tmp_path / "source", SPECIAL)
    found = recipe(source, text)
    pipeline.train(pipeline.ready(found, tmp_path / "whole"))
    begun = door.open(tmp_path / "whole" / "checkpoints" / "step-00000000")
    assert arrays(begun).keys() == arrays(own.open(source)).keys()
    for name, array in arrays(own.open(source)).items():
        assert np.array_equal(array, arrays(begun)[name])
    short = config_door.merge(found, {"stop": {"steps": STEPS}})
    made = pipeline.ready(short, tmp_path / "cut")
    interrupted(made)
    source.rename(tmp_path / "gone")
    again = pipeline.ready(config_door.read_toml(tmp_path / "cut" / "config.toml"), tmp_path / "cut")
    assert pipeline.train(again, "auto").reason == "finished"
    whole, resumed = arrays(door.open(tmp_path / "whole")), arrays(door.open(tmp_path / "cut"))
    for name in whole:
        assert np.array_equal(whole[name], resumed[name]), name


def test_a_run_of_experts_resumes_with_its_balance(text: Path, tmp_path: Path) -> None:
    experts = {"kind": "experts", "experts": 4, "top": 2, "balance": 0.05}
    pattern = [{"mixer": {"kind": "attention", "heads": 2}, "ffn": experts}]
    found = recipe(Path(), text, model={"width": 16, "depth": 1, "pattern": pattern, "init": "cs336"})
    found = {**found, "begin": {"kind": "random"}, "data": {**found["data"], "vocabulary": 280}}
    pipeline.train(pipeline.ready(found, tmp_path / "whole"))
    interrupted(pipeline.ready(found, tmp_path / "cut"))
    again = pipeline.ready(config_door.read_toml(tmp_path / "cut" / "config.toml"), tmp_path / "cut")
    assert pipeline.train(again, "auto").reason == "finished"
    whole, resumed = arrays(door.open(tmp_path / "whole")), arrays(door.open(tmp_path / "cut"))
    assert "blocks.0.ffn.bias" in whole
    assert np.abs(whole["blocks.0.ffn.bias"]).max() > 0
    for name in whole:
        assert np.array_equal(whole[name], resumed[name]), name


def interrupted(made: pipeline.Ready) -> None:
    """Train up to the middle of the run and stop there as a signal would."""
    import signal

    from temaki.train.hooks import Hook

    class Stop(Hook):
        name = "stop"

        def step(self, run: Any, line: Any) -> None:
            if run.step == 5:
                signal.raise_signal(signal.SIGTERM)

    assert pipeline.train(made, hooks=[Stop()]).reason == "SIGTERM"


# ---- the boundary between documents ---------------------------------------------------------------------------------


def test_the_boundary_is_the_usual_token_else_the_frames_first_else_the_one_named(text: Path, tmp_path: Path) -> None:
    framed = small(tmp_path / "framed", ("<s>", "</s>"), Frame(before=("<s>",)))
    made = pipeline.ready(recipe(framed, text), tmp_path / "a")
    assert made.data.train.manifest.boundary == made.data.tokenizer.special["<s>"]
    assert made.config.generation == Speaking(front=(0,), stop=(0,))
    named = pipeline.ready(recipe(framed, text, data={"boundary": "</s>"}), tmp_path / "b")
    assert named.data.train.manifest.boundary == named.data.tokenizer.special["</s>"]
    usual = pipeline.ready(recipe(small(tmp_path / "usual", SPECIAL), text), tmp_path / "c")
    assert usual.data.train.manifest.boundary == 0
    assert usual.config.generation is None
    bare = small(tmp_path / "bare", ("<a>", "<b>"))
    with pytest.raises(DataError, match=r"found: <a>, <b>[\s\S]*data\.boundary"):
        pipeline.ready(recipe(bare, text), tmp_path / "d")
    with pytest.raises(DataError, match="no '<c>'"):
        pipeline.ready(recipe(bare, text, data={"boundary": "<c>"}), tmp_path / "e")


def test_a_named_boundary_goes_into_checkpoints_and_begins_what_is_generated(text: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "source", ("<s>", "</s>"), Frame(before=("<s>",)))
    pipeline.train(pipeline.ready(recipe(source, text), tmp_path / "run"))
    after = door.open(tmp_path / "run")
    assert after.speaking == Speaking(front=(0,), stop=(0,))
    assert after.framed is not None
    assert after.framed[1] == Frame(before=("<s>",))
    assert asking.ends_of(after, after.framed[0]).front == (0,)
    assert isinstance(pipeline.generate(after, "Once", max_tokens=4), str)


def test_a_tokenizers_frame_and_template_stay_with_data_made_by_it(text: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    tokenizer_files.save(bpe_train.train([STORY], 270, ("<s>",)), words, Frame(before=("<s>",)))
    ChatTemplate(TEMPLATE).save(words)
    settings = recipes.data({"data": {"text": str(text), "tokenizer": str(words)}})
    made = prepare.prepare(settings, tmp_path / "data", pipeline.quiet)
    assert made.train.manifest.boundary == made.tokenizer.special["<s>"]
    assert tokenizer_files.load_framed(made.folder / "tokenizer")[1] == Frame(before=("<s>",))
    assert (made.folder / "tokenizer" / "chat_template.jinja").read_text() == TEMPLATE


def test_any_model_on_any_text_costs_what_its_documents_cost_as_shards(text: Path, tmp_path: Path) -> None:
    source = own.open(small(tmp_path / "source", ("<s>", "</s>"), Frame(before=("<s>",))))
    data = pipeline.ready(recipe(source.folder, text), tmp_path / "run").data
    model = source.model(torch.float64)
    splits = [
        loss.score(model, [split.document(i) for i in range(split.manifest.documents)], split.manifest.bytes, 32)
        for split in (data.train, data.held)
    ]
    found = pipeline.score_text(source, model, text, 32)
    assert found.nats == pytest.approx(sum(each.nats for each in splits), rel=1e-10)
    assert found.bytes == sum(each.bytes for each in splits)
    assert found.tokens == sum(each.tokens for each in splits)


def test_what_begins_a_models_prompts_stands_between_documents_that_judge_it(tmp_path: Path) -> None:
    source = own.open(small(tmp_path / "source", ("<s>", "</s>"), generation={"front": [1], "stop": [1]}))
    (tmp_path / "one.txt").write_text(STORY, encoding="utf-8")
    assert source.tokenizer is not None
    model = source.model(torch.float64)
    document = np.array([1, *source.tokenizer.encode_list(STORY)])
    wanted = loss.score(model, [document], len(STORY), 32)
    assert pipeline.score_text(source, model, tmp_path / "one.txt", 32).nats == pytest.approx(wanted.nats, rel=1e-10)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_recipes_that_ask_for_something_else_are_refused(text: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "source", SPECIAL)
    other = {"model": {"width": 32, "depth": 1, "pattern": [{"mixer": {"kind": "attention", "heads": 2}}]}}
    wrong = {
        "is not the shape of": recipe(source, text, **other),
        "has its own tokenizer": recipe(source, text, data={"tokenizer": "somewhere"}),
    }
    for said, found in wrong.items():
        with pytest.raises(ConfigError, match=said):
            pipeline.ready(found, tmp_path / "run")
    same = {"model": config_door.mapping(own.open(source).config)}
    assert pipeline.ready(recipe(source, text, **same), tmp_path / "same").config.model == own.open(source).config
    bare = tmp_path / "bare"
    native.write(bare, {"model": config_door.mapping(own.open(source).config)}, arrays(own.open(source)), None)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        pipeline.ready(recipe(bare, text), tmp_path / "run")
    shards = prepare.prepare(
        recipes.data({"data": {"text": str(text), "vocabulary": 290}}), tmp_path / "shards", pipeline.quiet
    )
    with pytest.raises(ConfigError, match="another tokenizer"):
        pipeline.ready(recipe(source, text, data={"shards": str(shards.folder)}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


def test_rows_beyond_learned_positions_are_refused_before_any_work(text: Path, tmp_path: Path) -> None:
    path = learned(tmp_path)
    with pytest.raises(ConfigError, match=r"learned positions[\s\S]*context 32, 24 positions[\s\S]*1 to 24"):
        pipeline.ready(recipe(path, text), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_beyond_learned_positions_are_refused_with_all_numbers(tmp_path: Path) -> None:
    path = learned(tmp_path)
    assert pipeline.generate(path, "", max_tokens=23) is not None
    with pytest.raises(GenerationError, match=r"1 ids of the prompt \+ 24 tokens = 25[\s\S]*24 positions"):
        pipeline.generate(path, "", max_tokens=24)


def test_an_empty_prompt_begins_behind_the_token_between_documents(tmp_path: Path) -> None:
    opened = own.open(small(tmp_path / "stops", SPECIAL, generation={"stop": [0]}))
    assert opened.tokenizer is not None
    ends = asking.ends_of(opened, opened.tokenizer)
    assert (ends.front, ends.stop, ends.empty) == ((), (0,), (0,))
    assert isinstance(pipeline.generate(opened, "", max_tokens=3), str)
    nameless = own.open(small(tmp_path / "nameless", ("<s>",), generation={"stop": [0]}))
    with pytest.raises(GenerationError, match="empty prompt"):
        pipeline.generate(nameless, "", max_tokens=3)


def test_an_encoder_is_trained_further_by_the_mask_of_its_own_tokenizer(text: Path, tmp_path: Path) -> None:
    source = own.open(small(tmp_path / "source", (*SPECIAL, "<|mask|>")))
    mixer = m.AttentionConfig(heads=2, mask="bidirectional")
    config = replace(source.config, pattern=(m.BlockConfig(mixer=mixer),))
    native.write(tmp_path / "in", {"model": config_door.mapping(config)}, arrays(source), tmp_path / "source-words")
    made = pipeline.ready(recipe(tmp_path / "in", text, objective={"kind": "masked"}), tmp_path / "run")
    assert pipeline.train(made).reason == "finished"
    (run,) = listed.runs(tmp_path / "run")
    assert run.next.startswith("temaki report")
    maskless = recipe(small(tmp_path / "none", SPECIAL), text, objective={"kind": "masked"})
    with pytest.raises(ConfigError, match="bidirectional"):
        pipeline.ready(maskless, tmp_path / "other")


def test_masked_models_begin_otherwise_than_as_bigrams(text: Path, tmp_path: Path) -> None:
    found = recipe(tmp_path, text, begin={"kind": "bigrams"}, objective={"kind": "masked"})
    mixer = {"kind": "attention", "heads": 2, "mask": "bidirectional"}
    found["model"] = {"width": 16, "depth": 1, "tied": False, "pattern": [{"mixer": mixer}]}
    found["data"]["special"] = ["<|mask|>"]
    with pytest.raises(ConfigError, match="a masked model does not"):
        pipeline.ready(found, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_dial_of_minutes_gives_steps_and_the_dial_of_depth_is_refused(text: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "source", SPECIAL)
    found = recipe(source, text)
    short = further.dialled(found, [], 1.0, None, lambda: 1e8)
    long = further.dialled(found, [], 2.0, None, lambda: 1e8)
    assert long["stop"]["steps"] == pytest.approx(2 * short["stop"]["steps"], abs=2)
    assert short["stop"]["minutes"] == 1.0
    assert further.dialled(found, [], 1e-3, None, lambda: 1.0)["stop"]["steps"] == 3  # one after the warmup
    assert further.dialled(found, [], None, None, lambda: 1e8) == found
    with pytest.raises(ConfigError, match="--depth"):
        resolved.resolve(found, [], None, None, 3)


def test_the_recipe_file_is_the_recipe_of_the_verb() -> None:
    assert recipes.load(ROOT / "recipes" / "further.toml") == json.loads(json.dumps(further.RECIPE))
