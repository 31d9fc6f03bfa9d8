"""Encoding and decoding: new and repeated text, in each call shape, beside each peer that has the shape."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
from peers import Encoder
from text import MB, Text
from timing import Prepare, Time, race
from vocabularies import Ranks, cl100k, gpt2

Row = tuple[str, ...]
GOALS = {"gpt2 English": 1.0, "cl100k English": 1.0, "gpt2 Chinese": 1.2, "cl100k Chinese": 1.2, "lists": 2.0}
SLOW = {"tiktoken": 10.0, "tokenizers": 10.0}
"""Peers that are held against on part of the text, so that a run does not last for ever, and the goals there."""
PART = 6 * MB


def rows(english: Text, chinese: Text, threads: int, rounds: int, other: Path | None) -> Iterator[Row]:
    """For each vocabulary, text and shape: new text (a fresh encoder), then repeated text (one that has seen it)."""
    encoders = _encoders(threads)
    for ranks in [gpt2()] + ([cl100k(other)] if other is not None else []):
        for text in (english, chinese):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "text.txt"
                path.write_bytes(text.data)
                yield from _shapes(encoders, ranks, text, path, threads, rounds)


def decoding(text: Text, rounds: int) -> Iterator[Row]:
    """Ids to text, in one call."""
    ranks = gpt2()
    encoders = {each.name: each.make(ranks) for each in _encoders(1) if each.name != "tokenizers"}
    ids = encoders["temaki"].encode(text.whole)
    listed = ids.tolist()
    calls: dict[str, Callable[[], object]] = {"temaki": lambda: encoders["temaki"].decode(ids)}
    if "gigatoken" in encoders:
        calls["gigatoken"] = lambda: encoders["gigatoken"].decode(ids).decode("utf-8")
    if "tiktoken" in encoders:
        calls["tiktoken"] = lambda: encoders["tiktoken"].decode(listed)
    for name, call in calls.items():
        assert call() == text.whole, f"{name} gives another text back"
    times = race({name: (lambda call=call: call) for name, call in calls.items()}, rounds)
    yield from _told("decode to text, gpt2 English", text.size, times, 1, {"gigatoken": 2.0})


def scaling(text: Text, rounds: int) -> Iterator[Row]:
    """Ours on two threads against ours on one, in wall time, on the same two processors."""
    ranks = gpt2()
    for shape in ("documents", "bytes", "text"):
        for age, prepare in (("new", _fresh), ("repeated", _seen)):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "text.txt"
                contestants = {n: prepare(peers.ours(n), ranks, text, path, shape) for n in (1, 2)}
                times = race({str(n): contestants[n] for n in contestants}, rounds)
            one, two = (text.size / MB / times[n].wall for n in ("1", "2"))
            what = f"two threads, gpt2 {text.name}, {shape}, {age}"
            yield what, "2", f"{two:.1f} MB/s", "temaki on 1", f"{one:.1f} MB/s", f"{two / one:.2f}x", "1.8x"


def _encoders(threads: int) -> list[Encoder]:
    made = [peers.ours(threads)]
    for name in ("gigatoken", "tiktoken", "tokenizers"):
        if peers.installed(name):
            made.append(getattr(peers, name)(threads))
    return made


def _shapes(
    encoders: Sequence[Encoder], ranks: Ranks, text: Text, path: Path, threads: int, rounds: int
) -> Iterator[Row]:
    ours = encoders[0]
    for shape in ours.shapes:
        if shape == "text" and threads > 1:
            continue
        rivals = [each for each in encoders if shape in each.shapes and each.name not in SLOW]
        what = f"{ranks.name} {text.name}"
        goals = dict.fromkeys((each.name for each in rivals), GOALS["lists" if shape == "lists" else what])
        for age, prepare in (("new", _fresh), ("repeated", _seen)):
            contestants = {each.name: prepare(each, ranks, text, path, shape) for each in rivals}
            times = race(contestants, rounds)
            yield from _told(f"encode {what}, {shape}, {age}", text.size, times, threads, goals)
    slow = [each for each in encoders if each.name in SLOW]
    if slow and threads == 1:
        part = _spread(text, PART)
        contestants = {each.name: _fresh(each, ranks, part, path, "documents") for each in [ours, *slow]}
        goals = {"tiktoken": 4.0 if ranks.name == "cl100k" else 10.0}
        yield from _told(
            f"encode {ranks.name} {text.name}, documents, new, {part.size / MB:.0f} MB", part.size,
            race(contestants, max(3, rounds // 2)), threads, goals,
        )  # fmt: skip


def _fresh(encoder: Encoder, ranks: Ranks, text: Text, path: Path, shape: str) -> Prepare:
    """A run on an encoder that was just made and has encoded one letter, on a copy of the text that nobody has read.

    What is loaded or compiled once was so before.
    """
    call, letter, letter_path = encoder.shapes[shape], Text("letter", ("a",), ()), path.with_name("letter.txt")
    letter_path.write_bytes(letter.data)

    def prepare() -> Callable[[], object]:
        made = encoder.make(ranks)
        call(made, letter, letter_path)
        copy = text.fresh(documents=shape in ("documents", "lists"))
        return lambda: call(made, copy, path)

    call(encoder.make(ranks), Text("warm", text.documents[:2], ()), letter_path)
    return prepare


def _seen(encoder: Encoder, ranks: Ranks, text: Text, path: Path, shape: str) -> Prepare:
    """A run on an encoder that has encoded the same text before."""
    made: Any = encoder.make(ranks)
    encoder.shapes[shape](made, text, path)
    return lambda: lambda: encoder.shapes[shape](made, text, path)


def _told(what: str, size: int, times: dict[str, Time], threads: int, goals: dict[str, float]) -> Iterator[Row]:
    """A row for each peer: MB a second, of CPU time on one thread, of wall time on more."""
    speed = {name: size / MB / (time.cpu if threads == 1 else time.wall) for name, time in times.items()}
    rivals = [name for name in speed if name != "temaki"] or ["-"]
    for name in rivals:
        ratio = f"{speed['temaki'] / speed[name]:.2f}x" if name in speed else "-"
        goal = f"{goals[name]:g}x" if name in goals else "-"
        peer = f"{speed[name]:.1f} MB/s" if name in speed else "-"
        yield what, str(threads), f"{speed['temaki']:.1f} MB/s", name, peer, ratio, goal


def _spread(text: Text, size: int) -> Text:
    """About `size` bytes of a text: every k-th document of it."""
    return Text(text.name, text.documents[:: max(1, text.size // size)], ())
