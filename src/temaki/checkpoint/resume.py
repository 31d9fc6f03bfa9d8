"""`--resume auto`: the newest whole checkpoint of a run, and what is not as it was when it was saved.

Another machine only costs the bit-for-bit promise and is a warning; another tokenizer or other shards would
train a different model on different data and are an error. A changed recipe is listed and refused, but for
what does not change what is learned and what is allowed by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base.errors import CheckpointError, RunError
from temaki.checkpoint.store import Checkpoint, Manifest, Store


@dataclass(frozen=True)
class Change:
    """A key that is not as it was; None: it is not there."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True)
class Resume:
    """Where a run goes on, and what to tell its user first."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]
    """Newer checkpoints that were passed over: one message each."""
    machine: tuple[Change, ...]
    """Differences of the machine; with any of them the resumed run is not the uninterrupted one bit for
    bit."""
    recipe: tuple[Change, ...]
    """Differences of the configuration, as dotted keys."""
    keys: tuple[str, ...]
    """All dotted keys of the configuration, then and now."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should read, a line or a few each."""
        passed = tuple(f"a damaged checkpoint was passed over: {message}" for message in self.damaged)
        if not self.machine:
            return passed
        listed = "; ".join(map(str, self.machine))
        return (
            *passed,
            f"this machine is not the one of the save, so bits may differ from there on: {listed}",
        )


def auto(
    run: Path,
    settings: Mapping[str, Any],
    machine: Mapping[str, str | int | bool],
    tokenizer: str,
    shards: str,
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: found,
) -> Resume | None:
    """The checkpoint a run folder goes on from, or None where nothing was ever saved.

    `settings` is the recipe now, `machine` what this process computes with, `tokenizer` and `shards` the
    fingerprints of the data at hand; `complete` gives a saved recipe the defaults of keys that came later. Raises
    CheckpointError if all checkpoints are damaged or a fingerprint is another.
    """
    newest = Store(run / "checkpoints").newest()
    if newest.checkpoint is None:
        if newest.damaged:
            raise CheckpointError(f"no checkpoint in {run} is whole:\n" + "\n".join(newest.damaged))
        return None
    check(newest.checkpoint.manifest, tokenizer, shards)
    before = complete(newest.checkpoint.settings())
    return Resume(
        checkpoint=newest.checkpoint,
        damaged=newest.damaged,
        machine=tuple(changes(newest.checkpoint.manifest.machine, machine)),
        recipe=tuple(changes(before, settings)),
        keys=tuple({**_leaves(before), **_leaves(settings)}),
    )


def permit(found: Resume | None, free: Sequence[str], allowed: Sequence[str], warn: Callable[[str], None]) -> None:
    """Raise RunError for a recipe that is not that of the save, but for the keys `free` and those `allowed` by name.

    A name is a key or a table of keys. `warn` hears what is let through, and names that the recipe does not have.
    """
    if found is None:
        return
    for name in allowed:
        if not any(_under(key, name) for key in found.keys):
            warn(f"--allow-change {name} allows nothing: the recipe has no such key")
    counted = [change for change in found.recipe if not any(_under(change.key, name) for name in free)]
    refused = [change for change in counted if not any(_under(change.key, name) for name in allowed)]
    if refused:
        raise RunError(
            "the recipe is not that of the save, so what goes on would not be this run; nothing was changed",
            found="\n         ".join(map(str, refused)),
            do="give the run its own recipe back, or allow it: --allow-change "
            + ",".join([*allowed, *(change.key for change in refused)]),
        )
    if counted:
        warn("the recipe is not that of the save, as allowed: " + "; ".join(map(str, counted)))


def _under(key: str, name: str) -> bool:
    return key == name or key.startswith(name + ".")


def check(manifest: Manifest, tokenizer: str, shards: str) -> None:
    """Raise CheckpointError if the tokenizer or the shards are not those the checkpoint was trained with."""
    for what, old, new in (("tokenizer", manifest.tokenizer, tokenizer), ("shards", manifest.shards, shards)):
        if old != new:
            raise CheckpointError(
                f"step {manifest.step} was trained with another {what}",
                found=f"fingerprint {new}",
                allowed=f"fingerprint {old}",
                do=f"give the run its own {what} back, or start a new run",
            )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two nested mappings, as dotted keys in the order of `old`, then of `new`.

    >>> [str(change) for change in changes({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2, "c": [1]}})]
    ['a.b: 1 -> 2', 'a.c.1: 2 -> absent']
    """
    before, after = _leaves(old), _leaves(new)
    found = []
    for key in dict.fromkeys([*before, *after]):
        if key not in before or key not in after or not _same(before[key], after[key]):
            found.append(Change(key, before.get(key), after.get(key)))
    return found


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value; an empty table or list is a value."""
    if isinstance(value, Mapping) and value:
        pairs = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple) and value:
        pairs = [(str(place), inner) for place, inner in enumerate(value)]
    else:
        return {path: value} if path else {}
    return {
        key: leaf for name, inner in pairs for key, leaf in _leaves(inner, f"{path}.{name}" if path else name).items()
    }


def _same(old: Any, new: Any) -> bool:
    """Equal, and no truth value beside a number."""
    return old == new and isinstance(old, bool) == isinstance(new, bool)


def _shown(value: Any) -> str:
    return "absent" if value is None else repr(value)
