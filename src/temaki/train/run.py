"""A run, set up: recipe and data -> model, optimizer, loader, checkpoints -> the loop."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from temaki.base import config as config_door
from temaki.base import device as devices
from temaki.base import files, keys, log
from temaki.base.errors import ConfigError, NonFiniteError, RunError
from temaki.base.log import MetricLog
from temaki.batches.bigrams import count as count_bigrams
from temaki.batches.loader import Loader
from temaki.batches.prepare import Prepared
from temaki.checkpoint import resume
from temaki.checkpoint.resume import Resume
from temaki.checkpoint.store import Facts, Store
from temaki.model import bigrams, build, part
from temaki.model.build import Model
from temaki.model.config import LearnedConfig
from temaki.model.count import count, flops_per_token
from temaki.optim import schedule
from temaki.optim.groups import groups
from temaki.optim.optimizer import Optimizer
from temaki.train import loop, objectives, plan
from temaki.train.config import BigramsConfig, FromModelConfig, MaskedConfig, RunConfig
from temaki.train.hooks import Hook
from temaki.train.loop import Run
from temaki.train.objectives import Objective

FREE = ("name", "save", "watch", "parallel")
"""Tables that may change on resume without a word: they do not change what is learned."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    reason: str
    """"finished", or the name of the signal that stopped it."""


def check(config: RunConfig, data: Prepared) -> None:
    """Raise ConfigError for a recipe that cannot run on this data."""
    room = isinstance(config.begin, FromModelConfig)  # such a model may have rows that no id reaches
    if config.model.vocabulary < data.tokenizer.size or (config.model.vocabulary > data.tokenizer.size and not room):
        raise ConfigError(
            "model.vocabulary is not the tokenizer's size", found=str(config.model.vocabulary),
            allowed=str(data.tokenizer.size), do="leave model.vocabulary out: it is taken from the tokenizer",
        )  # fmt: skip
    check_recipe(config)
    _objective(config, data)


def check_recipe(config: RunConfig) -> None:
    """Raise ConfigError for a recipe that cannot run on any data."""
    schedule.check(config.optim.schedule, config.stop.steps)
    if config.parallel.compile and devices.compiler() is None:
        raise ConfigError("parallel.compile needs a C++ compiler", do="install g++ or clang++, or set it to false")
    model = config.model
    objectives.check(config.objective, model)
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
    if isinstance(config.begin, BigramsConfig):
        if isinstance(config.objective, MaskedConfig):
            raise ConfigError(
                'begin.kind = "bigrams" predicts the next id, and a masked model does not',
                do='choose begin.kind = "random"',
            )
        bigrams.check(model.vocabulary, model.width, model.tied, model.init)


def _objective(config: RunConfig, data: Prepared) -> Objective:
    return objectives.objective(config.objective, data.tokenizer.size, data.tokenizer.special, config.seed)


def start(
    config: RunConfig,
    folder: Path,
    data: Prepared,
    hooks: Sequence[Hook] = (),
    resuming: Literal["never", "auto"] = "never",
    warn: Callable[[str], None] = lambda _: None,
    begin: Callable[[Model], None] | None = None,
    tokenizer: Path | None = None,
) -> Outcome:
    """Train in `folder`, from the start or from its newest whole checkpoint.

    `begin` loads the weights of a model that is trained further; `tokenizer` is the folder that travels with each
    checkpoint, if it is not the data's.

    A folder that holds a run is never overwritten: raises RunError unless `resuming` is "auto". `warn` hears what a
    user should know (a damaged checkpoint passed over, another machine, a changed recipe).
    """
    check(config, data)
    claim(folder, resuming)
    loader = Loader(data.train, config.batch.context, config.seed)
    devices.prepare(config.parallel.threads, config.seed)
    device = devices.choose(config.parallel.device)
    model = build.build(config.model, config.seed).to(device)
    model.extend(config.batch.context)
    model.checkpointing = config.parallel.checkpoint_activations
    roles = model.roles()
    optimizer = Optimizer(dict(model.named_parameters()), roles, groups(config.optim, roles), config.optim.lr)
    machine = dict(asdict(devices.machine(device, compiled=config.parallel.compile)).items())
    found = None
    if resuming == "auto":
        found = resume.auto(
            folder,
            config_door.mapping(config),
            machine,
            data.tokenizer.fingerprint,
            data.train.manifest.fingerprint,
        )
    if found:
        _load(found, model, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    log.cut(metrics, found.checkpoint.manifest.step if found else -1)
    files.write_text(folder / "config.toml", config_door.toml(config_door.mapping(config)))
    store = Store(folder / "checkpoints", config.save.keep)
    run = Run(
        config=config,
        folder=folder,
        model=model,
        forward=_compiled(model) if config.parallel.compile else model,
        optimizer=optimizer,
        objective=_objective(config, data),
        loader=loader,
        device=device,
        log=MetricLog(metrics),
        plan=plan.first(config.stop, config.optim.schedule),
        peak=devices.matmul_peak(device),
        save=lambda run: _save(run, store, data, machine, tokenizer or data.folder / "tokenizer"),
        hooks=hooks,
    )
    try:
        if found:
            _restore(run, found, warn)
        elif isinstance(config.begin, BigramsConfig):
            _begin(run, config.begin, data)
        elif isinstance(config.begin, FromModelConfig):
            assert begin is not None, "a run that begins with a model is told how to load it"
            begin(model)
            run.save(run)  # from here on the model it came from is not needed
        _log_start(run, machine, resumed=found is not None)
        return Outcome(run, loop.loop(run))
    except KeyboardInterrupt:
        run.log.write({"kind": "end", "step": run.step, "reason": "SIGINT"})
        raise
    finally:
        run.log.close()


def _begin(run: Run, begin: BigramsConfig, data: Prepared) -> None:
    """Begin as a bigram model; what it takes counts as training."""
    clock = time.perf_counter()
    counts = torch.from_numpy(count_bigrams(data.train))
    bigrams.fill(run.model, counts, begin.smooth, keys.torch_seed(run.config.seed, "begin"))
    run.seconds += time.perf_counter() - clock


def claim(folder: Path, resuming: Literal["never", "auto"]) -> None:
    """Raise RunError if `folder` holds a run that this one would write over."""
    if resuming == "never" and (folder / "config.toml").exists():
        raise RunError(
            f"{folder} holds a run already; nothing was changed",
            do="go on with it by --resume auto, or choose another --out or name",
        )


def _compiled(model: Model) -> Model:
    """A model that shares all its parts with this one and runs compiled; shapes other than a step's stay with this."""
    twin = copy.copy(model)
    twin.compile(dynamic=False)
    return twin


def _save(run: Run, store: Store, data: Prepared, machine: dict[str, str | int | bool], tokenizer: Path) -> Path:
    tensors = part.tensors(run.model)
    odd = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if odd is not None:
        raise NonFiniteError(
            f"step {run.step}: the update made {odd} not finite", do="lower optim.lr; the last checkpoint is untouched"
        )
    facts = Facts(
        step=run.step,
        tokens=run.tokens,
        healthy=True,
        position=run.position,
        tokenizer=data.tokenizer.fingerprint,
        shards=data.train.manifest.fingerprint,
        hooks=loop.numbers(run),
        machine=machine,
    )
    score = next((score for hook in run.hooks if (score := hook.score(run)) is not None), None)
    path = store.save(
        facts,
        config_door.toml(config_door.mapping(run.config)),
        {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
        {name: tensor.cpu().numpy() for name, tensor in run.optimizer.state().items()},
        tokenizer,
        score,
    )
    run.log.write({"kind": "save", "step": run.step, "path": path.relative_to(run.folder).as_posix()})
    return path


@torch.no_grad()
def _load(found: Resume, model: Model, optimizer: Optimizer) -> None:
    """Weights and moments from a checkpoint. Raises RunError or CheckpointError if they are another recipe's."""
    weights = found.checkpoint.weights()
    for name, tensor in part.tensors(model).items():
        if name not in weights or weights[name].shape != tuple(tensor.shape):
            raise RunError(
                f"{found.checkpoint.folder.path} holds another model: {name} is missing or of another shape",
                do="resume with the recipe of the run (its config.toml)",
            )
        tensor.copy_(torch.from_numpy(np.array(weights[name])))
    state = found.checkpoint.optimizer() or {}
    optimizer.load({name: torch.from_numpy(np.array(array)) for name, array in state.items()})


def _restore(run: Run, found: Resume, warn: Callable[[str], None]) -> None:
    """Where the run stood, and what its user should know."""
    for line in found.warnings:
        warn(line)
    changed = [str(change) for change in found.recipe if change.key.split(".")[0] not in FREE]
    if changed:
        warn("the recipe is not the one of the save: " + "; ".join(changed))
    manifest = found.checkpoint.manifest
    run.step = run.saved = manifest.step
    run.tokens, run.position = manifest.tokens, manifest.position
    hooks = dict(manifest.hooks)
    if "plan" in hooks and not any(change.key.startswith(("stop.", "optim.schedule")) for change in found.recipe):
        run.plan = plan.restore(hooks["plan"])
    run.seconds = hooks.get("loop", {}).get("seconds", 0.0)
    for hook in run.hooks:
        hook.numbers.update(hooks.get(hook.name, {}))


def _log_start(run: Run, machine: dict[str, str | int | bool], resumed: bool) -> None:
    model = run.config.model
    run.log.write(
        {
            "kind": "resume" if resumed else "start",
            "step": run.step,
            "params": count(model).total,
            "flops_per_token": flops_per_token(model, run.config.batch.context),
            "peak_flops": run.peak,
            "steps": run.plan.steps,
            "machine": machine,
        }
    )
