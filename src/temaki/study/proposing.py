"""Who drafts for a model: lookup in the row itself, the model's own heads of further ids, or a smaller model.

An executor whose model's heads have blocks keeps a state for them only if it was made to: see `looks_ahead`.
"""

from typing import Literal

from temaki.base.errors import GenerationError
from temaki.formats.opened import Opened
from temaki.generate.ahead import Heads, MedusaLooking
from temaki.generate.compiled_heads import Following
from temaki.generate.drafts import DraftModel
from temaki.generate.executor import Executor
from temaki.generate.lookup import Lookup
from temaki.generate.speculate import Proposer
from temaki.model.config import MedusaHeadsConfig

LENGTH = {"lookup": 15, "heads": 16, "model": 4}
"""Ids of a draft at most, where nobody says; heads draft one each."""

Kind = Literal["lookup", "heads"] | Opened


def looks_ahead(kind: Kind | None, opened: Opened) -> bool:
    """Whether the executor of this model must keep what heads with blocks read (`ahead=True`)."""
    further = opened.config.further
    return kind == "heads" and further is not None and not isinstance(further.heads, MedusaHeadsConfig)


def length_of(kind: Kind, opened: Opened) -> int:
    """Ids of a draft: the engine's `draft`, and one less than an executor's `spare`."""
    if kind == "heads":
        return 1 if opened.config.further is None else min(LENGTH["heads"], opened.config.further.ids - 1)
    return LENGTH["model" if isinstance(kind, Opened) else kind]


def proposer_of(
    kind: Kind,
    opened: Opened,
    executor: Executor,
    length: int | None = None,
    *,
    bits: Literal[None, 8, 4] = None,
    threads: int | None = None,
) -> Proposer:
    """A proposer for an executor of this model. kind: a word, or the smaller model that drafts.

    bits: of the heads or of the smaller model, where these are compiled. Raises GenerationError for a model without
    heads, and for a smaller model of another tokenizer.
    """
    if kind == "lookup":
        return Lookup()
    if kind == "heads":
        return _heads(opened, executor, bits)
    _same_tokenizer(kind, opened)
    from temaki.study.executing import executor_of

    length = length_of(kind, opened) if length is None else length
    room = executor.room + length if kind.context is None else min(executor.room + length, kind.context)
    drafting = executor_of(kind, executor.slots, room, spare=length + 1, bits=bits, threads=threads)
    return DraftModel(drafting, executor.vocabulary)


def _heads(opened: Opened, executor: Executor, bits: Literal[None, 8, 4]) -> Heads:
    further = opened.config.further
    if further is None:
        raise GenerationError(
            f"{opened.folder} has no heads of further ids",
            do="train some on it: temaki train recipes/medusa.toml --from MODEL --text FILE",
        )
    if isinstance(further.heads, MedusaHeadsConfig):
        from temaki.compiled.medusa import MedusaHeads

        heads = MedusaHeads(opened.config, opened.weights(), 8 if bits is None else bits)
        return Heads(MedusaLooking(heads), executor.vocabulary)
    if isinstance(executor, Following):
        return Heads(executor.several, executor.vocabulary)
    from temaki.generate.torch_executor import TorchExecutor

    if not isinstance(executor, TorchExecutor) or executor.several is None:
        raise GenerationError("heads with blocks draft on an executor made to look ahead", do="see `looks_ahead`")
    return Heads(executor.several, executor.vocabulary)


def _same_tokenizer(drafting: Opened, opened: Opened) -> None:
    """Raise GenerationError where an id of one model may be another text to the other."""
    mine, theirs = opened.tokenizer, drafting.tokenizer
    if drafting.config.vocabulary != opened.config.vocabulary:
        raise GenerationError(
            f"{drafting.folder} cannot draft for {opened.folder}: it has another vocabulary",
            found=f"{drafting.config.vocabulary:,} ids",
            allowed=f"{opened.config.vocabulary:,} ids",
            do="take a draft model of the same tokenizer, or train one: recipes/draft.toml",
        )
    if mine is not None and theirs is not None and mine.fingerprint != theirs.fingerprint:
        raise GenerationError(
            f"{drafting.folder} cannot draft for {opened.folder}: it has another tokenizer",
            found=f"fingerprint {theirs.fingerprint[:12]}",
            allowed=f"fingerprint {mine.fingerprint[:12]}",
            do="take a draft model of the same tokenizer, or train one: recipes/draft.toml",
        )
