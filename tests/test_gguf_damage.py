"""Damaged and hostile GGUF files: an error of ours or the right content, never anything else."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_models
from gguf_models import TEMPLATE
from temaki.base.errors import FormatError, TemakiError
from temaki.formats import gguf, gguf_file
from temaki.tokens.chat import ChatTemplate


def tried(path: Path, content: bytes) -> bool:
    """Whether a file is read, to its last number and token; nothing but our errors may arise."""
    path.unlink(missing_ok=True)  # a new file each time: one that is mapped must not be cut, and cutting is slow
    path.write_bytes(content)
    try:
        opened = gguf.open(path)
        for weight in opened.weights().values():
            weight.array()
        if opened.framed is not None:
            opened.framed[0].encode_list("The quick\n 12é")
        if opened.chat is not None:
            assert opened.chat.source
    except TemakiError:
        return False
    return True


def small(folder: Path) -> bytes:
    """A file of a few kilobytes with all that a file can have."""
    config = replace(gguf_models.CONFIGS["llama-3"], width=32, depth=1, vocabulary=290)
    words = gguf_models.tokenizer("gpt2", 280)
    chat = ChatTemplate(TEMPLATE, {})
    opened = replace(gguf_models.model(config, words), read_chat=lambda: chat)
    gguf.write(opened, folder / "small.gguf", "q4_1")
    return (folder / "small.gguf").read_bytes()


STRANGE = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
"""Lengths and counts that trip readers."""


def mutant(content: bytes, seed: int) -> bytes:
    """Cut off, bytes overwritten, stretches moved or doubled, lengths and counts made strange."""
    draw = np.random.default_rng(seed)
    head = 2 * len(content) // 3
    found = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        if not found:
            break
        at = int(draw.integers(0, head if draw.random() < 0.9 else len(found)))
        match draw.integers(0, 6):
            case 0:
                del found[at:]
            case 1:
                found[at : at + 1] = bytes([draw.integers(0, 256)])
            case 2:
                found[at : at + 8] = struct.pack("<Q", STRANGE[draw.integers(0, len(STRANGE))])
            case 3:
                size = int(draw.integers(1, 40))
                del found[at : at + size]
            case 4:
                size = int(draw.integers(1, 40))
                found[at:at] = found[at : at + size]
            case _:
                found[at : at + 4] = struct.pack("<I", int(draw.integers(0, 40)))
        head = min(head, len(found)) or 1
    return bytes(found)


def fuzzed(folder: Path, first: int, count: int) -> int:
    """How many of so many mutants are read."""
    content = small(folder)
    assert tried(folder / "mutant.gguf", content)
    return sum(tried(folder / "mutant.gguf", mutant(content, seed)) for seed in range(first, first + count))


def test_mutants(tmp_path: Path) -> None:
    assert 0 < fuzzed(tmp_path, 0, 1_000) < 700


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutants(tmp_path: Path) -> None:
    assert 0 < fuzzed(tmp_path, 1_000, 100_000) < 70_000


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "any.gguf"
    assert not tried(path, b"GGUF" + struct.pack("<I", 3) + content)
    assert not tried(path, content)


def test_every_cut_is_seen(tmp_path: Path) -> None:
    """Whatever is cut off, but for padding behind the last array."""
    content = small(tmp_path)
    for size in [*range(0, len(content), 997), 3, 23, 24, len(content) - 64]:
        assert not tried(tmp_path / "cut.gguf", content[:size])


def packed_header(arrays: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, arrays, keys)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read"),
        (b"GGUF", "the file ends inside the version"),
        (b"GGML" + bytes(60), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
        (packed_header(1 << 60, 0), "more arrays than the file has room for"),
        (packed_header(0, 1 << 60), "more keys than the file has room for"),
        (packed_header(0, 1) + struct.pack("<Q", 1 << 62) + bytes(40), "too long"),
        (packed_header(0, 1) + struct.pack("<Q1sI", 1, b"k", 99) + bytes(40), "type of k is unknown"),
        (packed_header(0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1) + bytes(40), "array of arrays"),
        (packed_header(0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 1 << 61) + bytes(9), "more numbers in k"),
        (packed_header(0, 1) + struct.pack("<Q1sIIQQ", 1, b"k", 9, 8, 1, 1 << 61), "ends inside k"),
        (packed_header(0, 1) + struct.pack("<Q1sIB", 1, b"k", 7, 2) + bytes(9), "neither true nor false"),
        (packed_header(0, 1) + struct.pack("<Q1sIQ1s", 1, b"k", 8, 1, b"\xff"), "k is not UTF-8"),
        (packed_header(0, 2) + 2 * struct.pack("<Q1sIB", 1, b"k", 0, 2), "a key comes twice"),
    ],
)
def test_impossible_headers(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=match):
        gguf_file.load(path)


def entry(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([entry(b"a", (4,), 0, 0), entry(b"a", (4,), 0, 32)], "an array comes twice"),
        ([entry(b"a", (16,), 0, 0), entry(b"b", (4,), 0, 32)], "a and b overlap"),
        ([entry(b"a", (4,), 0, 8)], "does not lie in the file"),
        ([entry(b"a", (1 << 40,), 0, 0)], "does not lie in the file"),
        ([entry(b"a", (1 << 40, 1 << 40), 0, 0)], "impossible shape"),
        ([entry(b"a", (4, 0), 0, 0)], "impossible shape"),
        ([entry(b"a", (), 0, 0)], "impossible shape"),
        ([entry(b"a", (1, 1, 1, 1, 1), 0, 0)], "too many axes"),
        ([entry(b"a", (40,), 8, 0)], "whole number of blocks"),
        ([entry(b"a", (256,), 13, 0)], "Q5_K"),
        ([entry(b"a", (256,), 99, 0)], "kind 99"),
    ],
)
def test_impossible_arrays(tmp_path: Path, entries: list[bytes], match: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(packed_header(len(entries), 0) + b"".join(entries) + bytes(128))
    with pytest.raises(FormatError, match=match):
        gguf_file.load(path)


def test_only_files_of_this_format_fit(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "model.bin").write_bytes(small(tmp_path))
    assert not gguf.fits(tmp_path)
    assert not gguf.fits(tmp_path / "absent.gguf")
    assert not gguf.fits(tmp_path / "text.gguf")
    assert gguf.fits(tmp_path / "model.bin")
