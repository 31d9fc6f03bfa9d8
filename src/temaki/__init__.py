"""temaki: build a language model by hand, from bytes to chat, on the machine you have.

    import temaki

    temaki.train("recipes/demo.toml", "data.text=notes.txt", minutes=5)
    temaki.generate("runs/demo", "Once upon a time")
    temaki.open("runs/demo").tokenizer.encode("a text")

Every layer, loss and schedule is a plain function of torch tensors (`from temaki.model.attention import attention`,
`temaki.model.ffn.swiglu`, `temaki.model.maps.cross_entropy`, `temaki.optim.schedule.cosine`, ..), every sampling filter
one of NumPy arrays (`temaki.generate.sampling.top_p`): the functions that the modules call, or, where a fused kernel
stands in for one, the definition that the kernel is tested against.

Each name below is loaded on first use, so that `import temaki` costs nothing.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from temaki.base.errors import TemakiError as TemakiError
    from temaki.formats.open import open as open
    from temaki.formats.tokenizer import open as load_tokenizer
    from temaki.study.pipeline import generate as generate
    from temaki.study.pipeline import run_recipe as train
    from temaki.tokens.bpe_train import train as train_tokenizer
    from temaki.tokens.tokenizer import Tokenizer as Tokenizer

_PLACES = {
    "TemakiError": ("temaki.base.errors", "TemakiError"),
    "Tokenizer": ("temaki.tokens.tokenizer", "Tokenizer"),
    "generate": ("temaki.study.pipeline", "generate"),
    "load_tokenizer": ("temaki.formats.tokenizer", "open"),
    "open": ("temaki.formats.open", "open"),
    "train": ("temaki.study.pipeline", "run_recipe"),
    "train_tokenizer": ("temaki.tokens.bpe_train", "train"),
}

__all__ = ["TemakiError", "Tokenizer", "generate", "load_tokenizer", "open", "train", "train_tokenizer"]


class _Package(ModuleType):
    """`temaki.train` and `temaki.generate` are functions to those who call and folders to those who import from them.

    The import system sets a folder as an attribute of its package; where a public name stands, it must not.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'temaki' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
