"""Whether two opened models are one: configuration, logits, greedy tokens, tokenizer. What computes is the caller's.

Letters: T places of a piece, V vocabulary.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy import ndarray

from temaki.base import config as config_door
from temaki.base.errors import FormatError
from temaki.formats.opened import Opened
from temaki.formats.weights import some
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    PlainFfnConfig,
    RopeConfig,
    ffn_width,
)

CLOSE = 1e-4
"""How far logits of one model may differ, in parts of the largest: float32 in another order of sums."""
ALIKE = 1e-6
"""How far numbers of a configuration may differ, relatively: some formats keep them in float32."""
LONGEST = 512
"""Places of the longest piece that is compared."""
PROMPT = 24
"""Ids of a prompt, at most."""
GREEDY = 24
"""Tokens drawn after each prompt."""
TEXT = "Once upon a time there was a small boat. In 2024, `x = [i**2 for i in range(10)]` \u4f60\u597d, \U0001f363!\n"

BLOCK = re.compile(r"^pattern\.\d+\.")
"""How the keys of one block begin."""


class Voice(Protocol):
    """A model that can be asked, in float32."""

    def logits(self, pieces: Sequence[ndarray]) -> list[ndarray]:
        """float32 [T, V] for every piece of ids [T], all read in one call."""
        ...

    def greedy(self, prompt: ndarray, count: int) -> tuple[list[int], list[float]]:
        """The most probable ids that follow, drawn one by one with a cache, and how far each was ahead in logits."""
        ...


Speaker = Callable[[Opened], Voice]


@dataclass(frozen=True)
class Answers:
    """What a model says to the same questions as another."""

    logits: tuple[ndarray, ...]
    """float32 [T, V] for every piece."""
    greedy: tuple[tuple[list[int], list[float]], ...]
    """For every prompt, as `Voice.greedy` gives it."""


@dataclass(frozen=True)
class Difference:
    """How far two models are from each other on the same questions."""

    places: int
    """Places whose logits were compared."""
    longest: int
    """Places of the longest piece."""
    logits: float
    """The largest difference of two logits, in parts of the largest logit."""
    tokens: int
    """Greedy tokens drawn."""
    agreed: int
    """Of these, equal; the first that is not ends its prompt."""
    ties: int
    """Prompts ended by a tie: the best two logits were nearer than `CLOSE` allows to tell."""
    broken: int
    """Prompts ended by a token that is truly another."""

    @property
    def same(self) -> bool:
        """Whether they are one model, up to the order of sums."""
        return self.logits <= CLOSE and not self.broken

    def __str__(self) -> str:
        tied = f" ({self.ties} prompts end at a tie)" if self.ties else ""
        return (
            f"logits at {self.places} places (up to {self.longest} ids) differ by at most {self.logits:.1e} of the "
            f"largest; greedy tokens equal: {self.agreed} of {self.tokens}{tied}"
        )


def questions(opened: Opened, seed: int = 1) -> tuple[ndarray, ...]:
    """Pieces of ids for a model: single, short, as long as it was made for, and text where it has a tokenizer."""
    draw = np.random.default_rng(seed)
    most = min(opened.context or LONGEST, LONGEST)
    pieces = [draw.integers(opened.config.vocabulary, size=n) for n in sorted({1, min(7, most), min(33, most), most})]
    if opened.tokenizer is not None:
        front = np.array(opened.speaking.front, np.int64)
        pieces.append(np.concatenate([front, opened.tokenizer.encode(TEXT).astype(np.int64)])[:most])
    return tuple(piece.astype(np.int64) for piece in pieces)


def answers(voice: Voice, opened: Opened, pieces: Sequence[ndarray]) -> Answers:
    """The logits of all pieces and what follows the last two. Raises FormatError where a logit is not finite."""
    logits = voice.logits(pieces)
    if not all(np.isfinite(each).all() for each in logits):
        raise FormatError("the model's logits are not finite, so nothing can be proved of it", found=str(opened.folder))
    encoder = any(
        isinstance(block.mixer, AttentionConfig) and block.mixer.mask == "bidirectional"
        for block in opened.config.pattern
    )
    most = opened.context or LONGEST
    count = min(GREEDY, most // 2)
    drawn = () if encoder else tuple(voice.greedy(each[: min(PROMPT, most - count)], count) for each in pieces[-2:])
    return Answers(tuple(logits), drawn)


def difference(before: Answers, after: Answers) -> Difference:
    """How far `after` is from `before`."""
    largest = max(float(np.abs(each).max()) for each in before.logits)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(before.logits, after.logits, strict=True))
    agreed = ties = broken = 0
    for (one, ahead), (two, _) in zip(before.greedy, after.greedy, strict=True):
        equal = next((i for i, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1]), len(one))
        agreed += equal
        if equal < len(one):
            tied = ahead[equal] <= 2 * CLOSE * largest
            ties, broken = ties + tied, broken + (not tied)
    return Difference(
        places=sum(len(each) for each in before.logits),
        longest=max(len(each) for each in before.logits),
        logits=worst / max(largest, 1e-30),
        tokens=sum(len(ids) for ids, _ in before.greedy),
        agreed=agreed,
        ties=ties,
        broken=broken,
    )


class Unlike(NamedTuple):
    """A key that two configurations do otherwise."""

    key: str
    """Dotted; `pattern.*` where every block does so."""
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


ABSENT = "not there"
"""What a configuration says of a key that it has not."""


def unlike(before: DecoderConfig, after: DecoderConfig) -> list[Unlike]:
    """What two configurations do otherwise, none where both are the same function of their weights.

    Which coordinates make a rotary pair is a matter of the order of rows, so it may differ; so may initial values. Of
    two variants only the `kind` is told, of equal differences of all blocks one.

    >>> def one(heads):
    ...     block = BlockConfig(mixer=AttentionConfig(heads=heads))
    ...     return DecoderConfig(vocabulary=9, width=8, depth=2, pattern=(block,))
    >>> [str(each) for each in unlike(one(2), one(4))][:2]
    ['pattern.*.mixer.heads: 2 -> 4', 'pattern.*.mixer.kv_heads: 2 -> 4']
    """
    one, two = (_leaves(config_door.mapping(_plain(config))) for config in (before, after))
    found = [
        Unlike(key, one.get(key, ABSENT), two.get(key, ABSENT))
        for key in dict.fromkeys([*one, *two])
        if not _alike(one.get(key), two.get(key)) and not (key == "context" and key not in one)
    ]
    kinds = {each.key.removesuffix("kind") for each in found if each.key.endswith(".kind")}
    told = [each for each in found if each.key.endswith(".kind") or not _inside(each.key, kinds)]
    return _together(told, max(before.depth, after.depth))


def sides(unlike: Sequence[Unlike]) -> tuple[str, str]:
    """The first few differences in words: how they are before, and how after."""
    before = some([f"{each.key} {each.before}" for each in unlike])
    return before, some([f"{each.key} {each.after}" for each in unlike])


def _inside(key: str, tables: Collection[str]) -> bool:
    return any(key.startswith(table) for table in tables)


def _together(found: Sequence[Unlike], depth: int) -> list[Unlike]:
    """The same with a difference that every one of `depth` blocks has told once, where its first one stood."""
    shared = [each._replace(key=BLOCK.sub("pattern.*.", each.key)) for each in found]
    times = Counter(map(repr, shared))
    every = [one if times[repr(one)] == depth else each for one, each in zip(shared, found, strict=True)]
    return list({repr(each): each for each in every}.values())


def _plain(config: DecoderConfig) -> DecoderConfig:
    """The same model with every default written out and every mere convention set to one value."""
    return replace(config.learned, pattern=tuple(_block(block, config.width) for block in config.blocks))


def _block(block: BlockConfig, width: int) -> BlockConfig:
    mixer, ffn = block.mixer, block.ffn
    if isinstance(mixer, AttentionConfig):
        size = mixer.head_size(width)
        position = mixer.position
        if isinstance(position, RopeConfig):
            position = replace(position, pairs="half")
        scale = size**-0.5 if mixer.scale is None else mixer.scale
        mixer = replace(mixer, kv_heads=mixer.groups, size=size, scale=scale, position=position)
    if isinstance(ffn, ExpertsConfig):
        ffn = replace(ffn, expert=_wide(ffn.expert, width), balance=0.0)
    else:
        ffn = _wide(ffn, width)
    return replace(block, mixer=mixer, ffn=ffn)


def _wide(ffn: PlainFfnConfig, width: int) -> PlainFfnConfig:
    return replace(ffn, width=ffn_width(ffn, width))


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested tables and lists."""
    if isinstance(value, Mapping):
        pairs = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(str(place), inner) for place, inner in enumerate(value)]
    else:
        return {path: value}
    return {
        key: leaf for name, inner in pairs for key, leaf in _leaves(inner, f"{path}.{name}" if path else name).items()
    }


def _alike(one: Any, two: Any) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= ALIKE * max(abs(one), abs(two))
    return bool(one == two)


def facts(found: Difference) -> dict[str, Any]:
    """A difference as JSON can say it."""
    return asdict(found)
