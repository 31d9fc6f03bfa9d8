"""`temaki export`: a model in another program's format, proved before it is there."""

from pathlib import Path

import typer


def export(
    model: str = typer.Argument(..., help="A run, a checkpoint, a model file or folder, or a name such as smollm2."),
    out: Path = typer.Argument(..., help="File or folder to write; must not exist."),
    to: str = typer.Option(..., help="hf, gguf, openai, llama2c, or native (a model folder of ours)."),
    type: str | None = typer.Option(
        None, "--type", "--dtype", help="How numbers are kept: f32, f16, bf16 (hf), q8_0, q4_0, q4_1 (gguf)."
    ),
    json: bool = typer.Option(False, "--json", help="Print the proof as JSON."),
) -> None:
    """Write a model for other programs; logits, greedy tokens and tokenizer are compared before it takes its name.

    Example: temaki export runs/demo demo.gguf --to gguf --type q8_0
    """
    from temaki.cli.carried import carried

    carried(model, out, to, type, json)
