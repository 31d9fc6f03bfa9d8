"""`temaki speed`: how fast a model reads and writes on this machine, and what that is of what the machine can."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from temaki.formats.opened import Opened
    from temaki.generate.executor import Executor

ROOM = 8192
"""Ids of the longest context that is measured."""
EXECUTORS = ("auto", "compiled", "torch")
STREAMS = 8
ANSWER = 96
"""Ids of the answer that drafts are judged by."""
QUOTED = (
    "The list below is copied once more, word for word.\n\n1. Rinse the rice three times.\n2. Toast the sheets of nori "
    "over a low flame.\n3. Spread the rice on one half of each sheet.\n4. Lay cucumber, avocado and salmon across it.\n"
    "5. Roll it into a cone and eat it at once.\n\nThe same list again:\n\n1. Rinse the rice three times.\n2. Toast"
)
"""A text whose continuation stands in it."""


def speed(
    model: str = typer.Argument(..., help="A model in any known format (a run, a folder, a file), or smollm2."),
    executor: str = typer.Option("auto", help="Who computes: auto, compiled or torch."),
    bits: int | None = typer.Option(None, help="Make float weights small when they are opened: 8 or 4."),
    cache: str | None = typer.Option(None, help="What keys and values are kept as: float32, float16 or int8."),
    threads: int | None = typer.Option(None, min=1, help="Threads that compute; all processors by default."),
    seconds: float = typer.Option(20.0, min=1.0, help="About how long to measure; long contexts are left out first."),
    json: bool = typer.Option(False, "--json", help="Print the figures as JSON."),
) -> None:
    """Measure a model here: load, prefill, decode by context, eight streams, memory, roofline share, acceptance.

    Example: temaki speed smollm2 --threads 1
    """
    import sys
    import time

    from temaki.base import compile as compiling
    from temaki.base import memory
    from temaki.base.errors import ConfigError
    from temaki.cli import named
    from temaki.cli.said import say
    from temaki.evaluate import speed as measuring
    from temaki.formats import open as opener
    from temaki.study import executing, judging

    if executor not in EXECUTORS:
        raise ConfigError("no such executor", found=repr(executor), allowed=", ".join(EXECUTORS))

    def tell(line: str) -> None:
        print(f"{line} ..", file=sys.stderr)

    path = named.path(model)
    tell(f"opening {path}")
    begin = time.perf_counter()
    opened = opener.open(path)
    room = min(opened.context or ROOM, ROOM)
    made = executing.executor_of(
        opened, measuring.STREAMS, room, spare=measuring.STEPS + 1, kind=executor,  # type: ignore[arg-type]
        bits=bits, cache=cache, threads=threads,  # type: ignore[arg-type]
    )  # fmt: skip
    loaded = time.perf_counter() - begin
    found = measuring.measure(made, 0.7 * seconds, tell)
    lookup = _lookup(opened, made, tell)
    peak = memory.peak()
    used = threads or compiling.threads()
    tell("measuring memory")
    bandwidth = measuring.bandwidth(used)
    moved = {held: judging.moved(made, opened, held) for held in found.decode}
    result: dict[str, Any] = {
        "model": str(path),
        "executor": type(made).__name__,
        "threads": used,
        "load_seconds": loaded,
        **found.facts(),
        "bytes_per_token": moved,
        "bandwidth": bandwidth,
        "roofline_share": {held: moved[held] * speed / bandwidth for held, speed in found.decode.items()},
        "last_cache_bytes": memory.last_cache(),
        "lookup": lookup,
        "peak_bytes": peak,
    }
    say(result, json, _table(result))


def _lookup(opened: "Opened", executor: "Executor", tell: "Callable[[str], None]") -> dict[str, Any] | None:
    """What drafts from the prompt bring on a fixed text; None where the model reads no text, or only whole prompts."""
    from dataclasses import asdict

    import numpy as np

    from temaki.evaluate import acceptance
    from temaki.generate.lookup import Lookup

    if opened.tokenizer is None or executor.whole:
        return None
    tell("drafting by lookup")
    prompt = [*opened.speaking.front, *opened.tokenizer.encode_list(QUOTED)][: max(1, executor.room - ANSWER)]
    count = min(ANSWER, executor.room - len(prompt))
    if count < 1:
        return None
    found = acceptance.measure(executor, Lookup(), np.array(prompt, np.int32), count)
    return {**asdict(found), "rate": found.rate, "per_pass": found.per_pass}


def _cached(read: float, share: float, cache: int | None) -> bool:
    """Whether what an id reads comes from the processor's cache: faster than memory, by more than one can mistake.

    That it is smaller than the cache alone says little: a virtual machine is shown that of all who share it.
    """
    return share > (1.0 if cache is not None and read < cache else 1.2)


def _table(found: dict[str, Any]) -> str:
    """The figures as lines."""
    from temaki.report.figures import short, size

    threads = found["threads"]
    lines = [
        f"{found['model']}, {found['executor']}, {threads} thread{'s' if threads > 1 else ''}",
        f"load                        {found['load_seconds']:8.2f} s",
    ]
    lines += [f"prefill {n:>5,} ids           {speed:8,.0f} ids/s" for n, speed in found["prefill"].items()]
    for held, speed in found["decode"].items():
        read, share = found["bytes_per_token"][held], found["roofline_share"][held]
        said = (
            "fits in the cache" if _cached(read, share, found["last_cache_bytes"]) else f"{share:4.0%} of the roofline"
        )
        lines.append(
            f"decode behind {held:>5,} ids     {speed:8,.1f} ids/s  {1000 / speed:6.2f} ms, {size(read)} an id, {said}"
        )
    if found["streams"] is not None:
        lines.append(f"decode, {STREAMS} streams           {found['streams']:8,.1f} ids/s")
    if found["left_out"]:
        lines.append(f"left out, for time: {', '.join(f'{n:,}' for n in found['left_out'])} ids; --seconds gives more")
    lines.append(f"memory: {size(found['bandwidth'], 'B/s')} read by these threads; peak {size(found['peak_bytes'])}")
    drafts = found["lookup"]
    if drafts is not None:
        lines.append(
            f"lookup on a quoting prompt: {drafts['accepted']} of {drafts['drafted']} drafted ids accepted "
            f"({drafts['rate']:.0%}), {short(drafts['per_pass'])} ids a pass, {drafts['gain']:.2f}x plain"
            + ("" if drafts["same"] else "; the answer DIFFERS")
        )
    return "\n".join(lines)
