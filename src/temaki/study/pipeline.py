"""From a recipe to a trained and measured model: the steps of the main job, each a function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base import dist, files
from temaki.base.dist import ALONE, World
from temaki.batches import data as batches
from temaki.batches import prepare
from temaki.batches.data import Data
from temaki.batches.prepare import Prepared, Progress, Words
from temaki.batches.tasks_data import Exercises
from temaki.checkpoint import resume as resume_door
from temaki.checkpoint import store
from temaki.corpus import sources
from temaki.evaluate import answered, loss, yardsticks
from temaki.evaluate.answered import Answered
from temaki.evaluate.loss import Score
from temaki.evaluate.yardsticks import Measuring
from temaki.formats import open as opener
from temaki.generate import text
from temaki.generate.config import SamplingConfig
from temaki.generate.torch_executor import TorchExecutor
from temaki.model.build import Model
from temaki.study import ahead, asking, dial, further, recipes, trackers
from temaki.study import hooks as study_hooks
from temaki.study.asking import tokenizer_of
from temaki.train import objectives, parallel, room
from temaki.train import run as runs
from temaki.train.config import BeginConfig, FromModelConfig, RunConfig
from temaki.train.hooks import Hook
from temaki.train.run import Outcome

SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, repetition_penalty=1.1, max_tokens=120)
"""How a run shows what it has learned."""


@dataclass(frozen=True)
class Ready:
    """A recipe whose data are made and whose configuration is whole."""

    config: RunConfig
    folder: Path
    data: Data
    tokenizer: Path
    """The folder of the tokenizer that travels with the run's checkpoints."""


def quiet(_what: str, _done: int, _of: int) -> None:
    """No progress shown."""


def ready(found: Mapping[str, Any], folder: Path, progress: Progress = quiet) -> Ready:
    """Prepare the data in `folder`/data (or open what is there) and complete the configuration.

    The recipe is checked before any work: raises ConfigError first. Data of a run that have begun are used as they are;
    what an attempt that never began left behind is made anew. A recipe that begins with a model takes shape and
    tokenizer from it, once: a run that has begun has them itself. Of several processes the main one prepares.
    """
    world = dist.meet()
    anew = not (folder / "config.toml").exists()
    model = further.opened(found) if anew else None
    if model is not None:
        found = further.with_model(found, model)
    table = recipes.data(found)
    wanted = recipes.complete(found, batches.size(table))
    runs.check_recipe(wanted)
    parallel.check(wanted, world)
    trackers.check(wanted.watch.trackers)
    world.first(lambda: fits(wanted, world))
    given = further.words(model) if model is not None else None
    place = world.first(lambda: str(batches.make(table, folder / "data", progress, anew, given).folder))
    data = batches.open_data(Path(place))
    if model is not None:
        further.same_words(data, model)
    config = recipes.complete(found, data.tokenizer.size)
    if not isinstance(data, Exercises):
        config = further.spoken(config, data, model)
    runs.check(config, data)
    own = given if table.shards is not None else None
    return Ready(config, folder, data, Path(world.first(lambda: str(_travelling(folder, data, own)))))


def _travelling(folder: Path, data: Data, given: Words | None) -> Path:
    """Where the tokenizer lies that travels with checkpoints: beside the shards, or in the run where it is `given`."""
    own = folder / "tokenizer"
    if given is not None:
        given.save(own)
    return own if own.exists() else data.folder / "tokenizer"


def fits(config: RunConfig, world: World = ALONE) -> None:
    """Raise ConfigError for a run that one of these processes has no memory for."""
    parallel = config.parallel
    device = devices.choose(parallel.device)
    free, replicas = devices.available(device), max(1, world.size // parallel.tensor)
    if free is not None and devices.on_host(torch.empty(0, device=device)):
        free //= world.here
    shards = replicas if parallel.data == "shard" else 1
    room.check(config, free, shards, parallel.tensor, replicas)


def train(
    made: Ready,
    resuming: Literal["never", "auto"] = "never",
    hooks: Sequence[Hook] = (),
    warn: Callable[[str], None] = lambda _: None,
    allow: Sequence[str] = (),
) -> Outcome:
    """Train, validating and reporting on the recipe's cadence; `hooks` come on top.

    `allow`: keys that may differ from the save that a run goes on from.
    """
    watch = made.config.watch
    own: list[Hook] = [_judge(made.config, made.data)]
    if watch.sample is not None:
        text_data = batches.text(made.data)
        own.append(study_hooks.Sample(watch.sample, text_data, prompts(text_data), SAMPLING))
    if made.config.model.further is not None:
        own.append(ahead.Agreement(watch.validate, batches.text(made.data)))
    own += [study_hooks.Report(), *trackers.trackers(watch.trackers)]
    begin = _loading(made.config.begin)
    hung = [*own, *hooks]
    return runs.start(made.config, made.folder, made.data, hung, resuming, warn, begin, made.tokenizer, allow)


def _judge(config: RunConfig, data: Data) -> Hook:
    """What judges a run on held-out data."""
    watch = config.watch
    if isinstance(data, Exercises):
        return study_hooks.ValidateTask(watch.validate, data, watch.validate_tokens)
    judge = study_hooks.Validate if objectives.says_next(config.objective) else study_hooks.ValidateObjective
    return judge(watch.validate, data, watch.validate_tokens)


def _loading(begin: BeginConfig) -> Callable[[Model], None] | None:
    """What loads the weights of the model that a run begins with; None where it begins otherwise."""
    path = begin.path if isinstance(begin, FromModelConfig) else None
    return None if path is None else lambda model: opener.open(path).fill(model)


def prompts(data: Prepared) -> list[str]:
    """Three beginnings: nothing, and the first lines of two held-out documents."""
    found = [""]
    for each in prepare.texts(data.held, data.tokenizer):
        lines = each.decode("utf-8", "replace").split("\n")
        start = next((i for i, line in enumerate(lines) if line.strip()), None)
        if start is not None:
            found.append("\n".join(lines[start : start + 3])[:160])
        if len(found) == 3:
            break
    return found


def yards(data: Prepared, folder: Path) -> Measuring:
    """Begin to measure the yardsticks of the data's two texts, in a process of its own."""
    paths = [folder / f"{name}.bin" for name in ("train", "held")]
    for path, split in zip(paths, (data.train, data.held), strict=True):
        with files.writing(path) as file:
            for each in prepare.texts(split, data.tokenizer):
                file.write(each)
    return yardsticks.start(*paths)


def score(model: Model, data: Prepared, context: int, progress: Callable[[int], None] | None = None) -> Score:
    """Bits per byte on all held-out documents, in windows of `context` that move by half of it."""
    held = data.held
    documents = (held.document(i) for i in range(held.manifest.documents))
    return loss.score(model, documents, held.manifest.bytes, context, progress=progress)


def score_text(opened: opener.Opened, model: Model, where: Path, context: int, progress: Progress = quiet) -> Score:
    """Bits per byte of any model on a file or folder of text, each document between two boundaries: what begins a
    prompt of the model, else what stands between documents of its tokenizer.
    """
    tokenizer = tokenizer_of(opened)
    frame = opened.framed[1] if opened.framed is not None else None
    between = np.array(opened.speaking.front[:1] or [prepare.boundary(tokenizer, frame)], np.int64)
    texts = [document.text for document in sources.files(where, "strict")]
    ids = tokenizer.encode_batch(texts)
    documents = (np.concatenate([between, each]) for each in np.split(ids.ids.astype(np.int64), ids.offsets[1:-1]))
    size, total = sum(len(each.encode()) for each in texts), len(ids.ids) + len(texts)
    return loss.score(model, documents, size, context, progress=lambda done: progress("evaluating: ids", done, total))


def continuations(model: Model, data: Prepared, seed: int) -> list[dict[str, str]]:
    """A continuation of each of `prompts`."""
    beginnings = prompts(data)
    ends = study_hooks.ends(data)
    executor = TorchExecutor(model, len(beginnings), text.room(data.tokenizer, beginnings, SAMPLING, ends))
    found = text.complete(executor, data.tokenizer, beginnings, SAMPLING, seed=seed, ends=ends)
    return [{"prompt": beginnings[each.index], "text": each.text} for each in found]


def data_of(config: RunConfig, run: Path) -> Data:
    """The data a run was trained on."""
    return batches.open_data(Path(config.data.shards) if config.data.shards is not None else run / "data")


def same_data(opened: opener.Opened, data: Data) -> None:
    """Raise CheckpointError if a checkpoint was not trained with this tokenizer and these shards."""
    manifest = store.open(opened.folder).manifest
    resume_door.check(manifest, data.tokenizer.fingerprint, data.fingerprint)


def answers(model: Model, data: Exercises, config: RunConfig, rows: int, progress: Progress = quiet) -> Answered:
    """How a model answers a task: in all held-out pictures, or in so many rows that no run has seen."""
    context = config.batch.context
    data.check(context)
    held = data.held(context, "fresh")
    of = held.rows or rows
    said = "answering: rows"
    return answered.judge(model, held, context, of, config.batch.micro_rows, lambda done: progress(said, done, of))


def scored(found: Score, step: int | None, context: int) -> dict[str, Any]:
    """A score as `results.json` keeps it."""
    return {
        "step": step, "bits_per_byte": found.bits_per_byte, "loss": found.loss, "perplexity": found.perplexity,
        "bytes": found.bytes, "tokens": found.tokens, "context": context, "stride": max(1, context // 2),
    }  # fmt: skip


def answered_table(found: Answered, step: int | None, data: Exercises) -> dict[str, Any]:
    """A task's answers as `results.json` keeps them."""
    return {
        "step": step, "accuracy": found.accuracy, "loss": found.loss, "answers": found.asked,
        "chance": 1 / data.answers,
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Results as lines: the model beside the yardsticks."""
    lines = [f"{found['bytes']:,} bytes, {found['tokens']:,} ids, windows of {found['context']}"]
    named = {"bits_per_byte": "this model", "zstd": "zstd -22, window over all", "ppmd": "PPMd H, order 8"}
    lines += [f"{found[key]:7.4f} bits per byte  {name}" for key, name in named.items() if key in found]
    lines.append(f"loss {found['loss']:.4f} nats an id, perplexity {found['perplexity']:.2f}")
    return "\n".join(lines)


def results(folder: Path, **found: Any) -> dict[str, Any]:
    """Add what was found to the run's `results.json`, and give all of it."""
    path = folder / "results.json"
    before = files.read_json(path) if path.exists() else {}
    files.write_json(path, {**before, **found})
    return {**before, **found}


def run_recipe(
    recipe: str | Path | Mapping[str, Any],
    *changes: str,
    out: str | Path | None = None,
    minutes: float | None = None,
    depth: int | None = None,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    progress: Progress = quiet,
    allow: Sequence[str] = (),
) -> Outcome:
    """Train a recipe (a TOML file or a mapping) with dotted changes; `temaki.train` is this function.

    `allow`: keys that may differ from the save that `resume` goes on from.

    >>> run_recipe("recipes/demo.toml", "data.text=notes.txt", minutes=2)  # doctest: +SKIP
    """
    recipes.check_dial(minutes, depth)
    speed = dial.measure() if minutes is not None or depth is not None else 0.0
    found, _ = recipes.resolve(recipes.load(recipe), changes, minutes, depth, speed)
    folder = Path(out) if out is not None else Path("runs") / str(found.get("name", "run"))
    resuming: Literal["never", "auto"] = "auto" if resume else "never"
    runs.claim(folder, resuming)
    return train(ready(found, folder, progress), resuming, hooks, allow=allow)


def generate(
    model: str | Path | opener.Opened,
    prompt: str | Sequence[str] = "",
    *,
    seed: int = 0,
    **sampling: Any,
) -> str | list[str]:
    """Continue one prompt, or several at once, by a model (a path, or what `temaki.open` gave).

    Settings by name: temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, stop. Raises ConfigError for one
    that is unknown or out of range, CheckpointError for a model that cannot be opened.

    >>> generate("runs/demo", "import ", max_tokens=40, temperature=0)  # doctest: +SKIP
    """
    opened = model if isinstance(model, opener.Opened) else opener.open(model)
    settings = config_door.read(SamplingConfig, sampling, where="generate")
    beginnings = [prompt] if isinstance(prompt, str) else list(prompt)
    tokenizer = tokenizer_of(opened)
    ends = asking.ends_of(opened, tokenizer)
    room = asking.room_of(opened, tokenizer, beginnings, settings, ends)
    executor = TorchExecutor(opened.model(), max(1, len(beginnings)), room)
    found = [each.text for each in text.complete(executor, tokenizer, beginnings, settings, seed=seed, ends=ends)]
    return found[0] if isinstance(prompt, str) else found
