"""`temaki reference`: GPT-2 by the page of plain functions, greedily."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from temaki.cli.reference_tree import Page
    from temaki.formats.opened import Opened

FILES = "hparams.json, encoder.json, vocab.bpe, checkpoint, model.ckpt.index, model.ckpt.data-00000-of-00001"
SIZES = "124M, 355M, 774M, 1558M"
SOURCE = "https://openaipublic.blob.core.windows.net/gpt-2/models"


def reference(
    prompt: str = typer.Argument(..., help='The text to continue; "" begins from <|endoftext|>.'),
    n_tokens: int = typer.Option(40, "--n_tokens_to_generate", min=0, help="How many tokens to write."),
    model_size: str = typer.Option("124M", "--model_size", help=f"A folder in the models' folder: {SIZES}."),
    models_dir: Path = typer.Option(Path("models"), "--models_dir", help="Where OpenAI's released folders lie."),
    backend: Literal["numpy", "jax"] = typer.Option("numpy", "--backend", help="Whose functions compute."),
    model: str | None = typer.Option(None, "--model", help="Any GPT-2 or Llama instead: a path, or a name: smollm2."),
) -> None:
    """Continue a text by the executable definition of GPT-2, NumPy or JAX alone; the new text is printed as it comes.

    Example: temaki reference "Alan Turing theorized that computers would one day become" --n_tokens_to_generate 8
    """
    import sys
    from itertools import islice

    from temaki.base.errors import GenerationError
    from temaki.cli import named, reference_tree
    from temaki.formats import open as opener
    from temaki.generate import text
    from temaki.study import asking

    _check_backend(backend)
    opened = opener.open(named.path(model)) if model is not None else _released(models_dir / model_size)
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise GenerationError(f"{opened.folder} holds no tokenizer", do="put encoder.json and vocab.bpe beside it")
    ids = text.prompt_ids(tokenizer, prompt, asking.ends_of(opened, tokenizer)).tolist()
    room = opened.context
    if room is not None and len(ids) + n_tokens > room:
        raise GenerationError(
            "the prompt and what is asked for are longer than the model's context",
            found=f"{len(ids)} ids of the prompt + {n_tokens} tokens to generate = {len(ids) + n_tokens}",
            allowed=f"n_ctx = {room}",
            do="shorten the prompt or lower --n_tokens_to_generate",
        )
    stream = tokenizer.stream().behind(ids)
    for each in islice(_greedy(reference_tree.page(opened), ids, len(ids) + n_tokens, backend), n_tokens):
        sys.stdout.write(stream.push(each) if each < tokenizer.size else "")
        sys.stdout.flush()
    sys.stdout.write(stream.close() + "\n")


def _check_backend(backend: str) -> None:
    from importlib.util import find_spec

    from temaki.base.errors import GenerationError

    if backend == "jax" and find_spec("jax") is None:
        raise GenerationError("JAX is not installed", do="pip install 'temaki[jax]', or use --backend numpy")


def _released(folder: Path) -> "Opened":
    """OpenAI's model in a folder. Raises FormatError saying which files are meant, and where they are to be had."""
    from temaki.base.errors import FormatError
    from temaki.formats import openai_tf

    if not openai_tf.fits(folder):
        raise FormatError(
            f"{folder} does not hold OpenAI's GPT-2",
            found="a folder without them" if folder.is_dir() else "no such folder",
            allowed=f"a folder {SIZES} with {FILES}",
            do=f"put the files of {SOURCE}/{folder.name} there, name their folder by --models_dir and "
            "--model_size, or give another model by --model",
        )
    return openai_tf.open(folder)


def _greedy(page: "Page", ids: list[int], room: int, backend: str) -> "Iterator[int]":
    """New ids without end: by NumPy with keys and values kept, by JAX with one compiled function of `room` ids."""
    from temaki.reference import use

    if backend == "numpy":
        return use.greedy(ids, page.params, page.model, **page.settings)
    params, compiled = use.compiled(page.params, room, page.model, **page.settings)
    return use.greedy(ids, params, compiled, cached=False)
