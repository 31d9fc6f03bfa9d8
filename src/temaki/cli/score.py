"""`temaki score`: what a model says of each token of a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from temaki.cli.generate import BITS, CACHE, EXECUTOR, THREADS

if TYPE_CHECKING:
    from temaki.evaluate.token_logprobs import Judged
    from temaki.tokens.tokenizer import Tokenizer

LONGEST = 2048
"""Ids a window where the model was made for more, or says nothing."""


def score(
    model: str = typer.Argument(..., help="A model in any known format (a run, a folder, a file), or smollm2."),
    text: list[str] = typer.Option(None, help="A text; give it again for several."),
    file: Path | None = typer.Option(None, help="Read one text from a file; - reads standard input."),
    jsonl: Path | None = typer.Option(None, help='Read texts from JSON lines {"text": ".."}; - as above.'),
    context: int | None = typer.Option(None, min=1, help="Tokens a window; else the model's own, up to 2048."),
    executor: str = typer.Option("auto", help=EXECUTOR),
    bits: int | None = typer.Option(None, help=BITS),
    cache: str | None = typer.Option(None, help=CACHE),
    threads: int | None = typer.Option(None, min=1, help=THREADS),
) -> None:
    """Write the log-probability of every token of one or more texts, a JSON line for each text.

    A line: index, ids, tokens, logprobs (nats; null for a first token that nothing stands before), sum, tokens_scored,
    bits_per_byte (of the bytes that were scored), windows. A text longer than the context is read in windows that
    overlap by half.

    Example: temaki score smollm2 --text "The capital of France is Paris."
    """
    import json
    import sys

    from temaki.base.errors import DataError
    from temaki.cli import named, prompts

    texts = [*(text or []), *([prompts.text(file)] if file is not None else [])]
    texts += prompts.lines(jsonl, "text") if jsonl is not None else []
    if not texts:
        raise DataError("there is nothing to score", do="give --text TEXT, --file FILE or --jsonl FILE")
    if "" in texts:
        raise DataError(f"text {texts.index('')} is empty", do="leave it out")
    import numpy as np

    from temaki.cli.progress import Work
    from temaki.cli.speakers import Speakers
    from temaki.evaluate.token_logprobs import token_logprobs
    from temaki.formats import open as opener
    from temaki.study import asking

    speakers = Speakers(executor=executor, bits=bits, cache=cache, threads=threads)
    speakers.check()
    opened = opener.open(named.path(model))
    tokenizer = asking.tokenizer_of(opened)
    front = np.array(asking.ends_of(opened, tokenizer).front, np.int32)
    rows = [np.concatenate([front, tokenizer.encode(each).astype(np.int32)]) for each in texts]
    window = asking.context_of(opened, context if context is not None else min(opened.context or LONGEST, LONGEST))
    window = min(window, max(map(len, rows)) or 1)
    made, _ = speakers.open(opened, 1, window)
    total, done, work = sum(map(len, rows)), 0, Work()
    for index, ids in enumerate(rows):
        found = token_logprobs(made, ids, window, lambda at, done=done: work("scoring: tokens", done + at, total + 1))
        done += len(ids)
        if found.windows > 1:
            said = f"text {index}: {len(ids)} tokens, read in {found.windows} windows of {window}"
            print(said, file=sys.stderr)
        print(
            json.dumps({"index": index, **_line(tokenizer, ids[len(front) :], found)}, ensure_ascii=False), flush=True
        )
    work.close()


def _line(tokenizer: "Tokenizer", ids: Any, found: "Judged") -> dict[str, Any]:
    """What is written of a text of these ids."""
    import math

    logprobs = found.logprobs[max(0, len(found.logprobs) - len(ids)) :].tolist()
    unscored = len(ids) - len(logprobs)
    words = [tokenizer.tokens[id] for id in ids.tolist()]
    size, total = sum(map(len, words[unscored:])), math.fsum(logprobs)
    return {
        "ids": ids.tolist(),
        "tokens": [word.decode(errors="replace") for word in words],
        "logprobs": [None] * unscored + logprobs,
        "sum": total,
        "tokens_scored": len(logprobs),
        "bits_per_byte": -total / math.log(2) / size if size else None,
        "windows": found.windows,
    }
