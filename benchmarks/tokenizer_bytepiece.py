"""BytePiece beside its peers: training, encoding, sampling, on Chinese."""

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
from text import MB, Text
from timing import race, timed

Row = tuple[str, ...]
SIZE = 16_000
ENCODE_GOAL, SAMPLE_GOAL, TRAIN_GOAL = "30 MB/s", "15 MB/s", "under 10 s"
ALPHA = 0.1
REFERENCE_TEXT = MB // 2
"""Bytes that the published tokenizers, which are slow, encode."""


def training(text: Text, rounds: int) -> Iterator[Row]:
    """Seconds to learn SIZE pieces, and bytes a token on the same text (as the published figures are told)."""
    seconds, model = _best(lambda: _ours(text), 3)
    rate = text.size / sum(len(model.encode(document)) for document in text.documents)
    mine = f"{seconds:.1f} s, {rate:.3f} bytes a token"
    work = f"train BytePiece, {text.size / MB:.0f} MB Chinese, {SIZE:,}"
    yield work, "1", mine, "-", "-", "-", TRAIN_GOAL
    if peers.installed("sentencepiece"):
        theirs, processor = _best(lambda: _sentencepiece(text), 1)
        tokens = sum(len(ids) for ids in processor.encode(list(text.documents)))
        told = f"{theirs:.1f} s, {text.size / tokens:.3f} bytes a token"
        yield work, "1", mine, "sentencepiece unigram", told, f"{theirs / seconds:.1f}x", "-"
    if peers.installed("bytepiece"):
        theirs, rate = _published(text)
        yield work, "1", mine, "bytepiece", f"{theirs:.1f} s, {rate:.3f} bytes a token", f"{theirs / seconds:.1f}x", "-"


def rows(text: Text, rounds: int) -> Iterator[Row]:
    """Encoding and exact sampling with a vocabulary of SIZE pieces learned on the same text."""
    from temaki.tokens import bytepiece
    from temaki.tokens.tokenizer import Sampling

    model = _ours(text)
    calls: dict[str, Callable[[], object]] = {"temaki": lambda: model.encode_batch(text.documents, threads=1)}
    samples: dict[str, Callable[[], object]] = {
        "temaki": lambda: [
            model.encode(d, noise=Sampling(1, n, ALPHA), threads=1) for n, d in enumerate(text.documents)
        ]
    }
    sizes = dict.fromkeys(("temaki", "rs_bytepiece", "bytepiece", "sentencepiece unigram"), text.size)
    part = _part(text.documents)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        bytepiece.save(model, path)
        for name, tokenizer in _peers(path):
            sizes[name] = sum(len(document.encode("utf-8")) for document in part)
            calls[name] = lambda tokenizer=tokenizer: [tokenizer.encode(document) for document in part]
            if name == "bytepiece":
                samples[name] = lambda tokenizer=tokenizer: [tokenizer.encode(d, alpha=ALPHA) for d in part]
        if peers.installed("sentencepiece"):
            processor, name = _sentencepiece(text), "sentencepiece unigram"
            calls[name] = lambda: processor.encode(list(text.documents))
            samples[name] = lambda: [
                processor.encode(d, enable_sampling=True, alpha=ALPHA, nbest_size=-1) for d in part
            ]
        for what, found, goal in (("encode", calls, ENCODE_GOAL), ("sample", samples, SAMPLE_GOAL)):
            times = race({name: (lambda call=call: call) for name, call in found.items()}, max(3, rounds // 2))
            read = sizes | ({"sentencepiece unigram": _bytes(part)} if what == "sample" else {})
            speed = {name: read[name] / MB / time.cpu for name, time in times.items()}
            for name in [name for name in speed if name != "temaki"] or ["-"]:
                peer = f"{speed[name]:.2f} MB/s" if name in speed else "-"
                ratio = f"{speed['temaki'] / speed[name]:.1f}x" if name in speed else "-"
                yield f"BytePiece {what}, Chinese", "1", f"{speed['temaki']:.1f} MB/s", name, peer, ratio, goal


def _ours(text: Text) -> Any:
    from temaki.tokens import bytepiece_train

    return bytepiece_train.train(text.documents, SIZE, threads=1)


def _peers(path: Path) -> Iterator[tuple[str, Any]]:
    if peers.installed("rs_bytepiece"):
        import rs_bytepiece

        yield "rs_bytepiece", rs_bytepiece.Tokenizer(str(path))
    if peers.installed("bytepiece"):
        import bytepiece

        yield "bytepiece", bytepiece.Tokenizer(str(path))


def _published(text: Text) -> tuple[float, float]:
    """Seconds and bytes a token of the published trainer."""
    import bytepiece

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model")
        trainer = bytepiece.Trainer(order=6, max_vocab_size=SIZE, min_count=2)
        _, seconds = timed(lambda: trainer.train(list(text.documents), workers=1))
        trainer.save(path)
        tokenizer = bytepiece.Tokenizer(path)
        return seconds, text.size / sum(len(tokenizer.encode(document)) for document in text.documents)


def _sentencepiece(text: Text) -> Any:
    import sentencepiece

    held = io.BytesIO()
    lines = (line for document in text.documents for line in document.split("\n") if line.strip())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=held, vocab_size=SIZE, model_type="unigram", character_coverage=0.9995,
        byte_fallback=True, num_threads=1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=held.getvalue())


def _best(make: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    held: list[Any] = []
    spent = [timed(lambda: held.append(make()))[1] for _ in range(rounds)]
    return sorted(spent)[len(spent) // 2], held[-1]


def _part(documents: tuple[str, ...]) -> list[str]:
    held: list[str] = []
    for document in documents:
        if _bytes(held) >= REFERENCE_TEXT:
            break
        held.append(document)
    return held


def _bytes(documents: list[str]) -> int:
    return sum(len(document.encode("utf-8")) for document in documents)
