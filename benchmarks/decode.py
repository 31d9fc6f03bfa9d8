"""Reading and writing by the compiled executor, beside llama.cpp and transformers: same weights, same threads, one run.

    python benchmarks/decode.py                          smollm2, on 1 and on 2 threads
    python benchmarks/decode.py --threads 1 --rounds 9   more rounds
    python benchmarks/decode.py --peers llama.cpp        without transformers

Every contestant is a process of its own (`turns`), bound to its threads' processors; they take turns, each round in
turned order. A row of speed is the median over all steps of all rounds, by the same calls for everyone: ids go in, the
best next id comes out. `load` and `memory` are fresh processes: from the start of the process (interpreter and imports
included) to the first id behind a short prompt, and the most memory held after a prompt of 512 and 32 steps in a room
of 1,024. Markdown goes to standard output, with the goals.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import HERE, PROMPT, SHORT, Child

ROOM, STREAMS = 1024, 8
STEPS = {"llama.cpp": 48, "temaki": 48, "transformers": 16}
"""Steps of a round."""
ROWS = {"decode": "decode, one stream", "streams": f"decode, {STREAMS} streams", "prefill": f"prefill {PROMPT}"}
GOALS = {
    ("decode", "llama.cpp"): 2.0, ("streams", "llama.cpp"): 2.5, ("prefill", "llama.cpp"): 2.5,
    ("prefill", "transformers"): 1.2,
}  # fmt: skip
SECONDS, MEMORY = 1.0, 1.25
"""Goals of a fresh process: seconds to the first id, memory in parts of llama.cpp's."""

Figures = dict[str, dict[str, float]]
"""Row -> contestant -> ids a second."""


@dataclass(frozen=True)
class Entrant:
    """How a contestant is started."""

    name: str
    python: str
    words: tuple[str, ...]

    def start(self, threads: int, streams: int, room: int = ROOM) -> Child:
        """A process of it."""
        return Child(self.name, self.python, [*self.words, "--streams", str(streams), "--room", str(room)], threads)


def entrants(model: Path, peers: Sequence[str], ours: Sequence[str] = ()) -> list[Entrant]:
    """Ourselves and the peers that are here; the head of the output says who is not."""
    found = [Entrant("temaki", sys.executable, ("reader_ours.py", str(model), *ours))]
    llama = llama_python()
    if "llama.cpp" in peers and llama is not None:
        found.append(Entrant("llama.cpp", llama, ("reader_llama.py", str(model))))
    if "transformers" in peers and installed("transformers"):
        found.append(Entrant("transformers", sys.executable, ("reader_transformers.py", str(model))))
    return found


def llama_python() -> str | None:
    """The interpreter that has llama.cpp: $LLAMA_PYTHON, else what `make llama` built; None where there is none."""
    said = os.environ.get("LLAMA_PYTHON")
    built = HERE.parent / ".venv-llama" / "bin" / "python"
    return said or (str(built) if built.exists() else None)


def installed(name: str) -> bool:
    """Whether a package is here."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


def main() -> None:
    """Race and print the tables."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="smollm2", help="a GGUF file that llama.cpp reads too, or a name")
    words.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--peers", nargs="*", default=["llama.cpp", "transformers"])
    words.add_argument("--ours", default="", help="more words for our own reader, such as '--cache int8'")
    asked = words.parse_args()
    from temaki.cli import named

    racing = entrants(named.path(asked.model).resolve(), asked.peers, asked.ours.split())
    preface(racing, asked)
    for threads in asked.threads:
        print(f"\n## {threads} thread{'s' if threads > 1 else ''}\n", flush=True)
        children = [each.start(threads, STREAMS) for each in racing]
        figures, same = race(children, asked.rounds)
        for child in children:
            child.close()
        print(speeds(figures, [each.name for each in racing]))
        print(f"\n{same}\n", flush=True)
        print(fresh_table({each.name: fresh(each, threads, 3) for each in racing}), flush=True)


def preface(racing: Sequence[Entrant], asked: argparse.Namespace) -> None:
    """What the figures depend on."""
    from importlib import metadata

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("temaki", "numba", "torch") if installed(name)))
    absent = [name for name in asked.peers if name not in {each.name for each in racing}]
    print(f"{asked.model}, {asked.rounds} rounds" + (f"; not here: {', '.join(absent)}" if absent else ""))


def race(children: list[Child], rounds: int) -> tuple[Figures, str]:
    """Ids a second of every row and contestant, and how far the greedy ids agree."""
    steps: dict[str, dict[str, list[float]]] = {row: {each.name: [] for each in children} for row in ROWS}
    drawn: dict[str, list[list[int]]] = {}
    for number in range(rounds):
        turned = children[number % len(children) :] + children[: number % len(children)]
        for each in turned:
            steps["prefill"][each.name].append(each.ask(work="prefill", ids=PROMPT)["seconds"] / PROMPT)
        for row, streams in (("decode", 1), ("streams", STREAMS)):
            for each in turned:
                found = each.ask(work="decode", streams=streams, count=STEPS[each.name])
                steps[row][each.name] += [seconds / streams for seconds in found["seconds"]]
                drawn.setdefault(each.name, found["drawn"])
    figures = {row: {name: 1 / statistics.median(seconds) for name, seconds in by.items()} for row, by in steps.items()}
    return figures, agreement(drawn)


def agreement(drawn: Mapping[str, list[list[int]]]) -> str:
    """How many greedy ids are ours before the first that is not."""
    ours = drawn["temaki"]
    said = []
    for name, theirs in drawn.items():
        if name != "temaki":
            both = list(zip(ours, theirs, strict=False))
            equal = next((i for i, (one, two) in enumerate(both) if one != two), len(both))
            said.append(f"{name} {equal} of {len(both)}")
    return "greedy ids equal to ours: " + (", ".join(said) or "nobody to compare with")


def speeds(figures: Figures, names: Sequence[str]) -> str:
    """Markdown, a row a kind of work."""
    peers = [name for name in names if name != "temaki"]
    head = ["ids/s", *names, *(f"ours / {name}" for name in peers)]
    lines = [row(head), row(["---"] * len(head))]
    for work, words in ROWS.items():
        by = figures[work]
        cells = [words, *(f"{by[name]:.1f}" for name in names)]
        lines.append(row([*cells, *(_ratio(by["temaki"] / by[peer], GOALS.get((work, peer))) for peer in peers)]))
    return "\n".join(lines)


def _ratio(ratio: float, goal: float | None) -> str:
    return f"{ratio:.2f}" if goal is None else f"{ratio:.2f} (goal {goal:g})"


def fresh(entrant: Entrant, threads: int, repeats: int) -> dict[str, float]:
    """Medians of fresh processes: seconds to the first id, those after imports, and the most memory."""
    found: list[dict[str, float]] = []
    for _ in range(repeats):
        child = entrant.start(threads, 1)
        child.ask(work="prefill", ids=PROMPT)
        child.ask(work="decode", streams=1, count=SHORT)
        held = child.ask(work="memory")["peak"]
        found.append({"first": child.first, "loaded": child.loaded, "memory": float(held or 0)})
        child.close()
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def fresh_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, a row a figure."""
    names = list(found)
    against = found.get("llama.cpp")
    share = (
        f"{found['temaki']['memory'] / against['memory']:.2f} of llama.cpp (goal {MEMORY:g})"
        if against and against["memory"]
        else ""
    )
    shown: dict[str, tuple[str, Callable[[float], str], str]] = {
        "first": ("start of the process to first id, s", lambda x: f"{x:.2f}", f"goal {SECONDS:g}"),
        "loaded": ("the same after imports, s", lambda x: f"{x:.2f}", ""),
        "memory": ("peak memory, MB", lambda x: f"{x / 1e6:.0f}", share),
    }
    lines = [row(["fresh process", *names, ""]), row(["---"] * (len(names) + 2))]
    for key, (words, text, goal) in shown.items():
        lines.append(row([words, *(text(found[name][key]) for name in names), goal]))
    return "\n".join(lines)


def row(cells: Sequence[Any]) -> str:
    """A line of markdown."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
