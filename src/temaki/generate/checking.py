"""Requests that can never be served are refused when they are submitted, with the numbers."""

import numpy as np

from temaki.base.errors import GenerationError
from temaki.generate.config import checked
from temaki.generate.executor import Executor
from temaki.generate.request import Request


def longest(request: Request, room: int) -> int:
    """Ids of prompt and longest answer; the last one need not be read, so it needs no room."""
    return min(len(request.ids) + request.sampling.max_tokens, room + 1)


def check(request: Request, executor: Executor, held: int | None) -> None:
    """Raises GenerationError for a request that this executor can never serve, ConfigError for settings out of range.

    held: ids that all slots may hold together.
    """
    settings = checked(request.sampling, executor.vocabulary)
    _check_ids(np.asarray(request.ids), executor)
    for name, value, least in (
        ("branches", request.branches, 1),
        ("first", request.first, 0),
        ("seed", request.seed, 0),
    ):
        if not isinstance(value, int | np.integer) or value < least:
            raise GenerationError(f"{name} is a whole number", found=repr(value), allowed=f"{least} or more")
    if request.branches > executor.slots:
        raise GenerationError(
            "a branch takes a slot",
            found=f"{request.branches} branches",
            allowed=f"1 to {executor.slots}",
        )
    if request.logprobs is not None and not 0 <= request.logprobs <= executor.vocabulary:
        raise GenerationError(
            "too many log-probabilities",
            found=str(request.logprobs),
            allowed=f"0 to {executor.vocabulary}",
        )
    if settings.stop:
        raise GenerationError("the engine speaks ids and cannot see stop strings", do="use generate/text")
    if request.constraint is not None and request.healing is not None:
        raise GenerationError("an answer is healed or constrained, not both", do="leave one of them out")
    if request.shared is not None and not 0 <= request.shared <= len(request.ids):
        raise GenerationError(
            "a prompt cannot share more ids than it has", found=str(request.shared), allowed=f"0 to {len(request.ids)}"
        )
    if held is not None and longest(request, executor.room) - 1 > held:
        raise GenerationError(
            "the prompt and its longest answer are more than all slots may hold together",
            found=f"{len(request.ids)} ids of the prompt and {settings.max_tokens} tokens",
            allowed=f"{held} ids, besides the last token",
            do="shorten the prompt, lower max_tokens or raise `held`",
        )


def _check_ids(ids: np.ndarray, executor: Executor) -> None:
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise GenerationError("a prompt is a flat row of integers", found=f"{ids.dtype} {list(ids.shape)}")
    if not len(ids):
        raise GenerationError("a prompt of no ids", do="begin with the id that starts a document, as `text` does")
    if len(ids) > executor.room:
        raise GenerationError(
            "the prompt is longer than a slot's room",
            found=f"{len(ids)} ids",
            allowed=f"{executor.room} ids",
            do="shorten the prompt or make an executor with more room",
        )
    if not 0 <= ids.min() <= ids.max() < executor.vocabulary:
        strange = ids[(ids < 0) | (ids >= executor.vocabulary)]
        raise GenerationError(
            "the prompt holds an id that the model does not know; is this its tokenizer?",
            found=str(strange[0]),
            allowed=f"0 to {executor.vocabulary - 1}",
        )
