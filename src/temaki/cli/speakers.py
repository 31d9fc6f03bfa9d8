"""Who speaks for a verb: the executor that its options name, an engine over it, and who drafts."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from temaki.base.errors import ConfigError

if TYPE_CHECKING:
    from temaki.formats.opened import Opened
    from temaki.generate.engine import Engine
    from temaki.generate.executor import Executor

WORDS = ("lookup", "heads")
"""Drafts by other means than a model."""


@dataclass(frozen=True, kw_only=True)
class Speakers:
    """What --executor, --bits, --cache, --threads, --propose, --draft and --acceptance say."""

    executor: str = "auto"
    bits: int | None = None
    cache: str | None = None
    threads: int | None = None
    propose: str | None = None
    draft: int | None = None
    acceptance: str = "exact"

    def check(self) -> None:
        """Raises ConfigError for a word or number that is none of those allowed, before anything is loaded."""
        from temaki.compiled.cache import CacheKind
        from temaki.compiled.plan import Bits
        from temaki.generate.speculate import Acceptance
        from temaki.study.executing import Kind

        asked = (
            ("executor", self.executor, get_args(Kind)),
            ("acceptance", self.acceptance, get_args(Acceptance)),
            *([("bits", self.bits, get_args(Bits))] if self.bits is not None else []),
            *([("cache", self.cache, get_args(CacheKind))] if self.cache is not None else []),
        )
        for name, found, allowed in asked:
            if found not in allowed:
                raise ConfigError(f"no such {name}", found=str(found), allowed=", ".join(map(str, allowed)))
        if self.propose is None and (self.draft is not None or self.acceptance != "exact"):
            raise ConfigError("--draft and --acceptance are for drafts", do="say who drafts: --propose lookup")

    def open(self, opened: "Opened", slots: int, room: int, spare: int = 1) -> tuple["Executor", dict[str, Any]]:
        """The executor, and what an `Engine` over it, or over one that wraps it, must be told.

        spare: ids that a slot can take back, beside drafts.
        """
        from temaki.cli import named
        from temaki.formats import open as opener
        from temaki.study import executing, proposing

        if self.bits is not None and (said := _kept(opened)) is not None:
            print(f"--bits {self.bits} {said}", file=sys.stderr)
        made: dict[str, Any] = {"bits": self.bits, "cache": self.cache, "threads": self.threads}
        if self.propose is None:
            found = executing.executor_of(opened, slots, room, spare=spare, kind=self._kind, **made)
            return found, {}
        kind: Any = self.propose if self.propose in WORDS else opener.open(named.path(self.propose))
        length = proposing.length_of(kind, opened) if self.draft is None else self.draft
        looks = proposing.looks_ahead(kind, opened)
        executor = executing.executor_of(
            opened, slots, room, spare=max(spare, length + 1), kind=self._kind, ahead=looks, **made
        )
        proposer = proposing.proposer_of(kind, opened, executor, length, bits=made["bits"], threads=self.threads)
        return executor, {"proposer": proposer, "draft": length, "acceptance": self.acceptance}

    @property
    def _kind(self) -> Any:
        """A Literal by now: see `check`."""
        return self.executor


def _kept(opened: "Opened") -> str | None:
    """What to say of fewer bits where a file holds matrices in blocks, which keep theirs; None where it holds none."""
    from temaki.model.quantise import Blocks
    from temaki.model.quantise_kinds import KINDS

    matrices = [weight for weight in opened.trunk().weights().values() if len(weight.shape) > 1]
    stored = [each for weight in matrices for each, _ in weight.parts]
    blocks = [isinstance(each, Blocks) and KINDS[each.kind].numbers > 1 for each in stored]
    if not any(blocks):
        return None
    return (
        "changes nothing: the weights are in blocks of few bits already"
        if all(blocks)
        else ("changes only the float weights: the others are in blocks of few bits already")
    )


def told(engine: "Engine", acceptance: str) -> str | None:
    """What drafts brought, as a line; None where nobody drafted."""
    spoken = engine.spoken
    if engine.proposer is None or not spoken.passes:
        return None
    lossy = ", accepted by the lossy rule" if acceptance == "typical" else ""
    return (
        f"drafts{lossy}: {spoken.rate:.0%} of {sum(spoken.drafted)} drafted tokens accepted, "
        f"{spoken.ids_per_pass:.2f} tokens a pass"
    )
