"""`temaki import`: a model made elsewhere becomes a model folder of ours."""

from pathlib import Path

import typer


def importing(
    model: str = typer.Argument(..., help="A Hugging Face folder, a .gguf, OpenAI's or llama2.c's files, or a name."),
    out: Path = typer.Argument(..., help="Folder to write; must not exist."),
    json: bool = typer.Option(False, "--json", help="Print the proof as JSON."),
) -> None:
    """Make a model of ours from another program's; logits, greedy tokens and tokenizer are compared before it is there.

    Example: temaki import gpt2/ models/gpt2
    """
    from temaki.cli.carried import carried

    carried(model, out, "native", None, json)
