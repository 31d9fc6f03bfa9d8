"""The ways of `temaki generate`: drawing, searching, and several of them side by side."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from temaki.base import config
from temaki.base.errors import ConfigError, GenerationError
from temaki.cli import prompts as reading
from temaki.cli.progress import Work
from temaki.cli.said import say
from temaki.cli.speakers import told
from temaki.generate import diversity, ranking, searched, text
from temaki.generate.beam import BeamConfig
from temaki.generate.config import SamplingConfig
from temaki.generate.constrain import Choice, Regex, Schema, Shape
from temaki.generate.contrastive import ContrastiveConfig
from temaki.generate.engine import Engine
from temaki.generate.executor import Executor
from temaki.generate.text import Asking
from temaki.generate.writing import Completion
from temaki.tokens.tokenizer import Tokenizer

WAYS = 8
"""Answers that run together, where there are more."""
BEAMS = 4
"""Of `--compare beam`."""


@dataclass(frozen=True)
class Way:
    """A way to find an answer: what it sets, and how it searches; None: it draws."""

    name: str
    table: Mapping[str, Any]
    """Settings where nobody says otherwise."""
    search: BeamConfig | ContrastiveConfig | None = None

    @property
    def slots(self) -> int:
        """At least."""
        if isinstance(self.search, BeamConfig):
            return self.search.beams
        return self.search.k + 1 if self.search is not None else 1


DRAW = Way("draw", {"temperature": 0.8, "top_p": 0.95})
COMPARED = {
    way.name: way
    for way in (
        Way("greedy", {"temperature": 0.0}),
        Way("sample", {"temperature": 1.0}),
        Way("top-k", {"temperature": 1.0, "top_k": 40}),
        Way("top-p", {"temperature": 1.0, "top_p": 0.95}),
        Way("min-p", {"temperature": 1.0, "min_p": 0.1}),
        Way("typical", {"temperature": 1.0, "typical_p": 0.95}),
        Way("beam", {}, BeamConfig(beams=BEAMS)),
        Way("contrastive", {}, ContrastiveConfig()),
    )
}
DRAWN = frozenset(("temperature", "top_k", "top_p", "min_p", "typical_p"))
"""Settings that each way of a comparison sets for itself."""


def way_of(beam: int | None, contrastive: bool, compare: str | None, n: int, best_of: int | None) -> list[Way]:
    """The ways that options name; one, unless they are compared. Raises ConfigError for what does not go together."""
    asked = {"--beam": beam is not None, "--contrastive": contrastive, "--compare": compare is not None}
    asked["--best-of"] = best_of is not None
    if sum(asked.values()) > 1:
        raise ConfigError("one of these at a time", found=" ".join(name for name, given in asked.items() if given))
    if best_of is not None and best_of < n:
        raise ConfigError(
            "--best-of keeps more answers than it makes", found=f"{best_of} for {n}", allowed=f"{n} or more"
        )
    if compare is not None:
        return _compared(compare)
    if beam is not None:
        search = config.read(BeamConfig, {"beams": beam, "best": n}, where="beam search")
        return [Way("beam", {}, search)]
    if contrastive and n > 1:
        raise ConfigError("contrastive search finds one answer", found=f"--n {n}", allowed="1")
    return [Way("contrastive", {}, ContrastiveConfig())] if contrastive else [DRAW]


def fits(ways: Sequence[Way], propose: str | None, logprobs: int | None, as_json: bool) -> None:
    """Raises ConfigError for an option that these ways of answering would not heed."""
    searches = [way.name for way in ways if way.search is not None]
    if propose is not None and len(searches) == len(ways):
        raise ConfigError("drafts are for answers that are drawn", found=f"--propose {propose} with {searches[0]}")
    if logprobs is not None and searches:
        raise ConfigError("log-probabilities are of answers that are drawn", found=f"--logprobs with {searches[0]}")
    if logprobs is not None and not as_json:
        raise ConfigError("log-probabilities are written as JSON", do="give --json too")


def _compared(names: str) -> list[Way]:
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if name not in COMPARED:
            raise ConfigError("no such way to compare", found=repr(name), allowed=", ".join(COMPARED))
    return [COMPARED[name] for name in dict.fromkeys(found)]


def told_of(table: Mapping[str, Any]) -> str:
    """Settings as a line; a greedy answer says none of those that only a draw heeds.

    >>> told_of({"temperature": 0.0, "top_p": 0.95, "max_tokens": 8})
    'temperature 0.0, max_tokens 8'
    """
    silent = DRAWN - {"temperature"} if table.get("temperature") == 0 else ()
    return ", ".join(f"{name} {value}" for name, value in table.items() if value != [] and name not in silent)


def twice(given: Mapping[str, Any], changes: Sequence[str]) -> None:
    """Raises ConfigError for a setting that is both an option and a change."""
    for change in changes:
        name = change.partition("=")[0].strip()
        if name in given:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{name} is given twice", found=f"{option} and {change}", do="leave one of them out")


def shape_of(regex: str | None, schema: Path | None, choice: Sequence[str]) -> Shape | None:
    """What the answer must look like. Raises ConfigError for more than one shape."""
    shapes: list[Shape] = [Regex(regex)] if regex is not None else []
    shapes += [Schema(reading.text(schema))] if schema is not None else []
    shapes += [Choice(tuple(choice))] if choice else []
    if len(shapes) > 1:
        raise ConfigError("an answer has one shape", found=f"{len(shapes)} of --regex, --schema and --choice")
    return shapes[0] if shapes else None


@dataclass
class Job:
    """Prompts that are to be continued."""

    executor: Executor
    engine: Mapping[str, Any]
    """What an `Engine` is told."""
    acceptance: str
    tokenizer: Tokenizer
    prompts: Sequence[str]
    sampling: SamplingConfig
    asking: Asking
    base: Mapping[str, Any]
    """The settings that were given."""
    n: int
    as_json: bool
    logprobs: bool
    """JSON says them."""
    work: Work = field(default_factory=Work)

    def run(self, way: Way) -> None:
        """Write the answers: one as it comes, several as they end."""
        if way.search is None and len(self.prompts) * self.asking.branches == 1 and not self.as_json:
            self._stream()
            return
        for each in self._kept(self._answers(way, self.sampling, self.asking)):
            self._say(each)

    def compare(self, ways: Sequence[Way]) -> None:
        """Write the answers of several ways, and how varied those of each are."""
        table = {name: value for name, value in self.base.items() if name not in DRAWN}
        for way in ways:
            settings = {**way.table, **table}
            sampling = config.read(SamplingConfig, settings, where=way.name)
            asking = self.asking
            if sampling.temperature == 0 and asking.branches > 1:  # all would be the same
                asking = replace(asking, branches=1)
            once = ", one answer: all would be the same" if asking is not self.asking else ""
            print(f"{way.name}: {told_of(settings)}, seed {asking.seed}{once}", file=sys.stderr)
            found = list(self._answers(way, sampling, asking))
            for each in found:
                self._say(each, way.name)
            measured = _measured([each.ids for each in found])
            line = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            say({"way": way.name, **measured}, self.as_json, f"=== {way.name}: {line}\n")

    def _stream(self) -> None:
        engine = Engine(self.executor, **self.engine)
        (request, (writer,)), *_ = text.prepared(
            self.executor, self.tokenizer, self.prompts, self.sampling, self.asking
        )
        self._left_out(writer.left_out)
        begun, read, length = False, 0, len(request.ids)
        try:
            with closing(text.written(engine, [(request, [writer])])) as parts:
                for _, more in parts:
                    if not begun and not writer.ids and writer.done is None:
                        read = min(length, read + engine.chunk)
                        self.work("reading: tokens", read, length)
                        continue
                    if not begun:
                        self.work.close()
                        sys.stdout.write(self.prompts[0])
                        begun = True
                    sys.stdout.write(more)
                    sys.stdout.flush()
        finally:  # an error too begins on a new line
            self.work.close()
            sys.stdout.write("\n" if begun else "")
            sys.stdout.flush()
        self._warn(writer.completion())
        self._drafts(engine)
        if writer.error is not None:
            raise GenerationError(writer.error)

    def _answers(self, way: Way, sampling: SamplingConfig, asking: Asking) -> Iterator[Completion]:
        what = f"{way.name}: tokens"
        asked = (self.executor, self.tokenizer, self.prompts, sampling, asking)
        if isinstance(way.search, BeamConfig):
            yield from searched.beams(*asked, way.search, lambda done, of: self.work(what, done, of))
        elif way.search is not None:
            yield from searched.contrasted(*asked, way.search, lambda done, of: self.work(what, done, of))
        else:
            engine = Engine(self.executor, **self.engine)
            many = len(self.prompts) * asking.branches
            for count, each in enumerate(text.ended(engine, *asked[1:]), 1):
                if many > 1:
                    self.work("answers", count, many)
                yield each
            self._drafts(engine)
        self.work.close()

    def _kept(self, answers: Iterator[Completion]) -> Iterator[Completion]:
        """Of each prompt's answers the n best, where more were made; JSON as they end, text in their order."""
        if self.asking.branches <= self.n and self.as_json:
            yield from answers
            return
        found = sorted(answers, key=lambda each: (each.index, each.branch))
        if self.asking.branches <= self.n:
            yield from found
            return
        for index in range(len(self.prompts)):
            here = [each for each in found if each.index == index]
            drawn = [None if each.logprobs is None else each.logprobs.drawn for each in here]
            for best in ranking.best_of(drawn, self.n):
                yield replace(here[best], score=ranking.mean_logprob(drawn[best]))

    def _say(self, each: Completion, way: str | None = None) -> None:
        prompt = self.prompts[each.index]
        facts: dict[str, Any] = {
            "prompt": prompt, "index": each.index, "branch": each.branch, "text": each.text, "tokens": len(each.ids),
            "done": each.done, "error": each.error, "score": each.score, "left_out": each.left_out or None, "way": way,
        }  # fmt: skip
        facts = {name: value for name, value in facts.items() if value is not None}
        if each.logprobs is not None and self.logprobs:
            facts["logprobs"] = self._logprobs(each)
        one = f"--- {prompt!r}" + (f", {each.branch + 1}" if self.n > 1 else "") + (f", {way}" if way else "")
        error = "" if each.error is None else f"\nerror: {each.error}"
        say(facts, self.as_json, f"{one}\n{prompt}{each.text}{error}")
        sys.stdout.flush()
        self._left_out(each.left_out, f"prompt {each.index}: " if len(self.prompts) > 1 else "")
        self._warn(each)

    def _logprobs(self, each: Completion) -> list[dict[str, Any]]:
        """Of each token: its id, its text, its log-probability and the best ones there."""
        found = each.logprobs
        assert found is not None
        words = [
            self.tokenizer.tokens[id].decode(errors="replace") if id < self.tokenizer.size else "" for id in each.ids
        ]
        return [
            {
                "id": int(id), "token": word, "logprob": float(drawn),
                "best": [[int(other), float(value)] for other, value in zip(ids, best, strict=True)],
            }
            for id, word, drawn, ids, best in zip(each.ids, words, found.drawn, found.ids, found.best, strict=True)
        ]  # fmt: skip

    def _warn(self, each: Completion) -> None:
        """What the user should know of an answer."""
        of = f"prompt {each.index}: " if len(self.prompts) > 1 else ""
        if each.done == "length" and self.asking.constraint is not None:
            print(f"{of}cut at {len(each.ids)} tokens, so it may not be all that was asked for", file=sys.stderr)

    def _left_out(self, count: int, of: str = "") -> None:
        """Say what a long prompt lost."""
        if count:
            print(f"{of}{count} tokens at the prompt's beginning were left out", file=sys.stderr)

    def _drafts(self, engine: Engine) -> None:
        line = told(engine, self.acceptance)
        if line is not None:
            print(line, file=sys.stderr)


def _measured(answers: Sequence[np.ndarray]) -> dict[str, float]:
    """distinct-n of all answers together, rep-n and diversity in the mean; see `generate/diversity`."""
    found = {f"distinct-{n}": diversity.distinct(answers, n) for n in (1, 2, 3)}
    found |= {f"rep-{n}": float(np.mean([diversity.repetition(each, n) for each in answers])) for n in (2, 3, 4)}
    return found | {"diversity": float(np.mean([diversity.diversity(each) for each in answers]))}
