"""What a recipe will need, before anything is trained: files, memory, steps, time."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base.errors import DataError
from temaki.batches import data as batches
from temaki.batches import prepare
from temaki.batches.loader import Loader
from temaki.model.count import count, flops_per_token
from temaki.study import dial, further, recipes, trackers
from temaki.tokens import files
from temaki.train import room
from temaki.train import run as runs
from temaki.train.config import freezes
from temaki.train.room import Room


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
    room: Room
    """Memory of a training step."""
    memory_bytes: int
    """The same in all."""
    free_bytes: int | None
    """What this process could get now; None where the system does not say."""
    seconds: float
    speed: float
    """FLOP/s that training reaches here."""


def estimate(found: Mapping[str, Any]) -> Estimate:
    """Check a recipe and its files, and count what it will cost. Raises ConfigError or DataError."""
    model = further.opened(found)
    if model is not None:
        found = further.with_model(found, model)
    table = recipes.data(found)
    config = recipes.complete(found, batches.size(table))
    runs.check_recipe(config)
    trackers.check(config.watch.trackers)
    documents, size = 0, 0
    if table.task is not None:
        with tempfile.TemporaryDirectory() as folder:
            exercises = batches.make(table, Path(folder) / "data", lambda *_: None)
            config = recipes.complete(found, exercises.tokenizer.size)
            runs.check(config, exercises)
    elif table.shards is not None:
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
    free = devices.available(devices.choose(config.parallel.device))
    needed = room.check(config, free)
    speed = dial.measure()
    tokens = config.stop.steps * config.batch.tokens
    seconds = tokens * flops_per_token(config.model, config.batch.context, freezes(config.objective)) / speed
    if config.stop.minutes is not None:
        seconds = config.stop.minutes * 60
    if config.stop.max_minutes is not None:
        seconds = min(seconds, config.stop.max_minutes * 60)
    return Estimate(
        recipe=config_door.mapping(config), documents=documents, text_bytes=size,
        parameters=count(config.model).total, steps=config.stop.steps, tokens=tokens, room=needed,
        memory_bytes=int(needed.total), free_bytes=free, seconds=seconds, speed=speed,
    )  # fmt: skip


def table(found: Estimate) -> str:
    """The estimate as lines."""
    free = f"; {found.free_bytes / 1e9:.1f} GB are free" if found.free_bytes is not None else ""
    parts = {"weights": found.room.weights, "gradients": found.room.gradients, "optimizer": found.room.optimizer}
    parts |= {"activations": found.room.activations, "update": found.room.update}
    memory = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return "\n".join(
        [
            f"text      {found.documents} training documents, {found.text_bytes / 1e6:.2f} MB"
            if found.documents
            else f"task      {found.recipe['data']['task']['kind']}: examples without end or pictures",
            f"model     {found.parameters:,} parameters",
            f"memory    about {found.memory_bytes / 1e9:.2f} GB at once ({memory}){free}",
            f"steps     {found.steps:,} ({found.tokens:,} ids)",
            f"time      about {found.seconds / 60:.1f} minutes at {found.speed / 1e9:.0f} GFLOP/s",
            "valid; nothing was trained",
        ]
    )
