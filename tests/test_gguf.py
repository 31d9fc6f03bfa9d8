"""The GGUF door: what is written is read again as it was, what is damaged or unknown is refused by name."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest

import gguf_models
from gguf_models import TEMPLATE
from temaki.base.errors import FormatError, TemakiError
from temaki.checkpoint.speaking import Speaking
from temaki.cli import carried
from temaki.formats import gguf, gguf_config, gguf_file, gguf_names, gguf_tokenizer, gguf_written, proof
from temaki.formats.opened import Opened
from temaki.model.config import (
    AlibiConfig,
    DecoderConfig,
    ExpertsConfig,
    GeluConfig,
    LayerNormConfig,
    NtkScalingConfig,
    ReluConfig,
    S4DConfig,
    SinusoidalConfig,
    SoftmaxConfig,
)
from temaki.model.quantise import Blocks
from temaki.study.voice import TorchVoice
from temaki.tokens.bpe import Bpe
from temaki.tokens.chat import ChatTemplate
from temaki.tokens.frame import Frame
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe
from temaki.tokens.tokenizer import Tokenizer

CONFIGS = gguf_models.CONFIGS


def same_weights(one: Opened, two: Opened) -> None:
    """To the bit, by our names."""
    first, second = one.weights(), two.weights()
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert np.array_equal(weight.array(), second[name].array()), name


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    """The same function at once; and from then on the same configuration, weights and bytes."""
    before = gguf_models.model(CONFIGS[name], gguf_models.tokenizer())
    gguf.write(before, tmp_path / "one.gguf")
    one = gguf.open(tmp_path / "one.gguf")
    architecture = str(one.facts["architecture"])
    assert gguf_config.canonical(one.config, architecture) == gguf_config.canonical(before.config, architecture)
    assert one.context == before.context
    ids = np.arange(2, 60)
    wanted, found = (TorchVoice(opened).logits([ids])[0] for opened in (before, one))
    assert np.abs(wanted - found).max() <= 1e-5 * np.abs(wanted).max()
    gguf.write(one, tmp_path / "two.gguf")
    two = gguf.open(tmp_path / "two.gguf")
    assert (two.config, two.speaking, two.framed) == (one.config, one.speaking, two.framed)
    same_weights(one, two)
    gguf.write(replace(two, facts=one.facts), tmp_path / "three.gguf")
    assert (tmp_path / "three.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_rows_of_llama_are_turned_once(tmp_path: Path) -> None:
    """Pairs (t, t + K/2) become (2t, 2t + 1); pairs that are so already stay."""
    gguf.write(gguf_models.model(CONFIGS["llama"]), tmp_path / "turned.gguf")
    gguf.write(gguf_models.model(CONFIGS["llama-interleaved"]), tmp_path / "kept.gguf")
    query = gguf_models.model(CONFIGS["llama"]).weights()["blocks.0.mixer.qkv"].array()[:64].reshape(4, 16, 64)
    held = gguf_file.load(tmp_path / "turned.gguf").arrays["blk.0.attn_q.weight"].stored()
    assert isinstance(held, np.ndarray)
    assert np.array_equal(held.reshape(4, 8, 2, 64)[:, :, 0], query[:, :8])
    same_weights(gguf_models.model(CONFIGS["llama-interleaved"]), gguf.open(tmp_path / "kept.gguf"))


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_1"])
def test_kinds_of_arrays(tmp_path: Path, kind: str) -> None:
    """Matrices are of the kind, or float16 where their rows are no blocks; the rest is float32; nothing is far off."""
    config = replace(CONFIGS["qwen3"], width=48, vocabulary=400)
    before = gguf_models.model(config)
    gguf.write(before, tmp_path / "small.gguf", kind)
    file = gguf_file.load(tmp_path / "small.gguf")
    for name, held in file.arrays.items():
        fits = kind == "f16" or held.shape[-1] % 32 == 0
        usual = "Q8_0" if name in ("token_embd.weight", "output.weight") and kind.startswith("q4") else kind.upper()
        assert held.kind == ("F32" if len(held.shape) == 1 else usual if fits else "F16"), name
    after = gguf.open(tmp_path / "small.gguf").weights()
    for name, weight in before.weights().items():
        apart = np.abs(weight.array() - after[name].array()).max() / np.abs(weight.array()).max()
        assert apart < (1e-3 if kind == "f16" else 0.01 if kind == "q8_0" else 0.15), name


def test_export_says_what_could_not_be_cut_into_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIGS["qwen3"], width=48)
    gguf.write(gguf_models.model(config, gguf_models.tokenizer()), tmp_path / "narrow.gguf")
    gguf.write(gguf_models.model(CONFIGS["qwen3"], gguf_models.tokenizer()), tmp_path / "wide.gguf")
    for name, told in (("narrow", "kept as f16: 12 matrices whose rows are no multiple of 32 numbers"), ("wide", "")):
        carried.carried(tmp_path / f"{name}.gguf", tmp_path / f"{name}-8.gguf", "gguf", "q8_0", json=False)
        out = capsys.readouterr().out
        assert told in out
        assert ("kept as f16" in out) == bool(told)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_1"])
def test_the_package_reads_what_we_write(tmp_path: Path, kind: str) -> None:
    """And gives the same numbers, shapes and keys."""
    gguf.write(gguf_models.model(CONFIGS["qwen3moe"], gguf_models.tokenizer()), tmp_path / "tiny.gguf", kind)
    ours = gguf_file.load(tmp_path / "tiny.gguf")
    theirs = package.GGUFReader(tmp_path / "tiny.gguf")
    assert [tensor.name for tensor in theirs.tensors] == list(ours.arrays)
    for tensor in theirs.tensors:
        held = ours.arrays[tensor.name]
        assert (tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1])) == (held.kind, held.shape)
        stored = held.stored()
        numbers = stored.dequantise() if isinstance(stored, Blocks) else stored
        wanted = package.dequantize(tensor.data, tensor.tensor_type).reshape(held.shape)
        assert np.array_equal(numbers, wanted)
    for key, value in ours.metadata.items():
        said = theirs.fields[key].contents()
        assert np.array_equal(said, np.float32(value) if isinstance(value, float) else value), key  # type: ignore[arg-type]


def test_all_types_of_metadata(tmp_path: Path) -> None:
    """As the package writes them, version 2 too."""
    writer = package.GGUFWriter(tmp_path / "types.gguf", "llama")
    for kind, value in {
        "uint8": 200, "int8": -3, "uint16": 60_000, "int16": -5, "uint32": 4_000_000_000, "int32": -7,
        "uint64": 1 << 40, "int64": -(1 << 40), "float32": 0.5, "float64": 1e300, "bool": True, "string": "é\n",
    }.items():  # fmt: skip
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.texts", ["x", "", "ü"])
    writer.add_array("a.flags", [True, False])
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray((tmp_path / "types.gguf").read_bytes())
    for version in (3, 2):
        content[4:8] = struct.pack("<I", version)
        (tmp_path / "types.gguf").write_bytes(content)
        found = gguf_file.load(tmp_path / "types.gguf")
        assert found.version == version
        assert found.metadata["a.uint32"] == 4_000_000_000
        assert found.metadata["a.int64"] == -(1 << 40)
        assert found.metadata["a.float64"] == 1e300
        assert found.metadata["a.bool"] is True
        assert found.metadata["a.string"] == "é\n"
        assert found.metadata["a.texts"] == ["x", "", "ü"]
        assert [np.asarray(found.metadata[f"a.{name}"]).tolist() for name in ("numbers", "flags")] == [
            [1, 2, 3],
            [True, False],
        ]
        assert np.array_equal(found.arrays["t"].stored(), np.arange(6, dtype=np.float32).reshape(2, 3))  # type: ignore[arg-type]


# ---- the tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", gguf_tokenizer.PRES)
def test_tokenizer_there_and_back(tmp_path: Path, pre: str) -> None:
    """Ids, special tokens, what stands around a text, what is spoken and the template."""
    rule = gguf_tokenizer.PRES[pre]
    words = gguf_models.tokenizer(rule.pattern, 380, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<t>"), rule.whole)
    frame = Frame(before=("<|im_start|>",), after=("<|endoftext|>",), ordinary=("<t>",))
    speaking = Speaking(front=(1,), stop=(0, 2))
    chat = ChatTemplate(TEMPLATE, {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"})
    before = replace(gguf_models.model(CONFIGS["llama"], words, frame, speaking), read_chat=lambda: chat)
    gguf.write(before, tmp_path / "words.gguf")
    after = gguf.open(tmp_path / "words.gguf")
    assert after.tokenizer is not None
    assert after.chat is not None
    assert gguf_file.load(tmp_path / "words.gguf").metadata["tokenizer.ggml.pre"] == pre
    assert after.tokenizer.fingerprint == words.fingerprint
    assert after.framed == (after.tokenizer, frame)
    assert after.speaking == speaking
    assert (after.chat.source, after.chat.names) == (TEMPLATE, chat.names)
    assert proof.same(words, after.tokenizer) > 2000


def test_our_own_models_begin_and_end_with_end_of_text(tmp_path: Path) -> None:
    """What nobody wrote down: a document begins with `<|endoftext|>`, so llama.cpp puts it before a prompt."""
    gguf.write(gguf_models.model(CONFIGS["qwen3"], gguf_models.tokenizer()), tmp_path / "own.gguf")
    after = gguf.open(tmp_path / "own.gguf")
    assert after.speaking == Speaking(front=(0,), stop=(0,))
    assert after.framed is not None
    assert after.framed[1] == Frame()
    said = gguf_file.load(tmp_path / "own.gguf").metadata
    assert said["tokenizer.ggml.add_bos_token"] is True


def test_a_model_that_names_no_end_gets_one_that_ends_nothing(tmp_path: Path) -> None:
    """llama.cpp would take id 11, whatever it is: an unused id is named, which is no end for us either."""
    words = gguf_models.tokenizer("gpt2", 380, ())
    gguf.write(gguf_models.model(CONFIGS["llama"], words), tmp_path / "endless.gguf")
    assert gguf_file.load(tmp_path / "endless.gguf").metadata["tokenizer.ggml.eos_token_id"] == 380
    assert gguf.open(tmp_path / "endless.gguf").speaking == Speaking()
    full = replace(CONFIGS["llama"], vocabulary=380)
    with pytest.raises(FormatError, match="ends an answer at some id in any case"):
        gguf.write(gguf_models.model(full, words), tmp_path / "full.gguf")


def test_bytes_without_a_token_are_left_out(tmp_path: Path) -> None:
    """As llama.cpp does with SmolLM2's vocabulary: on texts that have them the rest is encoded as if they were not."""
    whole = gguf_models.tokenizer("gpt2", 380)
    lacking = {0x04, 0xC0, 0xF4}
    kept = [token for token in whole.tokens if not (len(token) == 1 and token[0] in lacking)]
    special = {text: kept.index(text.encode()) for text in whole.special}
    words = Bpe(kept, whole.merges, special, "gpt2", partial="after")
    assert words.encode_list("a\x04b\x04") == words.encode_list("a") + words.encode_list("b")
    assert (
        words.decode(words.encode_list("x\x04 y \U0010ffff!")) == "x y \ufffd\ufffd\ufffd!"
    )  # the three bytes that are left
    assert words.encode_batch(["\x04", "a", "\x04b"]).offsets.tolist() == [0, 0, 1, 2]
    again = Bpe.of(words.facts())
    assert again.fingerprint == words.fingerprint
    gguf.write(gguf_models.model(CONFIGS["llama"], words), tmp_path / "partial.gguf")
    found = gguf.open(tmp_path / "partial.gguf").tokenizer
    assert found is not None
    assert found.fingerprint == words.fingerprint
    with pytest.raises(TemakiError, match="a byte has no id"):
        Bpe(kept, whole.merges, special, "gpt2")


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_there_and_back(tmp_path: Path, prefix: bool) -> None:
    words = gguf_models.pieces(add_dummy_prefix=prefix)
    speaking = Speaking(front=(1,), stop=(2,))
    gguf.write(gguf_models.model(CONFIGS["llama"], words, Frame(before=("<s>",)), speaking), tmp_path / "pieces.gguf")
    after = gguf.open(tmp_path / "pieces.gguf")
    assert after.framed is not None
    assert isinstance(after.framed[0], SentencePieceBpe)
    assert after.framed[1] == Frame(before=("<s>",))
    assert after.speaking == speaking
    texts = [*list(proof.texts(200)), "the tin  heron", "<s>the</s>"]
    assert all(words.encode_list(text) == after.framed[0].encode_list(text) for text in texts)


def test_sentencepiece_parts_that_the_file_does_not_say(tmp_path: Path) -> None:
    """The ids that llama.cpp takes then."""
    words = gguf_models.pieces()
    config = replace(CONFIGS["llama"], vocabulary=words.size)
    keys = {f"tokenizer.ggml.{name}": None for name in ("bos_token_id", "unknown_token_id", "add_bos_token")}
    after = gguf.open(changed(tmp_path, keys | {"tokenizer.ggml.eos_token_id": None}, config, words))
    assert after.framed is not None
    assert after.framed[1] == Frame(before=("<s>",))
    assert after.speaking == Speaking(front=(1,), stop=(2,))


def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    def refused(words: Any, match: str, frame: Frame | None = None, speaking: Speaking | None = None) -> None:
        with pytest.raises(FormatError, match=match):
            gguf.write(gguf_models.model(CONFIGS["llama"], words, frame, speaking), tmp_path / "no.gguf")
        assert not list(tmp_path.iterdir())

    refused(gguf_models.tokenizer("o200k"), "does not split text so")
    refused(gguf_models.tokenizer("cl100k"), "gpt2, smollm, qwen2, llama3")
    refused(gguf_models.tokenizer(r"\S+|\s+"), "does not split text so")
    refused(gguf_models.telling("gpt2"), "more ids than the model has")
    refused(gguf_models.pieces(remove_extra_whitespaces=True), "removal of extra spaces")
    unmade = gguf_models.tokenizer()
    refused(Bpe([*unmade.tokens, b"zqx"], unmade.merges, unmade.special, "gpt2", whole=True), "would join otherwise")
    more = [(b"<", b"/"), (b"s", b">"), (b"</", b"s>")]
    taken = Bpe([*unmade.tokens, *(left + right for left, right in more)], [*unmade.merges, *more], unmade.special)
    refused(taken, "special tokens of plain ones")
    refused(unmade, "one token before a text", Frame(before=("<|endoftext|>", "<|tool|>")))
    refused(
        gguf_models.tokenizer(special=("<1>", "<2>", "<3>"), size=380),
        "more ids end an answer",
        None,
        Speaking(stop=(0, 1, 2)),
    )


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("tokenizer.ggml.pre", "tekken", "gpt-2, smollm"),
        ("tokenizer.ggml.pre", None, "splits text is not known"),
        ("tokenizer.ggml.model", "bert", "gpt2, llama"),
        ("tokenizer.ggml.eos_token_id", 400, "is no id"),
        ("tokenizer.ggml.merges", ["ab"], "merge 0 is not two tokens"),
        ("tokenizer.ggml.token_type", np.ones(3, np.int32), "one number for each token"),
        ("tokenizer.ggml.token_type", np.full(400, 77, np.int32), "a type that is not known"),
        ("tokenizer.ggml.token_type", np.full(400, np.nan, np.float32), "a type that is not known"),
        ("tokenizer.ggml.tokens", 3, "no list of texts"),
        ("tokenizer.ggml.add_bos_token", 1, "neither true nor false"),
    ],
)
def test_damaged_tokenizers_are_refused_by_name(tmp_path: Path, key: str, value: Any, match: str) -> None:
    path = changed(tmp_path, {key: value})
    with pytest.raises(TemakiError, match=match):
        opened = gguf.open(path)
        assert opened.framed


def test_a_file_whose_tokenizer_is_not_known_still_opens(tmp_path: Path) -> None:
    """Shape and weights are there; the tokenizer is refused when it is asked for."""
    opened = gguf.open(changed(tmp_path, {"tokenizer.ggml.pre": "tekken"}))
    assert opened.weights()
    with pytest.raises(FormatError, match="how this tokenizer splits text is not known"):
        assert opened.framed


# ---- what is refused ------------------------------------------------------------------------------------------------


def changed(
    folder: Path, keys: dict[str, Any], config: DecoderConfig | None = None, words: Tokenizer | None = None
) -> Path:
    """A tiny file with other metadata; None takes a key away."""
    path = folder / "changed.gguf"
    gguf.write(gguf_models.model(config or CONFIGS["llama"], words or gguf_models.tokenizer()), path)
    file = gguf_file.load(path)
    metadata = {key: value for key, value in {**file.metadata, **keys}.items() if value is not None}
    planned = [gguf_written.Planned(name, held.shape, held.kind) for name, held in file.arrays.items()]
    arrays = [(name, np.array(held.stored())) for name, held in file.arrays.items()]
    with path.with_suffix(".new").open("wb") as out:
        gguf_written.write(out, metadata, planned, iter(arrays), gguf.packed)
    return path.with_suffix(".new").rename(path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("general.architecture", "mamba", "llama, gpt2, qwen2"),
        ("general.alignment", 24, "no power of 2"),
        ("split.count", 3, "one file of several"),
        ("split.count", np.array([1, 1], np.uint32), "one file of several"),
        ("llama.block_count", 3, "missing: blk.2"),
        ("llama.block_count", 4_000_000_000, "are not those of a model"),
        ("llama.block_count", 1, "unexpected: blk.1"),
        ("llama.embedding_length", 32, "of another shape"),
        ("llama.embedding_length", None, "llama.embedding_length is missing"),
        ("llama.attention.head_count", 0, "no count"),
        ("llama.attention.head_count", 3, "do not fit together"),
        ("llama.attention.head_count_kv", np.array([1, 2], np.uint32), "not one number for all layers"),
        ("llama.attention.value_length", 8, "different sizes"),
        ("llama.attention.key_length", 1 << 31, "different sizes"),
        ("llama.rope.dimension_count", 8, "only a part of each head"),
        ("llama.rope.freq_base", -1.0, "no number above 0"),
        ("llama.rope.scaling.type", "longrope", "scaling of RoPE is not known"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "no number above 0"),
        ("llama.expert_count", 4, "not there for each expert"),
        ("llama.expert_count", 4_000_000, "too many experts"),
        ("llama.attention.causal", False, "both directions"),
    ],
)
def test_strange_keys_are_refused_by_name(tmp_path: Path, key: str, value: Any, match: str) -> None:
    path = changed(tmp_path, {key: value})
    with pytest.raises(FormatError, match=match):
        gguf.open(path).weights()


def test_factors_of_no_known_rule_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "factors.gguf"
    gguf.write(gguf_models.model(CONFIGS["llama-3"]), path)
    file = gguf_file.load(path)
    arrays = {name: np.array(held.stored()) for name, held in file.arrays.items()}
    arrays[gguf_names.ROPE_FACTORS][1] *= 1.1
    planned = [gguf_written.Planned(name, array.shape, "F32") for name, array in arrays.items()]
    with (tmp_path / "other.gguf").open("wb") as out:
        gguf_written.write(out, file.metadata, planned, iter(arrays.items()), gguf.packed)
    with pytest.raises(FormatError, match="follow no rule"):
        gguf.open(tmp_path / "other.gguf")


def with_block(config: DecoderConfig, mixer: dict[str, Any] | None = None, **more: Any) -> DecoderConfig:
    """A configuration with other parts in its block."""
    block = config.pattern[0]
    return replace(config, pattern=(replace(block, mixer=replace(block.mixer, **(mixer or {})), **more),))


QWEN, LLAMA, GPT2 = (CONFIGS[name] for name in ("qwen3", "llama", "gpt2"))
NO_SUCH_MODEL = {
    "alibi": (with_block(LLAMA, {"position": AlibiConfig()}), "position"),
    "bidirectional": (with_block(LLAMA, {"mask": "bidirectional"}), "mask"),
    "a window": (with_block(LLAMA, {"window": 32}), "window"),
    "a soft cap": (with_block(LLAMA, {"map": SoftmaxConfig(cap=20.0)}), "map.cap"),
    "another scale": (with_block(QWEN, {"scale": 0.5}), "scale"),
    "post norm": (with_block(LLAMA, order="post"), "order of its norms"),
    "layer norm": (with_block(LLAMA, norm=LayerNormConfig()), "norm"),
    "relu": (with_block(QWEN, ffn=ReluConfig(power=2)), "ffn.kind"),
    "gelu": (with_block(LLAMA, ffn=GeluConfig()), "ffn.kind"),
    "the exact gelu": (with_block(GPT2, ffn=GeluConfig(bias=True, form="erf")), "form"),
    "plain experts": (
        with_block(LLAMA, ffn=ExpertsConfig(experts=2, top=1, expert=ReluConfig(width=32))),
        "without a gate",
    ),
    "probabilities as they are": (
        with_block(LLAMA, ffn=ExpertsConfig(experts=2, top=1, renormalise=False)),
        "renormalise",
    ),
    "sinusoids": (replace(LLAMA, input_position=SinusoidalConfig()), "input_position"),
    "capped logits": (replace(LLAMA, cap=30.0), "cap"),
    "scaled embeddings": (replace(QWEN, embedding_scale=8.0), "embedding_scale"),
    "a state space": (with_block(LLAMA, {}), "mixer"),
    "two kinds of block": (replace(LLAMA, pattern=(LLAMA.pattern[0], QWEN.pattern[0])), "qk_norm"),
}


@pytest.mark.parametrize("what", NO_SUCH_MODEL)
def test_models_that_llama_cpp_has_no_word_for_are_refused(tmp_path: Path, what: str) -> None:
    config, part = NO_SUCH_MODEL[what]
    if what == "a state space":
        config = replace(config, pattern=(replace(config.pattern[0], mixer=S4DConfig()),))
        opened = replace(gguf_models.model(LLAMA), config=config)
    else:
        opened = gguf_models.model(config) if config.pattern[0].order != "post" else gguf_models.model(LLAMA)
        opened = replace(opened, config=config)
    with pytest.raises(FormatError, match=part.replace(".", r"\.")) as caught:
        gguf.write(opened, tmp_path / "no.gguf")
    assert "qwen3" in str(caught.value)  # what is accepted
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="NTK"):
        scaled = replace(LLAMA.pattern[0].mixer.position, scaling=NtkScalingConfig(factor=2.0))  # type: ignore[union-attr]
        gguf.write(gguf_models.model(with_block(LLAMA, {"position": scaled})), tmp_path / "no.gguf")
    with pytest.raises(FormatError, match=r"set model\.context"):
        gguf.write(gguf_models.model(replace(LLAMA, context=None)), tmp_path / "no.gguf")
    with pytest.raises(FormatError, match="f32, f16, q4_0"):
        gguf.write(gguf_models.model(LLAMA), tmp_path / "no.gguf", "q5_k")
    large = gguf_models.model(LLAMA)
    weights = dict(large.weights())
    weights["embedding"].array()[3, 4] = 1e8
    for kind in ("f16", "q4_1"):
        with pytest.raises(FormatError, match="too large"):
            gguf.write(replace(large, read_weights=lambda: weights), tmp_path / "no.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_a_window_beyond_the_context_is_no_window(tmp_path: Path) -> None:
    gguf.write(gguf_models.model(with_block(LLAMA, {"window": 128})), tmp_path / "wide.gguf")
    assert gguf.open(tmp_path / "wide.gguf").config.pattern[0].mixer.window is None  # type: ignore[union-attr]


def test_no_torch(fresh: Callable[[str], str], tmp_path: Path) -> None:
    """Configuration, weights, tokenizer, and a file written again, in an interpreter without it."""
    gguf.write(gguf_models.model(CONFIGS["qwen3"], gguf_models.tokenizer()), tmp_path / "tiny.gguf", "q8_0")
    said = fresh(
        "import sys; from pathlib import Path; from temaki.formats import gguf\n"
        f"opened = gguf.open(Path({str(tmp_path / 'tiny.gguf')!r}))\n"
        "sum(weight.array().size for weight in opened.weights().values()), opened.tokenizer.encode('a')\n"
        f"gguf.write(opened, Path({str(tmp_path / 'again.gguf')!r}), 'q4_1')\n"
        "print('torch' in sys.modules, 'jinja2' in sys.modules)"
    )
    assert said.split() == ["False", "False"]


# ---- SmolLM2 --------------------------------------------------------------------------------------------------------


def test_smollm2_ids(smollm2: Path, data: Callable[[str], Path]) -> None:
    golden = json.loads(data("smollm2_reference/reference.json").read_text())
    opened = gguf.open(smollm2)
    words = opened.tokenizer
    assert words is not None
    for case in golden["tokenizer"]:
        assert words.encode_list(case["text"]) == case["ids"]
    for case in golden["cases"]:
        assert words.encode_list(case["prompt"], words.special) == case["ids"]
    assert opened.speaking.stop == (words.special["<|im_end|>"], words.special["<|endoftext|>"])
    assert opened.chat is not None
    assert opened.facts["licence"] == "apache-2.0"


@pytest.mark.slow
def test_smollm2_logits_and_greedy_text(smollm2: Path, data: Callable[[str], Path]) -> None:
    golden = json.loads(data("smollm2_reference/reference.json").read_text())
    voice = TorchVoice(gguf.open(smollm2))
    for case in golden["cases"]:
        prompt = np.array(case["ids"])
        logits = voice.logits([prompt])[0][-1]
        order = np.argsort(-logits)[:10]
        assert order.tolist() == case["last_top10_ids"]
        assert np.abs(logits[order] - case["last_top10_logits"]).max() < 1e-3
        assert abs(float(np.logaddexp.reduce(logits.astype(np.float64))) - case["logsumexp"]) < 1e-3
        assert voice.greedy(prompt, len(case["greedy_ids"]))[0] == case["greedy_ids"]


@pytest.mark.slow
def test_smollm2_there_and_back(smollm2: Path, tmp_path: Path) -> None:
    """Import, export as float32, import: the identity."""
    before = gguf.open(smollm2)
    gguf.write(before, tmp_path / "again.gguf")
    after = gguf.open(tmp_path / "again.gguf")
    assert (after.config, after.speaking) == (before.config, before.speaking)
    assert before.framed is not None
    assert after.framed is not None
    assert after.framed[0].fingerprint == before.framed[0].fingerprint
    assert after.framed[1] == before.framed[1]
    assert after.chat is not None
    assert before.chat is not None
    assert after.chat.source == before.chat.source
    same_weights(before, after)
