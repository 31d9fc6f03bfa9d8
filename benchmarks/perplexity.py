"""What every format of weights and cache costs in perplexity, on WikiText-2's test text.

    TEMAKI_DATA=/path/to/data python benchmarks/perplexity.py                     smollm2, 32,768 ids
    TEMAKI_DATA=/path/to/data python benchmarks/perplexity.py --ids all           the whole text
    python benchmarks/perplexity.py --model runs/mine --text notes.txt

Windows of 1,024 ids (or the model's context) that do not overlap; each id but a window's first is predicted once, in
chunks, by the executor that would speak. `float32`: the weights as torch gets them, dequantised; `8-bit` and `4-bit`:
the same made small by us; `as the file`: a GGUF file's own blocks. The first lines check the scale: SmolLM2 on the text
that `smollm2_reference` counts, against its number.
"""

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from temaki.cli import named
from temaki.evaluate import perplexity
from temaki.formats import open as opener
from temaki.formats.opened import Opened
from temaki.formats.weights import plain
from temaki.generate.executor import Executor
from temaki.study import executing
from temaki.study.asking import tokenizer_of

WINDOW = 1024
REFERENCE = (24_000, 4)
"""Characters of the text and windows that the reference number counts."""


@dataclass(frozen=True)
class Format:
    """How a model is held."""

    weights: Literal["float32", "8-bit", "4-bit", "as the file"]
    cache: Literal["float32", "float16", "int8"]
    kind: Literal["compiled", "torch"] = "compiled"

    @property
    def bits(self) -> Literal[8, 4] | None:
        """What executors are asked for."""
        return {"8-bit": 8, "4-bit": 4}.get(self.weights)  # type: ignore[return-value]


FORMATS = (
    Format("float32", "float32", "torch"), Format("float32", "float32"), Format("float32", "float16"),
    Format("float32", "int8"), Format("8-bit", "float16"), Format("8-bit", "int8"), Format("4-bit", "float16"),
    Format("4-bit", "int8"), Format("as the file", "float32"), Format("as the file", "float16"),
    Format("as the file", "int8"),
)  # fmt: skip


def main() -> None:
    """Print the table, a line as soon as it is known."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="smollm2")
    words.add_argument("--text", type=Path, help="another text than WikiText-2's")
    words.add_argument("--ids", default="32768", help="how many ids of it, or all")
    words.add_argument("--threads", type=int)
    kinds = dict.fromkeys(each.weights for each in FORMATS)
    words.add_argument("--only", nargs="+", choices=kinds, help="weights to measure")
    asked = words.parse_args()
    opened = opener.open(named.path(asked.model))
    text = asked.text.read_text(encoding="utf-8") if asked.text else wikitext()
    formats = [each for each in FORMATS if not asked.only or each.weights in asked.only]
    window = min(WINDOW, opened.context or WINDOW)
    if asked.model == "smollm2" and asked.text is None:
        reference(opened, text, formats, asked.threads)
    ids = tokenizer_of(opened).encode(text).astype(np.int64)
    ids = ids if asked.ids == "all" else ids[: int(asked.ids)]
    print(f"\n{asked.model}: {len(ids):,} ids in windows of {window}\n")
    print(
        "| weights | cache | executor | perplexity | against the first | ids/s |\n|---|---|---|---|---|---|", flush=True
    )
    first = 0.0
    for each in formats:
        executor = made(opened, each, window, asked.threads)
        begin = time.perf_counter()
        found, counted = measured(executor, cut(ids, window))
        first = first or found
        speed = counted / (time.perf_counter() - begin)
        ratio = f"{found / first - 1:+.3%}"
        print(f"| {each.weights} | {each.cache} | {each.kind} | {found:.4f} | {ratio} | {speed:.0f} |", flush=True)


def reference(opened: Opened, text: str, formats: list[Format], threads: int | None) -> None:
    """The number of `smollm2_reference` by every format."""
    path = data() / "smollm2_reference" / "reference.json"
    if not path.exists():
        print(f"{path} is not there: no reference number")
        return
    known = json.loads(path.read_text(encoding="utf-8"))["wikitext2"]["ppl_per_token"]
    ids = tokenizer_of(opened).encode(text[: REFERENCE[0]]).astype(np.int64)[: REFERENCE[1] * WINDOW]
    print(f"reference number {known:.4f} over {REFERENCE[1]} windows of {WINDOW}:")
    for each in formats:
        found, _ = measured(made(opened, each, WINDOW, threads), cut(ids, WINDOW))
        print(f"  {found:.4f}  {each.weights}, {each.cache} cache, {each.kind}", flush=True)


def made(opened: Opened, each: Format, room: int, threads: int | None) -> Executor:
    """The executor of a format; float weights are dequantised ones."""
    if each.weights != "as the file":
        read = opened.read_weights
        opened = replace(opened, read_weights=lambda: {name: plain(weight.array()) for name, weight in read().items()})
    cache = each.cache if each.kind == "compiled" else None
    return executing.executor_of(opened, 1, room, kind=each.kind, bits=each.bits, cache=cache, threads=threads)


def cut(ids: ndarray, window: int) -> Iterator[ndarray]:
    """Windows one after the other, the last one shorter."""
    for first in range(0, len(ids) - 1, window):
        yield ids[first : first + window]


def measured(executor: Executor, pieces: Iterator[ndarray]) -> tuple[float, int]:
    """Perplexity, and how many ids were predicted."""
    nats, count = 0.0, 0
    for piece in pieces:
        if len(piece) > 1:
            found = perplexity.nll(executor, piece[:-1].astype(np.int32), piece[1:])
            nats, count = nats + float(found.sum()), count + len(found)
    return math.exp(nats / count), count


def wikitext() -> str:
    """WikiText-2's test text."""
    return gzip.decompress((data() / "wikitext2" / "wiki.test.raw.gz").read_bytes()).decode("utf-8")


def data() -> Path:
    """The folder of real data."""
    return Path(os.environ["TEMAKI_DATA"])


if __name__ == "__main__":
    main()
