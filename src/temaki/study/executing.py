"""Which executor a model runs on."""

from typing import Literal

from temaki.base.errors import GenerationError
from temaki.compiled.cache import CacheKind
from temaki.compiled.plan import Bits, plan, refusal
from temaki.formats.opened import Opened
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.compiled_heads import chained, following
from temaki.generate.executor import Executor

Kind = Literal["auto", "torch", "compiled"]


def executor_of(
    opened: Opened,
    slots: int,
    room: int,
    *,
    spare: int = 1,
    kind: Kind = "auto",
    bits: Bits | None = None,
    cache: CacheKind | None = None,
    threads: int | None = None,
    ahead: bool = False,
) -> Executor:
    """An executor with `slots` slots of `room` ids for a model on disk.

    auto: compiled where there are kernels for all of the model's parts, else torch, which is not loaded before. A GPU
    is torch's, so who wants one says torch. bits, cache, threads: of the compiled one, see there. spare: the longest
    draft + 1. ahead: it keeps what heads with blocks need to draft; of those only a chain is compiled.
    Raises GenerationError where `compiled` is asked for and there are no kernels, or torch and something it has not.
    """
    why = refusal(opened.config)
    if why is None and ahead and not chained(opened.config):
        why = "heads with blocks side by side draft on torch"
    if kind == "compiled" and why is not None:
        raise GenerationError(f"this model cannot run compiled: {why}", do="choose auto or torch")
    if kind == "torch" or why is not None:
        return _torch(opened, slots, room, spare, bits, cache, ahead)
    trunk = opened.trunk()
    found = CompiledExecutor(plan(trunk.config, trunk.weights(), bits), slots, room, cache=cache, threads=threads)
    return following(opened.config, opened.weights(), found, bits) if ahead else found


def _torch(
    opened: Opened, slots: int, room: int, spare: int, bits: Bits | None, cache: CacheKind | None, ahead: bool
) -> Executor:
    for what, asked in (("bits", bits), ("cache", cache)):
        if asked is not None:
            raise GenerationError(f"torch runs without {what} of its own", found=f"{what} = {asked}", do="leave it out")
    from temaki.base import device as devices
    from temaki.generate.torch_executor import TorchExecutor
    from temaki.model.linear import lengthwise

    model = lengthwise(opened.model().to(devices.choose()))
    return TorchExecutor(model, slots, room, spare=spare, ahead=ahead)
