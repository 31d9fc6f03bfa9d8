"""llama2.c's files: a real model's text to the byte, run.c's own encoding, round trips, damaged files."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nasty
from temaki.base.errors import FormatError, TokenizerError
from temaki.base.rows import rows
from temaki.formats import llama2c, llama2c_tokenizer, proof
from temaki.formats import open as opener
from temaki.formats import tokenizer as tokenizer_opener
from temaki.formats.opened import Opened
from temaki.formats.weights import plain
from temaki.generate import text
from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.request import Request
from temaki.generate.torch_executor import TorchExecutor
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
    LinearScalingConfig,
    RmsNormConfig,
    RopeConfig,
    S4DConfig,
    SoftmaxConfig,
    SwigluConfig,
)
from temaki.reference import gpt, use
from temaki.tokens.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Model, Normalizer, Piece
from temaki.tokens.sentencepiece_bpe import SentencePieceBpe, with_marks

Pairs = Literal["half", "interleaved"]


@pytest.fixture(scope="module")
def stories(data: Callable[[str], Path]) -> Opened:
    return llama2c.open(data("stories260k/stories260K.bin"))


def greedy(opened: Opened, count: int) -> list[int]:
    engine = Engine(TorchExecutor(opened.model(), 1, 512))
    engine.submit(
        Request(ids=np.array(opened.speaking.front), sampling=SamplingConfig(temperature=0.0, max_tokens=count))
    )
    found: list[int] = []
    while not engine.idle:
        for event in engine.step():
            found += event.ids.tolist()
    engine.close()
    return found


def test_a_real_model_tells_its_story_to_the_byte(stories: Opened, data: Callable[[str], Path]):
    wanted = data("stories260k/greedy_200.txt").read_bytes()
    assert stories.tokenizer is not None
    assert stories.tokenizer.decode_bytes([*stories.speaking.front, *greedy(stories, 200)]) == wanted


def test_a_prompt_is_gone_on_with_where_it_ends(stories: Opened, data: Callable[[str], Path]):
    """Prompt and answer make the story: the space between them is neither lost nor there twice."""
    wanted = data("stories260k/greedy_200.txt").read_text()
    tokenizer, said = stories.tokenizer, stories.speaking
    assert tokenizer is not None
    for prompt in ("", "Once upon", "Once upon a time, there was"):
        answer = text.complete(
            TorchExecutor(stories.model(), 1, 512), tokenizer, [prompt], SamplingConfig(temperature=0.0, max_tokens=60),
            ends=text.Ends(said.front, said.stop),
        )  # fmt: skip
        assert len(answer[0].text) > 100
        assert wanted.startswith(prompt + answer[0].text)


def test_the_page_of_functions_tells_the_same_story(stories: Opened, data: Callable[[str], Path]):
    weights = {name: weight.array() for name, weight in stories.weights().items()}

    def affine(matrix: np.ndarray) -> dict[str, np.ndarray]:
        return {"w": matrix.T}

    def block(layer: int) -> dict[str, Any]:
        at = {name.split(".", 2)[2]: array for name, array in weights.items() if name.startswith(f"blocks.{layer}.")}
        q, k, v = np.split(at["mixer.qkv"], [64, 96])
        gate, up = np.split(at["ffn.up"], 2)
        return {
            "attn_norm": {"g": at["mixer_norm.gain"]},
            "attn": {"q": affine(q), "k": affine(k), "v": affine(v), "o": affine(at["mixer.out"])},
            "ffn_norm": {"g": at["ffn_norm.gain"]},
            "mlp": {"gate": affine(gate), "up": affine(up), "down": affine(at["ffn.down"])},
        }

    tree = {"wte": weights["embedding"], "blocks": [*map(block, range(5))], "norm": {"g": weights["norm.gain"]}}
    ids = use.generate([1], tree, 200, model=gpt.llama, n_head=8, n_kv_head=4, pairs="interleaved")
    assert stories.tokenizer is not None
    assert stories.tokenizer.decode_bytes([1, *ids]) == data("stories260k/greedy_200.txt").read_bytes()


def test_what_a_real_model_says_of_itself(stories: Opened):
    block = stories.config.blocks[0]
    assert isinstance(block.mixer, AttentionConfig)
    assert isinstance(block.ffn, SwigluConfig)
    assert (stories.config.width, stories.config.depth, block.mixer.heads, block.mixer.kv_heads) == (64, 5, 8, 4)
    assert (block.ffn.width, stories.config.vocabulary, stories.context, stories.config.tied) == (172, 512, 512, True)
    assert (stories.speaking.front, stories.speaking.stop) == ((1,), (1, 2))
    assert sum(np.prod(weight.shape) for weight in stories.weights().values()) == 260_032
    assert stories.framed is not None
    assert stories.framed[1].before == ("<s>",)
    assert opener.open(stories.folder).config == stories.config


def run_c(entries: list[tuple[float, bytes]], written: str) -> list[int]:
    """run.c's `encode`, without the id of the beginning."""
    ids = {raw: id for id, (_, raw) in enumerate(entries)}
    tokens = [ids[b" "]] if written else []
    for character in written:
        raw = character.encode()
        tokens += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        best, at = -1e10, None
        for place in range(len(tokens) - 1):
            joined = ids.get(entries[tokens[place]][1] + entries[tokens[place + 1]][1])
            if joined is not None and entries[joined][0] > best:
                best, at = entries[joined][0], place
        if at is None:
            return tokens
        tokens[at : at + 2] = [ids[entries[tokens[at]][1] + entries[tokens[at + 1]][1]]]


def test_ids_are_run_c_s(stories: Opened, data: Callable[[str], Path]):
    content = data("stories260k/tok512.bin").read_bytes()
    entries = llama2c_tokenizer._rows(content)
    assert entries is not None
    assert stories.tokenizer is not None
    for each in [*proof.texts(300), *nasty.texts(300, 6), data("stories260k/greedy_200.txt").read_text()]:
        assert stories.tokenizer.encode_list(each) == run_c(entries, each), ascii(each)


def test_a_real_tokenizer_comes_back_to_the_byte(data: Callable[[str], Path], tmp_path: Path):
    content = data("stories260k/tok512.bin").read_bytes()
    assert llama2c_tokenizer.write(llama2c_tokenizer.read(content)) == content
    assert tokenizer_opener.open(data("stories260k/tok512.bin")).size == 512
    assert tokenizer_opener.open(data("stories260k/stories260K.bin")).size == 512
    (tmp_path / "renamed.txt").write_bytes(content)
    assert tokenizer_opener.open(tmp_path / "renamed.txt").kind == "sentencepiece-bpe"


@pytest.mark.parametrize("version", [0, 1])
def test_a_real_model_comes_back(version: Literal[0, 1], stories: Opened, tmp_path: Path):
    llama2c.write(stories, tmp_path / "m.bin", version)
    again = llama2c.open(tmp_path / "m.bin")
    assert again.config == stories.config
    assert (tmp_path / "tok512.bin").read_bytes() == (stories.folder.parent / "tok512.bin").read_bytes()
    theirs = again.weights()
    for name, weight in stories.weights().items():
        assert np.array_equal(weight.array(), theirs[name].array()), name
    if version == 0:  # the tables that nobody reads are rounded otherwise
        ours, found = (np.fromfile(path, "<f4", offset=28) for path in (stories.folder, tmp_path / "m.bin"))
        assert np.abs(ours - found).max() < 1e-5
        assert (ours != found).sum() < 0.01 * ours.size


# ---- any model ------------------------------------------------------------------------------------------------------


def config(pairs: Pairs = "interleaved", kv_heads: int = 2, tied: bool = True, **more: Any) -> DecoderConfig:
    mixer = AttentionConfig(heads=4, kv_heads=kv_heads, position=RopeConfig(pairs=pairs))
    block = BlockConfig(mixer=mixer, ffn=SwigluConfig(width=24))
    return DecoderConfig(
        **{"vocabulary": 31, "width": 16, "depth": 3, "pattern": (block,), "tied": tied, "context": 20, **more}
    )


def opened(config: DecoderConfig, tokenizer: SentencePieceBpe | None = None) -> tuple[Opened, Any]:
    """A model of random weights, and the same as it is opened."""
    torch.manual_seed(1)
    model = build.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.5)
    weights = {name: plain(each.detach().numpy()) for name, each in model.named_parameters()}
    framed = None if tokenizer is None else (tokenizer, llama2c_tokenizer.FRAME)
    return Opened(Path("x"), config, {}, None, (), lambda: weights, lambda: framed), model


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize(("kv_heads", "tied"), [(4, True), (2, False), (1, True)])
def test_what_is_written_is_the_same_model(
    version: Literal[0, 1], pairs: Pairs, kv_heads: int, tied: bool, tmp_path: Path
):
    before, model = opened(config(pairs, kv_heads, tied))
    llama2c.write(before, tmp_path / "m.bin", version)
    after = llama2c.open(tmp_path / "m.bin")
    assert after.framed is None
    pieces = rows([torch.arange(20) % 31, torch.tensor([3, 1, 4, 1, 5])])
    with torch.no_grad():
        wanted, found = (each.head.logits(each(pieces)) for each in (model, after.model()))
    assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    llama2c.write(after, tmp_path / "again.bin", version)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()


def block(**changes: Any) -> dict[str, Any]:
    made = replace(config().pattern[0], **changes)
    return {"pattern": (made,)}


def mixer(**changes: Any) -> dict[str, Any]:
    found = config().pattern[0].mixer
    assert isinstance(found, AttentionConfig)
    return block(mixer=replace(found, **changes))


UNSAID: dict[str, tuple[dict[str, Any], str]] = {
    "theta": (mixer(position=RopeConfig(theta=500_000.0)), "rope_theta"),
    "scaling": (mixer(position=RopeConfig(scaling=LinearScalingConfig(factor=2.0))), "scaled"),
    "alibi": (mixer(position=AlibiConfig()), "positions alibi"),
    "window": (mixer(window=4), "window"),
    "bias": (mixer(bias="qkv"), "biases"),
    "qk norm": (mixer(qk_norm=True), "queries and keys"),
    "scale": (mixer(scale=0.7), "scale of the scores"),
    "cap of scores": (mixer(map=SoftmaxConfig(cap=5.0)), "cap of the scores"),
    "size": (mixer(size=6), "another size"),
    "mask": (mixer(mask="bidirectional"), "mask bidirectional"),
    "state space": (block(mixer=S4DConfig()), "mixer s4d"),
    "gelu": (block(ffn=GeluConfig()), "gelu"),
    "experts": (block(ffn=ExpertsConfig(experts=2, top=1)), "experts"),
    "ffn bias": (block(ffn=SwigluConfig(bias=True)), "bias in the feed-forward"),
    "layer norm": (block(norm=LayerNormConfig()), "norm layer"),
    "eps": (block(norm=RmsNormConfig(eps=1e-6)), "eps of 1e-06"),
    "post": (block(order="post"), "order post"),
    "learned": ({"input_position": LearnedConfig(room=20)}, "input positions learned"),
    "embedding scale": ({"embedding_scale": 4.0}, "embeddings"),
    "cap": ({"cap": 30.0}, "cap of the logits"),
    "context": ({"context": None}, "context"),
    "kinds": (
        {"pattern": (config().pattern[0], block(norm=RmsNormConfig(eps=1e-4))["pattern"][0]), "depth": 4},
        "several",
    ),
}


@pytest.mark.parametrize("part", UNSAID)
def test_what_llama2c_cannot_say_is_refused_by_name(part: str, tmp_path: Path):
    changes, message = UNSAID[part]
    model = Opened(Path("x"), config(**changes), {}, None, (), dict, lambda: None)
    with pytest.raises(FormatError, match=message):
        llama2c.write(model, tmp_path / "m.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_number_beyond_float32_is_refused(tmp_path: Path):
    small, _ = opened(config())
    weights = dict(small.weights())
    gain = weights["norm.gain"].array().astype(np.float64)
    gain[0] = 1e300
    with pytest.raises(FormatError, match="beyond float32"):
        llama2c.write(replace(small, read_weights=lambda: {**weights, "norm.gain": plain(gain)}), tmp_path / "m.bin")
    assert not list(tmp_path.iterdir())


def test_headers_beyond_version_1_are_refused(tmp_path: Path):
    (tmp_path / "m.bin").write_bytes((b"24ka" + struct.pack("<i", 2)).ljust(400, b"\0"))
    with pytest.raises(FormatError, match="version 2"):
        opener.open(tmp_path / "m.bin")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path):
    for version in (0, 1):
        llama2c.write(opened(config())[0], tmp_path / "m.bin", version)
        content = (tmp_path / "m.bin").read_bytes()
        assert llama2c.fits(tmp_path / "m.bin")
        for wrong in (content[:-4], content + b"\0\0\0\0"):
            (tmp_path / "n.bin").write_bytes(wrong)
            with pytest.raises(FormatError, match="cut off"):
                llama2c.open(tmp_path / "n.bin")
        later = llama2c.open(tmp_path / "m.bin")
        (tmp_path / "m.bin").write_bytes(content[:-4])
        with pytest.raises(FormatError, match="changed"):
            later.weights()
        (tmp_path / "m.bin").unlink()
    assert not llama2c.fits(tmp_path)
    with pytest.raises(FormatError, match="cannot be read"):
        llama2c.open(tmp_path / "none.bin")


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def small(escape: bool = False, **changes: Any) -> SentencePieceBpe:
    space = "\u2581" if escape else " "
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = [f"{space}a", "ab", f"{space}ab", space, "a", "b", "\u00e9"]
    pieces += [Piece(word, -float(place), NORMAL) for place, word in enumerate(words)]
    rules = Normalizer(remove_extra_whitespaces=False, escape_whitespaces=escape)
    return SentencePieceBpe(replace(Model(tuple(pieces), BPE, True, normalizer=rules), **changes))


def test_the_tokenizer_lies_beside_the_model(tmp_path: Path):
    tokenizer = small()
    before, _ = opened(config(vocabulary=tokenizer.size), tokenizer)
    llama2c.write(before, tmp_path / "m.bin")
    beside = tmp_path / f"tok{tokenizer.size}.bin"
    assert llama2c.open(tmp_path / "m.bin").framed is not None
    llama2c.write(before, tmp_path / "n.bin")  # the same tokenizer is no obstacle
    beside.rename(tmp_path / "tokenizer.bin")
    assert llama2c.open(tmp_path / "m.bin").framed is not None
    rows = llama2c_tokenizer.write(small())
    (tmp_path / "tokenizer.bin").write_bytes(rows + struct.pack("<fi", -9.0, 1) + b"z")
    found = llama2c.open(tmp_path / "m.bin")
    assert found.framed is None
    assert [f"{tokenizer.size + 1} pieces" in warning for warning in found.warnings] == [True]
    with pytest.raises(TokenizerError, match="without a tokenizer"):
        tokenizer_opener.open(tmp_path / "m.bin")
    beside.write_bytes(b"something else")
    with pytest.raises(FormatError, match="another tokenizer"):
        llama2c.write(before, tmp_path / "o.bin")
    llama2c.write(before, tmp_path / "o.bin", tokenizer=False)
    with pytest.raises(FormatError, match="as many pieces"):
        llama2c.write(opened(config(), tokenizer)[0], tmp_path / "p.bin")


def test_a_tokenizer_with_marks_for_spaces_is_the_same_but_for_the_mark():
    before = small(escape=True)
    after = llama2c_tokenizer.read(llama2c_tokenizer.write(before))
    assert proof.same(before, after) < proof.same(after, after)
    assert before.encode_list("\u2581a") == before.encode_list(" a") != after.encode_list("\u2581a")
    assert after.decode(after.encode("\u2581a b")) == "\u2581a b"
    assert with_marks(after).model.pieces == before.model.pieces
    assert proof.same(with_marks(after), before) == proof.same(before, before)


def pieces(*more: Piece) -> dict[str, Any]:
    return {"pieces": small().model.pieces + more}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pieces": small().model.pieces[1:] + small().model.pieces[:1]}, "0 to 258"),
        (pieces(Piece("<x>", 0.0, CONTROL)), "beyond"),
        (pieces(Piece("x", 0.0, UNUSED)), "beyond"),
        (pieces(Piece("xy", -50.0)), "a character"),
        ({"normalizer": Normalizer(remove_extra_whitespaces=True, escape_whitespaces=False)}, "extra spaces"),
        ({"normalizer": Normalizer(add_dummy_prefix=False, remove_extra_whitespaces=False)}, "no space"),
    ],
)
def test_a_tokenizer_that_run_c_would_read_otherwise_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(TokenizerError, match=message):
        llama2c_tokenizer.write(small(**changes))


def test_two_pieces_that_become_one_are_refused():
    model = small(escape=True).model
    with pytest.raises(TokenizerError, match="two pieces"):
        llama2c_tokenizer.write(SentencePieceBpe(replace(model, pieces=(*model.pieces, Piece(" ", -99.0)))))


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0\0", b"\5\0\0\0", b"\377" * 40, b"\5\0\0\0" + struct.pack("<fi", 0, 9)]
)
def test_what_is_no_tokenizer_is_refused(content: bytes, tmp_path: Path):
    with pytest.raises(TokenizerError):
        llama2c_tokenizer.read(content)
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(TokenizerError):
        tokenizer_opener.open(tmp_path / "t.bin")


def test_a_tokenizer_of_too_many_pieces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Eight bytes make a piece, which takes far more than that in memory."""
    (tmp_path / "t.bin").write_bytes(struct.pack("<i", 1) + bytes(8 * 20))
    assert llama2c_tokenizer.size(tmp_path / "t.bin") == 20
    monkeypatch.setattr(llama2c_tokenizer, "LARGEST", 19)
    assert llama2c_tokenizer.size(tmp_path / "t.bin") is None


# ---- damage ---------------------------------------------------------------------------------------------------------


def mutated(content: bytes, draw: random.Random, head: int) -> bytes:
    """A few changes, most of them in the first `head` bytes."""
    mutant = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(min(len(mutant), head) if draw.random() < 0.8 else len(mutant))
        match draw.randrange(4):
            case 0:
                mutant[place] = draw.randrange(256)
            case 1:
                del mutant[place : place + draw.randrange(1, 20)]
            case 2:
                mutant[place:place] = draw.randbytes(draw.randrange(1, 5))
            case _:
                place -= place % 4
                mutant[place : place + 4] = struct.pack("<i", draw.choice([0, 1, -1, 2, 2**31 - 1, -(2**31), 64, 8]))
    return bytes(mutant)


def models_survive(n: int, folder: Path, seed: int) -> None:
    """Every mutant opens and gives its weights, or is refused with an error of ours."""
    draw = random.Random(seed)
    whole = []
    for version in (0, 1):
        llama2c.write(opened(config())[0], folder / "m.bin", version)
        whole.append((folder / "m.bin").read_bytes())
    path, refused = folder / "mutant.bin", 0
    for number in range(n):
        path.write_bytes(mutated(whole[number % 2], draw, 64))
        llama2c.fits(path)
        try:
            found = llama2c.open(path)
            held = sum(weight.array().size for weight in found.weights().values())
            assert 4 * held <= path.stat().st_size
            assert found.framed is None
        except FormatError:
            refused += 1
    assert n // 2 < refused < n


def tokenizers_survive(n: int, folder: Path, seed: int) -> None:
    """Every mutant opens and encodes, or is refused with an error of ours."""
    draw = random.Random(seed)
    content = llama2c_tokenizer.write(small())
    path, refused = folder / "mutant.bin", 0
    for _ in range(n):
        path.write_bytes(mutated(content, draw, len(content)))
        llama2c_tokenizer.fits(path)
        try:
            tokenizer, _ = llama2c_tokenizer.load(path)
            tokenizer.decode(tokenizer.encode("ab a \u00e9 z"))
        except TokenizerError:
            refused += 1
    assert n // 10 < refused < n


def test_mutants_of_a_model(tmp_path: Path):
    models_survive(1000, tmp_path, 1)


def test_mutants_of_a_tokenizer(tmp_path: Path):
    tokenizers_survive(1000, tmp_path, 2)


@pytest.mark.slow
def test_many_mutants_of_a_model(tmp_path: Path):
    models_survive(100_000, tmp_path, 3)


@pytest.mark.slow
def test_many_mutants_of_a_tokenizer(tmp_path: Path):
    tokenizers_survive(100_000, tmp_path, 4)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_model_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(content)
    llama2c.fits(path)
    try:
        llama2c.open(path).weights()
    except FormatError as error:
        assert str(error)
    try:
        llama2c_tokenizer.load(path)
    except TokenizerError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 300), min_size=7, max_size=7), st.integers(0, 4000))
def test_any_header_is_a_model_or_an_error(tmp_path_factory: pytest.TempPathFactory, numbers: list[int], size: int):
    path = tmp_path_factory.getbasetemp() / "header.bin"
    path.write_bytes(struct.pack("<7i", *numbers) + bytes(size))
    try:
        found = llama2c.open(path)
        assert sum(weight.array().size for weight in found.weights().values()) * 4 <= size
    except FormatError as error:
        assert str(error)
