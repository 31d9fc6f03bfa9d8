"""What one more id costs behind 128 to 8,192 others, by every kind of cache and by llama.cpp: a table, and curves.

    python benchmarks/context.py --out context.html
    python benchmarks/context.py --threads 1 --most 2048

Every contestant is a process of its own that reads on in one stream; behind each length it writes some ids one by one.
They take turns length by length. Figures are milliseconds an id, medians.
"""

import argparse
import statistics
import sys
from pathlib import Path

from decode import Entrant, entrants, row
from turns import Child

from temaki.cli import named
from temaki.report import chart, page
from temaki.report.chart import Series

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
STEPS = 24
CACHES = ("float32", "float16", "int8")


def main() -> None:
    """Race, print the table, write the page."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="smollm2")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--most", type=int, default=LENGTHS[-1], help="ids of the longest context")
    words.add_argument("--out", type=Path, help="an HTML page to write")
    asked = words.parse_args()
    path = named.path(asked.model).resolve()
    ours = [
        Entrant(f"temaki, {cache}", sys.executable, ("reader_ours.py", str(path), "--cache", cache)) for cache in CACHES
    ]
    racing = [*ours, *entrants(path, ["llama.cpp"])[1:]]
    lengths = [length for length in LENGTHS if length <= asked.most] or [LENGTHS[0]]
    children = [each.start(asked.threads, 1, lengths[-1] + len(lengths) * STEPS) for each in racing]
    found = race(children, lengths)
    for child in children:
        child.close()
    print(table(found, lengths))
    if asked.out is not None:
        asked.out.write_text(drawn(found, lengths, asked.model, asked.threads), encoding="utf-8")
        print(f"\n{asked.out}")


def race(children: list[Child], lengths: list[int]) -> dict[str, list[float]]:
    """Milliseconds an id of every contestant at every length. The ids written stay in the stream."""
    found: dict[str, list[float]] = {each.name: [] for each in children}
    before = 0
    for number, length in enumerate(lengths):
        for each in children if number % 2 else children[::-1]:
            seconds = each.ask(work="deeper", **{"from": before, "to": length}, count=STEPS)["seconds"]
            found[each.name].append(1000 * statistics.median(seconds))
        print(f"{length:,} ids ..", file=sys.stderr, flush=True)
        before = length
    return found


def table(found: dict[str, list[float]], lengths: list[int]) -> str:
    """Markdown."""
    lines = [row(["ms an id behind", *(f"{length:,}" for length in lengths)]), row(["---"] * (1 + len(lengths)))]
    return "\n".join(lines + [row([name, *(f"{each:.2f}" for each in values)]) for name, values in found.items()])


def drawn(found: dict[str, list[float]], lengths: list[int], model: str, threads: int) -> str:
    """The page."""
    curves = [
        Series(name, list(zip(map(float, lengths), values, strict=True)), "dots", colour)
        for colour, (name, values) in enumerate(found.items())
    ]
    title = f"{model}: what an id costs by context, {threads} thread{'s' if threads > 1 else ''}"
    return page.page(
        title, [page.section(title, chart.lines("Decoding", curves, "ids held", "ms an id", zero=True, wide=True))]
    )


if __name__ == "__main__":
    main()
