"""What `temaki tokenizer train` does for each kind, and which options a kind takes."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from temaki.base.errors import ConfigError
from temaki.tokens.tokenizer import END_OF_TEXT, Tokenizer

Progress = Callable[[str, int, int], None]

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Learning:
    """What is to be learned. None: the kind's own default."""

    kind: str
    sizes: Sequence[int]
    special: Sequence[str] | None
    options: Mapping[str, Any]
    """Those options that were given, by name: split, ties, .."""


class Text(Protocol):
    """The text that is learned from."""

    def __iter__(self) -> Iterator[str]:
        """All documents, one in memory at a time; as often as it is asked for."""
        ...

    def paths(self) -> list[Path] | None:
        """Files of which each whole content is text, to be mapped into memory; None where there are none such."""
        ...


def sizes(text: str) -> list[int]:
    """The numbers of "8000,16000", each once. Raises ConfigError.

    >>> sizes("8000,16000")
    [8000, 16000]
    """
    found = [word.strip().replace("_", "") for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 12 for word in found):
        raise ConfigError("the vocabulary's size is no number", found=text, allowed="8000, or 8000,16000 for several")
    return list(dict.fromkeys(map(int, found)))


def amount(text: str) -> int:
    """Bytes as people write them. Raises ConfigError.

    >>> amount("2G"), amount("500M"), amount("1500")
    (2000000000, 500000000, 1500)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)B?", text)
    if found is None:
        raise ConfigError("--memory is no number of bytes", found=text, allowed="a number with k, M or G: 2G")
    return int(float(found[1]) * UNITS[found[2]])


def learn(asked: Learning, text: Text, progress: Progress) -> list[Tokenizer]:
    """Train a tokenizer of each size.

    Raises ConfigError for a kind that is unknown and for an option that the kind does not take.
    """
    if asked.kind not in KINDS:
        raise ConfigError("unknown kind of tokenizer", found=repr(asked.kind), allowed=", ".join(KINDS))
    train, taken = KINDS[asked.kind]
    for name in asked.options:
        if name not in taken:
            kinds = ", ".join(kind for kind, (_, names) in KINDS.items() if name in names)
            raise ConfigError(
                f"--{name.replace('_', '-')} says nothing to kind {asked.kind}", allowed=f"with --kind {kinds}"
            )
    return train(asked, text, progress)


def _said(progress: Progress, what: str) -> Callable[[int, int], None]:
    """The line that grows; a trainer that does not know how much is to come (of = 0) says nothing."""
    return lambda done, of: progress(what, done, of) if of else None


def _bpe(asked: Learning, text: Text, progress: Progress) -> list[Tokenizer]:
    from temaki.tokens import bpe_train

    special = (END_OF_TEXT,) if asked.special is None else tuple(asked.special)
    options = dict(asked.options)
    plan = bpe_train.Plan(special, options.pop("split", "gpt2"), **options)

    def report(found: bpe_train.Report) -> None:
        if found.pruned:
            progress(
                f"pruned: {found.pruned:,} words, {found.pruned_total:,} of {found.words_total:,} occurrences", 1, 1
            )
        if found.spilled:
            progress(f"counting wrote {found.spilled / 1e6:.0f} MB to disk", 1, 1)

    def reading(done: int, of: int | None) -> None:
        if of is not None:
            progress("counting: bytes", done, of)

    said = _said(progress, "merging: ids")
    if (paths := text.paths()) is not None:
        return [*bpe_train.train_files(paths, asked.sizes, plan, said, reading, report)]
    return [
        *bpe_train.train(
            text, asked.sizes, plan.special, plan.pattern, said, report=report, ties=plan.ties, prune=plan.prune,
            memory=plan.memory,
        )
    ]  # fmt: skip


def _bytepiece(asked: Learning, text: Text, progress: Progress) -> list[Tokenizer]:
    from temaki.tokens import bytepiece, bytepiece_train

    special = bytepiece.SPECIAL if asked.special is None else asked.special
    options = dict(asked.options)
    if "normalize" in options:
        options["normalize"] = None if options["normalize"] == "none" else options["normalize"]
    rules = bytepiece_train.Rules(**options)

    def told(stage: str, done: int, of: int | None) -> None:
        if of is not None and of > 1:
            progress(stage, done, of)

    return [*bytepiece_train.train_sizes(text, asked.sizes, rules, special, progress=told)]


def _wordpiece(asked: Learning, text: Text, progress: Progress) -> list[Tokenizer]:
    from temaki.tokens import wordpiece, wordpiece_train

    special = wordpiece.SPECIAL if asked.special is None else asked.special
    said = _said(progress, "joining: ids")
    return [wordpiece_train.train(text, size, special, progress=said) for size in asked.sizes]


def _characters(asked: Learning, text: Text, progress: Progress) -> list[Tokenizer]:
    from temaki.tokens import characters

    special = (END_OF_TEXT,) if asked.special is None else asked.special
    return [characters.train(text, size, special) for size in asked.sizes]


Train = Callable[[Learning, Text, Progress], list[Tokenizer]]

KINDS: Mapping[str, tuple[Train, frozenset[str]]] = {
    "bpe": (_bpe, frozenset({"split", "ties", "memory", "prune"})),
    "bytepiece": (_bytepiece, frozenset({"min_count", "isolate_digits", "normalize"})),
    "wordpiece": (_wordpiece, frozenset()),
    "characters": (_characters, frozenset()),
}
"""Kind -> (trainer, options it takes)."""
