"""Heads with blocks beside the compiled executor: a chain of them, each a model of one layer that reads vectors.

A layer that reads vectors is a plan whose embedding is written before each call: the id i stands for the vector i.
What it gives is normed without a gain; norms see no scale, so that is all that the next head or its own norm must know.
Letters: D width, V vocabulary, R rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from temaki.compiled.medusa import capped
from temaki.compiled.packed import Packed
from temaki.compiled.plan import Bits, Held, Plan, plan
from temaki.compiled.products import TILE
from temaki.generate.compiled_executor import CompiledExecutor
from temaki.generate.executor import Answer, Saved, Work
from temaki.generate.heads import HeadsState
from temaki.model.config import (
    DecoderConfig,
    LayerNormConfig,
    NoPositionConfig,
    NormConfig,
    RmsNormConfig,
    SequentialHeadsConfig,
)
from temaki.model.quantise import Stored, quantise

VECTORS = 128
"""Vectors that a layer reads in one call."""
KINDS = {8: "Q8_0", 4: "Q4_1"}
LENGTH = "read"
"""Among what is saved of a head: how many places it has read."""


def chained(config: DecoderConfig) -> bool:
    """Whether a model has heads in a chain."""
    return config.further is not None and isinstance(config.further.heads, SequentialHeadsConfig)


class CompiledChain:
    """The sequential heads of a model, compiled; see `heads.Blocks`."""

    chained = True

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Held], slots: int, room: int, bits: Bits | None):
        assert config.further is not None, "no heads of further ids"
        self.count = config.further.ids - 1
        self.nothing = np.zeros((0, config.width), np.float32)
        self.norm, self.cap = config.pattern[-1].norm, config.cap
        self._plans = [_plan(config, weights, f"heads.{k}.block.", bits) for k in range(self.count)]
        self._layers = [CompiledExecutor(each, slots, room, cache="float32", threads=1) for each in self._plans]
        self._embedding = weights["embedding"].array()
        self._unembedding = Packed(weights["embedding" if config.tied else "unembedding"].array(), bits)
        names = [f"heads.{k}" for k in range(self.count)]
        self._joined = [Packed(weights[f"{name}.joined"].array(), bits) for name in names]
        self._norms = {
            (k, which): _Norm(self.norm, weights, f"{name}.{which}")
            for k, name in enumerate(names)
            for which in ("hidden_norm", "id_norm", "norm")
        }

    def length(self, k: int, slot: int) -> int:
        return self._layers[k].lengths[slot]

    def read(self, k: int, slots: Sequence[int], vectors: Sequence[ndarray], ids: Sequence[ndarray]) -> list[ndarray]:
        known = self._embedding[np.concatenate(ids)].astype(np.float32)
        hidden = self._norms[k, "hidden_norm"].of(np.concatenate(vectors))
        both = np.concatenate((hidden, self._norms[k, "id_norm"].of(known)), -1)
        x = self._joined[k].times(both)
        ends = np.cumsum([len(each) for each in vectors])
        if ends[-1] <= VECTORS:
            return np.split(self._layer(k, x, slots, [len(each) for each in vectors]), ends[:-1])
        each_slot = zip(slots, np.split(x, ends[:-1]), strict=True)
        parts = [(slot, [own[i : i + VECTORS] for i in range(0, len(own), VECTORS)]) for slot, own in each_slot]
        return [np.concatenate([self._layer(k, part, [slot], [len(part)]) for part in own]) for slot, own in parts]

    def _layer(self, k: int, x: ndarray, slots: Sequence[int], counts: Sequence[int]) -> ndarray:
        """What head k's block makes of x [m, D], which lies in these slots, normed without a gain."""
        _write(self._plans[k], x)
        work, ids = [], np.arange(len(x), dtype=np.int32)
        for slot, count in zip(slots, counts, strict=True):
            work.append(Work(slot, ids[:count], "all"))
            ids = ids[count:]
        found = self._layers[k].run(work, hidden=True).hidden
        assert found is not None
        return found

    def logits(self, k: int, vectors: ndarray) -> ndarray:
        return capped(self._unembedding.times(self._norms[k, "norm"].of(vectors)), self.cap)

    def mark(self, k: int, slots: Sequence[int]) -> None:
        self._layers[k].mark(slots)

    def rewind(self, k: int, slots: Sequence[int], keep: Sequence[int]) -> None:
        self._layers[k].rewind(slots, keep)

    def fork(self, k: int, source: int, target: int) -> None:
        self._layers[k].fork(source, target)

    def save(self, k: int, slot: int) -> Mapping[str, Any]:
        saved = self._layers[k].save(slot)
        return {**saved.content, LENGTH: np.array(saved.length)}

    def load(self, k: int, slot: int, saved: Mapping[str, Any]) -> None:
        content = {name: each for name, each in saved.items() if name != LENGTH}
        self._layers[k].load(slot, Saved(int(saved[LENGTH]), content))

    def close(self, k: int, slot: int) -> None:
        self._layers[k].close(slot)


class Following:
    """A compiled executor whose heads follow what it reads. It asks for every place's vector, so prompts cost a head
    more."""

    whole = False

    def __init__(self, inner: CompiledExecutor, several: HeadsState):
        self.inner, self.several = inner, several
        self.slots, self.room, self.vocabulary = inner.slots, inner.room, inner.vocabulary

    def run(self, work: Sequence[Work], hidden: bool = False) -> Answer:
        found = self.inner.run([replace(each, want="all") for each in work], hidden=True)
        assert found.hidden is not None
        wanted, stop = [], 0
        for each in work:
            start, stop = stop, stop + len(each.ids)
            self.several.feed(each.slot, found.hidden[start:stop])
            wanted += range({"none": stop, "last": stop - 1, "all": start}[each.want], stop)
        return Answer(found.logits[wanted], found.hidden[wanted] if hidden else None)

    def open(self, slot: int, source: ndarray | None = None) -> None:
        self.inner.open(slot, source)

    def mark(self, slots: Sequence[int]) -> None:
        self.inner.mark(slots)

    def rewind(self, slots: Sequence[int], keep: Sequence[int]) -> None:
        self.inner.rewind(slots, keep)
        for slot in slots:
            self.several.rewind(slot, self.inner.lengths[slot])

    def fork(self, source: int, target: int) -> None:
        self.inner.fork(source, target)
        self.several.fork(source, target)

    def save(self, slot: int) -> Saved:
        own = self.inner.save(slot)
        heads = {f"heads/{name}": each for name, each in self.several.save(slot).items()}
        return Saved(own.length, {**own.content, **heads})

    def load(self, slot: int, saved: Saved) -> None:
        heads = {name.removeprefix("heads/"): each for name, each in saved.content.items() if name.startswith("heads/")}
        own = {name: each for name, each in saved.content.items() if not name.startswith("heads/")}
        self.inner.load(slot, Saved(saved.length, own))
        self.several.load(slot, heads)

    def close(self, slot: int) -> None:
        self.inner.close(slot)
        self.several.close(slot)


def following(
    config: DecoderConfig, weights: Mapping[str, Held], inner: CompiledExecutor, bits: Bits | None
) -> Following:
    """A compiled executor of a model's trunk, and the model's heads in a chain beside it.

    Heads of a float model draft in 8 bits: that loses nothing but a draft now and then, and costs a fifth.
    """
    chain = CompiledChain(config, weights, inner.slots, inner.room, 8 if bits is None else bits)
    return Following(inner, HeadsState(chain, inner.slots))


class _Norm:
    """A norm of few rows."""

    def __init__(self, config: NormConfig, weights: Mapping[str, Held], name: str):
        assert isinstance(config, RmsNormConfig | LayerNormConfig), "`refusal` has looked"
        self.eps, self.centred = config.eps, isinstance(config, LayerNormConfig)
        self.gain = weights[f"{name}.gain"].array().astype(np.float32)
        biased = isinstance(config, LayerNormConfig) and config.bias
        self.bias = weights[f"{name}.bias"].array().astype(np.float32) if biased else np.float32(0)

    def of(self, x: ndarray) -> ndarray:
        """[R, D] -> float32 [R, D]."""
        x = x - x.mean(-1, keepdims=True) if self.centred else x
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.eps)) * self.gain + self.bias


@dataclass(frozen=True)
class _Floats:
    """A weight of a plan that no file holds in this form."""

    floats: ndarray
    bits: Bits | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.floats.shape

    def array(self) -> ndarray:
        return self.floats

    def blocks(self) -> list[tuple[Stored, ndarray | None]] | None:
        if self.bits is None or self.floats.ndim != 2 or self.floats.shape[1] % 32:
            return None
        return [(quantise(KINDS[self.bits], self.floats), None)]


def _plan(config: DecoderConfig, weights: Mapping[str, Held], prefix: str, bits: Bits | None) -> Plan:
    """One layer that reads VECTORS vectors in float32; its matrices in `bits`."""
    one = replace(
        config, vocabulary=VECTORS, depth=1, pattern=config.pattern[-1:], tied=False, further=None, cap=None,
        input_position=NoPositionConfig(), embedding_scale=1.0,
    )  # fmt: skip
    held: dict[str, Held] = {
        name.replace(prefix, "blocks.0.", 1): _Floats(each.array().astype(np.float32, copy=False), bits)
        for name, each in weights.items()
        if name.startswith(prefix)
    }
    empty = _Floats(np.zeros((VECTORS, config.width), np.float32))
    held |= {"embedding": empty, "unembedding": empty, "norm.gain": _Floats(np.ones(config.width, np.float32))}
    norm = config.pattern[-1].norm
    if isinstance(norm, LayerNormConfig) and norm.bias:
        held["norm.bias"] = _Floats(np.zeros(config.width, np.float32))
    return plan(one, held)


def _write(of: Plan, vectors: ndarray) -> None:
    """Make the ids 0, 1, .. of a plan stand for these vectors [m, D]."""
    width, tiles = vectors.shape[1], -(-len(vectors) // TILE)
    start, _ = of.embedding
    table = of.weights[start : start + 4 * TILE * width * tiles].view(np.float32).reshape(tiles, width, TILE)
    whole = np.zeros((tiles * TILE, width), np.float32)
    whole[: len(vectors)] = vectors
    table[:] = whole.reshape(tiles, TILE, width).swapaxes(1, 2)
