"""How much memory a training run needs, counted from its recipe alone (no torch), before anything is built.

Letters: D width, F hidden width, H heads, G heads of keys and values, K head size, V vocabulary. What a block keeps for
the backward pass, floats an id, is read off its formulas: each product keeps its input, each norm what it normed, the
fused attention its queries, keys, values and result. The largest moment of a step is one of two: the backward pass
(activations and gradients, of which one shrinks while the other grows), or the update (gradients, and what the rule and
the norms by role hold beside them).
"""

from dataclasses import dataclass, replace

from temaki.base.errors import ConfigError
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    FfnConfig,
    GegluConfig,
    MedusaHeadsConfig,
    MixerConfig,
    NoPositionConfig,
    ParallelHeadsConfig,
    PlainFfnConfig,
    ReluConfig,
    SequentialHeadsConfig,
    SwigluConfig,
    ffn_width,
)
from temaki.model.count import count
from temaki.model.recurrent_shapes import shapes
from temaki.optim.config import AdamWConfig, MuonConfig, OptimConfig, OptimizerConfig, SgdConfig, SignumConfig
from temaki.train.config import RunConfig, freezes

EACH = 4
"""Bytes a number."""
BASE = 60e6
"""What the libraries take for themselves once they compute: threads, packed copies of matrices."""
CHUNK = 1 << 21
"""Logits held at a time, see `model/heads`; three copies of them."""
GB = 1e9


@dataclass(frozen=True)
class Room:
    """Bytes of one process at the largest moment of a step, by what they are."""

    weights: float
    gradients: float
    optimizer: float
    """Moments, and the average of the weights."""
    activations: float
    """Of a micro-batch."""
    update: float
    """What an update holds beside weights, gradients and moments: orthogonal matrices, norms by role."""
    accumulates: bool
    """Whether gradients of earlier micro-batches lie there while activations are made."""

    @property
    def total(self) -> float:
        """The larger of the backward pass and the update, beside what is always there."""
        grads = self.gradients
        backward = self.activations + grads if self.accumulates else max(self.activations, grads)
        return BASE + self.weights + self.optimizer + max(backward, grads + self.update)


def room(config: RunConfig, shards: int = 1, tensor: int = 1, replicas: int = 1) -> Room:
    """What one process needs, where `shards` processes share every parameter, `tensor` ones the large matrices of the
    blocks, and `replicas` the rows of a step.

    >>> from temaki.train.config import StopConfig
    >>> course = DecoderConfig(vocabulary=10_000, width=512, depth=4, tied=False,
    ...                        pattern=(BlockConfig(mixer=AttentionConfig(heads=16)),))
    >>> found = room(RunConfig(name="course", model=course, stop=StopConfig(steps=1)))
    >>> found.weights == 4 * count(course).total
    True
    """
    model, batch, parallel = config.model, config.batch, config.parallel
    parts, frozen = _parts(model, tensor), freezes(config.objective)
    learned = {"vector": count(model).further / tensor} if frozen else parts
    own, moving = sum(parts.values()) / shards, sum(learned.values()) / shards
    moments = sum(size * _moments(_rule(config.optim, role)) for role, size in learned.items()) / shards
    average = moving if config.optim.average is not None else 0
    ids = batch.micro_rows * batch.context / replicas
    floats = ids * (_kept_by_heads if frozen else kept)(model, parallel.checkpoint_activations, tensor)
    narrow = 0.6 if parallel.precision == "autocast-bf16" else 1.0
    whole = 2 * max(_block(block, model.width)[0] for block in model.blocks) if shards > 1 else 0
    muon = 2.0 * learned.get("matrix", 0.0) / shards if isinstance(config.optim.matrix, MuonConfig) else 0.0
    norms = 0 if config.watch.norms is None else moving + max(learned.values()) / shards
    return Room(
        weights=EACH * (own + whole),
        gradients=EACH * moving,
        optimizer=EACH * (moments + average),
        activations=EACH * (narrow * floats + 3 * CHUNK + 2.0 * model.vocabulary * model.width),
        update=EACH * (max(muon, norms) if norms else muon),
        accumulates=batch.micro_rows < batch.rows,
    )


def check(config: RunConfig, available: int | None, shards: int = 1, tensor: int = 1, replicas: int = 1) -> Room:
    """What one process needs. Raises ConfigError, with advice, where `available` bytes (None: unknown) are fewer."""
    found = room(config, shards, tensor, replicas)
    if available is None or found.total <= available:
        return found
    raise ConfigError(
        "the run will not fit in memory",
        found=f"about {found.total / GB:.1f} GB needed: weights {found.weights / GB:.1f}, "
        f"gradients {found.gradients / GB:.1f}, optimizer {found.optimizer / GB:.1f}, "
        f"activations {found.activations / GB:.1f}, update {found.update / GB:.1f}",
        allowed=f"{available / GB:.1f} GB that are free",
        do=advice(config, found, available, shards, tensor, replicas),
    )


def advice(config: RunConfig, found: Room, available: int, shards: int = 1, tensor: int = 1, replicas: int = 1) -> str:
    """What would make it fit: the largest micro-batch that does, checkpointing, sharing, another rule."""
    rest = found.total - found.activations
    said = []
    if not config.parallel.checkpoint_activations and found.activations > found.total / 4:
        said.append("parallel.checkpoint_activations=true")
    rows = _rows(config, available, shards, tensor, replicas)
    if rows is not None:
        said.append(f"batch.micro={rows * config.batch.context}")
    if rest > available / 2 and replicas > 1 and config.parallel.data == "replicate":
        said.append('parallel.data="shard"')
    if config.watch.norms is not None and found.update > found.total / 4:
        said.append("watch.norms left out")
    if isinstance(config.optim.matrix, AdamWConfig) and found.optimizer > found.total / 4:
        said.append('optim.matrix.kind="muon" (one moment, not two)')
    if not said or rest > available:
        said.append("a smaller model.width or model.depth")
    return "try " + ", or ".join(said)


def _rows(config: RunConfig, available: int, shards: int, tensor: int, replicas: int) -> int | None:
    """The most rows a micro-batch that fit, divide the step and are divided by replicas; None where none do."""
    batch = config.batch
    for each in range(batch.micro_rows - 1, 0, -1):
        if batch.rows % each or each % replicas:
            continue
        smaller = replace(config, batch=replace(batch, micro=each * batch.context))
        if room(smaller, shards, tensor, replicas).total <= available:
            return each
    return None


def kept(model: DecoderConfig, checkpointing: bool = False, tensor: int = 1) -> float:
    """Floats an id that a forward pass keeps for the backward pass: embedding, blocks, last norm, further heads.

    With checkpointing a block keeps its input, and one block at a time all.
    """
    each = [_kept(block, model.width, tensor) for block in model.blocks]
    blocks = len(each) * model.width + max(each) if checkpointing else sum(each)
    return blocks + 4.0 * model.width + _kept_by_heads(model, checkpointing, tensor)


def _kept_by_heads(model: DecoderConfig, checkpointing: bool, tensor: int) -> float:
    """Floats an id that the heads of further ids keep: all stacked vectors, then a block and norms each, or a layer."""
    if model.further is None:
        return 0.0
    d, heads, block = model.width, model.further.ids - 1, model.pattern[-1]
    match model.further.heads:
        case MedusaHeadsConfig():
            each = 4.0 * d
        case ParallelHeadsConfig():
            each = 2 * d + (d if checkpointing else _kept(block, d, tensor))
        case SequentialHeadsConfig():
            each = 9 * d + (d if checkpointing else _kept(block, d, tensor))
    return (heads + 1) * d + heads * each


def _kept(block: BlockConfig, d: int, tensor: int) -> float:
    """Floats an id that a block keeps: two norms' inputs and results, the mixer's, the feed-forward layer's."""
    norms = (8 if block.order == "sandwich" else 4) * d
    return norms + (_mixer(block.mixer, d) + _ffn(block.ffn, d)) / tensor


def _mixer(config: MixerConfig, d: int) -> float:
    """Floats an id that a mixer keeps beside its input."""
    match config:
        case AttentionConfig():
            size = config.head_size(d)
            queries, keys = config.heads * size, config.groups * size
            turned = queries + keys if config.qk_norm or not isinstance(config.position, NoPositionConfig) else 0
            normed = queries + keys if config.qk_norm else 0
            return queries + 2 * keys + turned + normed + queries
        case _:
            return shapes(config, d).kept


def _ffn(config: FfnConfig, d: int) -> float:
    """Floats an id that a feed-forward layer keeps beside its input."""
    if isinstance(config, ExpertsConfig):
        return config.top * (_plain(config.expert, d) + 3 * d) + 2 * config.experts
    return _plain(config, d)


def _plain(config: PlainFfnConfig, d: int) -> float:
    hidden = ffn_width(config, d)
    if isinstance(config, SwigluConfig | GegluConfig):
        return 4.0 * hidden  # both halves, the activation, the product
    return (3.0 if isinstance(config, ReluConfig) and config.power == 2 else 2.0) * hidden


def _parts(model: DecoderConfig, tensor: int) -> dict[str, float]:
    """Parameters of one process by role, before they are shared among `shards`."""
    found = count(model)
    table = model.vocabulary * model.width
    inner = found.matrix - table
    rest = found.total - found.matrix - (0 if model.tied else table)
    return {"matrix": inner / tensor, "embedding": table, "head": found.head, "vector": rest}


def _block(block: BlockConfig, d: int) -> tuple[float, float]:
    one = count(DecoderConfig(vocabulary=1, width=d, depth=1, pattern=(block,)))
    return one.total, one.matrix


def _rule(optim: OptimConfig, role: str) -> OptimizerConfig:
    rules: dict[str, OptimizerConfig] = {
        "matrix": optim.matrix, "embedding": optim.embedding, "head": optim.head, "vector": optim.vector,
    }  # fmt: skip
    return rules[role]


def _moments(rule: OptimizerConfig) -> int:
    """Numbers that a rule keeps a parameter.

    >>> _moments(AdamWConfig()), _moments(MuonConfig()), _moments(SgdConfig())
    (2, 1, 0)
    """
    match rule:
        case AdamWConfig():
            return 2
        case SgdConfig() | SignumConfig():
            return 1 if rule.momentum else 0
        case _:
            return 1
