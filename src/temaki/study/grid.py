"""Which settings a sweep tries: a TOML file becomes combinations of dotted keys and values.

    seeds = [1, 2]
    [grid]
    "optim.lr" = [1e-3, 2e-3]
    "batch.tokens" = [512, 1024]
    [[list]]
    "optim.lr" = 4e-3
    "batch.tokens" = 256

Every combination of `[grid]`, then each table of `[[list]]`, each with every seed.
"""

import difflib
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.batches.config import DataConfig
from temaki.study import further, recipes
from temaki.train import run as runs

KEYS = ("seeds", "grid", "list")
MOST = 10_000
"""Runs in a sweep; more is a mistake."""
LONGEST = 120
"""Letters of a run's name."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder, in which only this run can be."""
    settings: Mapping[str, Any]
    """Dotted key -> value, the seed included where the sweep varies it."""
    recipe: Mapping[str, Any]
    """The recipe with them."""


def read(path: Path) -> list[dict[str, Any]]:
    """The combinations that a file asks for, in its order. Raises ConfigError naming the key that is wrong."""
    found = config_door.read_toml(path)
    for key in found:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(KEYS)}"
            raise ConfigError(f"{path}: {key}: unknown key; {hint}")
    made = [*_grid(path, found.get("grid")), *_list(path, found.get("list"))]
    if "seeds" in found:
        seeds = _values(path, "seeds", found["seeds"])
        made = [{**each, "seed": seed} for each in made or [{}] for seed in seeds]
    if not made:
        raise ConfigError(f"{path}: nothing to try", allowed="a [grid], a [[list]] or seeds")
    if len(made) > MOST:
        raise ConfigError(f"{path}: too many runs", found=str(len(made)), allowed=f"{MOST:,} at most")
    names = [named(each) for each in made]
    twice = _twice(names)
    if twice is not None:
        raise ConfigError(f"{path}: a combination stands there twice", found=twice)
    return made


def points(recipe: Mapping[str, Any], combinations: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The recipe with each combination laid over it, checked. Raises ConfigError naming the combination."""
    model = further.opened(recipe)
    found = []
    for settings in combinations:
        changes = [f"{key}={text(value)}" for key, value in settings.items()]
        try:
            made, _ = recipes.resolve(recipe, changes)
            made = {**made, "name": named(settings)}
            whole = further.with_model(made, model) if model is not None else made
            size = model.config.vocabulary if model is not None else recipes.vocabulary(recipes.data(made))
            runs.check_recipe(recipes.complete(whole, size))
        except ConfigError as error:
            what = f"{named(settings)}: {error.what}"
            raise ConfigError(what, found=error.found, allowed=error.allowed, do=error.do) from None
        found.append(Point(named(settings), dict(settings), made))
    return found


def named(settings: Mapping[str, Any]) -> str:
    """A folder's name that only these settings have.

    >>> named({"optim.lr": 0.003, "batch.tokens": 512, "optim.schedule.kind": "wsd"})
    'optim.lr-0.003_batch.tokens-512_optim.schedule.kind-wsd'
    >>> named({"optim.matrix": ["a", "b"]})
    'optim.matrix-3554d2b8'
    """
    whole = "_".join(f"{key}-{_slug(value)}" for key, value in settings.items())
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 9]}-{_hash(whole)}"


def _slug(value: Any) -> str:
    plain = str(value).lower() if isinstance(value, bool) else str(value).replace("e+", "e")
    return plain if re.fullmatch(r"[A-Za-z0-9._-]{1,40}", plain) and not isinstance(value, list) else _hash(value)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def text(value: Any) -> str:
    """A value as TOML writes it on one line.

    >>> text({"kind": "adamw", "rate": [1, 2.5, True]})
    '{ kind = "adamw", rate = [1, 2.5, true] }'
    """
    match value:
        case Mapping():
            return "{ " + ", ".join(f"{json.dumps(k) if '.' in k else k} = {text(v)}" for k, v in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(text(each) for each in value) + "]"
        case bool() | str():
            return json.dumps(value)
        case _:
            return repr(value)


def _grid(path: Path, found: Any) -> list[dict[str, Any]]:
    if found is None:
        return []
    table = _flat(path, "grid", found)
    columns = [_values(path, f"grid.{key}", values) for key, values in table.items()]
    return [dict(zip(table, each, strict=True)) for each in itertools.product(*columns)]


def _list(path: Path, found: Any) -> list[dict[str, Any]]:
    if found is None:
        return []
    if not isinstance(found, list) or not found or not all(isinstance(each, Mapping) for each in found):
        raise ConfigError(f"{path}: list: not a list of tables", found=str(found), do="write each as a [[list]] table")
    return [_flat(path, f"list.{i}", each) for i, each in enumerate(found)]


def _flat(path: Path, where: str, found: Any) -> dict[str, Any]:
    """Tables in tables as dotted keys. Raises ConfigError for one that is empty or names the run."""
    flat = _flattened(path, where, found)
    for key, do in (("name", "runs are named by their settings"), ("seed", "write seeds = [1, 2] at the top")):
        if key in flat:
            raise ConfigError(f"{path}: {where}.{key}: not for a sweep to set here", do=do)
    return flat


def _flattened(path: Path, where: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(f"{path}: {where}: not a table of dotted keys", found=str(found))
    flat: dict[str, Any] = {}
    for key, value in found.items():
        inner = _flattened(path, f"{where}.{key}", value) if isinstance(value, Mapping) else {"": value}
        flat.update({f"{key}.{rest}" if rest else key: each for rest, each in inner.items()})
    return flat


def _values(path: Path, where: str, found: Any) -> Sequence[Any]:
    """A list of different values. Raises ConfigError for anything else."""
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{path}: {where}: not a list of values", found=str(found), allowed="at least one value")
    twice = _twice([json.dumps(each, default=str) for each in found])
    if twice is not None:
        raise ConfigError(f"{path}: {where}: a value stands there twice", found=twice)
    return found


def _twice(words: Sequence[str]) -> str | None:
    """A word that stands there more than once."""
    return next((word for word, count in Counter(words).items() if count > 1), None)


def data_key(recipe: Mapping[str, Any]) -> str:
    """What tells the data of two recipes apart."""
    table: DataConfig = recipes.data(recipe)
    return _hash(config_door.mapping(table))
