"""Text in, text out: prompts become ids, ids become text as they come, stop strings end an answer unseen."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from temaki.base.errors import GenerationError, TokenizerError
from temaki.generate.config import SamplingConfig, checked
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.request import Done, Event, LogProbs, Request
from temaki.tokens.tokenizer import END_OF_TEXT, TextStream, Tokenizer


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


@dataclass(frozen=True)
class Completion:
    """What followed a prompt."""

    index: int
    """Which prompt."""
    branch: int
    text: str
    """Without the prompt, and without what stopped it."""
    ids: ndarray
    """int32 [n]: the ids drawn, those that spelled a stop string included."""
    done: Done
    error: str | None = None
    logprobs: LogProbs | None = None


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


def complete(
    executor: Executor,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    seed: int = 0,
    branches: int = 1,
    logprobs: int | None = None,
    ends: Ends | None = None,
) -> list[Completion]:
    """Continue every prompt, `branches` times each; sorted by prompt and branch.

    An answer is a function of (prompt, settings, seed, branch): the other prompts do not matter, and equal
    prompts get equal answers. `ends` (None: those of `ends_of`) says what is put in front of each prompt, so that the
    empty prompt is a document's start, and what ends an answer when it is drawn; neither is returned. An answer that
    breaks on the way has done="error"; the others go on.
    Raises GenerationError for a prompt that cannot be served, ConfigError for settings out of range.
    """
    rows, ends = _rows(tokenizer, prompts, ends)
    engine, writers = _submit(executor, tokenizer, rows, sampling, seed, ends, branches, logprobs)
    for _ in _write(engine, writers):
        pass
    return [each.completion() for each in writers.values()]


def stream(
    executor: Executor,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    seed: int = 0,
    ends: Ends | None = None,
) -> Iterator[tuple[int, str]]:
    """Continue every prompt: (its index, more text), as it comes; never half a character, never a stop
    string.

    The same answers as `complete`. Leaving the loop early frees the executor. Raises GenerationError as
    `complete` does; for an answer that breaks on the way, when all the others are at their end.
    """
    rows, ends = _rows(tokenizer, prompts, ends)
    engine, writers = _submit(executor, tokenizer, rows, sampling, seed, ends)
    return _texts(engine, writers)


class Reply:
    """One answer to a prompt of ids: iterate, once, for its text as it comes; `completion` then says how it ended.

    A step that completes no letter gives "". Leaving the loop early cancels the answer and frees the executor.
    Raises GenerationError for a prompt that cannot be served, and in the loop for an answer that breaks.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        ids: ndarray,
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
        ends: Ends | None = None,
    ):
        ends = ends_of(tokenizer) if ends is None else ends
        self._engine, self._writers = _submit(executor, tokenizer, [ids], sampling, seed, ends)

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
        if writer.done is None:
            writer.done = "cancelled"
        return writer.completion()


class Holdback:
    """Lets text through as far as no stop string can lie in it, and ends at the first one that is complete.

    Of two that are complete at the same place, the one that began earlier counts. How the text is cut into
    pieces does not change what comes out.

    >>> hold = Holdback(["END"])
    >>> hold.push("the E"), hold.push("A EN"), hold.push("D of it"), hold.stopped
    ('the ', 'EA ', '', True)
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """More text in; what is certain by now out."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self.stops if stop in text]
        if found:
            self.stopped, self._held = True, ""
            end, length = min(found)
            return text[: end + length]
        cut = len(text) - self._open(text)
        self._held = text[cut:]
        return text[:cut]

    def close(self) -> str:
        """The text has ended: what was held is certain now."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """How many characters at the end of `text` may begin a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self.stops):
                return count
        return 0


@dataclass(eq=False)
class _Writer:
    """One answer as text."""

    index: int
    branch: int
    known: int
    """Ids that the tokenizer has; a model may have more."""
    decoder: TextStream
    hold: Holdback
    texts: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    done: Done | None = None
    error: str | None = None

    def take(self, event: Event) -> str:
        """The text that an event makes certain."""
        self.events.append(event)
        self.done, self.error = event.done, event.error
        try:
            said = (int(each) for each in event.ids if each < self.known)  # padding of the vocabulary has no text
            text = self.hold.push("".join(self.decoder.push(each) for each in said))
        except TokenizerError as error:
            self.done, self.error = "error", str(error)
            text = ""
        if self.done is not None:
            text += self.hold.push(self.decoder.close()) + self.hold.close()
        if self.hold.stopped:
            self.done = "stop"
        self.texts.append(text)
        return text

    def completion(self) -> Completion:
        assert self.done is not None, "the answer is still under way"
        ids = np.concatenate([np.zeros(0, np.int32), *(each.ids for each in self.events)])
        logprobs = [each.logprobs for each in self.events if each.logprobs is not None]
        return Completion(self.index, self.branch, "".join(self.texts), ids, self.done, self.error, _joined(logprobs))


def _rows(tokenizer: Tokenizer, prompts: Sequence[str], ends: Ends | None) -> tuple[list[ndarray], Ends]:
    """The ids of every prompt, and what ends an answer."""
    if isinstance(prompts, str):
        raise GenerationError("prompts are a sequence of texts", found="one text", do="write [prompt]")
    if not prompts:
        return [], Ends()
    ends = ends_of(tokenizer) if ends is None else ends
    return [prompt_ids(tokenizer, each, ends) for each in prompts], ends


def _submit(
    executor: Executor,
    tokenizer: Tokenizer,
    rows: Sequence[ndarray],
    sampling: SamplingConfig | None,
    seed: int,
    ends: Ends,
    branches: int = 1,
    logprobs: int | None = None,
) -> tuple[Engine, dict[tuple[int, int], _Writer]]:
    """An engine with all prompts queued, and a writer for each (request, branch). No slot is taken yet."""
    settings = checked(SamplingConfig() if sampling is None else sampling)
    changes = {**vars(settings), "stop": (), "stop_ids": (*settings.stop_ids, *ends.stop)}
    engine, writers = Engine(executor), {}
    for index, ids in enumerate(rows):
        request = Request(ids=ids, sampling=SamplingConfig(**changes), seed=seed, branches=branches, logprobs=logprobs)
        try:
            number = engine.submit(request)
        except GenerationError as error:
            what = error.what if len(rows) == 1 else f"prompt {index}: {error.what}"
            raise GenerationError(what, found=error.found, allowed=error.allowed, do=error.do) from None
        for branch in range(branches):
            writers[number, branch] = _Writer(
                index, branch, tokenizer.size, tokenizer.stream().behind(ids), Holdback(settings.stop)
            )
    return engine, writers


def _write(engine: Engine, writers: dict[tuple[int, int], _Writer]) -> Generator[tuple[_Writer, str], None, None]:
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


def _texts(engine: Engine, writers: dict[tuple[int, int], _Writer]) -> Iterator[tuple[int, str]]:
    with closing(_write(engine, writers)) as written:
        for writer, text in written:
            if text:
                yield writer.index, text
    for writer in writers.values():
        if writer.error is not None:
            raise GenerationError(f"prompt {writer.index}: {writer.error}")


def _joined(parts: Sequence[LogProbs]) -> LogProbs | None:
    if not parts:
        return None
    return LogProbs(
        np.concatenate([each.drawn for each in parts]),
        np.concatenate([each.ids for each in parts]),
        np.concatenate([each.best for each in parts]),
    )
