"""OpenAI's GPT-2 files without TensorFlow: checksums, tables, the tree they become, damage, and the page that reads."""

import json
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from temaki.base.errors import FormatError, TemakiError
from temaki.base.rows import Rows
from temaki.cli import main
from temaki.formats import open as opener
from temaki.formats import openai_tf, openai_tf_bundle, openai_tf_table
from temaki.formats.openai_tf_crc import crc32c, masked
from temaki.reference import gpt, use
from temaki.tokens.printable import printable

HPARAMS = {"n_vocab": 260, "n_ctx": 12, "n_embd": 8, "n_head": 2, "n_layer": 2}
END = 258
SIZES = {
    "124M": ((768, 12), 124_439_808),
    "355M": ((1024, 24), 354_823_168),
    "774M": ((1280, 36), 774_030_080),
    "1558M": ((1600, 48), 1_557_611_200),
}
FILES = [
    "checkpoint",
    "model.ckpt.index",
    "model.ckpt.data-00000-of-00001",
    "hparams.json",
    "encoder.json",
    "vocab.bpe",
]
INDEX, DATA = FILES[1:3]


def arrays(hparams: dict[str, int], seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Random arrays under OpenAI's names; their shapes are written down here once more."""
    draw = np.random.default_rng(seed)
    V, P, D = (hparams[key] for key in ("n_vocab", "n_ctx", "n_embd"))
    shapes: dict[str, tuple[int, ...]] = {"wpe": (P, D), "wte": (V, D), "ln_f/b": (D,), "ln_f/g": (D,)}
    for i in range(hparams["n_layer"]):
        for name, (before, after) in {
            "attn/c_attn": (D, 3 * D), "attn/c_proj": (D, D), "mlp/c_fc": (D, 4 * D), "mlp/c_proj": (4 * D, D),
        }.items():  # fmt: skip
            shapes |= {f"h{i}/{name}/w": (1, before, after), f"h{i}/{name}/b": (after,)}
        shapes |= {f"h{i}/{name}": (D,) for name in ("ln_1/b", "ln_1/g", "ln_2/b", "ln_2/g")}
    for name, shape in shapes.items():
        yield f"model/{name}", draw.normal(0, 0.3, shape).astype(np.float32)


def released(folder: Path, hparams: dict[str, int] | None = None) -> Path:
    """A folder as OpenAI's, of a random tiny model."""
    hparams = HPARAMS if hparams is None else hparams
    folder.mkdir(parents=True)
    (folder / "hparams.json").write_text(json.dumps(hparams))
    openai_tf_bundle.write(arrays(hparams), folder)
    tokens = [printable(bytes([value])) for value in range(256)] + [
        printable(b"he"),
        printable(b"the"),
        "<|endoftext|>",
    ]
    (folder / "encoder.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nh e\nt he\n")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("models") / "124M")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


# ---- checksums and tables -------------------------------------------------------------------------------------------


def test_crc32c_check_values() -> None:
    """RFC 3720, appendix B.4."""
    values = {
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        bytes(reversed(range(32))): 0x113FDB5C,
        b"": 0,
    }
    assert {text: crc32c(np.frombuffer(text, np.uint8)) for text in values} == values


def test_crc32c_is_its_twin() -> None:
    def slow(content: bytes) -> int:
        rest = 0xFFFFFFFF
        for byte in content:
            rest ^= byte
            for _ in range(8):
                rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
        return rest ^ 0xFFFFFFFF

    draw = random.Random(0)
    for size in range(70):
        content = draw.randbytes(size)
        whole = np.frombuffer(b"?" + content, np.uint8)
        assert crc32c(whole[1:]) == slow(content)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=40), max_size=60), st.sampled_from([1, 64, 1 << 18]))
def test_tables_round_trip(content: dict[bytes, bytes], room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_tf_table, "ROOM", room)
        written = openai_tf_table.write(content)
    found = openai_tf_table.read(written, "a table")
    assert found == content
    assert list(found) == sorted(content)


def handmade(entries: bytes, kind: int = 0, checksum: int | None = None) -> bytes:
    """A table of one block, put together byte by byte; offsets and sizes below 128 are one byte each."""

    def placed(block: bytes, kind: int = 0, checksum: int | None = None) -> bytes:
        body = block + struct.pack("<II", 0, 1) + bytes([kind])
        right = masked(crc32c(np.frombuffer(body, np.uint8)))
        return body + struct.pack("<I", right if checksum is None else checksum)

    data = placed(entries, kind, checksum)
    meta = placed(b"")
    index = placed(bytes([0, 1, 2]) + b"~" + bytes([0, len(data) - 5]))
    footer = bytes([len(data), len(meta) - 5, len(data) + len(meta), len(index) - 5]).ljust(40, b"\0")
    return data + meta + index + footer + (0xDB4775248B80FB57).to_bytes(8, "little")


def test_a_table_made_by_hand() -> None:
    entries = bytes([0, 3, 1]) + b"abc" + b"1" + bytes([2, 1, 2]) + b"d" + b"22"
    assert openai_tf_table.read(handmade(entries), "x") == {b"abc": b"1", b"abd": b"22"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (handmade(b"\0\1\0a", kind=1), "compressed by snappy"),
        (handmade(b"\0\1\0a", kind=7), "unknown type, 7"),
        (handmade(b"\0\1\0a", checksum=5), "does not have its checksum"),
        (handmade(b"\1\1\0a"), "reaches beyond its block"),
        (handmade(b"\0\1\x30a"), "reaches beyond its block"),
        (handmade(b"\0\1\0b\0\1\0a"), "out of order"),
        (handmade(b"\0\1\0a\0\1\0a"), "out of order"),
        (handmade(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "has no end"),
        (handmade(b"")[:-1], "cut short"),
        (b"", "cut short"),
        (b"\0" * 48, "no checkpoint index"),
    ],
)
def test_damaged_tables_are_named(table: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        openai_tf_table.read(table, "a table")


def test_an_index_far_larger_than_a_model_needs_is_not_read(copy: Path) -> None:
    with (copy / INDEX).open("ab") as file:
        file.truncate(openai_tf_bundle.INDEX_LIMIT + 1)
    with pytest.raises(FormatError, match="too large"):
        openai_tf.open(copy)


def test_a_small_table_takes_little_time_and_memory() -> None:
    """Keys that share letters, and blocks that are named again and again, would be far more than the file."""
    longest = openai_tf_table.KEY_LIMIT
    whole = openai_tf_table.write({b"a" * longest: b""})
    assert len(openai_tf_table.read(whole, "a table")) == 1
    growing = openai_tf_table.write({b"a" * length: b"" for length in range(longest, longest + 9)})
    with pytest.raises(FormatError, match=f"a key of {longest + 1} bytes"):
        openai_tf_table.read(growing, "a table")
    table = bytearray()
    empty = openai_tf_table._placed(table, {})
    again = {bytes([letter]): empty for letter in range(9)}
    footer = openai_tf_table._placed(table, {}) + openai_tf_table._placed(table, again)
    table += footer.ljust(40, b"\0") + openai_tf_table.MAGIC.to_bytes(8, "little")
    with pytest.raises(FormatError, match="lies over the one before it"):
        openai_tf_table.read(bytes(table), "a table")


@pytest.mark.slow
def test_tensorflow_s_own_files(tmp_path: Path) -> None:
    """A checkpoint that TensorFlow wrote, in a small wheel: all checksums hold, and our index is the same bytes."""
    get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "basic-pitch==0.4.0", "-d", str(tmp_path)]
    done = subprocess.run(get, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"basic-pitch, which holds a checkpoint, cannot be had: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if "/variables/variables." in name:
                (tmp_path / Path(name).name).write_bytes(wheel.read(name))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "variables"\n')
    bundle = openai_tf_bundle.open(tmp_path)
    names = [name for name, place in bundle.places.items() if place.dtype in openai_tf_bundle.DTYPES]
    found = bundle.arrays(names)
    assert len(found) == 72
    assert all(np.isfinite(array).all() for array in found.values())
    with pytest.raises(FormatError, match="holds string"):
        bundle.arrays()
    index = (tmp_path / "variables.index").read_bytes()
    assert openai_tf_table.write(openai_tf_table.read(index, "index")) == index


# ---- the door -------------------------------------------------------------------------------------------------------


def test_every_array_lands_in_the_tree(tiny: Path) -> None:
    tree, hparams = openai_tf.params(tiny)
    assert hparams == HPARAMS
    wanted = use.random_gpt2(np.random.default_rng(0), 260, 12, 8, 2)
    assert use.shape_tree(tree) == use.shape_tree(wanted)
    for name, array in arrays(HPARAMS):
        place: Any = tree
        for step in name.removeprefix("model/").replace("h0/", "blocks/0/").replace("h1/", "blocks/1/").split("/"):
            place = place[int(step) if step.isdigit() else step]
        assert np.array_equal(place, array[0] if array.ndim == 3 else array)
        assert not place.flags.owndata


def test_only_the_first_axis_of_a_matrix_is_dropped(tmp_path: Path) -> None:
    small = {"n_vocab": 260, "n_ctx": 1, "n_embd": 1, "n_head": 1, "n_layer": 1}
    tree, _ = openai_tf.params(released(tmp_path / "small", small))
    assert use.shape_tree(tree) == use.shape_tree(use.random_gpt2(np.random.default_rng(0), 260, 1, 1, 1))


def rows(ids: list[int]) -> Rows:
    return Rows(torch.tensor(ids), torch.tensor([0, len(ids)]), torch.arange(len(ids)))


def test_the_door_opens_the_same_model(tiny: Path) -> None:
    opened = opener.open(tiny)
    assert opened.format == "openai"
    assert opened.context == 12
    assert opened.speaking.stop == (END,)
    assert opened.warnings == ()
    assert opened.tokenizer is not None
    assert opened.tokenizer.encode_list("the hen") == [257, 32, 256, 110]
    model = opened.model()
    assert sum(each.numel() for each in model.parameters()) == sum(array.size for _, array in arrays(HPARAMS))
    tree, _ = openai_tf.params(tiny)
    ids = [3, 200, 31, 7, END, 90]
    with torch.no_grad():
        found = model.head.logits(model(rows(ids))).numpy()
    wanted = gpt.gpt2(ids, **tree, n_head=2)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_writing_and_reading_is_the_identity(tiny: Path, tmp_path: Path) -> None:
    opened = opener.open(tiny)
    openai_tf.write(opened, tmp_path / "out")
    again = opener.open(tmp_path / "out")
    assert again.config == opened.config
    for name, weight in opened.weights().items():
        assert np.array_equal(weight.array(), again.weights()[name].array())
    assert opened.tokenizer is not None
    assert again.tokenizer is not None
    assert again.tokenizer.fingerprint == opened.tokenizer.fingerprint
    openai_tf.write(again, tmp_path / "twice")
    for name in FILES:
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    with pytest.raises(FormatError, match="exists already"):
        openai_tf.write(opened, tmp_path / "out")


def test_another_architecture_is_not_written(tiny: Path, tmp_path: Path) -> None:
    opened = opener.open(tiny)
    with pytest.raises(FormatError, match="found: tied False\n  allowed: tied True"):
        openai_tf.write(replace(opened, config=replace(opened.config, tied=False)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", SIZES)
def test_the_four_sizes_have_their_parameters(size: str) -> None:
    (width, depth), wanted = SIZES[size]
    config = openai_tf.gpt2({"n_vocab": 50257, "n_ctx": 1024, "n_embd": width, "n_head": width // 64, "n_layer": depth})
    shapes = [source.shape for entry in openai_tf.entries(config) for source in entry.sources]
    assert sum(int(np.prod(shape)) for shape in shapes) == wanted
    assert len(shapes) == 4 + 12 * depth


def test_several_data_files(copy: Path, tmp_path: Path) -> None:
    """Every second array in another file."""
    before = openai_tf.params(copy)[0]
    index = {b"": b"\x08\x02"}  # field 1: two files
    (copy / DATA).unlink()
    for shard in (0, 1):
        part = tmp_path / f"part{shard}"
        part.mkdir()
        openai_tf_bundle.write(list(arrays(HPARAMS))[shard::2], part)
        (part / DATA).rename(copy / f"model.ckpt.data-0000{shard}-of-00002")
        found = openai_tf_table.read((part / INDEX).read_bytes(), "index")
        index |= {name: value + b"\x18" + bytes([shard]) for name, value in found.items() if name}  # field 3
    (copy / INDEX).write_bytes(openai_tf_table.write(index))
    after = openai_tf.params(copy)[0]
    assert use.shape_tree(after) == use.shape_tree(before)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(before), leaves(after), strict=True))


def leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, np.ndarray):
        return [tree]
    return [leaf for each in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(each)]


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../model.ckpt", "/etc/passwd", "a/b", "..", "a\\\\b", "", "\\056./x", "\x01"])
def test_names_lead_nowhere_else(copy: Path, name: str) -> None:
    (copy / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    with pytest.raises(FormatError, match="not beside it"):
        openai_tf.open(copy)


@pytest.mark.parametrize("name", FILES[:4])
def test_missing_files_are_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(FormatError, match=name):
        openai_tf.open(copy).weights()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layer": 3}, "12 missing"),
        ({"n_layer": 1}, "12 unexpected: model/h1"),
        ({"n_embd": 4}, "of another shape"),
        ({"n_vocab": 259}, "of another shape"),
        ({"n_layer": 10**9}, "blocks, but there are 28 arrays"),
        ({"n_head": 3}, "multiple of heads"),
        ({"n_ctx": 0}, "n_ctx is no number"),
        ({"n_ctx": True}, "n_ctx is no number"),
        ({"n_embd": 10**12}, "n_embd is no number"),
        ({"n_head": "2"}, "n_head is no number"),
    ],
)
def test_hparams_that_do_not_fit(copy: Path, change: dict[str, Any], said: str) -> None:
    (copy / "hparams.json").write_text(json.dumps(HPARAMS | change))
    with pytest.raises(FormatError, match=said):
        openai_tf.open(copy).weights()


def rewritten(folder: Path, name: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change an entry of the index, whose checksums are right again."""
    table = openai_tf_table.read((folder / INDEX).read_bytes(), "index")
    table[name] = change(table[name])
    (folder / INDEX).write_bytes(openai_tf_table.write(table))


WTE, WPE = b"model/wte", b"model/wpe"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (b"", lambda value: value + b"\x10\x01", "big-endian"),
        (b"", lambda _: b"", "0 data files"),
        (b"", lambda value: value + b"\x1a\x04\x08\x09\x10\x09", "reader of version 9"),
        (WTE, lambda value: value + b"\x08\x07", "holds string"),
        (WTE, lambda value: value + b"\x08\x63", "holds dtype 99"),
        (WTE, lambda value: value + b"\x3a\x00", "slices"),
        (WTE, lambda value: value + b"\x18\x01", "what cannot be"),
        (WTE, lambda value: value + b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "what cannot be"),
        (WTE, lambda value: value + b"\x20\xff\xff\xff\xff\x7f", "cut short"),
        (WTE, lambda value: value + b"\x28\x04", "should take 8320 bytes"),
        (WTE, lambda value: value + b"\x20\x00", "lie over each other"),
        (WTE, lambda value: value + b"\x12\x01", "beyond its message"),
        (WTE, lambda value: value + b"\x33", "wire type 3"),
        (WTE, lambda value: value + b"\x0a\x00", "is no number"),
        (WTE, lambda value: value + b"\x10\x00", "should a message|should$|where a message"),
        (WPE, lambda value: value[:-1] + bytes([value[-1] ^ 1]), "model/wpe .* does not have its checksum"),
    ],
)
def test_entries_that_cannot_be(copy: Path, name: bytes, change: Callable[[bytes], bytes], said: str) -> None:
    rewritten(copy, name, change)
    with pytest.raises(FormatError, match=said):
        openai_tf.open(copy).weights()


def test_every_cut_and_every_flipped_bit_of_the_index_is_seen(copy: Path) -> None:
    whole = (copy / INDEX).read_bytes()
    for size in range(0, len(whole), 7):
        with pytest.raises(FormatError):
            openai_tf_table.read(whole[:size], "index")
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(FormatError):
            openai_tf_table.read(bytes(flipped), "index")


def test_a_flipped_bit_of_the_data_is_seen(copy: Path) -> None:
    whole = (copy / DATA).read_bytes()
    for place in range(0, len(whole), 499):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (copy / DATA).write_bytes(flipped)
        with pytest.raises(FormatError, match="does not have its checksum"):
            openai_tf.params(copy)
    (copy / DATA).write_bytes(whole[:-1])
    with pytest.raises(FormatError, match="cut short"):
        openai_tf.params(copy)


def mutant(whole: bytes, draw: random.Random) -> bytes:
    """A file with bytes changed, cut out, doubled or at its end."""
    out = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, size = draw.randrange(len(out) + 1), draw.randint(1, 12)
        way = draw.randrange(5)
        if way == 0:
            out[at : at + 1] = bytes([draw.randrange(256)])
        elif way == 1:
            del out[at : at + size]
        elif way == 2:
            out[at:at] = out[at : at + size]
        elif way == 3:
            out[at : at + size] = draw.randbytes(size)
        else:
            out = out[: max(at, 1)]
    return bytes(out)


def repaired(table: dict[bytes, bytes], draw: random.Random) -> bytes:
    """An index with one damaged entry whose checksums are right, so that what stands in it is read."""
    name = draw.choice(list(table))
    changed = {key: mutant(value, draw) if key == name else value for key, value in table.items()}
    if draw.random() < 0.2:
        changed[mutant(name or b"?", draw)] = changed[name]
    return openai_tf_table.write(changed)


def survive(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Open so many damaged copies; how many were refused, by file, and how many gave the same tree."""
    draw, said = random.Random(seed), dict.fromkeys([*FILES, "repaired index", "same"], 0)
    whole = {name: (folder / name).read_bytes() for name in FILES}
    table = openai_tf_table.read(whole[INDEX], "index")
    before = openai_tf.params(folder)[0]
    for _ in range(count):
        name = draw.choice([*FILES, "repaired index", "repaired index"])
        file = folder / (INDEX if name == "repaired index" else name)
        put(file, repaired(table, draw) if name == "repaired index" else mutant(whole[file.name], draw))
        try:
            opened = openai_tf.open(folder)
            opened.weights()
            found = openai_tf.params(folder)[0]
            if name in ("encoder.json", "vocab.bpe"):
                assert opened.tokenizer is not None
            if name not in ("hparams.json", "encoder.json", "vocab.bpe"):
                assert all(np.array_equal(a, b) for a, b in zip(leaves(before), leaves(found), strict=True))
            said["same"] += 1
        except TemakiError:
            said[name] += 1
        put(file, whole[file.name])
    return said


def put(file: Path, content: bytes) -> None:
    """Replace a file by a new one, which a file system does far faster than cutting the old one short."""
    file.unlink()
    file.write_bytes(content)


def test_mutants(copy: Path) -> None:
    said = survive(copy, 1000, seed=1)
    assert sum(said.values()) == 1000
    assert said["repaired index"] > 100
    assert min(said[name] for name in FILES if name != "checkpoint") > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_mutants(copy: Path, seed: int) -> None:
    said = survive(copy, 25_000, seed)
    print(said)
    assert sum(said.values()) == 25_000


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_as_an_entry(copy: Path, value: bytes) -> None:
    index = (copy / INDEX).read_bytes()
    rewritten(copy, WTE, lambda _: value)
    try:
        with pytest.raises(FormatError):
            openai_tf.open(copy).weights()
    finally:
        (copy / INDEX).write_bytes(index)


# ---- temaki reference -----------------------------------------------------------------------------------------------


def command(*words: str, patch: pytest.MonkeyPatch) -> int:
    patch.setattr(sys, "argv", ["temaki", "reference", *words])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_reference_continues_a_text(
    tiny: Path, backend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "jax":
        pytest.importorskip("jax")
    tree, _ = openai_tf.params(tiny)
    tokenizer = opener.open(tiny).tokenizer
    assert tokenizer is not None
    given = ["--n_tokens_to_generate", "5", "--models_dir", str(tiny.parent), "--backend", backend]
    for prompt, ids in {"the hen": [257, 32, 256, 110], "": [END]}.items():
        assert command(prompt, *given, patch=monkeypatch) == 0
        wanted = tokenizer.decode(use.generate(ids, tree, 5, n_head=2))
        assert capsys.readouterr().out == wanted + "\n"


def test_reference_goes_on_where_the_prompt_ends(
    data: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space before the first new word is said: prompt and answer make the story."""
    model, story = data("stories260k/stories260K.bin"), data("stories260k/greedy_200.txt").read_text()
    prompt = "Once upon a time, there was"
    assert command(prompt, "--model", str(model), "--n_tokens_to_generate", "9", patch=monkeypatch) == 0
    said = capsys.readouterr().out.removesuffix("\n")
    assert said.startswith(" ")
    assert story.startswith(prompt + said)


def test_reference_keeps_to_the_context(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["the hen", "--models_dir", str(tiny.parent)]
    assert command(*given, "--n_tokens_to_generate", "8", patch=monkeypatch) == 0
    capsys.readouterr()
    assert command(*given, "--n_tokens_to_generate", "9", patch=monkeypatch) == 1
    said = capsys.readouterr()
    assert said.out == ""
    for number in ("4 ids", "9 tokens", "n_ctx = 12"):
        assert number in said.err


def test_reference_says_where_the_files_belong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("x", "--models_dir", str(tmp_path), "--model_size", "355M", patch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / '355M'} does not hold" in said
    for name in FILES:
        assert name in said


def test_reference_without_jax_says_how_to_get_it(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert command("x", "--models_dir", str(tiny.parent), "--backend", "jax", patch=monkeypatch) == 1
    assert "temaki[jax]" in capsys.readouterr().err


def test_reference_loads_no_torch(tiny: Path, fresh: Callable[[str], str]) -> None:
    said = fresh(
        "import sys; from pathlib import Path; from temaki.cli.reference import reference\n"
        f"reference('the', 3, '124M', Path({str(tiny.parent)!r}), 'numpy', None)\n"
        "print(sorted(sys.modules.keys() & {'torch', 'jax', 'tensorflow', 'transformers'}))"
    )
    assert said.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_124m_says_what_it_is_known_for(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = request.config.getoption("--models_dir")
    if models is None or not openai_tf.fits(Path(models) / "124M"):
        pytest.skip("no OpenAI files: give the folder that holds 124M by --models_dir")
    prompt = "Alan Turing theorized that computers would one day become"
    assert command(prompt, "--n_tokens_to_generate", "8", "--models_dir", models, patch=monkeypatch) == 0
    assert capsys.readouterr().out == " the most powerful machines on the planet.\n"
    assert command("", "--models_dir", models, patch=monkeypatch) == 0
    begin = "The first time I saw the new version of the game, I was so excited."
    assert capsys.readouterr().out.lstrip().startswith(begin)
