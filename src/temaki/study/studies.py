"""The standard studies as data: which variants of one recipe are trained beside each other, and what is measured.

A variant is a change of its part's recipe. A part is one recipe, its variants and what is measured of each; a study is
a few parts that belong on one page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from temaki.base import config as config_door
from temaki.base.errors import ConfigError
from temaki.study import variants
from temaki.study.variants import Variant

Measure = Literal["length", "order", "heads", "maps", "spread", "decoding"]
"""What is measured of a trained model, see `measures.py`."""

NAMES = ("positions", "softmax", "mixers", "norms", "optimizers")

TEXT: Mapping[str, Any] = {
    "data": {"text": "stdlib", "vocabulary": 1024},
    "model": {"width": 128, "depth": 4, "tied": False, "pattern": [{"mixer": {"kind": "attention", "heads": 4}}]},
    "optim": {"lr": 5e-3},
    "batch": {"tokens": 2048, "context": 256},
    "watch": {"validate_tokens": 16_384},
}
"""The decoder on text that most variants are changes of."""

TASK: Mapping[str, Any] = {
    "model": {"width": 64, "depth": 2, "tied": False, "pattern": [{"mixer": {"kind": "attention", "heads": 4}}]},
    "optim": {"lr": 5e-3},
    "watch": {"validate_tokens": 8192},
}
"""The smaller decoder on tasks."""

TASKS: Mapping[str, tuple[str, Mapping[str, Any], int]] = {
    "copy": ("Copy: say ten letters again, 43 blanks later", {"kind": "copy", "length": 10, "gap": 43}, 64),
    "recall": (
        "Recall: the value that stood beside a key",
        {"kind": "recall", "keys": 8, "values": 8, "pairs": 4, "queries": 2}, 64,
    ),
    "delay": ("Delay: say the letter of 64 places ago", {"kind": "delay", "letters": 8, "lag": 64}, 256),
    "listops": (
        "ListOps: the value of nested lists",
        {"kind": "listops", "depth": 2, "arguments": 4, "longest": 30}, 64,
    ),
}  # fmt: skip
"""Name -> (title, [data.task], ids a row). Small enough that some mixers learn them in a few hundred steps."""


@dataclass(frozen=True)
class Part:
    """One recipe, its variants, and what is measured of each."""

    name: str
    title: str
    says: str
    """What is done here and how to read it."""
    recipe: Mapping[str, Any]
    variants: tuple[Variant, ...]
    measures: tuple[Measure, ...] = ()
    share: float = 1.0
    """Of the study's time, in proportion to the other parts."""
    rates: tuple[float, ...] = ()
    """Factors on each variant's own rate that are tried on another seed first; none: the recipe's rate is taken."""

    @property
    def context(self) -> int:
        """Ids a row of training."""
        return int(self.recipe["batch"]["context"])


@dataclass(frozen=True)
class Study:
    """A few parts that belong on one page."""

    name: str
    title: str
    says: str
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Asked:
    """What a study is asked to be; None and () leave it as it is."""

    text: str | None = None
    pixels: str | None = None
    """Folder of pictures, for the mixers."""
    changes: tuple[str, ...] = ()
    """Dotted changes of the recipe on text."""
    only: tuple[str, ...] = ()
    """Variants; all where none is named."""
    parts: tuple[str, ...] = ()
    """Parts; all where none is named."""


def study(name: str, asked: Asked) -> Study:
    """A standard study, as asked. Raises ConfigError for a name or variant that is not there, or a bad change."""
    made = {
        "positions": _positions, "softmax": _softmax, "mixers": _mixers, "norms": _norms, "optimizers": _optimizers,
    }  # fmt: skip
    if name not in made:
        raise ConfigError("there is no such study", found=name, allowed=", ".join(NAMES))
    if asked.pixels is not None and name != "mixers":
        raise ConfigError("--data is for the pictures of one study", found=name, allowed="mixers")
    own = {"data": {"text": asked.text}} if asked.text is not None else {}
    recipe = config_door.override(config_door.merge(TEXT, own), asked.changes)
    batch = recipe.get("batch")
    context = batch.get("context") if isinstance(batch, Mapping) else None
    if not isinstance(context, int) or isinstance(context, bool) or context < 8:
        raise ConfigError("batch.context: not a row of this study", found=str(context), allowed="8 ids or more")
    return chosen(made[name](recipe, asked), asked.only, asked.parts)


def chosen(found: Study, only: Sequence[str], parts: Sequence[str] = ()) -> Study:
    """The study with these variants and parts alone; parts that lose all are left out, none named: all stay.

    Raises ConfigError for a strange name.
    """
    names = [part.name for part in found.parts]
    strange = [each for each in parts if each not in names]
    if strange:
        raise ConfigError(
            f"the study {found.name} has no such part", found=", ".join(strange), allowed=", ".join(names)
        )
    found = replace(found, parts=tuple(part for part in found.parts if not parts or part.name in parts))
    if not only:
        return found
    known = list(dict.fromkeys(each.name for part in found.parts for each in part.variants))
    strange = [each for each in only if each not in known]
    if strange:
        raise ConfigError(
            f"the study {found.name} has no such variant", found=", ".join(strange), allowed=", ".join(known)
        )
    fewer = [replace(part, variants=tuple(each for each in part.variants if each.name in only)) for part in found.parts]
    return replace(found, parts=tuple(part for part in fewer if part.variants))


Recipe = Mapping[str, Any]


def _positions(recipe: Recipe, _asked: Asked) -> Study:
    context = recipe["batch"]["context"]
    part = Part(
        "text", "Positions on text",
        "Each way of telling where an id stands, in the same decoder on the same text. Rows of two and four times the "
        "training length are read after training, as they are.",
        recipe, variants.positions(context), ("length", "order", "spread"),
    )  # fmt: skip
    return Study("positions", "Where an id stands", "How a decoder is told the order of its ids.", (part,))


def _softmax(recipe: Recipe, _asked: Asked) -> Study:
    part = Part(
        "text", "Maps on text",
        "Each map from scores to attention weights, in the same decoder on the same text. It has no positions, "
        "so that what changes beyond the training length is the map's doing alone.",
        recipe, variants.maps(), ("length", "heads", "maps"),
    )  # fmt: skip
    return Study("softmax", "From scores to weights", "Softmax and its rivals inside attention.", (part,))


def _mixers(recipe: Recipe, asked: Asked) -> Study:
    context = recipe["batch"]["context"]
    text = Part(
        "text", "Mixers on text",
        "Each mixer in a decoder of the same width, depth and feed-forward layers. Numbers of parameters differ as the "
        "mixers do, and are told.",
        recipe, variants.mixers(4 * context), ("length", "decoding"), share=4.0,
    )  # fmt: skip
    parts = [text, *(_task(name) for name in TASKS)]
    if asked.pixels is not None:
        parts.append(_pixels(asked.pixels))
    return Study("mixers", "What carries the past", "Attention, state spaces, linear attention, recurrences, hybrids.",
                 tuple(parts))  # fmt: skip


def _task(name: str) -> Part:
    title, task, context = TASKS[name]
    own = {"data": {"task": task}, "batch": {"tokens": 2048, "context": context}}
    says = (
        "Answers are counted right where the likeliest id is the right one; examples are drawn anew, none comes twice."
    )
    return Part(name, title, says, config_door.merge(TASK, own), variants.mixers(context))


def _pixels(folder: str) -> Part:
    task = {"kind": "pixels", "folder": folder, "side": 14, "levels": 16}
    own = {"data": {"task": task}, "batch": {"tokens": 196 * 16, "context": 196}}
    says = "Pictures of 14 x 14 pixels are read one after the other; what they show is to be said at the last one."
    return Part("pixels", "Pictures as sequences", says, config_door.merge(TASK, own), variants.mixers(196), share=2.0)


def _norms(recipe: Recipe, _asked: Asked) -> Study:
    part = Part(
        "text", "Norms on text",
        "Each norm, and each place of it in the block, in the same decoder on the same text. A run whose loss is no "
        "number any more is a result: it is told as diverged.",
        recipe, variants.norms(), (),
    )  # fmt: skip
    return Study("norms", "What keeps numbers in range", "Norms, their place in the block, and none at all.", (part,))


def _optimizers(recipe: Recipe, _asked: Asked) -> Study:
    part = Part(
        "text", "Optimizers on text",
        "Equal steps on the same text. Each rule's rate was chosen from a small grid on a seed that is not among those "
        "shown.",
        recipe, variants.optimizers(), (), rates=(0.25, 1.0, 4.0),
    )  # fmt: skip
    return Study("optimizers", "What moves the weights", "Five rules at equal steps, each at its own rate.", (part,))
