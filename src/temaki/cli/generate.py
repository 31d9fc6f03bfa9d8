"""`temaki generate`: text from a model."""

from pathlib import Path

import typer


def generate(
    model: str = typer.Argument(..., help="A model in any known format (a run, a folder, a file), or smollm2."),
    changes: list[str] = typer.Argument(
        None, help="Dotted changes: temperature=0.5 top_k=40", metavar="[KEY=VALUE]..."
    ),
    prompt: list[str] = typer.Option(
        None, help="Text to continue; give it again for several at once. Empty: from nothing."
    ),
    file: Path | None = typer.Option(None, help="Read one prompt from a file; - reads standard input."),
    max_tokens: int = typer.Option(128, help="Longest answer in tokens."),
    temperature: float = typer.Option(0.8, help="0 takes the most probable token each time."),
    top_k: int | None = typer.Option(None, help="Only the k most probable tokens."),
    top_p: float = typer.Option(0.95, help="Only the smallest set whose probability reaches p."),
    min_p: float = typer.Option(0.0, help="Only tokens at least this share as probable as the best."),
    repetition_penalty: float = typer.Option(1.0, help="Above 1: tokens that were there become less probable."),
    stop: list[str] = typer.Option(None, help="A text that ends the answer; may be given again."),
    seed: int = typer.Option(0, help="Same seed, same text."),
    json: bool = typer.Option(False, "--json", help="One JSON object a prompt."),
) -> None:
    """Continue one or more prompts; a single one is written as it comes.

    Example: temaki generate runs/demo --prompt "def main(" --max-tokens 60 --temperature 0.7
    """
    import sys

    from temaki.base import config
    from temaki.base import device as devices
    from temaki.base.errors import DataError
    from temaki.cli import named
    from temaki.cli.said import say
    from temaki.formats import open as opener
    from temaki.generate import text
    from temaki.generate.config import SamplingConfig
    from temaki.generate.torch_executor import TorchExecutor
    from temaki.model.linear import lengthwise
    from temaki.study import asking

    prompts = list(prompt or [])
    if file is not None:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        if not content:
            raise DataError(f"{file} is empty", do="write a prompt into it, or leave --file out to begin from nothing")
        try:
            prompts.append(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 at byte {error.start}", do="convert it to UTF-8") from None
    prompts = prompts or [""]
    given = {
        "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "stop": list(stop or []),
    }  # fmt: skip
    table = config.override(given | ({"top_k": top_k} if top_k is not None else {}), changes or [])
    sampling = config.read(SamplingConfig, table, where="generate")
    said = ", ".join(f"{name} {value}" for name, value in config.mapping(sampling).items() if value != [])
    print(f"{said}, seed {seed}", file=sys.stderr)
    opened = opener.open(named.path(model))
    tokenizer = asking.tokenizer_of(opened)
    ends = asking.ends_of(opened, tokenizer)
    room = asking.room_of(opened, tokenizer, prompts, sampling, ends)
    executor = TorchExecutor(lengthwise(opened.model().to(devices.choose())), len(prompts), room)
    if json or len(prompts) > 1:
        for each in text.complete(executor, tokenizer, prompts, sampling, seed=seed, ends=ends):
            found = {
                "prompt": prompts[each.index],
                "text": each.text,
                "tokens": len(each.ids),
                "done": each.done,
            }
            say(found, json, f"--- {prompts[each.index]!r}\n{prompts[each.index]}{each.text}")
        return
    sys.stdout.write(prompts[0])
    for _, more in text.stream(executor, tokenizer, prompts, sampling, seed=seed, ends=ends):
        sys.stdout.write(more)
        sys.stdout.flush()
    sys.stdout.write("\n")
