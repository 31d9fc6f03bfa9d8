"""Speculation: how many drafted ids are accepted, how many ids a pass gives, and what that gains, for every proposer.

    python benchmarks/speculation.py --heads runs/several --draft runs/draft

Lookup and the draft model work for SmolLM2 (`temaki get smollm2`), heads for a model of ours that learned several ids;
its heads before they learned stand beside. Heads were measured on the model of

    temaki train recipes/stories.toml --text TEXT --out runs/several model.depth=8 model.pattern.0.mixer.heads=8 \\
        model.pattern.0.mixer.kv_heads=4 stop.steps=260 \\
        'objective={kind="several",ids=3,heads={kind="sequential"},weight=0.5}'

Plain and speculative decoding alternate, the best of `--rounds` counts; `same` says whether all answers are equal id
for id, as they must be at temperature 0, and by lookup at any; else it is their distribution that is the same.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from temaki.cli import named
from temaki.compiled.plan import Bits
from temaki.formats import open as opener
from temaki.formats.opened import Opened
from temaki.formats.weights import Weight, plain
from temaki.generate.config import SamplingConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.request import Request
from temaki.generate.speculate import Proposer
from temaki.study.executing import executor_of
from temaki.study.proposing import Kind, length_of, looks_ahead, proposer_of

TEXT = """The lighthouse stands on a low cliff at the northern end of the bay. It was built of granite in 1857, when
three ships had been lost on the reef in a single winter. Its lamp, which burned rape oil and later paraffin, could be
seen for nineteen miles in clear weather. The last keeper left in 1984, when the light was made automatic, and the
cottages beside the tower have been let to visitors ever since."""
CODE = """def average(numbers):
    sum = 0
    count = 0
    for number in numbers:
        if number is not None:
            sum = sum + number
            count = count + 1
    if count == 0:
        return None
    return sum / count
"""
LIST = """name,town,age
Anna Berg,Uppsala,34
Jonas Lind,Malmo,51
Maria Holm,Kiruna,28
Peter Dahl,Visby,45
Karin Ek,Lund,39
"""
WORK = {
    "quote": f"A text:\n\n{TEXT}\n\nThe same text, word for word:\n\nThe lighthouse",
    "edit code": f"Here is a function:\n\n{CODE}\nThe function again, with a docstring:\n\ndef average(numbers):\n",
    "edit table": f"A table:\n\n{LIST}\nThe same table, with a column `country` (Sweden) at the end:\n\nname,town,age,",
    "free": "The best way to learn to swim as an adult is",
}
STORIES = ("Once upon a time, there was a little girl named Lily. She", "Tom had a red ball. One day", "The old cat")


@dataclass(frozen=True)
class Found:
    """One line of the table."""

    rate: float
    per_pass: float
    plain: float
    faster: float
    """Ids a second, both."""
    same: bool


def answers(
    executor: Executor, proposer: Proposer | None, prompts: Sequence[ndarray], count: int, length: int, t: float
) -> tuple[list[list[int]], float, Engine]:
    """(ids of every prompt's answer, seconds behind the prompts, the engine)."""
    engine = Engine(executor, proposer=proposer, draft=length)
    found, seconds = [], 0.0
    for seed, prompt in enumerate(prompts):
        settings = SamplingConfig(temperature=t, max_tokens=count)
        engine.submit(Request(ids=prompt, sampling=settings, seed=seed))
        ids: list[int] = []
        begin = None
        while events := engine.step():
            ids += [int(id) for event in events for id in event.ids]
            if begin is None and ids:
                begin = time.perf_counter()
        assert begin is not None, "nothing was said"
        seconds += time.perf_counter() - begin
        found.append(ids)
    return found, seconds, engine


def measure(
    executor: Executor, proposer: Proposer, prompts: Sequence[ndarray], asked: argparse.Namespace, length: int
) -> Found:
    """Plain and speculative in turn, on the same executor."""
    best = [np.inf, np.inf]
    same, engine, found = True, None, []
    for _ in range(asked.rounds):
        wanted, slow, _ = answers(executor, None, prompts, asked.tokens, length, asked.temperature)
        found, fast, engine = answers(executor, proposer, prompts, asked.tokens, length, asked.temperature)
        best = [min(best[0], slow), min(best[1], fast)]
        same = same and found == wanted
    assert engine is not None
    ids = sum(map(len, found)) - len(found)  # the first id of each comes with its prompt
    return Found(engine.spoken.rate, engine.spoken.ids_per_pass, ids / best[0], ids / best[1], same)


def line(what: str, work: str, found: Found) -> None:
    print(
        f"| {what} | {work} | {100 * found.rate:.0f}% | {found.per_pass:.2f} | {found.plain:.0f} | {found.faster:.0f} "
        f"| {found.faster / found.plain:.2f} | {'yes' if found.same else 'NO'} |",
        flush=True,
    )


def table(name: str, opened: Opened, kind: Kind, work: Mapping[str, Sequence[str]], asked: argparse.Namespace) -> None:
    """Measure one proposer on every kind of work."""
    tokenizer = opened.tokenizer
    assert tokenizer is not None, "a model that knows its tokenizer"
    length = asked.length or length_of(kind, opened)
    encoded = {what: [tokenizer.encode(text).astype(np.int32) for text in texts] for what, texts in work.items()}
    room = max(len(ids) for each in encoded.values() for ids in each) + asked.tokens + length + 1
    bits: Bits | None = {"8": 8, "4": 4, None: None}[asked.bits]
    executor = executor_of(
        opened, 1, room, spare=length + 1, kind=asked.executor, bits=bits, threads=asked.threads,
        ahead=looks_ahead(kind, opened),
    )  # fmt: skip
    proposer = proposer_of(kind, opened, executor, length, bits=bits, threads=asked.threads)
    for what, prompts in encoded.items():
        line(name, what, measure(executor, proposer, prompts, asked, length))


def untrained(opened: Opened) -> Opened:
    """The same model with heads that have learned nothing."""
    from temaki.model import build

    fresh = {
        name: plain(parameter.detach().numpy())
        for name, parameter in build.build(opened.config).named_parameters()
        if name.startswith("heads.") and not name.endswith(".unembedding")
    }

    def weights() -> Mapping[str, Weight]:
        own = opened.weights()
        begun = {name: own["unembedding" if "unembedding" in own else "embedding"] for name in own if "heads" in name}
        return {name: fresh[name] if name in fresh else begun.get(name, held) for name, held in own.items()}

    return replace(opened, read_weights=weights)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="smollm2", help="for lookup and the draft model; none: heads alone")
    words.add_argument("--heads", nargs="*", default=(), help="models of ours with heads of further ids")
    words.add_argument("--draft", help="a smaller model of the same tokenizer")
    words.add_argument("--executor", choices=("auto", "torch", "compiled"), default="auto")
    words.add_argument("--bits", choices=("8", "4"), help="of float models")
    words.add_argument("--tokens", type=int, default=96)
    words.add_argument("--length", type=int, help="ids of a draft at most")
    words.add_argument("--temperature", type=float, default=0.0)
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--rounds", type=int, default=3)
    asked = words.parse_args()
    print("| proposer | work | accepted | ids a pass | plain tok/s | tok/s | gain | same |")
    print("|---" * 8 + "|")
    for path in asked.heads:
        opened = opener.open(path)
        further = opened.config.further
        assert further is not None, f"{path} has no heads of further ids"
        for name, each in ((f"{further.heads.kind} heads", opened), ("the same, untrained", untrained(opened))):
            table(name, each, "heads", {"stories": STORIES}, asked)
    if asked.model == "none":
        return
    opened = opener.open(named.path(asked.model))
    work = {what: [text] for what, text in WORK.items()}
    table("lookup", opened, "lookup", work, asked)
    if asked.draft is not None:
        table("draft model", opened, opener.open(asked.draft), work, asked)


if __name__ == "__main__":
    main()
