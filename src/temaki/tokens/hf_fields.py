"""Reading the parts of a tokenizer.json strictly: what is not understood is refused by its name, never passed over."""

from collections.abc import Mapping, Sequence
from typing import Any

from temaki.base.errors import TokenizerError

CONFIG = "tokenizer_config.json"
"""The file beside tokenizer.json that says how `transformers` uses it, and what special tokens are for."""
ANY = object()
"""An allowed value that stands for all."""


def part(found: object, where: str) -> dict[str, Any]:
    """A part of the file that is a mapping. Raises TokenizerError."""
    if not isinstance(found, dict):
        raise TokenizerError(f"{where} is no mapping", found=f"{found!r:.60}")
    return found


def kind(found: object, where: str) -> str:
    """The type that a part says it has, "" for null. Raises TokenizerError."""
    if found is None:
        return ""
    name = part(found, where).get("type")
    if not isinstance(name, str):
        raise TokenizerError(f"{where} does not say its type", found=f"{found!r:.60}")
    return name


def only(found: Mapping[str, Any], where: str, **allowed: Sequence[object]) -> None:
    """Refuse a part with a field that is not allowed, or with a value that is not. Raises TokenizerError.

    A field that is left out has its first allowed value.
    """
    for name, value in found.items():
        if name == "type":
            continue
        if name not in allowed:
            raise TokenizerError(f"{where} has a field that is not known: {name}", found=f"{value!r:.60}")
        values = allowed[name]
        if ANY not in values and not any(type(value) is type(one) and value == one for one in values):
            names = ", ".join(map(repr, values))
            raise TokenizerError(f"{where}.{name} is not supported", found=f"{value!r:.60}", allowed=names)


def listed(found: object, where: str) -> list[Any]:
    """A part that is a list. Raises TokenizerError."""
    if not isinstance(found, list):
        raise TokenizerError(f"{where} is no list", found=f"{found!r:.60}")
    return found


def flattened(found: object, where: str, inner: str) -> list[dict[str, Any]]:
    """The steps of a part that may be null, one step, or a Sequence of them (in the field `inner`)."""
    name = kind(found, where)
    if not name:
        return []
    step = part(found, where)
    if name != "Sequence":
        return [step]
    only(step, where, **{inner: [ANY]})
    steps = listed(step.get(inner), f"{where}.{inner}")
    return [deeper for place, each in enumerate(steps) for deeper in flattened(each, f"{where} {place}", inner)]
