"""How an opened model is asked: what begins its prompts and ends its answers, its template, its advice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from temaki.base.errors import CheckpointError, DataError, GenerationError
from temaki.formats.opened import Opened
from temaki.generate import text
from temaki.generate.config import SamplingConfig
from temaki.model.config import LearnedConfig
from temaki.tokens.chat import LONGEST, ChatTemplate
from temaki.tokens.tokenizer import END_OF_TEXT, Tokenizer

CONTEXT = 8192
"""Ids of a chat that are kept at most, where the user does not ask for more: memory is taken for all of them."""
ANSWER = 512
"""Longest answer in a chat, in ids; half of a smaller context."""


def tokenizer_of(opened: Opened) -> Tokenizer:
    """The tokenizer that travels with a model. Raises CheckpointError where none does."""
    if opened.tokenizer is None:
        raise CheckpointError(
            f"{opened.folder} has no tokenizer, so it can read no text", do="put its tokenizer beside it"
        )
    return opened.tokenizer


def ends_of(opened: Opened, tokenizer: Tokenizer) -> text.Ends:
    """What begins a prompt and ends an answer: as the model says it, else as models trained here do.

    An empty prompt begins behind the token that stands between documents, if there is one.
    """
    said, between = opened.speaking, END_OF_TEXT in tokenizer.special
    if not said.front and not said.stop and between:
        return text.ends_of(tokenizer)
    return text.Ends(said.front, said.stop, (tokenizer.special[END_OF_TEXT],) if between else ())


def template_of(opened: Opened, file: Path | None = None) -> ChatTemplate:
    """The template of a model, or the one in a file, told the model's names of special tokens.

    Raises GenerationError where there is none, DataError and TokenizerError for a file that holds none.
    """
    own = opened.chat
    if file is not None:
        return ChatTemplate(_read(file), own.names if own is not None else None)
    if own is None:
        raise GenerationError(
            f"{opened.folder} brings no chat template: it was not made for talking",
            do="let it continue texts by temaki generate, or give a template by --template FILE",
        )
    return own


def context_of(opened: Opened, wanted: int | None = None) -> int:
    """How many ids of a chat are kept: as wanted, else the model's own context, up to CONTEXT.

    Raises GenerationError for less than a question and an answer, and for more than there are learned positions.
    """
    if wanted is None:
        return min(opened.context or CONTEXT, CONTEXT)
    position = opened.config.input_position
    most = position.room if isinstance(position, LearnedConfig) else None
    if wanted < 2 or (most is not None and wanted > most):
        allowed = "2 or more" if most is None else f"2 to {most}, the positions the model has learned"
        raise GenerationError("a context that this model cannot have", found=f"{wanted} ids", allowed=allowed)
    return wanted


def room_of(
    opened: Opened,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    ends: text.Ends,
    cut: str | None = None,
) -> int:
    """Ids that the longest of these prompts and its whole answer take, at most the model's context: there answers end.

    Raises GenerationError where a prompt is longer than the model's context, and where the model has not learned so
    many positions.
    """
    found, position = text.room(tokenizer, prompts, sampling, ends), opened.config.input_position
    learned = position.room if isinstance(position, LearnedConfig) else None
    context = opened.context if learned is None else min(learned, opened.context or learned)
    if context is None or found <= context:
        return found
    longest = found - sampling.max_tokens
    if cut is not None:
        return context
    if learned is not None and found > learned:
        raise GenerationError(
            "the longest prompt and its answer are longer than the positions the model has learned",
            found=f"{longest} ids of the prompt + {sampling.max_tokens} tokens = {found}",
            allowed=f"{learned} positions",
            do="shorten the prompt, have its beginning left out (--cut left) or lower max_tokens",
        )
    if longest > context:
        raise GenerationError(
            "the longest prompt is longer than the model's context",
            found=f"{longest} ids",
            allowed=f"{context} ids",
            do="shorten it, or have its beginning left out: --cut left",
        )
    return context


def advised(opened: Opened, context: int) -> dict[str, Any]:
    """How answers in a chat are drawn where the user says nothing: the advice of the model's makers before ours."""
    said = opened.speaking
    theirs = {
        "temperature": said.temperature, "top_k": said.top_k, "top_p": said.top_p,
        "repetition_penalty": said.repetition_penalty,
    }  # fmt: skip
    ours = {"max_tokens": min(ANSWER, max(1, context // 2)), "temperature": 0.7, "top_p": 0.9}
    return ours | {name: value for name, value in theirs.items() if value is not None}


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(4 * LONGEST + 1)  # bytes; a longer one is refused by its characters
    if not content.strip():
        raise DataError(f"the template in {file} is empty", do="write a Jinja template into it")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 at byte {error.start}", do="convert it to UTF-8") from None
