"""Configuration: frozen dataclasses <-> plain mappings <-> TOML.

One door in: `read(type, mapping)`. A settings class is a keyword-only frozen dataclass made by `@settings`;
pydantic checks it strictly, through JSON, so that a list may fill a tuple and an integer a float, and
nothing else is coerced. TOML has no null: `None` can only be a default, and `mapping` leaves it out.
"""

import dataclasses
import datetime
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import tomli_w
from pydantic import ConfigDict, TypeAdapter, ValidationError

from temaki.base.errors import ConfigError

T = TypeVar("T")

DEEPEST = 64
"""Tables in tables that are looked into; deeper ones are refused when they are read."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen keyword-only dataclass that refuses unknown keys and loose types."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # type: ignore[attr-defined]
    return made


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(kind: type[T], found: Mapping[str, Any], *, where: str = "") -> T:
    """Build a settings class (or a union of them) from a plain mapping.

    A table without `kind` is of the kind of its field's default, if there is one. `where` names the source in messages
    (a file). Raises ConfigError naming the key's full path, what was found and what is allowed; an unknown key is
    answered with the nearest known one.
    """
    try:
        text = _json(_kinds_filled(kind, found), where)
        return cast(T, _adapter(kind).validate_json(text, strict=True))
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def mapping(value: Any) -> dict[str, Any]:
    """The plain mapping of a settings object: nested defaults filled in, `None` left out."""
    return _adapter(type(value)).dump_python(value, mode="json", exclude_none=True)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises ConfigError for a missing, unreadable or malformed one."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}", do="give the path of a .toml recipe (see recipes/)") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a recipe", do="give the path of a .toml file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of the syntax, of the encoding, or of a number with thousands of digits
        raise ConfigError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None


def toml(found: Mapping[str, Any]) -> str:
    """The TOML text of a plain mapping."""
    return tomli_w.dumps(found)


def override(found: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """A copy of a mapping with dotted changes applied: `model.depth=8`, `model.pattern.0.mixer.kind=s4d`.

    A value is read as TOML, and as plain text where it is no TOML (`name=first`). A change of `kind` drops
    the keys of the old variant. Raises ConfigError for a change that is not KEY=VALUE or passes through
    something that is no table.
    """
    result = json.loads(_json(found, ""))
    for change in changes:
        key, sign, text = change.partition("=")
        key = key.strip()
        if not sign or not key or any(not part for part in key.split(".")):
            raise ConfigError(f"override {change!r} is not KEY=VALUE", do="write it as model.depth=8")
        _put(result, key.split("."), _value(text), change)
    return result


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the tables of `over` laid over those of `under`, key by key; a new `kind` replaces the
    table."""
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and old.get("kind") == value.get("kind", old.get("kind"))
        ):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _json(found: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or 'configuration'}: a value that TOML and JSON do not share: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where or 'configuration'}: nested too deeply") from None


def _value(text: str) -> Any:
    """What stands right of the sign; a date, or more than one value, is plain text."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    plain = len(found) > 1 or isinstance(found["value"], datetime.date | datetime.time)
    return text.strip() if plain else found["value"]


def _put(table: Any, path: Sequence[str], value: Any, change: str) -> None:
    for depth, part in enumerate(path[:-1]):
        table = _step(table, part, ".".join(path[: depth + 1]), change)
    last = path[-1]
    if isinstance(table, list):
        table[_index(table, last, ".".join(path), change)] = value
    elif isinstance(table, dict):
        if last == "kind" and table.get("kind") not in (None, value):
            table.clear()
        table[last] = value
    else:
        raise ConfigError(f"override {change!r}: {'.'.join(path[:-1])} is a value, not a table")


def _step(table: Any, part: str, path: str, change: str) -> Any:
    if isinstance(table, list):
        return table[_index(table, part, path, change)]
    if isinstance(table, dict):
        return table.setdefault(part, {})
    raise ConfigError(f"override {change!r}: {path} passes through a value that is not a table")


def _index(table: list[Any], part: str, path: str, change: str) -> int:
    if part.isascii() and part.isdigit() and int(part) < len(table):
        return int(part)
    raise ConfigError(
        f"override {change!r}: {path} is not a place in the list",
        found=part,
        allowed=f"0 to {len(table) - 1}",
    )


def _explain(kind: Any, error: ValidationError, where: str) -> ConfigError:
    details = error.errors(include_url=False)
    lines = [_line(kind, detail) for detail in details if not _follows(detail, details)]
    unique = list(dict.fromkeys(lines))
    head = f"{where}: " if where else ""
    if len(unique) == 1:
        return ConfigError(head + unique[0])
    return ConfigError(head + f"{len(unique)} settings are wrong:\n  " + "\n  ".join(unique))


def _follows(detail: Any, details: Sequence[Any]) -> bool:
    """A list called too short only because its items are wrong, which is told anyway."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in details
    )


def _line(kind: Any, detail: Any) -> str:
    loc = tuple(detail["loc"])
    owner, path = _walk(kind, loc[:-1] if loc else ())
    name = str(loc[-1]) if loc else ""
    full = ".".join([*path, name]) if name else "the whole table"
    found = detail["input"]
    match detail["type"]:
        case "unexpected_keyword_argument":
            known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
            return f"{full}: unknown key; {hint}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{full}: missing; give it a value"
        case "union_tag_invalid":
            _, here = _walk(kind, loc)
            key = ".".join([*here, "kind"])
            return f"{key}: unknown kind {detail['ctx']['tag']!r}; allowed: {detail['ctx']['expected_tags']}"
        case "union_tag_not_found":
            union, here = _walk(kind, loc)
            tags = ", ".join(repr(tag) for choice in _choices(union) for tag in _tags(choice))
            return f"{'.'.join([*here, 'kind'])}: missing; it says which variant the table is; allowed: {tags}"
        case "value_error" | "assertion_error":
            _, here = _walk(kind, loc)
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            return f"{'.'.join(here)}: {message}" if here else message
        case _:
            _, here = _walk(kind, loc)
            return f"{'.'.join(here) or 'the whole table'}: {detail['msg']}; found: {_short(found)}"


def _kinds_filled(kind: Any, found: Any, deep: int = 0) -> Any:
    """The mapping with the `kind` of each table that leaves it out and whose field has a default."""
    if not isinstance(found, Mapping) or deep > DEEPEST:
        return found
    owner = _variant(kind, found)
    if owner is None:
        return found
    filled = dict(found)
    for field in dataclasses.fields(owner):
        value = found.get(field.name)
        inner = _hints(owner)[field.name]
        if isinstance(value, Mapping):
            default = field.default
            if "kind" not in value and dataclasses.is_dataclass(default) and "kind" in vars(default):
                value = {"kind": vars(default)["kind"], **value}
            filled[field.name] = _kinds_filled(inner, value, deep + 1)
        elif isinstance(value, list | tuple):
            items = [_kinds_filled(_inside(_choices(inner), i), item, deep + 1) for i, item in enumerate(value)]
            filled[field.name] = items
    return filled


def _variant(kind: Any, found: Mapping[str, Any]) -> Any:
    """The dataclass a table is read as, None where that is not clear."""
    classes = [choice for choice in _choices(kind) if dataclasses.is_dataclass(choice)]
    if len(classes) > 1:
        classes = [choice for choice in classes if found.get("kind") in _tags(choice)]
    return classes[0] if len(classes) == 1 else None


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _walk(kind: Any, loc: Sequence[int | str]) -> tuple[Any, list[str]]:
    """Follow a pydantic location through dataclasses, dropping union tags: (type there, path as the user
    wrote it)."""
    path: list[str] = []
    here: Any = kind
    for part in loc:
        choices = _choices(here)
        tagged = [choice for choice in choices if part in _tags(choice)]
        if len(choices) > 1 and tagged:
            here = tagged[0]
        else:
            path.append(str(part))
            here = _inside(choices, part)
    classes = [choice for choice in _choices(here) if dataclasses.is_dataclass(choice)]
    return (classes[0] if len(classes) == 1 else here), path


def _choices(kind: Any) -> list[Any]:
    """What a type may be: through Annotated and unions."""
    if get_origin(kind) is Annotated:
        return _choices(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [choice for member in get_args(kind) for choice in _choices(member)]
    return [kind]


def _tags(kind: Any) -> tuple[str, ...]:
    if not dataclasses.is_dataclass(kind):
        return ()
    hints = _hints(kind)
    return tuple(str(tag) for tag in get_args(hints["kind"])) if "kind" in hints else ()


def _inside(choices: Sequence[Any], part: int | str) -> Any:
    """The type of a field, of a list's item or of a table's value."""
    for choice in choices:
        inner = [argument for argument in get_args(choice) if argument is not Ellipsis]
        if dataclasses.is_dataclass(choice) and part in _hints(choice):
            return _hints(choice)[str(part)]
        if isinstance(part, int) and get_origin(choice) is tuple:
            return inner[min(part, len(inner) - 1)]
        if isinstance(part, str) and get_origin(choice) in (Mapping, dict):
            return inner[1]
    return Any


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
