"""`Opened`: what every door gives. Configuration, weights and tokenizer without torch; `.model()` loads it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temaki.base.errors import CheckpointError
from temaki.checkpoint.speaking import Speaking as Speaking
from temaki.formats.weights import Weight, some
from temaki.model.config import LearnedConfig, ModelConfig
from temaki.model.count import count
from temaki.tokens.frame import Frame
from temaki.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from temaki.model.build import Model
    from temaki.tokens.chat import ChatTemplate


@dataclass(frozen=True)
class Opened:
    """A model on disk; weights, tokenizer and template are read when asked for."""

    folder: Path
    """Where the files are: for a run, the checkpoint that was chosen; for a file, the file."""
    config: ModelConfig
    settings: dict[str, Any]
    """The whole mapping of `config.toml`; empty for a foreign format."""
    step: int | None
    """The training step the weights come from, where that is known."""
    warnings: tuple[str, ...]
    """What the user should know: newer checkpoints that are damaged, parts of a file that were passed over."""
    read_weights: Callable[[], Mapping[str, Weight]]
    read_tokenizer: Callable[[], tuple[Tokenizer, Frame] | None]
    read_chat: Callable[[], "ChatTemplate | None"] = lambda: None
    speaking: Speaking = field(default_factory=Speaking)
    format: str = "native"
    """The door it came through."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of itself, for eyes: name, architecture, kinds of its arrays, licence."""

    def weights(self) -> Mapping[str, Weight]:
        """The arrays by our names, memory-mapped. Raises CheckpointError or FormatError if they are damaged."""
        return self.read_weights()

    @cached_property
    def framed(self) -> tuple[Tokenizer, Frame] | None:
        """The tokenizer that travels with the model and what stands around a text; None where none does."""
        return self.read_tokenizer()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that travels with the model; None where none does."""
        return self.framed[0] if self.framed is not None else None

    @cached_property
    def chat(self) -> "ChatTemplate | None":
        """The template that chats are written with; None where none travels with the model."""
        return self.read_chat()

    @property
    def context(self) -> int | None:
        """Ids a row that the model was made for; None: not known."""
        if self.config.context is not None:
            return self.config.context
        if isinstance(self.config.input_position, LearnedConfig):
            return self.config.input_position.room
        found = self.settings.get("batch", {}).get("context")
        return found if isinstance(found, int) else None

    def model(self, dtype: "torch.dtype | None" = None) -> "Model":
        """The torch module with these weights, on the host, in `dtype` (default: float64 if any weight is, else
        float32).

        Raises CheckpointError naming the first missing, unexpected and ill-shaped weights.
        """
        import torch

        from temaki.model import build

        weights = self.weights()
        plausible(self.folder, self.config, weights)
        if dtype is None:
            dtype = torch.float64 if any(weight.wide for weight in weights.values()) else torch.float32
        model = build.empty(self.config, dtype)
        self.fill(model)
        return model

    def fill(self, model: "Model") -> None:
        """Load these weights into a model of the same shape, wherever it is and in its own dtype.

        Heads of further ids that are not those of the model stay behind, and its own begin anew.
        Raises CheckpointError naming the first missing, unexpected and ill-shaped weights.
        """
        import torch

        from temaki.model import part, several

        weights, targets = self.weights(), part.tensors(model)
        if model.config.further != self.config.further:
            weights, targets = _trunk(weights), _trunk(targets)
        _fits(self.folder, {name: tuple(tensor.shape) for name, tensor in targets.items()}, weights)
        with torch.no_grad():
            for name, tensor in targets.items():
                if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
                    weights[name].fill(tensor.detach().numpy())
                else:
                    tensor.copy_(torch.from_numpy(weights[name].array().copy()))
        if model.config.further != self.config.further:
            several.begin(model.heads, model.head)

    def trunk(self) -> "Opened":
        """The same model without its heads of further ids; its own logits do not know of them."""
        config = replace(self.config, further=None)
        return replace(self, config=config, read_weights=lambda: _trunk(self.read_weights()))


def plausible(where: Path, config: ModelConfig, weights: Mapping[str, Weight]) -> None:
    """Refuse a configuration that is far larger than the weights beside it, before memory is taken for it."""
    held = sum(math.prod(weight.shape) for weight in weights.values())
    if config.depth > len(weights) or count(config).total > 2 * held + 1_000_000:
        raise CheckpointError(f"{where}: its configuration describes a model far larger than its {held} weights")


def _trunk(named: Mapping[str, Any]) -> dict[str, Any]:
    """What is not of the heads of further ids."""
    return {name: value for name, value in named.items() if not name.startswith("heads.")}


def _fits(where: Path, wanted: Mapping[str, tuple[int, ...]], weights: Mapping[str, Weight]) -> None:
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    shaped = [
        f"{name} {weights[name].shape}, wanted {shape}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    parts = [f"{len(names)} {kind}: {some(names)}" for kind, names in wrong.items() if names]
    if parts:
        raise CheckpointError(f"the weights of {where} do not fit its configuration; " + "; ".join(parts))
