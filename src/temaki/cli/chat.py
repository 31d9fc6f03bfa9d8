"""`temaki chat`: talk with a model that was made for it."""

from pathlib import Path

import typer

from temaki.cli.generate import BITS, CACHE, EXECUTOR, PROPOSE, THREADS


def chat(
    model: str = typer.Argument(..., help="A model in any known format, or the name of one: smollm2."),
    system: str | None = typer.Option(None, help="What the model is told first; else what its template says."),
    once: str | None = typer.Option(None, help="One message, one answer."),
    max_tokens: int | None = typer.Option(None, help="Longest answer in tokens; else 512, or half the context."),
    temperature: float | None = typer.Option(None, help="0 takes the most probable token each time."),
    top_k: int | None = typer.Option(None, help="Only the k most probable tokens."),
    top_p: float | None = typer.Option(None, help="Only the smallest set whose probability reaches p."),
    repetition_penalty: float | None = typer.Option(None, help="Above 1: tokens that were there become less probable."),
    seed: int = typer.Option(0, help="Same seed, same answers."),
    context: int | None = typer.Option(None, help="Tokens remembered; else the model's own, up to 8192."),
    template: Path | None = typer.Option(None, help="A chat template (Jinja) for a model that brings none."),
    propose: str | None = typer.Option(None, help=PROPOSE),
    draft: int | None = typer.Option(None, min=1, help="Tokens of a draft, at most."),
    executor: str = typer.Option("auto", help=EXECUTOR),
    bits: int | None = typer.Option(None, help=BITS),
    cache: str | None = typer.Option(None, help=CACHE),
    threads: int | None = typer.Option(None, min=1, help=THREADS),
    json: bool = typer.Option(False, "--json", help="One JSON object an answer."),
) -> None:
    """Talk with a model: lines in, answers out as they come. /help says what else a line may be.

    What is not given is as the model's makers advise, else temperature 0.7 and top-p 0.9. Lines may come from a pipe.

    Example: temaki chat smollm2 --once "What is the opposite of hot?" --temperature 0
    """
    import sys

    from temaki.base import config
    from temaki.cli import named
    from temaki.cli.speakers import Speakers
    from temaki.cli.talk import Talk
    from temaki.formats import open as opener
    from temaki.generate.config import SamplingConfig
    from temaki.generate.conversation import Conversation
    from temaki.generate.engine import Engine
    from temaki.generate.remembering import Remembering
    from temaki.study import asking

    speakers = Speakers(executor=executor, bits=bits, cache=cache, threads=threads, propose=propose, draft=draft)
    speakers.check()
    opened = opener.open(named.path(model))
    tokenizer, written = asking.tokenizer_of(opened), asking.template_of(opened, template)
    room = asking.context_of(opened, context)
    given = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    table = asking.advised(opened, room) | {name: value for name, value in given.items() if value is not None}
    sampling = config.read(SamplingConfig, table, where="chat")
    conversation = Conversation(written, tokenizer, room, opened.speaking.stop, system)
    said = ", ".join(f"{name} {value}" for name, value in table.items())
    print(f"{said}, seed {seed}, context {room}", file=sys.stderr)

    made, engine = speakers.open(opened, 1, room, spare=room)
    remembering = Remembering(made)
    talk = Talk(conversation, remembering, Engine(remembering, **engine), sampling, seed, json)
    if once is not None:
        if talk.answer(once).done == "cancelled":
            raise KeyboardInterrupt
        return
    if sys.stdin.isatty():
        print("/help says what else a line may be; Ctrl-D leaves", file=sys.stderr)
    if not talk.loop():
        raise typer.Exit(1)
