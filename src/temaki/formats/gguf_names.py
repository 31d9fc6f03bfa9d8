"""Where GGUF keeps our weights: one table of entries, for all architectures.

Letters: D width, H heads, G heads of keys and values, K coordinates a head, F hidden width, E experts, V vocabulary.
"""

from collections.abc import Collection

from temaki.formats.weights import SAME, Change, Entry, Source, interleaved
from temaki.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    ExpertsConfig,
    FfnConfig,
    GegluConfig,
    LayerNormConfig,
    LearnedConfig,
    NormConfig,
    PlainFfnConfig,
    RopeConfig,
    SwigluConfig,
    ffn_width,
)

ROPE_FACTORS = "rope_freqs.weight"
"""What each pair's speed is divided by."""
HEAD = "output.weight"
IGNORED: Collection[str] = (ROPE_FACTORS,)
"""Arrays that are no weights; the configuration reads them."""

NORMS = {
    "pre": {"mixer_norm": "attn_norm", "ffn_norm": "ffn_norm"},
    "sandwich": {
        "mixer_norm": "attn_norm",
        "mixer_after": "post_attention_norm",
        "ffn_norm": "ffn_norm",
        "ffn_after": "post_ffw_norm",
    },
}
"""A block's norms by its order: ours and theirs."""


def entries(config: DecoderConfig, fused: bool, turned: bool = False) -> list[Entry]:
    """All weights of a model in the order in which they are written.

    `fused`: whether queries, keys and values are one array; `turned`: whether rows of queries and keys are pairs
    (2t, 2t + 1) there and (t, t + K/2) here.
    """
    found = [_whole("embedding", "token_embd.weight", (config.vocabulary, config.width))]
    if isinstance(config.input_position, LearnedConfig):
        room = (config.input_position.room, config.width)
        found.append(_whole("input_position.table", "position_embd.weight", room))
    for layer, block in enumerate(config.blocks):
        found += _block(block, config.width, f"blocks.{layer}", f"blk.{layer}", fused, turned)
    found += _norm(config.blocks[0].norm, config.width, "norm", "output_norm")
    if not config.tied:
        found.append(_whole("unembedding", HEAD, (config.vocabulary, config.width)))
    return found


def _block(block: BlockConfig, width: int, ours: str, theirs: str, fused: bool, turned: bool) -> list[Entry]:
    assert isinstance(block.mixer, AttentionConfig), "no other mixer has a place here"
    found: list[Entry] = []
    for name, there in NORMS[block.order].items():
        found += _norm(block.norm, width, f"{ours}.{name}", f"{theirs}.{there}")
    found += _attention(block.mixer, width, f"{ours}.mixer", theirs, fused, turned)
    if isinstance(block.ffn, ExpertsConfig):
        return found + _experts(block.ffn, width, f"{ours}.ffn", theirs)
    return found + _ffn(block.ffn, width, f"{ours}.ffn", theirs)


def _attention(mixer: AttentionConfig, width: int, ours: str, theirs: str, fused: bool, turned: bool) -> list[Entry]:
    size = mixer.head_size(width)
    rows = {"q": mixer.heads * size, "k": mixer.groups * size, "v": mixer.groups * size}
    every = sum(rows.values())
    turn = turned and isinstance(mixer.position, RopeConfig)
    changes = {"q": interleaved(mixer.heads), "k": interleaved(mixer.groups)} if turn else {}

    def projection(kind: str, inner: tuple[int, ...]) -> tuple[Source, ...]:
        if fused:
            return (Source(f"{theirs}.attn_qkv.{kind}", (every, *inner)),)
        return tuple(
            Source(f"{theirs}.attn_{name}.{kind}", (count, *inner), changes.get(name, SAME))
            for name, count in rows.items()
        )

    found = [Entry(f"{ours}.qkv", (every, width), projection("weight", (width,)))]
    if mixer.bias != "none":
        found.append(Entry(f"{ours}.qkv_bias", (every,), projection("bias", ())))
    if mixer.qk_norm:
        change = interleaved(1) if turn else SAME
        found += [
            _whole(f"{ours}.q_gain", f"{theirs}.attn_q_norm.weight", (size,), change),
            _whole(f"{ours}.k_gain", f"{theirs}.attn_k_norm.weight", (size,), change),
        ]
    found.append(_whole(f"{ours}.out", f"{theirs}.attn_output.weight", (width, mixer.heads * size)))
    if mixer.bias == "all":
        found.append(_whole(f"{ours}.out_bias", f"{theirs}.attn_output.bias", (width,)))
    return found


def gated(ffn: FfnConfig) -> bool:
    """Whether a feed-forward layer has a gate.

    >>> gated(SwigluConfig())
    True
    """
    return isinstance(ffn, SwigluConfig | GegluConfig)


def _ffn(ffn: PlainFfnConfig, width: int, ours: str, theirs: str) -> list[Entry]:
    hidden = ffn_width(ffn, width)
    names = ("gate", "up") if gated(ffn) else ("up",)

    def up(kind: str, inner: tuple[int, ...]) -> tuple[Source, ...]:
        return tuple(Source(f"{theirs}.ffn_{name}.{kind}", (hidden, *inner)) for name in names)

    found = [
        Entry(f"{ours}.up", (len(names) * hidden, width), up("weight", (width,))),
        _whole(f"{ours}.down", f"{theirs}.ffn_down.weight", (width, hidden)),
    ]
    if ffn.bias:
        found += [
            Entry(f"{ours}.up_bias", (len(names) * hidden,), up("bias", ())),
            _whole(f"{ours}.down_bias", f"{theirs}.ffn_down.bias", (width,)),
        ]
    return found


def _experts(ffn: ExpertsConfig, width: int, ours: str, theirs: str) -> list[Entry]:
    hidden, count = ffn_width(ffn.expert, width), ffn.experts
    names = ("gate", "up") if gated(ffn.expert) else ("up",)
    up = tuple(
        Source(f"{theirs}.ffn_{name}_exps.weight", (count, hidden, width), at=place)
        for place in range(count)
        for name in names
    )
    return [
        _whole(f"{ours}.router", f"{theirs}.ffn_gate_inp.weight", (count, width)),
        Entry(f"{ours}.up", (count, len(names) * hidden, width), up),
        _whole(f"{ours}.down", f"{theirs}.ffn_down_exps.weight", (count, width, hidden)),
        Entry(f"{ours}.bias", (count,), ()),
    ]


def _norm(norm: NormConfig, width: int, ours: str, theirs: str) -> list[Entry]:
    found = [_whole(f"{ours}.gain", f"{theirs}.weight", (width,))]
    if isinstance(norm, LayerNormConfig) and norm.bias:
        found.append(_whole(f"{ours}.bias", f"{theirs}.bias", (width,)))
    return found


def _whole(ours: str, theirs: str, shape: tuple[int, ...], change: Change = SAME) -> Entry:
    return Entry(ours, shape, (Source(theirs, shape, change),))
