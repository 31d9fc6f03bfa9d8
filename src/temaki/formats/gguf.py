"""The GGUF door: a model in one file, with its tokenizer and chat template, as llama.cpp reads it. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from temaki.base import files
from temaki.base.errors import FormatError
from temaki.checkpoint.speaking import Speaking
from temaki.formats import gguf_config, gguf_file, gguf_names, gguf_tokenizer, gguf_written, weights
from temaki.formats.gguf_file import GgufFile, Value
from temaki.formats.gguf_written import Planned
from temaki.formats.opened import Opened
from temaki.model.config import AttentionConfig, DecoderConfig, RopeConfig
from temaki.model.quantise import quantise
from temaki.model.quantise_kinds import HALF_MOST, KINDS
from temaki.tokens.tokenizer import END_OF_TEXT

if TYPE_CHECKING:  # Jinja is loaded only where a template is used
    from temaki.tokens.chat import ChatTemplate

TEMPLATE = "tokenizer.chat_template"
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}
"""What arrays can be written as, and the number by which a file says so."""
QUANTISATION_VERSION = 2
FACTS = {"name": "general.name", "licence": "general.license", "architecture": "general.architecture"}
TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unk", "pad_token": "pad"}
"""Special tokens as a chat template calls them."""
KEPT_WHOLE = ("ffn_gate_inp.weight", gguf_names.ROPE_FACTORS)
"""Matrices that llama.cpp wants in float32."""
FINER = ("token_embd.weight", gguf_names.HEAD)
"""Matrices that are kept in 8 bits where the others have 4, as llama.cpp's own files do."""


def fits(path: Path) -> bool:
    """Whether a file is of this format."""
    return gguf_file.is_gguf(path)


def open(path: Path) -> Opened:
    """Open a file; nothing but its metadata is read. Raises FormatError for what is damaged or not understood."""
    file = gguf_file.load(path)
    try:
        return _opened(file)
    except FormatError as error:
        raise FormatError(
            f"{path} cannot be used: {error.what}", found=error.found, allowed=error.allowed, do=error.do
        ) from None


def _opened(file: GgufFile) -> Opened:
    metadata = file.metadata
    shapes = {name: held.shape for name, held in file.arrays.items()}
    config = gguf_config.read(metadata, shapes, _rope_factors(file))
    tokenizer = cache(lambda: gguf_tokenizer.read(metadata))
    return Opened(
        folder=file.path,
        config=config,
        settings={},
        step=None,
        warnings=(),
        read_weights=lambda: _weights(file, config),
        read_tokenizer=tokenizer,
        read_chat=lambda: _chat(metadata),
        speaking=_speaking(metadata),
        format="gguf",
        facts=_facts(file),
    )


def _weights(file: GgufFile, config: DecoderConfig) -> Mapping[str, weights.Weight]:
    fused = gguf_config.architecture(file.metadata) in gguf_config.FUSED
    stored = {name: held.stored() for name, held in file.arrays.items()}
    entries = gguf_names.entries(config, fused)
    return weights.read(entries, stored, str(file.path), lambda name: name in gguf_names.IGNORED)


def _rope_factors(file: GgufFile) -> ndarray | None:
    held = file.arrays.get(gguf_names.ROPE_FACTORS)
    if held is None:
        return None
    stored = held.stored()
    if not isinstance(stored, ndarray):
        raise FormatError(f"{held.name} is made of blocks", found=held.kind, allowed="F32")
    return stored


def _speaking(metadata: Mapping[str, Value]) -> Speaking:
    """What begins a prompt and ends an answer, from the kinds of its tokens alone."""
    if f"{gguf_tokenizer.PREFIX}tokens" not in metadata:
        return Speaking()
    front = gguf_tokenizer.around(metadata, "bos")
    return Speaking(front=front, stop=gguf_tokenizer.stops(metadata, gguf_tokenizer.marked(metadata)))


def _chat(metadata: Mapping[str, Value]) -> "ChatTemplate | None":
    source = metadata.get(TEMPLATE)
    if not isinstance(source, str):
        return None
    from temaki.tokens.chat import ChatTemplate

    texts = gguf_tokenizer.tokens(metadata)
    ids = {name: gguf_tokenizer.token(metadata, part) for name, part in TOKENS.items()}
    return ChatTemplate(source, {name: texts[id] for name, id in ids.items() if id is not None})


def _facts(file: GgufFile) -> dict[str, object]:
    said = {name: file.metadata[key] for name, key in FACTS.items() if key in file.metadata}
    texts = {name: value for name, value in said.items() if isinstance(value, str)}
    return {**texts, "version": file.version, "bytes": file.bytes, "kinds": dict(file.kinds)}


def write(opened: Opened, out: Path, kind: str = "f32") -> None:
    """Write a model with its tokenizer and template; whole or absent.

    `kind`: f32, f16, q8_0, q4_0 or q4_1, for matrices (q4_0, q4_1: the embedding and the head are q8_0); a matrix whose
    rows are no whole number of blocks is float16, everything of one axis float32. Raises FormatError for what llama.cpp
    has no word for, OSError.
    """
    wanted = kind.upper()
    if wanted not in FILE_TYPES:
        raise FormatError("not a kind of array that is written", found=kind, allowed=", ".join(FILE_TYPES).lower())
    plan, held = said(opened), opened.weights()
    metadata = {**plan.metadata, **_general(opened, wanted), **_words(opened)}
    planned = [Planned(name, shape, kind_of(name, shape, wanted)) for name, shape in plan.shapes.items()]

    def arrays() -> Iterator[tuple[str, ndarray]]:
        yield from weights.write(plan.entries, held)
        if plan.rope_factors is not None:
            yield gguf_names.ROPE_FACTORS, plan.rope_factors

    with files.writing(out) as file:
        gguf_written.write(file, metadata, planned, arrays(), packed)


@dataclass(frozen=True)
class Said:
    """A model's shape in the words of the format."""

    metadata: Mapping[str, Value]
    entries: Sequence[weights.Entry]
    shapes: Mapping[str, tuple[int, ...]]
    """Of every array by its name there."""
    rope_factors: ndarray | None


def said(opened: Opened) -> Said:
    """Raises FormatError for a shape that llama.cpp has no word for."""
    config = opened.config
    name, metadata, rope_factors = gguf_config.write(config, opened.context or _room(config))
    entries = gguf_names.entries(config, name in gguf_config.FUSED, _turned(config, name))
    shapes = {source.name: source.shape for entry in entries for source in entry.sources}
    if rope_factors is not None:
        shapes[gguf_names.ROPE_FACTORS] = rope_factors.shape
    gguf_config.check(config, metadata, shapes, rope_factors)
    return Said(metadata, entries, shapes, rope_factors)


def kind_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """What an array is written as.

    >>> kind_of("blk.0.attn_q.weight", (64, 64), "Q8_0"), kind_of("blk.0.attn_q.weight", (64, 60), "Q8_0")
    ('Q8_0', 'F16')
    """
    if len(shape) == 1 or name.endswith(KEPT_WHOLE):
        return "F32"
    if name == "position_embd.weight":
        return "F32"
    if name in FINER and wanted.startswith("Q4"):
        wanted = "Q8_0"
    if wanted in KINDS and shape[-1] % KINDS[wanted].numbers:
        return "F16"
    return wanted


def packed(kind: str, array: ndarray) -> ndarray:
    """The bytes of an array as a kind, contiguous. Raises FormatError for numbers that it cannot hold."""
    if kind in KINDS:
        return quantise(kind, array).data
    dtype = np.dtype("<f4") if kind == "F32" else np.dtype("<f2")
    most = float(np.finfo(np.float32).max) if kind == "F32" else HALF_MOST
    if array.size and not np.abs(array).max() <= most and kind != "F32":
        raise FormatError(f"a number is too large for {kind}, or none", allowed=f"up to {most:g}", do="write f32")
    return np.ascontiguousarray(array, dtype)


def _room(config: DecoderConfig) -> int:
    """Raises FormatError: a context must be known."""
    raise FormatError(
        "the format wants to know how many ids a row has",
        found="no context in the configuration",
        do="set model.context",
    )


def _turned(config: DecoderConfig, name: str) -> bool:
    """Whether rows of queries and keys change places: llama turns pairs (2t, 2t + 1), the others (t, t + K/2)."""
    mixer = config.blocks[0].mixer
    assert isinstance(mixer, AttentionConfig), "as `gguf_config.write` saw"
    if not isinstance(mixer.position, RopeConfig):
        return False
    return name == "llama" and mixer.position.pairs == "half"


def _general(opened: Opened, wanted: str) -> dict[str, Value]:
    said: dict[str, Value] = {
        "general.name": str(opened.facts.get("name", opened.settings.get("name", opened.folder.stem))),
        "general.type": "model",
        "general.file_type": FILE_TYPES[wanted],
        "general.quantization_version": QUANTISATION_VERSION,
        "general.alignment": gguf_file.ALIGNMENT,
    }
    if isinstance(opened.facts.get("licence"), str):
        said["general.license"] = str(opened.facts["licence"])
    return said


def _words(opened: Opened) -> dict[str, Value]:
    """The keys of the tokenizer, what stands around a text, and the template."""
    if opened.framed is None:
        return {f"{gguf_tokenizer.PREFIX}model": "no_vocab"}
    tokenizer, frame = opened.framed
    front, stop = opened.speaking.front, opened.speaking.stop
    if opened.speaking == Speaking() and frame.before == () and END_OF_TEXT in tokenizer.special:
        front = stop = (tokenizer.special[END_OF_TEXT],)  # as our own models are trained
    found = gguf_tokenizer.write(tokenizer, frame, opened.config.vocabulary)
    found |= gguf_tokenizer.speech(tokenizer, frame, front, stop, found)
    if opened.chat is None:
        return found
    for name, part in TOKENS.items():
        id = tokenizer.special.get(opened.chat.names.get(name, ""))
        key = gguf_tokenizer.id_key(part)
        if id is not None and key not in found:
            found[key] = id
    return found | {TEMPLATE: opened.chat.source}
