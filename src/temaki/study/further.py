"""Training a model further: its shape, weights, tokenizer and way of speaking become a run's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.batches.data import Data
from temaki.batches.prepare import BOUNDARY, Prepared, Words
from temaki.checkpoint.speaking import Speaking
from temaki.formats import open as opener
from temaki.formats.opened import Opened
from temaki.model.count import flops_per_token
from temaki.study import recipes
from temaki.train.config import RunConfig

RECIPE: Mapping[str, Any] = {
    "name": "further",
    "optim": {"lr": 1e-4, "matrix": {"kind": "adamw"}, "schedule": {"warmup": 2}},
    "batch": {"tokens": 2048, "context": 512},
    "stop": {"steps": 100},
    "watch": {"validate": 25},
    "save": {"every": 50},
}
"""What is done where no recipe is given: a small rate, few steps; `recipes/further.toml` is the same.

AdamW for matrices too: models made elsewhere were trained by it, and Muon's steps cost a small batch as much as its
gradients do (SmolLM2's matrices: 1.5 TFLOP an update by counting, 0.8 GFLOP an id of training).
"""


def begins(found: Mapping[str, Any]) -> Path | None:
    """The model that a recipe begins with; None where it begins otherwise."""
    begin = found.get("begin")
    if not isinstance(begin, Mapping) or begin.get("kind") != "model" or not isinstance(begin.get("path"), str):
        return None
    return Path(begin["path"])


def opened(found: Mapping[str, Any]) -> Opened | None:
    """The model that a recipe begins with, opened. Raises ConfigError for one that has no tokenizer."""
    path = begins(found)
    if path is None:
        return None
    model = opener.open(path)
    if model.tokenizer is None:
        raise ConfigError(
            f"{path} has no tokenizer, so no text can be made ids for it", do="put its tokenizer beside it"
        )
    return model


def with_model(found: Mapping[str, Any], model: Opened) -> dict[str, Any]:
    """The recipe with the model's own shape in its [model] table; heads of further ids follow from the objective.

    Raises ConfigError for a recipe that asks for another shape or another tokenizer.
    """
    config = replace(model.config, context=model.context, further=None)
    made = {**found, "model": config_door.mapping(config)}
    if "model" in found:
        asked = recipes.complete(found, config.vocabulary).model
        if replace(asked, context=config.context, further=None) != config:
            raise ConfigError(
                f"[model] is not the shape of {model.folder}", do="leave [model] out: it is taken from there"
            )
    if recipes.data(found).tokenizer is not None:
        raise ConfigError("a model that is trained further has its own tokenizer", do="leave data.tokenizer out")
    return made


def dialled(
    found: Mapping[str, Any],
    changes: Sequence[str],
    minutes: float | None,
    depth: int | None,
    measure: Callable[[], float],
) -> dict[str, Any]:
    """The recipe with as many steps as `minutes` hold at the FLOP/s that `measure` gives, but more than its warmup;
    None: as it is.

    Raises ConfigError for a depth: the model has its own.
    """
    if depth is not None:
        raise ConfigError("--depth is for a new model; this one has its depth", do="leave --depth out")
    model = opened(config_door.override(found, changes)) if minutes is not None else None
    if model is None or minutes is None:
        return dict(found)
    made = config_door.merge(found, {"stop": {"steps": 1}})
    config = recipes.complete(with_model(config_door.override(made, changes), model), model.config.vocabulary)
    cost = flops_per_token(config.model, config.batch.context) * config.batch.tokens
    steps = max(config.optim.schedule.warmup + 1, int(minutes * 60 * measure() / cost))
    return config_door.merge(found, {"stop": {"steps": steps, "minutes": minutes}})


def words(model: Opened) -> Words:
    """The tokenizer of a model, its frame and its chat template."""
    assert model.framed is not None, "checked by `opened`"
    return Words(*model.framed, model.chat)


def spoken(config: RunConfig, data: Prepared, model: Opened | None) -> RunConfig:
    """The configuration with how the run's model will want to be asked, where that is not the usual way.

    A model that is trained further keeps its ways; the boundary between documents ends an answer too.
    """
    boundary = data.train.manifest.boundary
    usual = data.tokenizer.special.get(BOUNDARY) == boundary
    if config.generation is not None or (usual and (model is None or model.speaking == Speaking())):
        return config
    before = model.speaking if model is not None else Speaking()
    stop = tuple(dict.fromkeys([*before.stop, boundary]))
    return replace(config, generation=replace(before, front=before.front or (boundary,), stop=stop))


def same_words(data: Data, model: Opened) -> None:
    """Raise ConfigError if shards were made with another tokenizer than the model's."""
    assert model.tokenizer is not None, "checked by `opened`"
    if data.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise ConfigError(
            f"{data.folder} was made with another tokenizer than that of {model.folder}",
            do="leave data.shards out and give the text (--text), or choose a model of this very task",
        )
