"""Text in, text out: prompts become ids, ids become text as they come, stop strings end an answer unseen."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError
from temaki.generate import constrain
from temaki.generate.config import SamplingConfig, checked
from temaki.generate.constrain import Shape
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.heal import Beyond, Retreat, retreat
from temaki.generate.request import Constraint, Request
from temaki.generate.writing import Completion as Completion
from temaki.generate.writing import Holdback as Holdback
from temaki.generate.writing import Writer
from temaki.tokens.tokenizer import END_OF_TEXT, Tokenizer

Writers = dict[tuple[int, int], Writer]


@dataclass(frozen=True)
class Ends:
    """What begins a prompt and what ends an answer, as a model says it."""

    front: tuple[int, ...] = ()
    """Ids put before a prompt."""
    stop: tuple[int, ...] = ()
    """Ids that end an answer; never part of it."""
    empty: tuple[int, ...] = ()
    """What an empty prompt is read as, where nothing stands in front."""


def ends_of(tokenizer: Tokenizer) -> Ends:
    """Those of models trained here: `<|endoftext|>` stands in front of every document, so it also ends one.

    Raises GenerationError for a tokenizer without it.
    """
    if END_OF_TEXT not in tokenizer.special:
        raise GenerationError(
            f"this tokenizer has no special token {END_OF_TEXT!r} to begin with",
            found=", ".join(tokenizer.special) or "none",
            do="say what begins a prompt and ends an answer by Ends(front, stop)",
        )
    both = (tokenizer.special[END_OF_TEXT],)
    return Ends(both, both)


def prompt_ids(tokenizer: Tokenizer, prompt: str, ends: Ends | None = None) -> ndarray:
    """int32 [n]: the ids in front (None: those of `ends_of`), then those of the text, which cannot spell a special
    token; where both are empty, `ends.empty`.

    Raises GenerationError where that is empty too: there is nothing to go on from.
    """
    ends = ends_of(tokenizer) if ends is None else ends
    found = np.concatenate([np.array(ends.front, np.int32), tokenizer.encode(prompt).astype(np.int32)])
    if not len(found):
        found = np.array(ends.empty, np.int32)
    if not len(found):
        raise GenerationError("an empty prompt, and this model has no token to begin with", do="give a prompt")
    return found


def room(tokenizer: Tokenizer, prompts: Sequence[str], sampling: SamplingConfig, ends: Ends | None = None) -> int:
    """Ids a slot must hold for the longest of these prompts and its whole answer."""
    return max((len(prompt_ids(tokenizer, each, ends)) for each in prompts), default=0) + sampling.max_tokens


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How prompts are asked, beside the settings of the draw."""

    seed: int = 0
    branches: int = 1
    """Answers to each prompt."""
    logprobs: int | None = None
    """None: no log-probabilities; 0: those of the ids drawn; K: also the K best at each place."""
    ends: Ends | None = None
    """What is put in front of each prompt, so that the empty prompt is a document's start, and what ends an answer when
    it is drawn; neither is returned. None: those of `ends_of`."""
    constraint: Shape | None = None
    """What answers must look like; it says itself where they end, so stop strings are refused beside it."""
    heal: int | None = None
    """Tokens to step back from the end of each prompt, see `heal`; None: none. Not beside a constraint."""
    cut: Literal["left"] | None = None
    """A prompt that leaves no room for its longest answer: left: its beginning is left out, behind `ends.front`."""


PLAIN = Asking()


def ended(
    executor: Executor | Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    asking: Asking = PLAIN,
) -> Iterator[Completion]:
    """Continue every prompt, `branches` times each: every answer as it ends. Leaving the loop early frees the executor.

    An answer is a function of (prompt, settings, seed, branch): the other prompts do not matter, and equal
    prompts get equal answers. An answer that breaks on the way has done="error"; the others go on.
    An engine that was made elsewhere (with a proposer, say) is used as it is; else one is made over the executor.
    Raises GenerationError for a prompt that cannot be served, ConfigError for settings out of range.
    """
    engine, writers = _submit(executor, tokenizer, _rows(tokenizer, prompts, asking), sampling, asking)
    return _ended(engine, writers)


def complete(
    executor: Executor | Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    seed: int = 0,
    branches: int = 1,
    logprobs: int | None = None,
    ends: Ends | None = None,
    asking: Asking = PLAIN,
) -> list[Completion]:
    """`ended`, sorted by prompt and branch; all of `asking`, or the plain ones given by name."""
    if asking is PLAIN:
        asking = Asking(seed=seed, branches=branches, logprobs=logprobs, ends=ends)
    found = ended(executor, tokenizer, prompts, sampling, asking)
    return sorted(found, key=lambda each: (each.index, each.branch))


def stream(
    executor: Executor | Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    seed: int = 0,
    ends: Ends | None = None,
    asking: Asking = PLAIN,
) -> Iterator[tuple[int, str]]:
    """Continue every prompt: (its index, more text), as it comes; never half a character, never a stop
    string.

    The same answers as `complete`. Leaving the loop early frees the executor. Raises GenerationError as
    `complete` does; for an answer that breaks on the way, when all the others are at their end.
    """
    asking = Asking(seed=seed, ends=ends) if asking is PLAIN else asking
    engine, writers = _submit(executor, tokenizer, _rows(tokenizer, prompts, asking), sampling, asking)
    return _texts(engine, writers)


class Reply:
    """One answer to a prompt of ids: iterate, once, for its text as it comes; `completion` then says how it ended.

    A step that completes no letter gives "". Leaving the loop early cancels the answer and frees the executor.
    Raises GenerationError for a prompt that cannot be served, and in the loop for an answer that breaks.
    """

    def __init__(
        self,
        executor: Executor | Engine,
        tokenizer: Tokenizer,
        ids: ndarray,
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        ends: Ends | None = None,
        asking: Asking = PLAIN,
    ):
        asking = Asking(seed=seed, ends=ends) if asking is PLAIN else asking
        self._engine, self._writers = _submit(executor, tokenizer, [np.asarray(ids)], sampling, asking)

    def __iter__(self) -> Generator[str, None, None]:
        (writer,) = self._writers.values()
        with closing(_write(self._engine, self._writers)) as written:
            for _, text in written:
                yield text
        if writer.error is not None:
            raise GenerationError(writer.error)

    @property
    def completion(self) -> Completion:
        """What was said, all of it or up to where the loop was left."""
        (writer,) = self._writers.values()
        writer.cancel()
        return writer.completion()


def _rows(tokenizer: Tokenizer, prompts: Sequence[str], asking: Asking) -> list[ndarray]:
    """The ids of every prompt."""
    if isinstance(prompts, str):
        raise GenerationError("prompts are a sequence of texts", found="one text", do="write [prompt]")
    if not prompts:
        return []
    ends = ends_of(tokenizer) if asking.ends is None else asking.ends
    return [prompt_ids(tokenizer, each, ends) for each in prompts]


def prepared(
    executor: Executor, tokenizer: Tokenizer, prompts: Sequence[str], sampling: SamplingConfig | None, asking: Asking
) -> list[tuple[Request, list[Writer]]]:
    """What an engine or a search is to be asked for each prompt, and a writer for each branch of the answer.

    Raises GenerationError for a prompt that cannot be served, ConfigError for settings out of range.
    """
    return _prepared(executor, tokenizer, _rows(tokenizer, prompts, asking), sampling, asking)


def _prepared(
    executor: Executor,
    tokenizer: Tokenizer,
    rows: Sequence[ndarray],
    sampling: SamplingConfig | None,
    asking: Asking,
) -> list[tuple[Request, list[Writer]]]:
    settings = checked(SamplingConfig() if sampling is None else sampling)
    if not rows:
        return []
    ends = ends_of(tokenizer) if asking.ends is None else asking.ends
    settings, stops = replace(settings, stop=(), stop_ids=(*settings.stop_ids, *ends.stop)), settings.stop
    constraint = _constraint(executor, tokenizer, settings, stops, asking)
    found = []
    for index, ids in enumerate(rows):
        with _of_prompt(index, len(rows)):
            left, left_out = _shortened(ids, executor.room, settings.max_tokens, len(ends.front), asking)
            back = _stepped_back(tokenizer, left, asking, executor.vocabulary)
        writers = [
            Writer(
                index,
                branch,
                tokenizer.size,
                Beyond(tokenizer, back.rest) if back.rest else tokenizer.stream().behind(left),
                Holdback(stops),
                settings.max_tokens,
                len(back.rest),
                tokenizer.tokens if back.rest else (),
                left_out,
            )
            for branch in range(asking.branches)
        ]
        found.append((_request(back, settings, constraint, asking), writers))
    return found


def _submit(
    executor: Executor | Engine,
    tokenizer: Tokenizer,
    rows: Sequence[ndarray],
    sampling: SamplingConfig | None,
    asking: Asking,
) -> tuple[Engine, Writers]:
    """An engine with all prompts queued, and a writer for each (request, branch). No slot is taken yet."""
    engine = executor if isinstance(executor, Engine) else Engine(executor)
    return engine, _submitted(engine, _prepared(engine.executor, tokenizer, rows, sampling, asking))


def _submitted(engine: Engine, asked: Sequence[tuple[Request, Sequence[Writer]]]) -> Writers:
    writers: Writers = {}
    for index, (request, each) in enumerate(asked):
        try:
            with _of_prompt(index, len(asked)):
                number = engine.submit(request)
        except GenerationError:
            engine.close()
            raise
        writers |= {(number, writer.branch): writer for writer in each}
    return writers


@contextmanager
def _of_prompt(index: int, count: int) -> Generator[None]:
    """Errors say which prompt of several they mean."""
    try:
        yield
    except GenerationError as error:
        if count == 1:
            raise
        what = f"prompt {index}: {error.what}"
        raise GenerationError(what, found=error.found, allowed=error.allowed, do=error.do) from None


def _constraint(
    executor: Executor, tokenizer: Tokenizer, settings: SamplingConfig, stops: Sequence[str], asking: Asking
) -> Constraint | None:
    """What all answers must look like, over this tokenizer."""
    if asking.constraint is None:
        return None
    if stops:
        raise GenerationError("a constraint says itself where an answer ends", found=f"stop {list(stops)}")
    if settings.min_tokens:
        raise GenerationError(
            "a constraint says itself where an answer ends", found=f"min_tokens {settings.min_tokens}"
        )
    stop_ids = tuple(sorted(set(settings.stop_ids)))
    words = constrain.vocabulary(tokenizer, executor.vocabulary, stop_ids)
    return words.constraint(asking.constraint)


def _shortened(ids: ndarray, room: int, asked: int, front: int, asking: Asking) -> tuple[ndarray, int]:
    """A prompt that leaves room for `asked` tokens, where that is wanted, and how many ids were left out."""
    most = room - asked
    if asking.cut is None or len(ids) <= most:
        return ids, 0
    if most <= front:
        raise GenerationError(
            "the longest answer leaves no room for a prompt",
            found=f"{max(0, most)} ids left beside {asked} tokens",
            allowed=f"more than {front}",
            do="lower max_tokens",
        )
    return np.concatenate([ids[:front], ids[len(ids) - most + front :]]), len(ids) - most


def _stepped_back(tokenizer: Tokenizer, ids: ndarray, asking: Asking, size: int) -> Retreat:
    if asking.heal is None:
        return Retreat(ids, b"", 0, None)
    if asking.constraint is not None:
        raise GenerationError("an answer is healed or constrained, not both", do="leave one of them out")
    return retreat(tokenizer, ids, asking.heal, size)


def _request(found: Retreat, settings: SamplingConfig, constraint: Constraint | None, asking: Asking) -> Request:
    """What the engine is asked; ids that only spell the prompt's end again are not counted."""
    more, least = settings.max_tokens + found.removed, settings.min_tokens
    return Request(
        ids=found.ids,
        sampling=replace(settings, max_tokens=more, min_tokens=least + found.removed if least else 0),
        seed=asking.seed,
        branches=asking.branches,
        logprobs=asking.logprobs,
        constraint=constraint,
        healing=found.healing,
    )


def written(
    engine: Engine, asked: Sequence[tuple[Request, Sequence[Writer]]]
) -> Generator[tuple[Writer, str], None, None]:
    """Run an engine over what `prepared` gave: each writer as it gets certain of more text; a step that completes no
    letter gives "". All slots are free afterwards."""
    return _write(engine, _submitted(engine, asked))


def _write(engine: Engine, writers: Writers) -> Generator[tuple[Writer, str], None, None]:
    """Run the engine to the end: each writer as it gets certain of more text. All slots are free
    afterwards."""
    try:
        while events := engine.step():
            for event in events:
                writer = writers[event.request, event.branch]
                if writer.done is not None:
                    continue
                text = writer.take(event)
                if writer.done is not None and event.done is None:
                    engine.cancel(event.request, event.branch)
                yield writer, text
    finally:
        engine.close()


def _ended(engine: Engine, writers: Writers) -> Iterator[Completion]:
    with closing(_write(engine, writers)) as written:
        for writer, _ in written:
            if writer.done is not None:
                yield writer.completion()


def _texts(engine: Engine, writers: Writers) -> Iterator[tuple[int, str]]:
    with closing(_write(engine, writers)) as written:
        for writer, text in written:
            if text:
                yield writer.index, text
    for writer in writers.values():
        if writer.error is not None:
            raise GenerationError(f"prompt {writer.index}: {writer.error}")
