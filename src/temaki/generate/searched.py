"""Text by searching instead of drawing: beam search and contrastive search, one prompt after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from temaki.generate import beam, contrastive
from temaki.generate.beam import BeamConfig
from temaki.generate.config import SamplingConfig
from temaki.generate.contrastive import ContrastiveConfig
from temaki.generate.executor import Executor
from temaki.generate.request import Event
from temaki.generate.text import Asking, prepared
from temaki.generate.writing import Completion
from temaki.tokens.tokenizer import Tokenizer


def beams(
    executor: Executor,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    asking: Asking,
    config: BeamConfig,
    told: Callable[[int, int], None] | None = None,
) -> Iterator[Completion]:
    """The `best` answers to each prompt with their scores, best first; `branch` is their rank, `asking.branches` is
    not used.

    A stop string cuts the text where it stands; the search does not see it. told: (ids so far, at most), now and then.
    Raises GenerationError and ConfigError as `beam.search` does.
    """
    for request, writers in prepared(executor, tokenizer, prompts, sampling, replace(asking, branches=config.best)):
        found = beam.search(executor, replace(request, branches=1), config, told)
        for answer, writer in zip(found, writers, strict=False):  # there may be fewer
            writer.take(Event(0, writer.branch, answer.ids, done=answer.done))
            yield replace(writer.completion(), score=answer.score)


def contrasted(
    executor: Executor,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    asking: Asking,
    config: ContrastiveConfig,
    told: Callable[[int, int], None] | None = None,
) -> Iterator[Completion]:
    """The answer of contrastive search to each prompt. told: (ids so far, at most), after each id.

    Raises GenerationError and ConfigError as `contrastive.steps` does.
    """
    for request, (writer,) in prepared(executor, tokenizer, prompts, sampling, replace(asking, branches=1)):
        steps = contrastive.steps(executor, request, config)
        for event in steps:
            writer.take(event)
            if told is not None:
                told(len(writer.ids), sampling.max_tokens)
            if writer.done is not None:
                break
        yield writer.completion()
