"""Hugging Face folders as files: models made at home leave whole, what is not understood is refused, mutants too."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nasty
from temaki.base import config as config_door
from temaki.base.errors import CheckpointError, FormatError, TokenizerError
from temaki.base.rows import rows
from temaki.checkpoint import arrays, native
from temaki.formats import hf, hf_config, hf_names, hf_safetensors, hf_said, own
from temaki.formats.opened import Opened, Speaking
from temaki.model import build
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    GeluConfig,
    LayerNormConfig,
    LearnedConfig,
    NoPositionConfig,
    NtkScalingConfig,
    RopeConfig,
    S4DConfig,
    SwigluConfig,
)
from temaki.tokens import bpe_train, files, hf_json
from temaki.tokens.bpe import Bpe
from temaki.tokens.bpe_vocabulary import Partial
from temaki.tokens.chat import ChatTemplate

END = "<|endoftext|>"
CORPUS = ["the cat sat on the mat 1234, don't 's " * 3, "über caffè 你好世界 😀\r\n\n  \t x"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "the cat <|im_end|> 你好"}, {"role": "assistant", "content": "sat on"}]
DEMO = AttentionConfig(heads=3, kv_heads=1, qk_norm=True)
GPT2 = AttentionConfig(heads=4, position=NoPositionConfig(), bias="all")

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("qwen3", {"pattern": (BlockConfig(mixer=DEMO),), "tied": False}),
    "interleaved": (
        "llama",
        {
            "pattern": (
                BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2, position=RopeConfig(pairs="interleaved"))),
            )
        },
    ),
    "interleaved with gains and biases": (
        "qwen3",
        {"pattern": (BlockConfig(mixer=replace(DEMO, position=RopeConfig(pairs="interleaved"), bias="all")),)},
    ),
    "ntk": (
        "llama",
        {
            "pattern": (
                BlockConfig(mixer=AttentionConfig(heads=3, position=RopeConfig(scaling=NtkScalingConfig(factor=3)))),
            )
        },
    ),
    "window": ("mistral", {"pattern": (BlockConfig(mixer=AttentionConfig(heads=3, window=4)),)}),
    "biases of queries, keys and values": (
        "qwen2",
        {"pattern": (BlockConfig(mixer=AttentionConfig(heads=3, bias="qkv")),)},
    ),
    "two kinds of layers": (
        "qwen3",
        {"pattern": (BlockConfig(mixer=replace(DEMO, window=3)), BlockConfig(mixer=DEMO))},
    ),
    "every second without positions": (
        "smollm3",
        {
            "pattern": (
                BlockConfig(mixer=AttentionConfig(heads=3)),
                BlockConfig(mixer=AttentionConfig(heads=3, position=NoPositionConfig())),
            )
        },
    ),
    "experts": (
        "mixtral",
        {"pattern": (BlockConfig(mixer=AttentionConfig(heads=3), ffn=ExpertsConfig(experts=3, top=2)),)},
    ),
    "experts, some": (
        "qwen3_moe",
        {
            "pattern": (
                BlockConfig(
                    mixer=DEMO, ffn=ExpertsConfig(experts=3, top=2, expert=SwigluConfig(width=8), renormalise=False)
                ),
                BlockConfig(mixer=DEMO),
            )
        },
    ),
    "gpt2": (
        "gpt2",
        {
            "pattern": (BlockConfig(mixer=GPT2, ffn=GeluConfig(bias=True), norm=LayerNormConfig()),),
            "input_position": LearnedConfig(room=64),
        },
    ),
}
"""Shapes made at home -> the family that says them."""


def config(vocabulary: int = 330, **changes: Any) -> DecoderConfig:
    return DecoderConfig(**{"vocabulary": vocabulary, "width": 24, "depth": 2, "context": 64, **changes})


def home(folder: Path, shape: DecoderConfig, chat: bool = False) -> Opened:
    """A model folder of ours with random weights, a tokenizer, and a template."""
    torch.manual_seed(4)
    model = build.build(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    saved = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: saved[name].detach().numpy() for name in saved if name in model.state_dict()}
    tokenizer = folder.parent / "tokenizer"
    files.save(bpe_train.train(CORPUS, 330, special=[END, "<|im_start|>", "<|im_end|>"]), tokenizer)
    if chat:
        ChatTemplate(CHATML, {"eos_token": "<|im_end|>"}).save(tokenizer)
    native.write(folder, {"model": config_door.mapping(shape)}, weights, tokenizer)
    return own.open(folder)


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle of models, is missing")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


# ---- out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_made_at_home_speaks_alike_in_transformers(theirs: Any, tmp_path: Path, name: str) -> None:
    family, changes = SHAPES[name]
    opened = home(tmp_path / "ours", config(**changes))
    hf.write(opened, tmp_path / "theirs")
    model = theirs.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    assert model.config.model_type == family
    ours, again = opened.model(), hf.open(tmp_path / "theirs")
    ids = torch.randint(330, (40,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = ours.head.logits(ours(rows([ids])))
        returned = again.model()
        for found in (model(ids[None]).logits[0], returned.head.logits(returned(rows([ids])))):
            assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()
    greedy = model.generate(ids[None, :8], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    read = ids[:8]
    for _ in range(12):
        with torch.no_grad():
            read = torch.cat([read, ours.head.logits(ours(rows([read])))[-1:].argmax(-1)])
    assert greedy[0].tolist() == read.tolist()
    assert opened.tokenizer is not None
    boundary = (opened.tokenizer.special[END],)
    assert again.speaking == Speaking(front=boundary, stop=boundary)


def test_the_tokenizer_and_the_chat_template_leave_with_it(theirs: Any, tmp_path: Path) -> None:
    opened = home(tmp_path / "ours", config(**SHAPES["demo"][1]), chat=True)
    hf.write(opened, tmp_path / "theirs")
    tokenizer = theirs.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert opened.tokenizer is not None
    special = opened.tokenizer.special
    for text in nasty.texts(200, 6, tuple(special)):
        wanted = opened.tokenizer.encode_list(text, special)
        assert tokenizer.encode(text, add_special_tokens=False) == wanted
        assert tokenizer(text)["input_ids"] == [special[END], *wanted]
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == special[END]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 64
    assert opened.chat is not None
    text = "".join(segment.text for segment in opened.chat.render(CHAT, prompt=True))
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == text
    again = hf.open(tmp_path / "theirs")
    assert again.speaking == Speaking(front=(special[END],), stop=(special["<|im_end|>"], special[END]))
    assert again.chat is not None
    assert again.chat.source == opened.chat.source
    assert again.tokenizer is not None
    assert again.tokenizer.fingerprint == opened.tokenizer.fingerprint


@pytest.mark.parametrize("partial", ["before", "after"])
def test_bytes_without_a_token_are_left_out_in_both(theirs: Any, tmp_path: Path, partial: Partial) -> None:
    """SmolLM2's vocabulary lacks 21 bytes."""
    full = bpe_train.train([*CORPUS, "!! == !! == !! =="], 340)
    absent = {bytes([value]) for value in (0, 4, 0xF1, 0xFF)}
    lacking = Bpe([token for token in full.tokens if token not in absent], full.merges, {}, "gpt2", partial=partial)
    hf_json.save(lacking, tmp_path)
    tokenizer = theirs.AutoTokenizer.from_pretrained(tmp_path)
    again, _ = hf_json.load(tmp_path)
    assert again.fingerprint == lacking.fingerprint
    for text in nasty.texts(200, 11, ("\0", "\x04\x04", "a\0b", "!\0!", "=\x04=\0=", "\U00040000")):
        assert tokenizer.encode(text) == lacking.encode_list(text) == again.encode_list(text)
    joined = [len(lacking.encode_list(text)) for text in ("!\0!", "=\x04=\0=")]
    assert joined == ([1, 2] if partial == "before" else [2, 3])


def test_ends_and_advice_leave_with_it_and_come_back(theirs: Any, tmp_path: Path) -> None:
    speaking = Speaking(front=(0,), stop=(2, 5), temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1)
    opened = replace(home(tmp_path / "ours", config(**SHAPES["demo"][1])), speaking=speaking)
    hf.write(opened, tmp_path / "theirs")
    found = theirs.GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert (found.bos_token_id, found.eos_token_id, found.do_sample) == (0, [2, 5], True)
    assert (found.temperature, found.top_k, found.top_p, found.repetition_penalty) == (0.7, 40, 0.9, 1.1)
    assert hf.open(tmp_path / "theirs").speaking == replace(speaking, front=hf.open(tmp_path / "theirs").speaking.front)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pattern": (BlockConfig(mixer=S4DConfig()),)}, "other than attention"),
        ({"pattern": (BlockConfig(mixer=AttentionConfig(heads=3, position=AlibiConfig())),)}, "position"),
        ({"pattern": (BlockConfig(mixer=AttentionConfig(heads=3), order="post"),)}, "order = 'post'"),
        ({"pattern": (BlockConfig(mixer=AttentionConfig(heads=3, mask="bidirectional")),)}, "mask = 'bidirectional'"),
        ({"pattern": (BlockConfig(mixer=AttentionConfig(heads=3), ffn=GeluConfig()),)}, "ffn"),
        ({"pattern": (BlockConfig(mixer=AttentionConfig(heads=3)),), "cap": 5.0}, "cap = 5.0"),
        ({"pattern": (BlockConfig(mixer=AttentionConfig(heads=3)),), "embedding_scale": 2.0}, "embedding_scale = 2.0"),
        (
            {"pattern": (BlockConfig(mixer=DEMO, ffn=ExpertsConfig(experts=2, top=1, expert=GeluConfig())),)},
            "expert.kind = 'gelu'",
        ),
    ],
)
def test_what_no_family_can_say_is_refused_by_its_part(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError, match="no family") as caught:
        hf_said.said(config(**changes))
    assert says in caught.value.found
    assert "qwen3_moe" in caught.value.allowed


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = home(tmp_path / "ours", config(**SHAPES["demo"][1]))
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match="exists"):
        hf.write(opened, tmp_path / "out")
    with pytest.raises(FormatError, match="unknown type"):
        hf.write(opened, tmp_path / "new", dtype="int8")  # type: ignore[arg-type]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_safetensors, "write", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OSError, match="space"):
        hf.write(opened, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_numbers_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    for dtype, most, beyond in (("float16", 65504, 65536), ("bfloat16", 3.38e38, 3.4e38), ("float32", 3.4e38, np.inf)):
        hf_safetensors.packed("x", np.array([most, -most], np.float32), dtype)  # type: ignore[arg-type]
        if dtype != "float32":
            with pytest.raises(FormatError, match=f"beyond {dtype}"):
                hf_safetensors.packed("x", np.array([beyond], np.float32), dtype)  # type: ignore[arg-type]
        with pytest.raises(FormatError, match=f"beyond {dtype}"):
            hf_safetensors.packed("x", np.array([1e300]), dtype)  # type: ignore[arg-type]


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    bits = np.random.default_rng(7).integers(0, 1 << 32, 100_000, np.uint32)
    bits[:4] = 0, 0x80000000, 0x7F800000, 0x00008000
    numbers = bits.view(np.float32)
    numbers = numbers[np.isnan(numbers) | np.isinf(numbers) | (np.abs(numbers) < 3.38e38)]
    wanted = torch.from_numpy(numbers).to(torch.bfloat16).float().numpy()
    found = hf_safetensors.packed("x", numbers, "bfloat16").view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(found.view(np.float32), wanted)


# ---- what is refused ------------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}


def written(folder: Path, changes: dict[str, Any] | None = None, drop: str | None = None) -> Path:
    """A small Llama folder with some keys changed."""
    folder.mkdir(exist_ok=True)
    told = {key: value for key, value in {**LLAMA, **(changes or {})}.items() if key != drop}
    (folder / "config.json").write_text(json.dumps(told))
    plain = hf_config.read(LLAMA, "here")
    table = hf_names.entries(plain.config, plain.family)
    draw = np.random.default_rng(8)
    arrays.write(
        folder / "model.safetensors",
        {s.name: draw.normal(size=s.shape).astype(np.float32) for entry in table for s in entry.sources},
    )
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "gpt2, llama, mistral"),
        ({"model_type": None}, "model_type = None"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "decoding with kept keys"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "whole pairs"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "magic": 1}}, "magic"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "rope_theta": 1e4}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"rope_parameters": [1]}, "no table"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "tanh"}, "gelu_pytorch_tanh"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 6}, "even"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"vocab_size": None}, "vocab_size"),
        ({"model_type": "qwen3", "use_sliding_window": None}, "use_sliding_window"),
        ({"model_type": "gemma", "head_dim": 4, "hidden_activation": "silu"}, "hidden_act and hidden_activation"),
        ({"eos_token_id": -1}, "config.json is not understood: stop.0"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "gpt2", "activation_function": "tanh"}, "relu2"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "every layer"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "no sliding_window"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 2}, "layer_types"),
        ({"model_type": "mixtral", "num_key_value_heads": 1, "num_local_experts": 1}, "experts"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError) as caught:
        hf.open(written(tmp_path / "it", changes))
    assert says in str(caught.value)
    assert "config.json" in str(caught.value)


def test_unknown_keys_and_code_are_told(tmp_path: Path) -> None:
    opened = hf.open(written(tmp_path / "it", {"shortcut": 3, "auto_map": {"AutoModel": "x.Y"}, "use_cache": False}))
    assert len(opened.warnings) == 2
    assert "shortcut" in opened.warnings[1]
    assert "never run" in opened.warnings[0]


def test_a_key_that_is_left_out_has_the_family_s_own_default(theirs: Any) -> None:
    shape = {
        "vocab_size": 11,
        "hidden_size": 64,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
    }
    for name in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "mixtral", "qwen3_moe", "gemma", "gemma2"):
        full = theirs.AutoConfig.for_model(name, **shape).to_dict()
        assert hf_config.read({"model_type": name, **shape}, "x").config == hf_config.read(full, "x").config
    assert (
        hf_config.read({"model_type": "gpt2"}, "x").config == hf_config.read(theirs.GPT2Config().to_dict(), "x").config
    )


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no file beside it"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "c:x.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": 3}}, "no file beside it"),
        ({"weight_map": {"a": ["x"]}}, "no file beside it"),
        ({"weight_map": {"a": "absent.safetensors"}}, "not there"),
        ({"weight_map": {"a": "one.safetensors"}}, "not in the shard"),
        ({"weight_map": {"model.norm.weight": "one.safetensors"}}, "does not name"),
        ({"weight_map": {}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_leads_astray_is_refused(tmp_path: Path, index: dict[str, Any], says: str) -> None:
    folder = written(tmp_path / "it")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=says):
        hf.open(folder).weights()


def test_a_pickle_is_refused_and_says_why(tmp_path: Path) -> None:
    folder = written(tmp_path / "it")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="no weights"):
        hf.open(folder).weights()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(FormatError, match="run a program") as caught:
        hf.open(folder).weights()
    assert "safetensors" in caught.value.do


def test_a_head_beside_a_tied_embedding_must_be_the_embedding(tmp_path: Path) -> None:
    folder = written(tmp_path / "it")
    held = dict(arrays.read(folder / "model.safetensors"))
    held = {name: array.copy() for name, array in held.items()}
    arrays.write(folder / "same", {**held, "lm_head.weight": held["model.embed_tokens.weight"]})
    (folder / "same").replace(folder / "model.safetensors")
    assert "unembedding" not in hf.open(folder).weights()
    arrays.write(folder / "other", {**held, "lm_head.weight": held["model.embed_tokens.weight"] + 1})
    (folder / "other").replace(folder / "model.safetensors")
    with pytest.raises(FormatError, match="another matrix"):
        hf.open(folder).weights()


def test_buffers_of_old_files_are_passed_over(tmp_path: Path) -> None:
    folder = written(tmp_path / "it")
    held = {name: array.copy() for name, array in arrays.read(folder / "model.safetensors").items()}
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    arrays.write(folder / "new", {**held, **more})
    (folder / "new").replace(folder / "model.safetensors")
    assert len(hf.open(folder).weights()) == 2 + 2 * 6
    arrays.write(folder / "new", {**held, "model.layers.0.extra": np.ones(2, np.float32)})
    (folder / "new").replace(folder / "model.safetensors")
    with pytest.raises(FormatError, match="unexpected: "):
        hf.open(folder).weights()


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.bool_])
def test_whole_numbers_are_no_weights(tmp_path: Path, kind: type) -> None:
    """They would be codes of some quantisation, and mean nothing without its scales."""
    folder = written(tmp_path / "it")
    held = {name: array.copy() for name, array in arrays.read(folder / "model.safetensors").items()}
    name = "model.layers.0.mlp.up_proj.weight"
    arrays.write(folder / "new", {**held, name: (10 * held[name]).astype(kind)})
    (folder / "new").replace(folder / "model.safetensors")
    with pytest.raises(FormatError, match=f"1 of whole numbers: {name}"):
        hf.open(folder).weights()


def test_buffers_are_told_from_biases() -> None:
    for name in ("h.0.attn.bias", "transformer.h.0.attn.masked_bias", "model.rotary_emb.inv_freq"):
        assert hf_names.ignored(name)
    for name in ("h.0.attn.c_attn.bias", "h.0.attn.c_proj.bias", "h.0.mlp.bias", "attn.bias.weight"):
        assert not hf_names.ignored(name)


def test_a_sentencepiece_model_alone_begins_with_its_bos(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece, which makes such models, is missing")
    folder = written(tmp_path / "it", {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2})
    (tmp_path / "text").write_text("the cat sat on the mat\nthe dog sat too\n" * 20)
    options = {"model_type": "bpe", "vocab_size": 290, "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(folder / "tokenizer"), hard_vocab_limit=False, **options
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    opened = hf.open(folder)
    assert opened.speaking == Speaking(front=(1,), stop=(2,))
    assert opened.tokenizer is not None
    assert opened.tokenizer.encode_list("the cat, é") == theirs.encode("the cat, é")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    assert hf.open(folder).speaking.front == ()


def test_no_torch_is_loaded_before_it_is_asked_for(tmp_path: Path, fresh: Callable[[str], str]) -> None:
    folder = written(tmp_path / "it")
    code = f"import sys; from temaki.formats import hf; from pathlib import Path; o = hf.open(Path({str(folder)!r})); "
    assert (
        fresh(code + "print(len(o.weights()), 'torch' in sys.modules, 'jinja2' in sys.modules)") == "14 False False\n"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 4096},
        {"vocab_size": 1 << 31},
        {"model_type": "mixtral", "num_key_value_heads": 1, "num_local_experts": 10**9},
    ],
)
def test_weights_far_smaller_than_the_configuration_are_refused_at_once(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(FormatError, match=r"not those of its configuration|far larger"):
        hf.open(written(tmp_path / "it", changes)).weights()


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    opened = home(tmp_path / "ours", config(**SHAPES["demo"][1]))
    hf.write(opened, tmp_path / "theirs")
    shutil.copy(tmp_path / "theirs" / "tokenizer.json", written(tmp_path / "it") / "tokenizer.json")
    with pytest.raises(FormatError, match="ids that the model has not"):
        _ = hf.open(tmp_path / "it").tokenizer


# ---- mutants --------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, True, 0, -1, 1, 3, 10**30, 1.5, float("inf"), "", "x", [], [1], {}, {"a": 1}, 1 << 31]


def mutate_json(draw: random.Random, content: bytes) -> bytes:
    """A value replaced, dropped or doubled somewhere in the tree."""
    tree = json.loads(content)
    here: Any = tree
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            break
        key = draw.choice(keys)
        if isinstance(here[key], dict | list) and here[key] and draw.random() < 0.7:
            here = here[key]
            continue
        if draw.random() < 0.2:
            del here[key]
        elif isinstance(here[key], int) and draw.random() < 0.5:
            here[key] = max(0, here[key] + draw.choice([-1, 1, 2, 100, 1 << 20]))
        else:
            here[key] = draw.choice(VALUES)
        break
    return json.dumps(tree).encode()


def mutate_bytes(draw: random.Random, content: bytes) -> bytes:
    """Bytes changed, cut out, put in, or cut off."""
    made = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(min(len(made), 3000) or 1)
        match draw.randrange(4):
            case 0:
                made[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del made[place : place + draw.randint(1, 40)]
            case 2:
                made[place:place] = draw.choice(
                    [b"9", b"[", b"}", b'"', b"-", b"null", b"1e999", b"\xff" * 8, b"0" * 9]
                )
            case _:
                del made[draw.randrange(len(made) + 1) :]
    return bytes(made)


def tried(folder: Path) -> bool:
    """Whether everything of a folder could be read; errors are ours."""
    try:
        opened = hf.open(folder)
        weights = opened.weights()
        for weight in weights.values():
            weight.array()
        _ = opened.tokenizer
        model = opened.model()
        with torch.no_grad():
            model.head.logits(model(rows([[0, 1, 2]])))
    except (FormatError, CheckpointError, TokenizerError) as error:
        assert str(error)
        return False
    return True


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of several kinds that can be read."""
    root = tmp_path_factory.mktemp("victims")
    made = []
    for name, dtype in (("demo", "float32"), ("gpt2", "bfloat16"), ("experts, some", "float16")):
        (root / name).mkdir()
        opened = home(root / name / "ours", config(**SHAPES[name][1]), chat=True)
        hf.write(opened, root / name / "it", dtype=dtype)  # type: ignore[arg-type]
        made.append(root / name / "it")
    assert all(map(tried, made))
    sharded = root / "sharded"
    shutil.copytree(made[0], sharded)
    held = arrays.read(sharded / "model.safetensors")
    halves = [dict(list(held.items())[place::2]) for place in range(2)]
    for place, half in enumerate(halves):
        arrays.write(sharded / f"{place}.safetensors", {name: array.copy() for name, array in half.items()})
    places = {name: f"{place}.safetensors" for place, half in enumerate(halves) for name in half}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (sharded / "model.safetensors").unlink()
    assert tried(sharded)
    return [*made, sharded]


def survive(victims: list[Path], place: Path, count: int, seed: int) -> tuple[int, int]:
    """How many mutants were refused, and how many gave a model."""
    draw = random.Random(seed)
    refused = right = 0
    for _ in range(count):
        victim = draw.choice(victims)
        names = ["config.json"] * 3 + [
            "generation_config.json",
            "model.safetensors",
            "model.safetensors.index.json",
        ] * 2
        name = draw.choice([name for name in names if (victim / name).exists()])
        shutil.copytree(victim, place, copy_function=lambda a, b: Path(b).hardlink_to(a))
        content = (victim / name).read_bytes()
        tree = name.endswith(".json") and draw.random() < 0.7
        mutant = mutate_json(draw, content) if tree else mutate_bytes(draw, content)
        (place / name).unlink()
        (place / name).write_bytes(mutant)
        if tried(place):
            right += 1
        else:
            refused += 1
        shutil.rmtree(place)
    return refused, right


def test_a_thousand_mutants_are_refused_or_right(victims: list[Path], tmp_path: Path) -> None:
    refused, right = survive(victims, tmp_path / "mutant", 1_000, seed=9)
    print(f"{refused} refused, {right} right")
    assert refused > 300
    assert right > 100


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_mutants_are_refused_or_right(victims: list[Path], tmp_path: Path) -> None:
    refused, right = survive(victims, tmp_path / "mutant", 100_000, seed=10)
    print(f"{refused} refused, {right} right")
    assert refused > 30_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
known = [*hf_config.StackKeys.__annotations__, "rope_scaling", "rope_parameters", "rope_theta", "pruned_heads"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(hf_config.FAMILIES)), st.dictionaries(st.sampled_from(known), json_values, max_size=4))
def test_any_configuration_is_read_or_refused(family: str, changes: dict[str, Any]) -> None:
    try:
        found = hf_config.read({**LLAMA, "model_type": family, **changes}, "config.json").config
    except FormatError as error:
        assert "config.json" in str(error)
        return
    assert isinstance(found, DecoderConfig)
