"""A run, set up: recipe and data -> model, optimizer, loader, checkpoints -> the loop."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base import dist, files, keys, log
from temaki.base.dist import World
from temaki.base.errors import ConfigError, RunError
from temaki.base.log import MetricLog, SilentLog
from temaki.batches import data as sources
from temaki.batches import stochastic
from temaki.batches.bigrams import count as count_bigrams
from temaki.batches.data import Data
from temaki.batches.tasks_data import Exercises
from temaki.checkpoint import resume
from temaki.checkpoint.resume import Resume
from temaki.checkpoint.store import Store
from temaki.model import bigrams, build, several
from temaki.model.build import Model
from temaki.model.config import LearnedConfig, RtfConfig, S4Config
from temaki.model.count import count
from temaki.optim import schedule
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.train import loop, objectives, parallel, plan, saves
from temaki.train.config import BigramsConfig, FromModelConfig, MaskedConfig, NextConfig, RunConfig, freezes
from temaki.train.hooks import Hook
from temaki.train.loop import Run
from temaki.train.objectives import Objective

FREE = (
    "name",
    "save",
    "watch",
    "parallel",
    "guard",
    "data.text",
    "data.shards",
    "data.tokenizer",
    "data.task.folder",
    "begin.path",
)
"""Keys that may change on resume without a word: they do not change what is learned from whole data, whose fingerprint
is compared."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    reason: str
    """"finished", or the name of the signal that stopped it."""


def check(config: RunConfig, data: Data) -> None:
    """Raise ConfigError for a recipe that cannot run on this data."""
    room = isinstance(config.begin, FromModelConfig)  # such a model may have rows that no id reaches
    if config.model.vocabulary < data.tokenizer.size or (config.model.vocabulary > data.tokenizer.size and not room):
        raise ConfigError(
            "model.vocabulary is not the tokenizer's size", found=str(config.model.vocabulary),
            allowed=str(data.tokenizer.size), do="leave model.vocabulary out: it is taken from the tokenizer",
        )  # fmt: skip
    check_recipe(config)
    if isinstance(data, Exercises):
        data.check(config.batch.context)
    stochastic.check(config.batch.segmentation, data.tokenizer)
    _objective(config, data)


def check_recipe(config: RunConfig) -> None:
    """Raise ConfigError for a recipe that cannot run on any data."""
    schedule.check(config.optim.schedule, config.stop.steps)
    if config.parallel.compile and devices.compiler() is None:
        raise ConfigError("parallel.compile needs a C++ compiler", do="install g++ or clang++, or set it to false")
    model = config.model
    objectives.check_run(config)
    if config.data.task is not None:
        check_task(config)
    if not isinstance(config.begin, FromModelConfig):  # such a model has its own tokenizer, `check` asks that one
        objectives.check_mask(config.objective, config.data)
    if config.watch.sample is not None and isinstance(config.objective, MaskedConfig):
        raise ConfigError("a masked model cannot continue a text", found="watch.sample", do="leave watch.sample out")
    position = model.input_position
    if isinstance(position, LearnedConfig) and config.batch.context > position.room:
        raise ConfigError(
            "batch.context is beyond the model's learned positions",
            found=f"batch.context {config.batch.context}, {position.room} positions",
            allowed=f"a batch.context of 1 to {position.room}",
            do=f"set batch.context={position.room}, or for a new model more positions (model.input_position.room)",
        )
    for block in model.pattern:
        if isinstance(block.mixer, S4Config | RtfConfig) and config.batch.context > block.mixer.length:
            raise ConfigError(
                f"batch.context is beyond the kernel of mixer {block.mixer.kind}",
                found=f"batch.context {config.batch.context}, length {block.mixer.length}",
                allowed=f"a batch.context of 1 to {block.mixer.length}",
                do=f"set batch.context={block.mixer.length}, or for a new model a longer kernel (mixer.length)",
            )
    if isinstance(config.begin, BigramsConfig):
        if isinstance(config.objective, MaskedConfig):
            raise ConfigError(
                'begin.kind = "bigrams" predicts the next id, and a masked model does not',
                do='choose begin.kind = "random"',
            )
        bigrams.check(model.vocabulary, model.width, model.tied, model.init)
        bigrams.check_norm(model.pattern[-1].norm)
        bigrams.check_back(model.blocks[0], config.begin.back)


def check_task(config: RunConfig) -> None:
    """Raise ConfigError for what belongs to text and not to a task, whose answers are asked at places of its own."""
    if not isinstance(config.objective, NextConfig):
        raise ConfigError(
            "a task says what is asked at which place", found=f'objective.kind = "{config.objective.kind}"',
            allowed='"next"', do="leave [objective] out",
        )  # fmt: skip
    of_text = {
        "watch.sample": config.watch.sample is not None,
        "batch.segmentation": config.batch.segmentation is not None,
        'begin.kind = "bigrams"': isinstance(config.begin, BigramsConfig),
        "data.tokenizer": config.data.tokenizer is not None,
    }
    for name, found in of_text.items():
        if found:
            raise ConfigError(f"{name} belongs to text, and a task has none", do="leave it out, or leave data.task out")


def _objective(config: RunConfig, data: Data) -> Objective:
    return objectives.objective(config.objective, data.tokenizer.size, data.tokenizer.special, config.seed)


def start(
    config: RunConfig,
    folder: Path,
    data: Data,
    hooks: Sequence[Hook] = (),
    resuming: Literal["never", "auto"] = "never",
    warn: Callable[[str], None] = lambda _: None,
    begin: Callable[[Model], None] | None = None,
    tokenizer: Path | None = None,
    allow: Sequence[str] = (),
) -> Outcome:
    """Train in `folder`, from the start or from its newest whole checkpoint.

    `begin` loads the weights of a model that is trained further; `tokenizer` is the folder that travels with each
    checkpoint, if it is not the data's.

    A folder that holds a run is never overwritten: raises RunError unless `resuming` is "auto". `warn` hears what a
    user should know (a damaged checkpoint passed over, another machine, an allowed change of the recipe). A recipe that
    is not that of the save is refused, but for the tables of FREE and what `allow` names.
    """
    check(config, data)
    world = dist.meet()
    device = devices.choose(config.parallel.device, world.local if world.size > 1 else None)
    parallel.check(config, world)
    world.first(lambda: claim(folder, resuming))
    with dist.together(world), files.only(folder) if world.main else nullcontext():
        world = dist.join(world, device.type, config.parallel.tensor)
        precision = world.first(lambda: devices.usable(config.parallel.precision, device))
        devices.prepare(config.parallel.threads, config.seed, precision)
        machine = {**asdict(devices.machine(device, precision, config.parallel.compile)), "ranks": world.size}
        heard = warn if world.main else _unheard
        found = _found(config, folder, data, machine, allow, heard) if resuming == "auto" else None
        built = _built(config, data, begin, found, device, precision, world)
        loader = sources.loader(data, config.batch, config.seed)
        if world.main:
            log.cut(folder / "metrics.jsonl", found.checkpoint.manifest.step if found else -1)
            files.write_text(folder / "config.toml", config_door.toml(config_door.mapping(config)))
        store = Store(folder / "checkpoints", config.save.keep, config.save.every)
        words, shards = data.tokenizer.fingerprint, data.fingerprint
        run = Run(
            config=config,
            folder=folder,
            model=built.model,
            forward=built.applied.forward,
            optimizer=built.optimizer,
            objective=_objective(config, data),
            loader=loader,
            device=device,
            log=MetricLog(folder / "metrics.jsonl") if world.main else SilentLog(),
            plan=plan.first(config.stop, config.optim.schedule),
            peak=world.total([devices.matmul_peak(device)])[0] * config.parallel.tensor,
            save=lambda run: saves.save(run, store, words, shards, machine, tokenizer or data.folder / "tokenizer"),
            back=lambda run, step: _back(run, store, step),
            hooks=[hook for hook in hooks if world.main or hook.everywhere],
            world=built.applied.world,
            seconds=built.seconds,
        )
        outcome = _go(run, found, heard, machine)
        world.wait()
    dist.leave()
    return outcome


@dataclass(frozen=True)
class Built:
    """What learns, and how."""

    model: Model
    optimizer: Optimizer
    applied: parallel.Applied
    seconds: float
    """Of training that the beginning took."""


def _found(
    config: RunConfig,
    folder: Path,
    data: Data,
    machine: Mapping[str, str | int | bool],
    allow: Sequence[str],
    warn: Callable[[str], None],
) -> Resume | None:
    """The checkpoint to go on from. Raises RunError for a recipe that is not that of the save."""
    found = resume.auto(
        folder,
        config_door.mapping(config),
        machine,
        data.tokenizer.fingerprint,
        data.fingerprint,
        lambda old: config_door.mapping(config_door.read(RunConfig, old)),
    )
    resume.permit(found, FREE, allow, warn)
    return found


def _built(
    config: RunConfig,
    data: Data,
    begin: Callable[[Model], None] | None,
    found: Resume | None,
    device: torch.device,
    precision: devices.Precision,
    world: World,
) -> Built:
    """Model and optimizer as they begin or as they were saved, made parallel."""
    model = build.build(config.model, config.seed).to(device)
    model.extend(config.batch.context)
    clock = time.perf_counter()
    if found is None:
        _begin(config, model, data, begin)
    seconds = time.perf_counter() - clock if isinstance(config.begin, BigramsConfig) else 0.0
    moving = objectives.trainable(config.objective, model)
    roles = {name: role for name, role in model.roles().items() if name in moving}
    if precision == "autocast-bf16":
        devices.mixed_(model, device)
    applied = parallel.apply(model, config.parallel, world)
    parameters = dict(model.named_parameters())
    optimizer = Optimizer(
        {name: parameters[name] for name in moving}, roles, groups(config.optim, roles, config.model.narrower),
        config.optim.lr, config.optim.average, parallel.spread(applied, parameters),
    )  # fmt: skip
    if found is not None:
        saves.load(found.checkpoint, model, optimizer)
    return Built(model, optimizer, applied, seconds)


def _go(run: Run, found: Resume | None, warn: Callable[[str], None], machine: dict[str, str | int | bool]) -> Outcome:
    """Train from where the run stands."""
    try:
        if found is not None:
            _restore(run, found, warn)
        elif isinstance(run.config.begin, FromModelConfig):
            run.save(run)  # from here on the model it came from is not needed
        _log_start(run, machine, resumed=found is not None)
        return Outcome(run, loop.loop(run))
    except KeyboardInterrupt:
        run.log.write({"kind": "end", "step": run.step, "reason": "SIGINT"})
        raise
    finally:
        run.log.close()


def _begin(config: RunConfig, model: Model, data: Data, begin: Callable[[Model], None] | None) -> None:
    """Begin as the recipe says: as a bigram model, which counts as training, or with the weights of another model."""
    if isinstance(config.begin, BigramsConfig):
        counts = torch.from_numpy(count_bigrams(sources.text(data).train))
        bigrams.fill(model, counts, config.begin.smooth, keys.torch_seed(config.seed, "begin"), config.begin.back)
        several.begin(model.heads, model.head)
    elif isinstance(config.begin, FromModelConfig):
        assert begin is not None, "a run that begins with a model is told how to load it"
        begin(model)


def _unheard(_line: str) -> None:
    """What the main process says, others need not."""


def claim(folder: Path, resuming: Literal["never", "auto"]) -> None:
    """Raise RunError if `folder` holds a run that this one would write over."""
    if resuming == "never" and (folder / "config.toml").exists():
        raise RunError(
            f"{folder} holds a run already; nothing was changed",
            do="go on with it by --resume auto, or choose another --out or name",
        )


def _restore(run: Run, found: Resume, warn: Callable[[str], None]) -> None:
    """Where the run stood, and what its user should know."""
    for line in found.warnings:
        warn(line)
    manifest = found.checkpoint.manifest
    hooks = manifest.hooks
    loop.stand(run, manifest.step, manifest.tokens, manifest.position, hooks)
    if "plan" in hooks and not any(change.key.startswith(("stop.", "optim.schedule")) for change in found.recipe):
        run.plan = plan.restore(hooks["plan"])
    run.seconds = hooks.get("loop", {}).get("seconds", 0.0)


def _back(run: Run, store: Store, before: int) -> None:
    """Stand at the last healthy checkpoint, of a step up to `before` if there is one; later ones are removed."""
    checkpoint = saves.healthy(store, run.world, before)
    if checkpoint is None:
        raise RunError(
            f"{run.folder} holds no healthy checkpoint to go back to",
            do="start a new run, or let this one stop or warn at a spike (guard.spike.do.kind)",
        )
    saves.load(checkpoint, run.model, run.optimizer)
    manifest = checkpoint.manifest
    loop.stand(run, manifest.step, manifest.tokens, manifest.position, manifest.hooks)
    run.world.wait()
    if run.world.main:
        store.drop_after(manifest.step)


def _log_start(run: Run, machine: dict[str, str | int | bool], resumed: bool) -> None:
    found = count(run.config.model)
    run.log.write(
        {
            "kind": "resume" if resumed else "start",
            "step": run.step,
            "params": found.total,
            "trainable": found.further if freezes(run.config.objective) else found.total,
            "flops_per_token": run.flops,
            "peak_flops": run.peak,
            "steps": run.plan.steps,
            "machine": machine,
        }
    )
