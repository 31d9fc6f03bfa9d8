"""llama2.c's model files, in and out: a Llama as one header and float32 arrays in a fixed order, memory-mapped.

Two versions. 0: seven int32 (width, hidden width, depth, heads, heads of keys and values, vocabulary (negative: the
head is untied), context), the arrays, among them tables of RoPE that nobody reads. 1: the magic "ak42", the version,
the same seven, a byte that says whether the head is tied, zeros up to 256 bytes, the arrays in another order. Version
2 (int8) is refused. Source: llama2.c, export.py (legacy_export, version1_export) and run.c.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from temaki.base import files
from temaki.base.errors import FormatError
from temaki.formats import llama2c_shape as shapes
from temaki.formats import llama2c_tokenizer as tokenizers
from temaki.formats.hf_safetensors import packed
from temaki.formats.llama2c_shape import HEADER, MAGIC, Shape
from temaki.formats.opened import Opened, Speaking
from temaki.formats.weights import SAME, Change, Entry, Source, interleaved, read
from temaki.formats.weights import write as written
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    NoPositionConfig,
    RmsNormConfig,
    RopeConfig,
    SoftmaxConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

THETA, EPS = 10_000.0, 1e-5
"""What run.c computes with."""


def fits(path: Path) -> bool:
    """Whether a file says that it is one of these; its size must be what its header tells."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEADER[1])
    if head[:4] == MAGIC:
        return True
    try:
        return shapes.read(head, path).bytes == path.stat().st_size
    except FormatError:
        return False


def open(path: Path) -> Opened:
    """Open a model file, and the tokenizer beside it: `tok<vocabulary>.bin`, else `tokenizer.bin`, if it has as many
    pieces as the model has ids. Raises FormatError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            shape = shapes.read(file.read(HEADER[1]), path)
        held = path.stat().st_size
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    if held != shape.bytes:
        raise FormatError(
            f"{path} is cut off or damaged", found=f"{held} bytes", allowed=f"{shape.bytes} by its header"
        )
    beside, warnings = _beside(path, shape.vocabulary)
    config = _config(shape)
    return Opened(
        folder=path,
        config=config,
        settings={},
        step=None,
        warnings=warnings,
        read_weights=lambda: read(_entries(config, shape), _mapped(path, shape), str(path), _is_table),
        read_tokenizer=lambda: _loaded(beside),
        speaking=_speaking(shape.vocabulary),
        format="llama2c",
        facts={"architecture": "llama", "version": shape.version, "type": "F32"},
    )


def write(opened: Opened, out: Path, version: Literal[0, 1] = 0, tokenizer: bool = True) -> None:
    """Write a model that run.c reads, and its tokenizer beside it as `tok<vocabulary>.bin`.

    `tokenizer`: whether it is written if there is one. Raises FormatError for a model that llama2.c cannot say, naming
    the part; TokenizerError for such a tokenizer; OSError.
    """
    shape = said(opened, version)
    framed = opened.framed if tokenizer else None
    beside = out.parent / f"tok{shape.vocabulary}.bin"
    content = None if framed is None else _tokenizer(framed[0], shape, beside)
    # Of all layers one kind after the other, so that few of their arrays are being gathered at a time.
    entries = sorted(_entries(opened.config, shape), key=lambda entry: entry.ours.rsplit(".", 2)[-2:])
    with files.writing(out) as file:
        places, at = {}, HEADER[version]
        for name, numbers in shape.arrays.items():
            places[name] = at
            at += 4 * math.prod(numbers)
        file.write(shapes.written(shape))
        for name, array in (*_tables(shape), *written(entries, opened.weights())):
            if name in places:
                file.seek(places[name])
                file.write(packed(name, array, "float32").data)
        file.truncate(shape.bytes)
    if content is not None and not beside.exists():
        files.write_bytes(beside, content)


def _config(shape: Shape) -> DecoderConfig:
    return DecoderConfig(
        vocabulary=shape.vocabulary,
        width=shape.width,
        depth=shape.depth,
        pattern=(
            BlockConfig(
                mixer=AttentionConfig(
                    heads=shape.heads,
                    kv_heads=shape.kv_heads,
                    position=RopeConfig(theta=THETA, pairs="interleaved"),
                ),
                ffn=SwigluConfig(width=shape.hidden),
                norm=RmsNormConfig(eps=EPS),
            ),
        ),
        tied=shape.tied,
        context=shape.context,
    )


def _entries(config: DecoderConfig, shape: Shape) -> list[Entry]:
    """Between their arrays and ours; theirs have rotary pairs side by side."""
    sizes = shape.arrays
    d, h = shape.width, shape.hidden
    rows = sizes["wk"][1]
    mixer = config.blocks[0].mixer
    assert isinstance(mixer, AttentionConfig), "seen before"
    turned = isinstance(mixer.position, RopeConfig) and mixer.position.pairs == "half"

    def whole(ours: str, name: str) -> Entry:
        return Entry(ours, sizes[name], (Source(name, sizes[name]),))

    def at(layer: int, name: str, change: Change = SAME) -> Source:
        return Source(name, sizes[name], change, layer)

    entries = [whole("embedding", "token_embedding"), whole("norm.gain", "rms_final")]
    if not shape.tied:
        entries.append(whole("unembedding", "wcls"))
    for layer in range(shape.depth):
        q, k = (interleaved(n) if turned else SAME for n in (shape.heads, shape.kv_heads))
        block = f"blocks.{layer}"
        entries += [
            Entry(f"{block}.mixer_norm.gain", (d,), (at(layer, "rms_att"),)),
            Entry(f"{block}.mixer.qkv", (d + 2 * rows, d), (at(layer, "wq", q), at(layer, "wk", k), at(layer, "wv"))),
            Entry(f"{block}.mixer.out", (d, d), (at(layer, "wo"),)),
            Entry(f"{block}.ffn_norm.gain", (d,), (at(layer, "rms_ffn"),)),
            Entry(f"{block}.ffn.up", (2 * h, d), (at(layer, "w1"), at(layer, "w3"))),
            Entry(f"{block}.ffn.down", (d, h), (at(layer, "w2"),)),
        ]
    return entries


def _mapped(path: Path, shape: Shape) -> dict[str, ndarray]:
    """The arrays of a file, memory-mapped. Raises FormatError for one that has changed since it was opened."""
    try:
        if path.stat().st_size != shape.bytes:
            raise FormatError(f"{path} has changed since it was opened")
        numbers = np.memmap(path, "<f4", "r", HEADER[shape.version])
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    ends = np.cumsum([0, *map(math.prod, shape.arrays.values())]).tolist()
    return {
        name: numbers[begin:end].reshape(size)
        for (name, size), (begin, end) in zip(shape.arrays.items(), pairwise(ends), strict=True)
    }


def _is_table(name: str) -> bool:
    return name.startswith("freq_cis")


def _beside(path: Path, vocabulary: int) -> tuple[Path | None, tuple[str, ...]]:
    """The tokenizer's file, and what is to be said of files that are not it."""
    warnings: list[str] = []
    for place in (path.parent / f"tok{vocabulary}.bin", path.parent / "tokenizer.bin"):
        if place != path and place.is_file():
            found = tokenizers.size(place)
            if found == vocabulary:
                return place, ()
            what = "no tokenizer" if found is None else f"a tokenizer of {found} pieces"
            warnings.append(f"{place} is {what}, the model has {vocabulary} ids, so it was passed over")
    return None, tuple(warnings)


def _loaded(path: Path | None) -> tuple[Tokenizer, Frame] | None:
    return None if path is None else tokenizers.load(path)


def _speaking(vocabulary: int) -> Speaking:
    """As run.c does: the id of the beginning stands before a text, and it or that of the end ends an answer."""
    if vocabulary <= tokenizers.END:
        return Speaking()
    return Speaking(front=(tokenizers.BEGIN,), stop=(tokenizers.BEGIN, tokenizers.END))


def said(opened: Opened, version: Literal[0, 1]) -> Shape:
    """The header of a model. Raises FormatError naming what run.c does not compute."""
    config = opened.config
    block = config.pattern[0]
    mixer, ffn = block.mixer, block.ffn
    unsaid = {"blocks of several kinds": any(each != block for each in config.pattern), **_unsaid(config, block)}
    found = [name for name, is_so in unsaid.items() if is_so]
    if opened.context is None:
        found.append("no context, which the header holds")
    if found or not isinstance(mixer, AttentionConfig) or not isinstance(ffn, SwigluConfig) or not opened.context:
        raise FormatError(
            "llama2.c cannot say this model", found="; ".join(found), allowed="Llama's shape, theta 10000"
        )
    return Shape(
        version,
        config.width,
        ffn_width(ffn, config.width),
        config.depth,
        mixer.heads,
        mixer.groups,
        config.vocabulary,
        opened.context,
        config.tied,
    )


def _unsaid(config: DecoderConfig, block: BlockConfig) -> dict[str, bool]:
    """What run.c does not compute, and whether a model asks for it."""
    mixer, ffn = block.mixer, block.ffn
    unsaid = {
        f"feed-forward layer {ffn.kind}": not isinstance(ffn, SwigluConfig),
        "a bias in the feed-forward layer": isinstance(ffn, SwigluConfig) and ffn.bias,
        f"norm {block.norm.kind}": not isinstance(block.norm, RmsNormConfig),
        f"a norm's eps of {block.eps:g}": block.eps != EPS,
        f"norms in order {block.order}": block.order != "pre",
        f"input positions {config.input_position.kind}": not isinstance(config.input_position, NoPositionConfig),
        "a scale of the embeddings": config.embedding_scale != 1,
        "a cap of the logits": config.cap is not None,
    }
    if not isinstance(mixer, AttentionConfig):
        return {f"mixer {mixer.kind}": True, **unsaid}
    position = mixer.position
    return unsaid | {
        f"positions {position.kind}": not isinstance(position, RopeConfig),
        "another rope_theta": isinstance(position, RopeConfig) and position.theta != THETA,
        "scaled positions": isinstance(position, RopeConfig) and position.scaling is not None,
        "heads of another size than width / heads": mixer.head_size(config.width) * mixer.heads != config.width,
        f"mask {mixer.mask}": mixer.mask != "causal",
        "a window": mixer.window is not None,
        "biases in attention": mixer.bias != "none",
        "norms of queries and keys": mixer.qk_norm,
        "a scale of the scores": mixer.scale is not None and mixer.scale != mixer.head_size(config.width) ** -0.5,
        "a cap of the scores": mixer.cap is not None,
        f"the map {mixer.map.kind}": not isinstance(mixer.map, SoftmaxConfig),
    }


def _tokenizer(tokenizer: Tokenizer, shape: Shape, place: Path) -> bytes:
    """The content of the file beside. Raises FormatError where another one is there, TokenizerError."""
    if tokenizer.size != shape.vocabulary:
        raise FormatError(
            "the tokenizer has not as many pieces as the model has ids",
            found=f"{tokenizer.size} pieces, {shape.vocabulary} ids",
        )
    content = tokenizers.write(tokenizer)
    if place.exists() and place.read_bytes() != content:
        raise FormatError(f"{place} exists and is another tokenizer", do="write the model into a folder of its own")
    return content


def _tables(shape: Shape) -> Iterator[tuple[str, ndarray]]:
    """Cosines and sines of RoPE, as version 0 has them for the readers of old."""
    size = shape.width // shape.heads
    angles = np.outer(np.arange(shape.context), THETA ** -(np.arange(0, size, 2) / size))
    yield "freq_cis_real", np.cos(angles)
    yield "freq_cis_imag", np.sin(angles)
