"""A model file in words and numbers, without torch: what `temaki inspect` says."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temaki.base.errors import TemakiError
from temaki.formats import carry
from temaki.formats.opened import Opened
from temaki.model.config import (
    AlibiConfig,
    AttentionConfig,
    BlockConfig,
    BucketsConfig,
    DecoderConfig,
    DeltaNetConfig,
    EntmaxConfig,
    ExpertsConfig,
    GruConfig,
    GumbelConfig,
    LearnedConfig,
    LruConfig,
    LstmConfig,
    Mamba2Config,
    MambaConfig,
    NoNormConfig,
    NoPositionConfig,
    RecurrentConfig,
    RetNetConfig,
    RnnConfig,
    RopeConfig,
    RtfConfig,
    RwkvConfig,
    S4Config,
    S4DConfig,
    S5Config,
    ScalableConfig,
    SinkConfig,
    SinusoidalConfig,
    SoftmaxConfig,
    TaylorConfig,
    TopKConfig,
    ffn_width,
)
from temaki.model.count import count
from temaki.model.quantise import Blocks, Stored

PARTS = ("embedding", "positions", "mixers", "ffns", "norms", "head", "further")
"""Of `model.count.Count`: what adds up to all parameters."""


def told(opened: Opened) -> dict[str, Any]:
    """All that can be said, as JSON can say it. A part that is damaged says so under its name as `error`."""
    config = opened.config
    return {
        "path": str(opened.folder),
        "format": opened.format,
        "step": opened.step,
        "facts": {key: value for key, value in opened.facts.items() if _plain(value)},
        "shape": shape(config, opened.context),
        "parameters": parameters(config),
        "weights": _tried(lambda: weights(opened)),
        "tokenizer": _tried(lambda: tokenizer(opened)),
        "speaking": {key: value for key, value in vars(opened.speaking).items() if value not in (None, ())},
        "exports": [to for to in carry.TARGETS if carry.refusal(opened, to) is None],
        "warnings": list(opened.warnings),
    }


def shape(config: DecoderConfig, context: int | None) -> dict[str, Any]:
    """Sizes, and each kind of block in words."""
    return {
        "depth": config.depth,
        "width": config.width,
        "vocabulary": config.vocabulary,
        "context": context,
        "tied": config.tied,
        "input": _input(config),
        "blocks": [_block(block, config.width) for block in config.pattern],
    }


def parameters(config: DecoderConfig) -> dict[str, int]:
    """Parameters by part, counted from the configuration."""
    found = count(config)
    return {"total": found.total, **{name: vars(found)[name] for name in PARTS}}


def weights(opened: Opened) -> dict[str, Any]:
    """Arrays and bytes of each type that the file keeps numbers in."""
    arrays: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for weight in opened.weights().values():
        for stored, _ in weight.parts:
            kind, size = _kept(stored)
            arrays[kind] += 1
            sizes[kind] += size
    types = {kind: {"arrays": arrays[kind], "bytes": sizes[kind]} for kind, _ in sizes.most_common()}
    return {"bytes": sum(sizes.values()), "types": types}


def tokenizer(opened: Opened) -> dict[str, Any] | None:
    """Kind, size, special tokens, what stands around a text, whether chats can be written."""
    if opened.framed is None:
        return None
    found, frame = opened.framed
    return {
        "kind": found.kind,
        "size": found.size,
        "special": dict(found.special),
        "before": list(frame.before),
        "after": list(frame.after),
        "chat_template": opened.chat is not None,
        "fingerprint": found.fingerprint,
    }


def _tried(part: Any) -> Any:
    try:
        return part()
    except TemakiError as error:
        return {"error": str(error)}


def _plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_plain(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(_plain(inner) for inner in value)
    return value is None or isinstance(value, str | int | float)


def _kept(stored: Stored) -> tuple[str, int]:
    """The type of a stored array and its bytes."""
    if isinstance(stored, Blocks):
        return stored.kind, stored.data.nbytes
    return f"{'F' if stored.dtype.kind == 'f' else stored.dtype.kind.upper()}{8 * stored.dtype.itemsize}", stored.nbytes


def _input(config: DecoderConfig) -> str | None:
    """What is added to the embeddings or done to them."""
    said = []
    match config.input_position:
        case LearnedConfig(room=room):
            said.append(f"{room:,} learned positions")
        case SinusoidalConfig(base=base):
            said.append(f"sinusoidal positions (base {base:g})")
        case NoPositionConfig():
            pass
    if config.embedding_scale != 1:
        said.append(f"embeddings times {config.embedding_scale:g}")
    return ", ".join(said) or None


def _block(block: BlockConfig, width: int) -> str:
    """A block in words: mixer, feed-forward layer, norm."""
    return f"{_mixer(block, width)}; {_ffn(block, width)}; {_norm(block)}"


def _norm(block: BlockConfig) -> str:
    if isinstance(block.norm, NoNormConfig):
        return "no norm"
    names = {"rms": "RMSNorm", "layer": "LayerNorm", "batch": "BatchNorm"}
    return f"{names[block.norm.kind]} ({block.order}, eps {block.eps:g})"


def _mixer(block: BlockConfig, width: int) -> str:
    mixer = block.mixer
    if not isinstance(mixer, AttentionConfig):
        return _recurrent(mixer, width)
    heads = f"{mixer.heads} heads of {mixer.head_size(width)}"
    if mixer.groups != mixer.heads:
        heads += f", {mixer.groups} of keys and values"
    more = {
        f"window {mixer.window}": mixer.window is not None,
        f"bias {mixer.bias}": mixer.bias != "none",
        "queries and keys normalised": mixer.qk_norm,
        f"scores capped at {mixer.cap}": mixer.cap is not None,
        _map(mixer): not isinstance(mixer.map, SoftmaxConfig),
    }
    said = [f"{mixer.mask} attention", heads, _position(mixer), *(words for words, is_so in more.items() if is_so)]
    return ", ".join(said)


def _recurrent(mixer: RecurrentConfig, width: int) -> str:
    """A mixer with a state of fixed size in words."""
    match mixer:
        case S4DConfig() | S5Config():
            return f"{mixer.kind.upper()} of {mixer.states} states"
        case S4Config() | RtfConfig():
            return f"{mixer.kind.upper()} of {mixer.states} states, kernels of {mixer.length:,} ids"
        case LruConfig():
            return f"LRU of {mixer.states} complex states"
        case MambaConfig():
            return f"Mamba, {mixer.expand * width:,} channels of {mixer.states} states, convolution over {mixer.conv}"
        case Mamba2Config():
            each = f"{mixer.heads} heads of {mixer.expand * width // mixer.heads}"
            return f"Mamba-2, {each}, {mixer.states} states a channel, convolution over {mixer.conv}"
        case RetNetConfig():
            return f"retention, {mixer.heads} heads of {width // mixer.heads} (theta {mixer.theta:g})"
        case RwkvConfig():
            return f"RWKV, {mixer.heads} heads of {width // mixer.heads}, decays of rank {mixer.rank}"
        case DeltaNetConfig():
            each = f"{mixer.heads} heads of {width // mixer.heads}"
            return f"gated delta rule, {each}, convolution over {mixer.conv}"
        case RnnConfig() | GruConfig() | LstmConfig():
            return f"{mixer.kind.upper()} of {width if mixer.size is None else mixer.size:,}"


def _map(mixer: AttentionConfig) -> str:
    """What turns scores into attention weights, where it is not plain softmax."""
    match mixer.map:
        case EntmaxConfig(alpha=alpha, learned=learned):
            return f"entmax ({'learned from ' if learned else ''}alpha {alpha:g})"
        case TopKConfig(k=k):
            return f"softmax of the {k} largest"
        case TaylorConfig(order=order):
            return f"Taylor of order {order}"
        case GumbelConfig(temperature=temperature):
            return f"Gumbel softmax at {temperature:g}"
        case SinkConfig() | ScalableConfig():
            return f"{mixer.map.kind} softmax"
        case _:
            return f"map {mixer.map.kind}"


def _position(mixer: AttentionConfig) -> str:
    match mixer.position:
        case RopeConfig(theta=theta, pairs=pairs, scaling=scaling):
            stretched = f", {scaling.kind} scaling x{scaling.factor:g}" if scaling is not None else ""
            return f"rotary positions (theta {theta:g}, {pairs} pairs{stretched})"
        case AlibiConfig():
            return "ALiBi"
        case BucketsConfig(count=count, distance=distance):
            return f"{count} buckets of distance up to {distance}"
        case _:
            return "no rotary positions"


def _ffn(block: BlockConfig, width: int) -> str:
    ffn = block.ffn
    if isinstance(ffn, ExpertsConfig):
        return f"{ffn.experts} experts, {ffn.top} at a time, {ffn.expert.kind} of {ffn_width(ffn.expert, width):,}"
    return f"{ffn.kind} of {ffn_width(ffn, width):,}" + (", with bias" if ffn.bias else "")


def lines(found: Mapping[str, Any]) -> str:
    """The same for eyes."""
    rows = [("format", _format(found)), *_facts(found["facts"]), *_shape(found["shape"])]
    parts = [f"{value:,} {name}" for name, value in found["parameters"].items() if name != "total" and value]
    rows.append(("parameters", f"{found['parameters']['total']:,}: " + ", ".join(parts)))
    rows += [("weights", _weights(found["weights"])), *_tokenizer(found["tokenizer"])]
    if found["speaking"]:
        said = ", ".join(f"{key} {_short(value)}" for key, value in found["speaking"].items())
        rows.append(("speaking", said))
    rows.append(("exports to", ", ".join(found["exports"])))
    rows += [("warning", warning) for warning in found["warnings"]]
    return "\n".join([str(Path(found["path"])), *(f"  {name:<11} {_harmless(text)}" for name, text in rows)])


def _harmless(text: str) -> str:
    """The text without what would command a terminal: a file may say of itself what it likes."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def _format(found: Mapping[str, Any]) -> str:
    return found["format"] + (f", step {found['step']:,}" if found["step"] is not None else "")


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    said = [f"{key} {value}" for key, value in facts.items() if isinstance(value, str | int | float) and value != ""]
    return [("says", "; ".join(said)[:400])] if said else []


def _shape(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    context = f"{found['context']:,}" if found["context"] is not None else "not known"
    head = "tied to the embedding" if found["tied"] else "of its own"
    sizes = f"depth {found['depth']}, width {found['width']:,}, vocabulary {found['vocabulary']:,}, context {context}"
    rows = [("shape", f"{sizes}, head {head}")]
    if found["input"]:
        rows.append(("input", found["input"]))
    kinds = Counter(found["blocks"])
    for words, times in kinds.items():
        share = f"{times} of {len(found['blocks'])}: " if len(kinds) > 1 else ""
        rows.append(("block", share + words))
    return rows


def _weights(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return found["error"]
    kinds = (
        f"{kind} {each['bytes'] / 1e6:,.1f} MB in {each['arrays']} arrays" for kind, each in found["types"].items()
    )
    return f"{found['bytes'] / 1e6:,.1f} MB: " + ", ".join(kinds)


def _tokenizer(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return [("tokenizer", "none")]
    if "error" in found:
        return [("tokenizer", found["error"])]
    special = found["special"]
    named = ", ".join(f"{text} = {id}" for text, id in list(special.items())[:6])
    said = f"{found['kind']}, {found['size']:,} ids, {len(special)} special" + (f": {named}" if named else "")
    around = [f"{word} {' '.join(found[word])}" for word in ("before", "after") if found[word]]
    rows = [("tokenizer", said + (", .." if len(special) > 6 else ""))]
    if around:
        rows.append(("frame", ", ".join(around)))
    return [*rows, ("chat", "has a template" if found["chat_template"] else "no template")]


def _short(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
