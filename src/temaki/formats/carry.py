"""A model into another format, proved before it is there: written aside, opened again, compared, then named.

A form that holds less than the weights say (float16, blocks of few bits) must hold exactly the weights rounded to it:
the model that was written is compared with one rounded in memory, and what rounding cost is measured beside it.
"""

import contextlib
import difflib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy import ndarray

from temaki.base import files
from temaki.base.errors import FormatError, RunError
from temaki.formats import open as opener
from temaki.formats import parity, proof
from temaki.formats.opened import Opened
from temaki.formats.parity import Answers, Difference, Speaker
from temaki.formats.weights import PLUS_ONE, SAME, Weight
from temaki.model.quantise import Blocks, Stored, quantise
from temaki.tokens.frame import Frame

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """A format that models are written in."""

    door: str
    """The module of `formats/` that writes it."""
    types: Mapping[str, str]
    """What numbers can be written as, the usual one first, and what the door calls it; none: float32 alone."""
    speaks: bool
    """Whether it holds a chat template and what ends an answer."""


FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
TARGETS: Mapping[str, Target] = {
    "hf": Target("hf", FLOATS, True),
    "gguf": Target("gguf", {kind: kind for kind in ("f32", "f16", "q8_0", "q4_0", "q4_1")}, True),
    "openai": Target("openai_tf", {}, False),
    "llama2c": Target("llama2c", {}, False),
    "cs336": Target("cs336", {}, False),
    "native": Target("own", {}, True),
}
"""All formats that can be written, by name."""


@dataclass(frozen=True)
class Carried:
    """A model that was written and proved."""

    before: Opened
    after: Opened
    paths: tuple[Path, ...]
    """What was written."""
    proof: Difference
    """What was written against what it should hold."""
    loss: Difference | None
    """What was written against the model before it was rounded; None where nothing was."""
    texts: int | None
    """Texts that gave the same ids; None: there is no tokenizer."""
    lost: tuple[str, ...]
    """What the format does not hold, in words."""


def carry(source: Opened, out: Path, to: str, speak: Speaker, type: str | None = None, say: Say = print) -> Carried:
    """Write a model as `out`, which must not exist, in a format of `TARGETS`; nothing is left where a proof fails.

    A folder for it is made where there is none. Raises FormatError for an unknown format, for a model that the format
    cannot hold, and for a difference; RunError where another process is writing `out`.
    """
    target = check(out, to, type)
    heads = source.config.further is not None and to != "native"
    source = source.trunk() if heads else source
    SHAPES[to](source)
    if not out.parent.exists():
        say(f"making the folder {out.parent}")
    with _aside(out) as aside:
        say(f"writing {to}{f' as {type}' if type else ''}")
        _write(target, source, aside / out.name, type)
        found = _proved(source, opener.open(aside / out.name), target, speak, say)
        paths = _take_names(aside, out)
    lost = (*found.lost, "the format does not hold heads of further ids; they stay behind") if heads else found.lost
    return replace(found, after=opener.open(out), paths=paths, lost=lost)


def rounded(before: Mapping[str, Weight], after: Mapping[str, Weight]) -> dict[str, Weight] | None:
    """The weights `before` in the types that `after` is stored in, made in memory; None if that changes nothing."""
    made = {name: _rounded(before[name], after[name]) for name in before}
    exact = all(made[name] is before[name] for name in made)
    return None if exact else made


def check(out: Path, to: str, type: str | None) -> Target:
    """The target of these words. Raises FormatError for an unknown one, and for a name that is taken."""
    _free(out)
    if to not in TARGETS:
        near = difflib.get_close_matches(to, TARGETS, 1, 0.5)
        do = f"did you mean {near[0]}?" if near else ""
        raise FormatError("unknown format", found=repr(to), allowed=", ".join(TARGETS), do=do)
    target = TARGETS[to]
    if type is not None and type not in target.types:
        allowed = ", ".join(target.types) or "none: it holds float32 alone"
        raise FormatError(f"{to} is not written in this type", found=repr(type), allowed=allowed)
    return target


def _free(path: Path) -> None:
    if path.exists():
        raise FormatError(f"{path} exists already; nothing was changed", do="choose another name or remove it")


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, for this process alone and gone at the end; what a killed one left there goes.

    Raises RunError where another process is writing `out`.
    """
    aside = out.with_name(f".{out.name}.part")
    busy = RunError(f"another process is writing {out}; nothing was changed", do="wait for its end, or another name")
    with files.only(aside, busy):
        if not aside.exists():  # the other one has ended just now, and its folder is what is locked
            raise busy
        try:
            _free(out)
            for left in aside.iterdir():  # the folder itself stays: it is what is locked
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _write(target: Target, source: Opened, out: Path, type: str | None) -> None:
    """By the door of the format."""
    write = import_module(f"temaki.formats.{target.door}").write
    if target.types:
        write(source, out, target.types[type or next(iter(target.types))])
    else:
        write(source, out)


def _take_names(aside: Path, out: Path) -> tuple[Path, ...]:
    """Give all that was written its name, the model last; a file beside it that is there already must be the same.

    Raises FormatError where it is another.
    """
    names = sorted((path.name for path in aside.iterdir()), key=lambda name: name == out.name)
    new = [name for name in names if not _there(aside / name, out.parent / name)]
    for name in new:
        _free(out.parent / name)
    for name in new:
        os.replace(aside / name, out.parent / name)
    return tuple(out.parent / name for name in names)


def _there(one: Path, two: Path) -> bool:
    """Whether a file is there already, to the byte."""
    return two.is_file() and one.is_file() and files.mark(one) == files.mark(two)


def _proved(before: Opened, after: Opened, target: Target, speak: Speaker, say: Say) -> Carried:
    """Raises FormatError at the first difference."""
    unlike = parity.unlike(before.config, after.config)
    if unlike:
        allowed, found = parity.sides(unlike)
        raise FormatError("what was written has another configuration", found=found, allowed=allowed)
    texts, lost = _same_words(before, after, target)
    pieces = parity.questions(before)
    say(f"proving: logits of {len(pieces)} pieces and greedy tokens, before and after")
    said = parity.answers(speak(after), after, pieces)
    weights = rounded(before.weights(), after.weights())
    loss = None
    wanted = _asked(before, speak, pieces)
    if weights is not None:
        loss = parity.difference(wanted, said)
        wanted = _asked(replace(before, read_weights=lambda: weights), speak, pieces)
    found = parity.difference(wanted, said)
    if not found.same:
        raise FormatError(
            f"what was written is another model: {found}", allowed=f"{parity.CLOSE:g} of the largest logit"
        )
    return Carried(before, after, (), found, loss, texts, lost)


def _asked(opened: Opened, speak: Speaker, pieces: tuple[ndarray, ...]) -> Answers:
    return parity.answers(speak(opened), opened, pieces)


def _same_words(before: Opened, after: Opened, target: Target) -> tuple[int | None, tuple[str, ...]]:
    """On how many texts the tokenizers are one, and what the format does not hold. Raises FormatError."""
    lost = []
    if before.framed is None:
        front = before.speaking.front and before.speaking.front != after.speaking.front
        ends = ("what begins a prompt is lost with it",) if front else ()
        return None, ("the model has no tokenizer, so none was written", *ends)
    if after.framed is None:
        raise FormatError("what was written has no tokenizer, though the model has one")
    texts = proof.same(before.framed[0], after.framed[0])
    said = {
        "the chat template": (_source(before), _source(after)),
        "the tokens around a text": (before.framed[1], after.framed[1]),
        "what begins a prompt": (before.speaking.front, after.speaking.front),
        "what ends an answer": (_stops(before), _stops(before) & _stops(after)),
    }
    for what, (one, two) in said.items():
        if one and one not in (two, Frame()):
            if target.speaks:
                raise FormatError(f"{what} came back otherwise", found=repr(two)[:200], allowed=repr(one)[:200])
            lost.append(f"the format does not hold {what}")
    rules = [each[0].facts().get("partial") for each in (before.framed, after.framed)]
    if rules[0] != rules[1]:
        lost.append(
            "some bytes have no token; they are left out of the ids "
            f"{rules[0]} merging in the source and {rules[1]} merging in this format, so texts with them may differ"
        )
    more = _stops(after) - _stops(before)
    if _stops(before) and more:
        lost.append(f"in this format these ids end an answer too: {', '.join(map(str, sorted(more)))}")
    return texts, tuple(lost)


def _source(opened: Opened) -> str | None:
    return opened.chat.source if opened.chat is not None else None


def _stops(opened: Opened) -> frozenset[int]:
    return frozenset(opened.speaking.stop)


def _rounded(before: Weight, after: Weight) -> Weight:
    """A weight in the types of another's parts; itself where they hold it exactly."""
    array = before.array()
    flat, start = array.reshape(-1), 0
    parts = []
    for stored, change in after.parts:
        size = math.prod(stored.shape)
        rows = flat[start : start + size].reshape(_rows(stored, array))
        start += size
        kept = change if change is PLUS_ONE else SAME
        parts.append((_as_kind(kept.theirs(rows), stored), kept))
    made = Weight(before.shape, tuple(parts), before.wide)
    return before if np.array_equal(made.array(), array) else made


def _rows(stored: Stored, array: ndarray) -> tuple[int, ...]:
    """The shape of a part among ours: blocks lie along the last axis, which is never cut."""
    size = math.prod(stored.shape)
    return (size // array.shape[-1], array.shape[-1]) if array.ndim > 1 else (size,)


def _as_kind(rows: ndarray, like: Stored) -> Stored:
    if isinstance(like, Blocks):
        return _bfloat16(rows) if like.kind == "BF16" else quantise(like.kind, rows)
    with np.errstate(over="ignore"):  # what is too large for float16 becomes infinite, and is refused as such
        return rows.astype(like.dtype)


def _bfloat16(rows: ndarray) -> Blocks:
    """The upper half of each float32, rounded to the nearest, ties to the even one."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32).astype(np.uint64)
    halves = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return Blocks("BF16", rows.shape, halves.astype("<u2").view(np.uint8).reshape(-1))


def refusal(opened: Opened, to: str) -> str | None:
    """Why the model's shape has no words in a format; None where it has."""
    try:
        SHAPES[to](opened.trunk())
    except FormatError as error:
        return str(error)
    return None


def _as_hf(opened: Opened) -> None:
    from temaki.formats import hf_said

    hf_said.said(opened.config)


def _as_gguf(opened: Opened) -> None:
    from temaki.formats import gguf

    gguf.said(opened)


def _as_openai(opened: Opened) -> None:
    from temaki.formats import openai_tf

    openai_tf.check(opened.config)


def _as_llama2c(opened: Opened) -> None:
    from temaki.formats import llama2c

    llama2c.said(opened, 0)


def _as_cs336(opened: Opened) -> None:
    from temaki.formats import cs336

    cs336.said(opened.config, opened.context)


SHAPES: Mapping[str, Callable[[Opened], None]] = {
    "hf": _as_hf,
    "gguf": _as_gguf,
    "openai": _as_openai,
    "llama2c": _as_llama2c,
    "cs336": _as_cs336,
    "native": lambda _: None,
}
"""What raises FormatError for a shape that a format cannot say."""
