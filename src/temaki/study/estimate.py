"""What a recipe will need, before anything is trained: files, memory, steps, time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base.errors import ConfigError, DataError
from temaki.batches import prepare
from temaki.batches.loader import Loader
from temaki.model.count import count, flops_per_token, training_bytes
from temaki.study import dial, further, recipes
from temaki.tokens import files
from temaki.train import run as runs


@dataclass(frozen=True)
class Estimate:
    """A recipe, checked, and its cost."""

    recipe: dict[str, Any]
    """Resolved, with all defaults."""
    documents: int
    text_bytes: int
    parameters: int
    steps: int
    tokens: int
    memory_bytes: int
    """Of a training step: weights, gradients, moments, activations."""
    machine_bytes: int
    """Of this machine; 0 where the system does not say."""
    seconds: float
    speed: float
    """FLOP/s that training reaches here."""


def estimate(found: Mapping[str, Any]) -> Estimate:
    """Check a recipe and its files, and count what it will cost. Raises ConfigError or DataError."""
    model = further.opened(found)
    if model is not None:
        found = further.with_model(found, model)
    table = recipes.data(found)
    config = recipes.complete(found, table.vocabulary)
    runs.check_recipe(config)
    if table.shards is not None:
        data = prepare.open_prepared(Path(table.shards))
        config = recipes.complete(found, data.tokenizer.size)
        runs.check(config, data)
        Loader(data.train, config.batch.context, config.seed)
        documents, size = data.train.manifest.documents, data.train.manifest.bytes
    else:
        framed = files.load_framed(table.tokenizer) if table.tokenizer is not None else None
        framed = model.framed if model is not None else framed
        if framed is not None:
            tokenizer, frame = framed
            prepare.boundary(tokenizer, frame, table.boundary)
            config = recipes.complete(found, tokenizer.size)
        train, _, _ = prepare.read_documents(table)
        documents, size = len(train), sum(len(document.text.encode()) for document in train)
        if size + documents <= config.batch.context:  # no tokenizer makes more ids than bytes
            raise DataError(
                "the text is too short for one row",
                found=f"{size} bytes",
                allowed=f"more than batch.context ({config.batch.context}) ids",
                do="give more text or a smaller batch.context",
            )
    speed = dial.measure()
    tokens = config.stop.steps * config.batch.tokens
    needed = training_bytes(config.model, config.batch.micro or config.batch.tokens)
    memory = devices.memory()
    if memory and needed > memory:
        raise ConfigError(
            "the model will not fit in this machine's memory",
            found=f"about {needed / 1e9:.1f} GB needed", allowed=f"{memory / 1e9:.1f} GB",
            do="lower model.width, model.depth, batch.micro or batch.context",
        )  # fmt: skip
    seconds = tokens * flops_per_token(config.model, config.batch.context) / speed
    if config.stop.minutes is not None:
        seconds = config.stop.minutes * 60
    return Estimate(
        recipe=config_door.mapping(config), documents=documents, text_bytes=size,
        parameters=count(config.model).total, steps=config.stop.steps, tokens=tokens, memory_bytes=needed,
        machine_bytes=memory, seconds=seconds, speed=speed,
    )  # fmt: skip


def table(found: Estimate) -> str:
    """The estimate as lines."""
    memory = f" of {found.machine_bytes / 1e9:.1f} GB" if found.machine_bytes else ""
    return "\n".join(
        [
            f"text      {found.documents} training documents, {found.text_bytes / 1e6:.2f} MB",
            f"model     {found.parameters:,} parameters",
            f"memory    about {found.memory_bytes / 1e9:.2f} GB{memory}",
            f"steps     {found.steps:,} ({found.tokens:,} ids)",
            f"time      about {found.seconds / 60:.1f} minutes at {found.speed / 1e9:.0f} GFLOP/s",
            "valid; nothing was trained",
        ]
    )
