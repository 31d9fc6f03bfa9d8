"""`temaki generate`: text from a model."""

from pathlib import Path
from typing import Any

import typer

EXECUTOR = "Who computes: auto, compiled or torch."
BITS = "Make float weights small when they are opened: 8 or 4."
CACHE = "What keys and values are kept as: float32, float16 or int8."
THREADS = "Threads that compute; all processors by default."
PROPOSE = "Who drafts tokens ahead: lookup, heads, or a smaller model."


def generate(
    model: str = typer.Argument(..., help="A model in any known format (a run, a folder, a file), or smollm2."),
    changes: list[str] = typer.Argument(
        None, help="Any other setting of the draw: no_repeat_ngram=3 typical_p=0.9", metavar="[KEY=VALUE]..."
    ),
    prompt: list[str] = typer.Option(
        None, help="Text to continue; give it again for several at once. Empty: from nothing."
    ),
    file: Path | None = typer.Option(None, help="Read one prompt from a file; - reads standard input."),
    jsonl: Path | None = typer.Option(None, help='Read prompts from JSON lines {"prompt": ".."}; - as above.'),
    n: int = typer.Option(1, min=1, help="Answers to each prompt."),
    best_of: int | None = typer.Option(None, min=1, help="Make so many, keep those the model finds likeliest."),
    max_tokens: int | None = typer.Option(None, help="Longest answer in tokens; else 128."),
    temperature: float | None = typer.Option(None, help="0 takes the most probable token each time; else 0.8."),
    top_k: int | None = typer.Option(None, help="Only the k most probable tokens."),
    top_p: float | None = typer.Option(None, help="Only the smallest set whose probability reaches p; else 0.95."),
    min_p: float | None = typer.Option(None, help="Only tokens at least this share as probable as the best."),
    repetition_penalty: float | None = typer.Option(None, help="Above 1: tokens that were there get less probable."),
    stop: list[str] = typer.Option(None, help="A text that ends the answer; may be given again."),
    seed: int = typer.Option(0, help="Same seed, same text."),
    beam: int | None = typer.Option(None, help="Search with so many beams instead of drawing."),
    contrastive: bool = typer.Option(False, help="Contrastive search instead of drawing."),
    compare: str | None = typer.Option(None, help="Several ways side by side: greedy,top-p,top-k,min-p,typical,.."),
    regex: str | None = typer.Option(None, help="The answer matches this regular expression."),
    schema: Path | None = typer.Option(None, help="The answer is JSON that this JSON schema (a file) accepts."),
    choice: list[str] = typer.Option(None, help="The answer is one of these; give it again for each."),
    heal: int | None = typer.Option(None, help="Step back so many tokens, so that a prompt may end within a word."),
    cut: str | None = typer.Option(None, help="left: drop the beginning of a prompt that is too long."),
    propose: str | None = typer.Option(None, help=PROPOSE),
    draft: int | None = typer.Option(None, min=1, help="Tokens of a draft, at most."),
    acceptance: str = typer.Option("exact", help="exact, or typical: faster drafts that change what is said (lossy)."),
    executor: str = typer.Option("auto", help=EXECUTOR),
    bits: int | None = typer.Option(None, help=BITS),
    cache: str | None = typer.Option(None, help=CACHE),
    threads: int | None = typer.Option(None, min=1, help=THREADS),
    logprobs: int | None = typer.Option(None, min=0, help="With --json: log-probabilities, and of the K best tokens."),
    json: bool = typer.Option(False, "--json", help="One JSON object an answer, as they end."),
) -> None:
    """Continue one or more prompts; a single one is written as it comes.

    Example: temaki generate runs/demo --prompt "def main(" --max-tokens 60 --temperature 0.7
    """
    import sys

    from temaki.base import config
    from temaki.base.errors import ConfigError
    from temaki.cli import named, prompts
    from temaki.cli.generating import WAYS, Job, fits, shape_of, told_of, twice, way_of
    from temaki.cli.speakers import Speakers
    from temaki.formats import open as opener
    from temaki.generate.config import SamplingConfig
    from temaki.generate.text import Asking
    from temaki.study import asking

    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    given: dict[str, Any] = {
        **drawn, "max_tokens": max_tokens, "repetition_penalty": repetition_penalty, "stop": list(stop or []),
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value not in (None, [])}
    twice(given, changes or [])
    given = {"max_tokens": SamplingConfig().max_tokens, **given}
    ways = way_of(beam, contrastive, compare, n, best_of)
    fits(ways, propose, logprobs, json)
    base = config.override({**ways[0].table, **given} if len(ways) == 1 else given, changes or [])
    sampling = config.read(SamplingConfig, base, where="generate")
    if cut not in (None, "left"):
        raise ConfigError("no such cut", found=repr(cut), allowed="left")
    speakers = Speakers(
        executor=executor, bits=bits, cache=cache, threads=threads, propose=propose, draft=draft, acceptance=acceptance
    )
    speakers.check()
    constraint = shape_of(regex, schema, choice or [])
    texts = prompts.given(prompt or [], file, jsonl)
    if compare is None:
        print(f"{told_of(base)}, seed {seed}", file=sys.stderr)
    opened = opener.open(named.path(model))
    tokenizer = asking.tokenizer_of(opened)
    ends = asking.ends_of(opened, tokenizer)
    room = asking.room_of(opened, tokenizer, texts, sampling, ends, cut)
    if cut is None and room == opened.context:
        print(f"answers end at the model's context of {room} tokens", file=sys.stderr)
    likely = 0 if best_of is not None else None
    asked = Asking(
        seed=seed, branches=best_of or n, logprobs=likely if logprobs is None else logprobs, ends=ends,
        constraint=constraint, heal=heal, cut=cut,  # type: ignore[arg-type]
    )  # fmt: skip
    slots = max(*(way.slots for way in ways), min(WAYS, len(texts) * asked.branches), asked.branches)
    made, engine = speakers.open(opened, slots, room)
    job = Job(made, engine, speakers.acceptance, tokenizer, texts, sampling, asked, base, n, json, logprobs is not None)
    if compare is not None:
        job.compare(ways)
    else:
        job.run(ways[0])
