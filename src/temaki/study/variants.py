"""The variants of the standard studies: names, a word on each, and what each changes in a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One thing that is tried."""

    name: str
    says: str
    changes: Table
    """Tables laid over the recipe."""
    shuffled: bool = False
    """It reads text whose order is lost, see `shuffled.py`."""


def block(mixer: Table, **more: Any) -> dict[str, Any]:
    """A recipe's change: every block has this mixer, and `more` of a block's keys."""
    return {"model": {"pattern": [{"mixer": dict(mixer), **more}]}}


def attention(**more: Any) -> dict[str, Any]:
    """Causal attention of four heads."""
    return {"kind": "attention", "heads": 4, **more}


def positions(context: int) -> tuple[Variant, ...]:
    """Ways to tell where an id stands in rows of `context` ids, and the one without any on text without order."""
    none = block(attention(position={"kind": "none"}))

    def added(table: Table) -> dict[str, Any]:
        return {"model": {**none["model"], "input_position": dict(table)}}

    return (
        Variant("rope", "queries and keys are turned by their position", block(attention(position={"kind": "rope"}))),
        Variant("alibi", "scores fall with the distance", block(attention(position={"kind": "alibi"}))),
        Variant("buckets", "a learned number a head and distance (T5)", block(attention(position={"kind": "buckets"}))),
        Variant("none", "no positions: the causal mask alone", none),
        Variant("learned", "a learned vector a position", added({"kind": "learned", "room": context})),
        Variant("sinusoidal", "sines and cosines of the position", added({"kind": "sinusoidal"})),
        Variant("none-shuffled", "no positions, and text without order", none, shuffled=True),
    )


def maps() -> tuple[Variant, ...]:
    """Maps from scores to attention weights, without positions."""
    found = {
        "softmax": ("e^s / sum e^s", {"kind": "softmax"}),
        "sparsemax": ("the nearest point of the simplex", {"kind": "sparsemax"}),
        "entmax": ("between softmax and sparsemax, alpha 1.5", {"kind": "entmax", "alpha": 1.5}),
        "entmax-learned": ("alpha learned for each head", {"kind": "entmax", "alpha": 1.5, "learned": True}),
        "top-k": ("softmax of the 8 largest scores", {"kind": "top-k", "k": 8}),
        "taylor": ("1 + s + s^2/2 in place of e^s", {"kind": "taylor", "order": 2}),
        "gumbel": ("softmax of noisy scores in training", {"kind": "gumbel"}),
        "perturb": ("how often a score is largest under noise", {"kind": "perturb"}),
        "sigmoid": ("each weight by itself", {"kind": "sigmoid"}),
        "sink": ("softmax with a learned way to look at nothing", {"kind": "sink"}),
        "scalable": ("softmax of g log(n) s", {"kind": "scalable"}),
    }
    return tuple(
        Variant(name, says, block(attention(position={"kind": "none"}, map=table)))
        for name, (says, table) in found.items()
    )


def mixers(longest: int) -> tuple[Variant, ...]:
    """Mixers that are read in rows of at most `longest` ids, and three hybrids."""
    kinds = {
        "attention": "causal attention with rotary positions",
        "s4d": "a diagonal state space a channel",
        "s4": "a state space a channel with HiPPO's dynamics",
        "rtf": "a rational transfer function a channel",
        "s5": "one diagonal state space for all channels",
        "lru": "a diagonal complex recurrence",
        "mamba": "a selective state space",
        "mamba2": "a selective state space, one decay a head",
        "retnet": "retention: fixed decays",
        "rwkv": "decays that follow the input",
        "deltanet": "linear attention by the delta rule",
        "rnn": "tanh recurrence",
        "gru": "gated recurrent unit",
        "lstm": "long short-term memory",
    }
    more: dict[str, dict[str, Any]] = {
        "attention": {"heads": 4},
        "s4": {"length": max(longest, 16)},
        "rtf": {"length": max(longest, 65)},
    }
    single = [Variant(name, says, block({"kind": name, **more.get(name, {})})) for name, says in kinds.items()]
    free = attention(position={"kind": "none"})
    pairs = {
        "s4d-attention": ("in turn; attention without positions", {"kind": "s4d"}, free),
        "mamba-attention": ("in turn; attention without positions", {"kind": "mamba"}, free),
        "deltanet-window": ("in turn; attention to the last 64 ids", {"kind": "deltanet"}, attention(window=64)),
    }
    hybrids = [
        Variant(name, says, {"model": {"pattern": [{"mixer": one}, {"mixer": other}]}})
        for name, (says, one, other) in pairs.items()
    ]
    return (*single, *hybrids)


def norms() -> tuple[Variant, ...]:
    """Norms before the branches, two of them after, and none."""
    found = {
        "rms": ("RMSNorm before each branch", "rms", "pre"),
        "layer": ("LayerNorm before each branch", "layer", "pre"),
        "batch": ("BatchNorm before each branch", "batch", "pre"),
        "none": ("no norm", "none", "pre"),
        "rms-post": ("RMSNorm after each sum", "rms", "post"),
        "layer-post": ("LayerNorm after each sum, as in 2017", "layer", "post"),
        "rms-sandwich": ("RMSNorm before and after each branch", "rms", "sandwich"),
    }
    return tuple(
        Variant(name, says, block(attention(), norm={"kind": kind}, order=order))
        for name, (says, kind, order) in found.items()
    )


def optimizers() -> tuple[Variant, ...]:
    """One rule for all parameters each; Muon moves matrices, AdamW the rest beside it."""
    roles = ("matrix", "embedding", "head", "vector", "dynamics")

    def all_by(lr: float, **rule: Any) -> dict[str, Any]:
        return {"optim": {"lr": lr, **dict.fromkeys(roles, rule)}}

    return (
        Variant("muon", "orthogonal updates of matrices, AdamW beside", {"optim": {"lr": 5e-3}}),
        Variant("adamw", "each entry by its own scale", all_by(3e-3, kind="adamw")),
        Variant("lion", "the sign of a moving average", all_by(6e-4, kind="lion")),
        Variant("signum", "the sign of the momentum", all_by(6e-4, kind="signum")),
        Variant("sgd", "the gradient with momentum", all_by(0.25, kind="sgd", momentum=0.9)),
    )
